"""Compile every kernel of the workloads, so that the next process finds them all in the disk cache."""

from __future__ import annotations

import numpy as np

from vmmsim.workloads.phased import SHORT
from vmmsim.workloads.programs import PROGRAMS, named
from vmmsim.workloads.recorded import warm as warm_recorded


def warm() -> None:
    """Run each kernel once on a toy."""
    for name in PROGRAMS:
        workload = named(name, seed=0, vm="warm", memory_bytes=1 << 20, footprint_bytes=1 << 20)
        x = workload.begins
        workload.stream(x - 1, 2)
        workload.touched(x, x + SHORT + 1)
        workload.touched_among(np.array([workload.regions[0].start]), x, x + SHORT + 1)
    warm_recorded()
