"""Descriptions of workloads as a scenario gives them, without the scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from vmmsim.protocols import Workload
from vmmsim.workloads.programs import build


@attrs.frozen(kw_only=True)
class Described:
    """The attributes that ``build`` reads."""

    name: str | None = None
    trace: str | None = None
    use: str | None = None
    footprint_bytes: int | None = None
    repeat: bool = False
    parameters: dict[str, Any] = attrs.field(factory=dict)


def built(
    *, seed: int = 1, vm: str = "db", memory_bytes: int = 1 << 30, folder: Path = Path(), **keys: Any
) -> Workload:
    return build(Described(**keys), seed=seed, vm=vm, memory_bytes=memory_bytes, folder=folder)


PAGES = {"gups": 100, "memcached": 80, "graph500": 136, "web": 90, "kernel-build": 96}
"""Small footprints of all programs."""
SMALL: dict[str, dict[str, Any]] = {
    "web": {"processes": 3},
    "kernel-build": {"jobs": 3, "accesses_per_job": 10_000},
}


def small(name: str, *, factor: int = 1, **keys: Any) -> Workload:
    """Return the program ``name`` in a small footprint; ``factor`` makes it larger."""
    return built(name=name, footprint_bytes=factor * PAGES[name] << 12, parameters={**SMALL.get(name, {}), **keys})
