"""Address translation and the life of memory on one virtualized host, in one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmsim.config import Mode
from vmmsim.errors import BadInput, Refused

if TYPE_CHECKING:
    from vmmsim.result import Result, load
    from vmmsim.runs import simulate
    from vmmsim.scenario import VM, Event, Host, Scenario, Workload
    from vmmsim.studies.explain import explain
    from vmmsim.studies.replay import replay
    from vmmsim.studies.tradeoffs import tradeoffs

__version__ = "0.1.0"
__all__ = [
    "VM",
    "BadInput",
    "Event",
    "Host",
    "Mode",
    "Refused",
    "Result",
    "Scenario",
    "Workload",
    "__version__",
    "explain",
    "load",
    "replay",
    "simulate",
    "tradeoffs",
]

_LATER = {
    "Result": "vmmsim.result",
    "load": "vmmsim.result",
    "simulate": "vmmsim.runs",
    "VM": "vmmsim.scenario",
    "Event": "vmmsim.scenario",
    "Host": "vmmsim.scenario",
    "Scenario": "vmmsim.scenario",
    "Workload": "vmmsim.scenario",
    "explain": "vmmsim.studies.explain",
    "replay": "vmmsim.studies.replay",
    "tradeoffs": "vmmsim.studies.tradeoffs",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: the engine behind it takes half a second to load."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
