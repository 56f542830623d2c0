"""Address translation and the life of memory on one virtualized host, in one model."""

__version__ = "0.1.0"
