"""Address translation and the life of memory on one virtualized host, in one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmsim.config import Mode
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from vmmsim.result import Result, load
    from vmmsim.studies.explain import explain
    from vmmsim.studies.replay import replay

__version__ = "0.1.0"
__all__ = ["BadInput", "Mode", "Result", "__version__", "explain", "load", "replay"]

_LATER = {
    "Result": "vmmsim.result",
    "explain": "vmmsim.studies.explain",
    "load": "vmmsim.result",
    "replay": "vmmsim.studies.replay",
}


def __getattr__(name: str) -> Any:
    """Import what takes long to load when it is first asked for: the engine behind a study takes half a second."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
