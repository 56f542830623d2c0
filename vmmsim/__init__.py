"""Address translation and the life of memory on one virtualized host, in one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmsim.config import Mode
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from vmmsim.studies.explain import explain
    from vmmsim.studies.replay import replay

__version__ = "0.1.0"
__all__ = ["BadInput", "Mode", "__version__", "explain", "replay"]

_STUDIES = {"explain": "vmmsim.studies.explain", "replay": "vmmsim.studies.replay"}


def __getattr__(name: str) -> Any:
    """Import a study when it is first asked for: the engine behind it takes half a second to load."""
    if name in _STUDIES:
        from importlib import import_module

        return getattr(import_module(_STUDIES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
