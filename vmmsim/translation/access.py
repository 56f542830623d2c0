"""One access, down the ladder: L1 TLB, guest segment beside L2 TLB, guest dimension, nested dimension, fill.

One path for all modes. What a mode has not is off: a segment with BASE = LIMIT, an identity in place of nested
tables. The rules, numbered as here, are docs/engine.md; spec.py says the same in dicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.caches import data_cycles
from vmmsim.translation.chunk import FETCH, WRITE
from vmmsim.translation.journal import begin, counted, log, roll_back
from vmmsim.translation.recency import touch
from vmmsim.translation.segment import covers, largest_size
from vmmsim.translation.state import (
    FAULT_COUNT,
    GUEST,
    IDENTITY,
    L1_DATA,
    L1_FETCH,
    L2,
    NESTED,
    SEGMENT,
    Count,
    Step,
)
from vmmsim.translation.tlb import (
    CAN_EXECUTE,
    CAN_WRITE,
    GLOBAL_KIND,
    IS_DIRTY,
    RIGHTS,
    drop_found,
    fill_both,
    frame_in,
    look_up,
    size_of,
)
from vmmsim.translation.walk import (
    ANSWER_COVERED,
    ANSWER_FRAME_SHIFT,
    ANSWER_SIZE_SHIFT,
    FAILED,
    GUEST_GLOBAL,
    answer,
    guest_walk,
    translate_nested,
)

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core, Pool

# How an access that no TLB level served comes to the walker.
MISSED: Final = 0
LACKS_RIGHT: Final = 1
LACKS_DIRTY: Final = 2

UNDECIDED: Final = -1


@inlined
def wanted_rights(kind: int) -> int:
    """Return the rights that an access needs: a write CAN_WRITE and IS_DIRTY, a fetch CAN_EXECUTE."""
    return (CAN_WRITE | IS_DIRTY if kind & WRITE else 0) | (CAN_EXECUTE if kind & FETCH else 0)


@inlined
def lack(value: int, want: int) -> int:
    """Return what an entry with ``value`` that does not have all the rights ``want`` lacks."""
    return LACKS_DIRTY if value & want == want & ~IS_DIRTY else LACKS_RIGHT


@kernel
def access(core: Core, cells: Cells, pool: Pool, gvpn: int, line: int, kind: int) -> int:
    """Translate one access and count it; return 0, or why it could not be, everything then as before.

    kind  chunk.WRITE, chunk.FETCH or 0

    Accesses, and those that the L1 TLB served, are left to the caller to count: it sums them up.
    """
    apart()
    l1 = L1_FETCH if kind & FETCH else L1_DATA
    want = wanted_rights(kind)
    why = MISSED
    covered = UNDECIDED
    # 1. L1 TLB.
    found, at, ways, way = look_up(core, cells, l1, gvpn)
    l1_missed = way < 0
    if way >= 0:
        value = cells[at + ways + way]
        if value & want == want:
            touch(cells, at, ways, cells[at + way])
            if core.hierarchy:
                use_line(core, cells, frame_in(value, size_of(found), gvpn), line, kind)
            return 0
        why = lack(value, want)
    begin(core)
    # 2. The guest segment beside the L2 TLB, 3. the L2 TLB.
    if l1_missed:
        if core.kind[GUEST] == SEGMENT and not core.segment_after_l2:
            covered = 1 if covers(core, GUEST, gvpn) else 0
        if covered != 1:
            found, at, ways, way = look_up(core, cells, L2, gvpn)
            if way >= 0:
                value = cells[at + ways + way]
                if value & want == want:
                    touch(cells, at, ways, cells[at + way])
                    hfn = frame_in(value, size_of(found), gvpn)
                    fill_both(core, cells, l1, found, gvpn, hfn, value & RIGHTS, False)
                    core.count[Count.DATA_L1_MISSES + l1] += 1
                    core.count[Count.L2_HITS] += 1
                    if core.hierarchy:
                        use_line(core, cells, hfn, line, kind)
                    return 0
                why = lack(value, want)
    return miss(core, cells, pool, gvpn, line, kind, l1_missed, covered, why)


@inlined
def miss(
    core: Core,
    cells: Cells,
    pool: Pool,
    gvpn: int,
    line: int,
    kind: int,
    l1_missed: bool,
    covered: int,
    why: int,
) -> int:
    """Go on where no TLB level served the access: guest dimension, nested dimension, class, fill.

    l1_missed  the L1 TLB held no entry, not even one that lacks a right
    covered    1 or 0 if the guest segment was compared already, UNDECIDED if not
    why        MISSED, or what a TLB entry lacked
    """
    l1 = L1_FETCH if kind & FETCH else L1_DATA
    is_write = kind & WRITE != 0
    # 4. The guest dimension.
    if covered == UNDECIDED:
        covered = 1 if covers(core, GUEST, gvpn) else 0
    if covered:
        guest = answer(gvpn + core.segment_offset[GUEST], 2, RIGHTS)
        log(core, Step.GUEST_CHECK, 0, gvpn, -1, guest >> ANSWER_FRAME_SHIFT)
        core.count[Count.BASE_BOUND_CHECKS] += 1
    else:
        guest = guest_walk(core, cells, pool, gvpn, is_write, kind & FETCH != 0)
        if guest == FAILED:
            return fail(core, cells, pool, gvpn)
    # 5. The nested dimension.
    nested = translate_nested(core, cells, pool, guest >> ANSWER_FRAME_SHIFT, is_write, False)
    if nested == FAILED:
        return fail(core, cells, pool, gvpn)
    # 6. Class. Nothing from here on fails: what the walk changed and counted stands.
    classify(core, covered, nested)
    if l1_missed:
        core.count[Count.DATA_L1_MISSES + l1] += 1
    # 7. Rewalks.
    if why == MISSED:
        core.count[Count.L2_MISSES] += 1
    else:
        core.count[Count.REWALKS] += 1
        core.count[Count.DIRTY_WALKS] += 1 if why == LACKS_DIRTY else 0
        drop_found(core, cells, l1, gvpn)
        drop_found(core, cells, L2, gvpn)
    # 8. Fill.
    hfn = nested >> ANSWER_FRAME_SHIFT
    entry = fill_size(core, pool, gvpn, guest, nested, covered)
    entry += GLOBAL_KIND if not covered and guest & GUEST_GLOBAL else 0
    to_l2 = covered == 0 or core.segment_fills_l2 != 0
    fill_both(core, cells, l1, entry, gvpn, hfn, guest & (nested | CAN_EXECUTE) & RIGHTS, to_l2)
    # 9. Data.
    if core.hierarchy:
        use_line(core, cells, hfn, line, kind)
    return 0


@inlined
def use_line(core: Core, cells: Cells, hfn: int, line: int, kind: int) -> None:
    """Let the access itself go through the caches, now that it has an hPA."""
    core.count[Count.DATA_CYCLES] += data_cycles(core, cells, hfn << 6 | line, 1 if kind & FETCH else 0)


@inlined
def classify(core: Core, covered: int, nested: int) -> None:
    """Count the class of a translation, which the data page alone decides, and its cycles."""
    nested_covered = core.kind[NESTED] == IDENTITY or nested & ANSWER_COVERED != 0
    if covered and nested_covered:
        # Two adds that can be summed beforehand: one compare, no reference, no cycle beside the L2 TLB.
        core.count[Count.SEGMENT_0D] += 1
        core.count[Count.BASE_BOUND_CHECKS] -= counted(core, Count.BASE_BOUND_CHECKS) - 1
        return
    core.count[Count.WALKS] += 1
    if covered:
        core.count[Count.WALK_NESTED] += 1
    elif nested_covered:
        core.count[Count.WALK_GUEST] += 1
    else:
        core.count[Count.WALK_BOTH] += 1
    if core.hierarchy:
        cached = counted(core, Count.WALK_CACHE_HITS) + counted(core, Count.NESTED_WALK_CACHE_HITS)
        core.count[Count.WALK_CYCLES] += (
            counted(core, Count.BASE_BOUND_CHECKS) * core.check_cycles
            + cached * core.walk_cache_cycles
            + counted(core, Count.NESTED_TLB_HITS) * core.nested_tlb_cycles
        )


@inlined
def fill_size(core: Core, pool: Pool, gvpn: int, guest: int, nested: int, covered: int) -> int:
    """Return the size of the TLB entry: the smaller of what the two dimensions contribute."""
    by_segment = nested & ANSWER_COVERED != 0
    guest_size = guest >> ANSWER_SIZE_SHIFT & 3
    nested_size = nested >> ANSWER_SIZE_SHIFT & 3
    if covered and (by_segment or core.kind[NESTED] == IDENTITY) and not core.dd_largest:
        return 0
    if covered and nested_size:
        guest_size = largest_size(core, pool, GUEST, gvpn, nested_size)
    if by_segment and guest_size:
        nested_size = largest_size(core, pool, NESTED, guest >> ANSWER_FRAME_SHIFT, guest_size)
    return min(guest_size, nested_size)


@kernel
def fail(core: Core, cells: Cells, pool: Pool, gvpn: int) -> int:
    """Undo what the walk did, count the exit and return it."""
    apart()
    roll_back(core, cells, pool)
    core.fault_gvpn = gvpn
    core.count[FAULT_COUNT + core.fault] += 1
    return core.fault
