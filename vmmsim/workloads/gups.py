"""GUPS, HPC Challenge's RandomAccess: read-modify-writes of words of one large table, uniformly at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.jit import kernel
from vmmsim.workloads.drawing import below
from vmmsim.workloads.phased import Phased, laid_out
from vmmsim.workloads.touching import Mix

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class GupsParameters:
    """Nothing can be chosen but the footprint."""


class Gups(Phased):
    """One access an update: a load and a store of the same word at once, which is a write."""

    def __init__(self, pages: int, parameters: GupsParameters, *, seed: int, vm: str, ideal_cycles: float) -> None:
        regions = laid_out(("table", pages), primary="table")
        super().__init__("gups", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        _update(self.key("update", vcpu), y, self.regions[0].start, self.pages, pages)
        writes[:] = True

    def pieces(self, y0: int, y1: int) -> list[Mix]:
        never, each = np.zeros(1, np.float32), np.full(1, 1 / self.pages, np.float32)
        return [Mix(self.regions[0].start, never, each, self.pages, self.key("touched"), 0, y1)]


@kernel
def _update(key: int, y: int, start: int, pages: int, out: NDArray[np.int64]) -> None:
    """Write the gvpns of the updates from y on to ``out``, int64[n]."""
    for i in range(out.size):
        out[i] = start + below(key, y + i, pages)
