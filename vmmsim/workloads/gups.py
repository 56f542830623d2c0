"""GUPS, HPC Challenge's RandomAccess: read-modify-writes of words of one large table, uniformly at random.

Beside the table it may have scratch memory of its own, which it uses alike: pages that no guest segment is made for.
"""

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
    """What can be chosen beside the footprint."""

    scratch_share: float = 0.0
    """Share of the footprint, and of the updates, that lies beside the table."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.scratch_share < 1:
            raise ValueError("scratch_share must be at least 0 and below 1")


class Gups(Phased):
    """One access an update: a load and a store of the same word at once, which is a write."""

    def __init__(self, pages: int, parameters: GupsParameters, *, seed: int, vm: str, ideal_cycles: float) -> None:
        scratch = min(round(pages * parameters.scratch_share), pages - 1)
        beside = (("scratch", scratch),) if scratch else ()
        regions = laid_out(("table", pages - scratch), *beside, primary="table")
        super().__init__("gups", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)
        self._bounds = np.array([[region.start, region.pages] for region in regions], np.int64)

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        _update(self.key("update", vcpu), y, self._bounds, self.pages, pages)
        writes[:] = True

    def pieces(self, y0: int, y1: int) -> list[Mix]:
        never, each = np.zeros(1, np.float32), np.full(1, 1 / self.pages, np.float32)
        keys = (self.key("touched"), self.key("touched", "scratch"))
        return [
            Mix(region.start, never, each, region.pages, key, 0, y1)
            for region, key in zip(self.regions, keys, strict=False)
        ]


@kernel
def _update(key: int, y: int, bounds: NDArray[np.int64], pages: int, out: NDArray[np.int64]) -> None:
    """Write the gvpns of the updates from y on to ``out``, int64[n]; ``bounds`` has start and pages of each region."""
    for i in range(out.size):
        at = below(key, y + i, pages)
        region = 0
        while at >= bounds[region, 1]:
            at -= bounds[region, 1]
            region += 1
        out[i] = bounds[region, 0] + at
