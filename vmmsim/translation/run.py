"""A chunk of accesses, until it ends or the OS is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import bare, kernel
from vmmsim.translation.access import access
from vmmsim.translation.chunk import AGAIN_MAX, AGAIN_SHIFT, FIELD_MASK_LINE, GVPN_SHIFT, LINE_SHIFT
from vmmsim.translation.state import Count, Exit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.translation.types import Cells, Core, Pool


@kernel
def run(
    core: Core, cells: Cells, pool: Pool, chunk: NDArray[np.int64], missed: NDArray[np.int64]
) -> tuple[int, int, int]:
    """Translate ``chunk`` and count; stop before the first access that faults.

    core    CORE record, written to
    cells   int64[n], written to: this core's structures
    pool    int64[nodes * 512], written to: accessed and dirty bits
    chunk   int64[n], packed accesses (chunk.py)
    missed  int64[0], or int64[n] to be written: the gvpn of each access that both TLB levels missed, in order

    Return (runs done, Exit, how many gvpns were written to ``missed``).
    """
    held, tables = bare(cells), bare(pool)
    accesses = 0
    misses = 0
    others = core.count[Count.L2_HITS] + core.count[Count.SEGMENT_0D] + core.count[Count.WALKS]
    done = chunk.size
    outcome = 0
    l2_misses = core.count[Count.L2_MISSES]
    for i in range(chunk.size):
        word = chunk[i]
        outcome = access(core, held, tables, word >> GVPN_SHIFT, word >> LINE_SHIFT & FIELD_MASK_LINE, word & 3)
        if outcome != Exit.DONE:
            done = i
            break
        accesses += 1 + (word >> AGAIN_SHIFT & AGAIN_MAX)
        if missed.size > 0 and core.count[Count.L2_MISSES] != l2_misses:
            l2_misses = core.count[Count.L2_MISSES]
            missed[misses] = word >> GVPN_SHIFT
            misses += 1
    core.count[Count.ACCESSES] += accesses
    # What no deeper level served, the L1 TLB did.
    others = core.count[Count.L2_HITS] + core.count[Count.SEGMENT_0D] + core.count[Count.WALKS] - others
    core.count[Count.L1_HITS] += accesses - others
    return done, outcome, misses
