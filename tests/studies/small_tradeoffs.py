"""A VM of 3 GiB on which the experiment of trade-offs is over in seconds: most of it is above an I/O gap at 2 GiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmmsim.scenario import Scenario
from vmmsim.scenario_file import checked


def small_scenario(**vm: Any) -> Scenario:
    """Return the scenario; ``vm``: keys of the VM's table in place of those here."""
    described = {
        "memory": "3GiB",
        "machine_type": "q35",
        "io_gap": "reclaim",
        "thp": "never",
        "workload": {"name": "gups", "footprint": "320MiB", "scratch_share": 0.5},
        **vm,
    }
    return checked(
        {
            "run": {"until": "10m", "detail": "lifetime"},
            "host": {
                "memory": "5GiB",
                "thp": "never",
                "compaction": {"bandwidth": "10GiB/s", "proactiveness": 0},
                "sharing": {},
                "swap": {"device": "zram", "size": "64MiB"},
            },
            "vm": {"db": described},
        },
        name="small",
        folder=Path.cwd(),
    )
