"""A life of two seconds on a host of 64 MiB, described as in a scenario file, on a machine of a few entries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vmmsim import strict
from vmmsim.config import Machine
from vmmsim.scenario import Scenario
from vmmsim.scenario_file import checked
from vmmsim.simulation import Simulation

TOY_MACHINE: Final[dict[str, Any]] = {
    "name": "toy",
    "frequency": "1GHz",
    "l1_data_tlb": [{"entries": 2, "ways": 2, "pages": ["4K", "2M", "1G"]}],
    "l1_instruction_tlb": [{"entries": 2, "ways": 2, "pages": ["4K", "2M", "1G"]}],
    "l2_tlb": [{"entries": 4, "ways": 2, "pages": ["4K", "2M"]}],
    "nested_tlb": [{"entries": 2, "ways": 2, "pages": ["4K", "2M", "1G"]}],
    "walk_cache": {"l2": {"entries": 2, "ways": 2}},
    "nested_walk_cache": {"l2": {"entries": 2, "ways": 2}},
    "caches": {
        "l1_data": {"size": "128B", "ways": 2, "cycles": 4},
        "l1_instruction": {"size": "128B", "ways": 2, "cycles": 4},
        "l2": {"size": "256B", "ways": 2, "cycles": 12},
        "memory_cycles": 100,
    },
}
"""A machine so small that a few pages meet every case: evictions, and hits of each cache."""


def toy_machine() -> Machine:
    """Return the toy machine as a description."""

    return strict.structure(Machine, TOY_MACHINE, "the toy machine")


def toy_scenario(
    *,
    host: Mapping[str, Any] | None = None,
    vm: Mapping[str, Mapping[str, Any]] | None = None,
    event: tuple[Mapping[str, Any], ...] = (),
    **tables: Mapping[str, Any],
) -> Scenario:
    """Return a life that is over in a second: 64 MiB of host, a VM ``db`` of 16 MiB running gups, 2 s of its time.

    Each table has the keys that a scenario file's has; what is given replaces what is there, key by key.
    """

    alone: dict[str, Mapping[str, Any]] = {"db": {}}
    vms = {name: {**TOY_VM, **described} for name, described in (alone if vm is None else vm).items()}
    return checked(
        {
            "run": {"until": "2s", **tables.get("run", {})},
            "host": {"memory": "64MiB", "kernelcore": "16MiB", **(host or {})},
            "vm": vms,
            "event": list(event),
            "measure": {"every": "500ms", "window": 1000, **tables.get("measure", {})},
        },
        name="toy",
        folder=Path.cwd(),
    )


TOY_VM: Final = {"memory": "16MiB", "workload": {"name": "gups", "footprint": "1MiB"}}
"""A VM of a toy life."""


def toy_life(scenario: Scenario, *, checked: bool = True) -> Simulation:
    """Return the simulation of ``scenario`` on the toy machine, not begun; ``checked``: recounts after every event."""

    return Simulation(scenario, machine=toy_machine(), check=checked)
