"""A chunk of accesses, until it ends or the OS is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import bare, inlined, kernel
from vmmsim.translation.access import access, use_line, wanted_rights
from vmmsim.translation.chunk import AGAIN_MAX, AGAIN_SHIFT, FETCH, FIELD_MASK_LINE, GVPN_SHIFT, LINE_SHIFT, WRITE
from vmmsim.translation.state import L1_DATA, L1_FETCH, Count, Exit
from vmmsim.translation.tlb import VALUE_SHIFT, key_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.translation.types import Cells, Core, Pool


@inlined
def first_way(core: Core, l1: int) -> tuple[int, int, int]:
    """Return start, mask and ways of the part of an L1 TLB that holds 4K entries."""
    part = 3 * l1
    return core.part_start[part], core.part_mask[part], core.part_ways[part]


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
    context = core.context
    data, fetch = first_way(core, L1_DATA), first_way(core, L1_FETCH)
    accesses = 0
    misses = 0
    others = core.count[Count.L2_HITS] + core.count[Count.SEGMENT_0D] + core.count[Count.WALKS]
    done = chunk.size
    outcome = 0
    l2_misses = core.count[Count.L2_MISSES]
    for i in range(chunk.size):
        word = chunk[i]
        gvpn, line, kind = word >> GVPN_SHIFT, word >> LINE_SHIFT & FIELD_MASK_LINE, word & (WRITE | FETCH)
        # FAST PATH: the page used last in its set of the L1 TLB, by a 4K entry of this context.
        start, mask, ways = fetch if kind & FETCH else data
        at = start + (gvpn & mask) * (2 * ways)
        value = held[at + ways]
        want = wanted_rights(kind)
        if held[at] == key_of(context, 0, 0, gvpn) and value & want == want:
            if core.hierarchy:
                use_line(core, held, value >> VALUE_SHIFT, line, kind)
        else:
            outcome = access(core, held, tables, gvpn, line, kind)
            if outcome != Exit.DONE:
                done = i
                break
            if missed.size > 0 and core.count[Count.L2_MISSES] != l2_misses:
                l2_misses = core.count[Count.L2_MISSES]
                missed[misses] = gvpn
                misses += 1
        accesses += 1 + (word >> AGAIN_SHIFT & AGAIN_MAX)
    core.count[Count.ACCESSES] += accesses
    # What no deeper level served, the L1 TLB did.
    others = core.count[Count.L2_HITS] + core.count[Count.SEGMENT_0D] + core.count[Count.WALKS] - others
    core.count[Count.L1_HITS] += accesses - others
    return done, outcome, misses
