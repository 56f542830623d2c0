"""Walks: the guest dimension (gVA to gPA), the nested dimension (gPA to hPA), and the two-dimensional walk they make.

With nothing cached, 4 levels on both sides and no segment, the references come in this order::

                  nested walk        guest entry
    guest L4     1    2    3    4         5
    guest L3     6    7    8    9        10
    guest L2    11   12   13   14        15
    guest L1    16   17   18   19        20
    data page   21   22   23   24

A walk may fail at any of them. Whatever it changed until then stands in the journal (recency.py), and the counters as
they were before: `journal.roll_back` makes the failed access unmade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.caches import reference_cycles
from vmmsim.translation.journal import log, write_entry
from vmmsim.translation.page_table import (
    ACCESSED,
    DIRTY,
    EXECUTABLE,
    GLOBAL,
    PRESENT,
    WRITABLE,
    frame_of,
    is_leaf,
    node_of,
    slot,
)
from vmmsim.translation.recency import put_noted, touch_noted
from vmmsim.translation.segment import covers
from vmmsim.translation.state import GUEST, IDENTITY, NESTED, NESTED_PART, WALK_PART, Count, Exit, Step
from vmmsim.translation.tlb import (
    CAN_EXECUTE,
    CAN_WRITE,
    IS_DIRTY,
    NESTED_KIND,
    RIGHTS,
    frame_in,
    key_of,
    look_up_nested,
    set_at,
    value_for,
)
from vmmsim.translation.walk_cache import NODE_BITS, NODE_MASK, look_up_table, remember_table

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core, Pool

# What the nested dimension answers, in one word: frame, size, rights, and whether the VMM segment covered the gfn.
ANSWER_SIZE_SHIFT: Final = 3
ANSWER_COVERED: Final = 32
ANSWER_FRAME_SHIFT: Final = 6
FAILED: Final = -1


@inlined
def answer(frame: int, size: int, rights: int) -> int:
    """Return the nested dimension's answer: the frame of the gfn, its leaf's size and rights."""
    return frame << ANSWER_FRAME_SHIFT | size << ANSWER_SIZE_SHIFT | rights


@inlined
def _reference(core: Core, cells: Cells, frame: int, index: int) -> None:
    """Charge the read of one entry of the table in host frame ``frame``."""
    if core.hierarchy:
        core.count[Count.WALK_CYCLES] += reference_cycles(core, cells, frame << 6 | index >> 3)


@kernel
def nested_walk(core: Core, cells: Cells, pool: Pool, gfn: int, is_write: bool) -> int:
    """Read nested tables for ``gfn``; return the answer, or FAILED with core.fault set (NESTED_FAULT or NESTED_WRITE).

    pool is written to: accessed and dirty bits, if the machine keeps them.
    """
    apart()
    level, cached = look_up_table(core, cells, NESTED_PART, core.eptp, gfn, core.levels[NESTED])
    if level:
        core.count[Count.NESTED_WALK_CACHE_HITS] += 1
        log(core, Step.NESTED_WALK_CACHE_HIT, level, gfn, -1, cached >> NODE_BITS)
        node, frame, level = cached & NODE_MASK, cached >> NODE_BITS, level - 1
    else:
        node, frame, level = core.root[NESTED], core.root_frame[NESTED], core.levels[NESTED]
    while True:
        place = slot(node, gfn, level)
        entry = pool[place]
        core.count[Count.NESTED_REFERENCES] += 1
        _reference(core, cells, frame, place & 511)
        log(core, Step.NESTED_REFERENCE, level, gfn, frame << 12 | (place & 511) << 3, frame_of(entry))
        if entry & PRESENT == 0:
            core.fault_gfn = gfn
            core.fault = Exit.NESTED_FAULT
            return FAILED
        if is_leaf(entry, level):
            break
        if core.nested_dirty and entry & ACCESSED == 0:
            write_entry(core, pool, place, entry | ACCESSED)
        node, frame = node_of(entry), frame_of(entry)
        remember_table(core, cells, NESTED_PART, core.eptp, gfn, level, frame, node)
        level -= 1
    if is_write and entry & WRITABLE == 0:
        core.fault_gfn = gfn
        core.fault = Exit.NESTED_WRITE
        return FAILED
    rights = CAN_EXECUTE | (CAN_WRITE if entry & WRITABLE else 0)
    if core.nested_dirty:
        marked = entry | ACCESSED | (DIRTY if is_write or core.shadow else 0)
        if marked != entry:
            write_entry(core, pool, place, marked)
        rights |= IS_DIRTY if marked & DIRTY else 0
    else:
        rights |= IS_DIRTY
    size = level - 1
    return answer(frame_of(entry) + (gfn & (1 << 9 * size) - 1), size, rights)


@kernel
def nested_by_table(core: Core, cells: Cells, pool: Pool, gfn: int, is_write: bool, is_table: bool) -> int:
    """Translate ``gfn`` through nested TLB, nested walk cache and nested tables; return the answer or FAILED."""
    apart()
    group = core.nested_group
    cached = is_table or core.ntlb_data
    if cached:
        size, at, way = look_up_nested(core, cells, gfn)
        if way >= 0:
            ways = core.part_ways[3 * group + size]
            value = cells[at + ways + way]
            if not is_write or value & (CAN_WRITE | IS_DIRTY) == CAN_WRITE | IS_DIRTY:
                touch_noted(core, cells, at, ways, way)
                core.count[Count.NESTED_TLB_HITS] += 1
                log(core, Step.NESTED_TLB_HIT, size + 1, gfn, -1, frame_in(value, size, gfn))
                return answer(frame_in(value, size, gfn), size, value & RIGHTS)
    found = nested_walk(core, cells, pool, gfn, is_write)
    if cached and found != FAILED:
        size = core.cut[group, found >> ANSWER_SIZE_SHIFT & 3]
        if size >= 0:
            part = 3 * group + size
            at = set_at(core, part, gfn >> 9 * size)
            value = value_for(found >> ANSWER_FRAME_SHIFT, found & RIGHTS, size, gfn)
            core.present[group] |= 1 << (NESTED_KIND + size)
            put_noted(core, cells, at, core.part_ways[part], key_of(core.eptp, 1, size, gfn), value)
    return found


@inlined
def translate_nested(core: Core, cells: Cells, pool: Pool, gfn: int, is_write: bool, is_table: bool) -> int:
    """Translate a gfn that the walk produced: identity, VMM segment, or tables; return the answer or FAILED.

    The nested leaf's size for identity is 1G; for the segment it is left to the fill, which looks at its bounds.
    """
    if core.kind[NESTED] == IDENTITY:
        return answer(gfn, 2, RIGHTS)
    if covers(core, NESTED, gfn):
        core.count[Count.BASE_BOUND_CHECKS] += 1
        hfn = gfn + core.segment_offset[NESTED]
        log(core, Step.VMM_CHECK, 0, gfn, -1, hfn)
        return answer(hfn, 2, RIGHTS) | ANSWER_COVERED
    return nested_by_table(core, cells, pool, gfn, is_write, is_table)


# What the guest walk answers, in one word: gfn, size, rights, and whether the leaf is global.
GUEST_GLOBAL: Final = 32


@kernel
def guest_walk(core: Core, cells: Cells, pool: Pool, gvpn: int, is_write: bool, is_fetch: bool) -> int:
    """Walk the guest table for ``gvpn``; return gfn, size and rights as one word, or FAILED with core.fault set."""
    apart()
    top = core.levels[GUEST]
    level, cached = look_up_table(core, cells, WALK_PART, core.context, gvpn, top)
    if level:
        core.count[Count.WALK_CACHE_HITS] += 1
        log(core, Step.WALK_CACHE_HIT, level, gvpn, -1, cached >> NODE_BITS)
        node, hfn, gfn, level = cached & NODE_MASK, cached >> NODE_BITS, 0, level - 1
    else:
        node, hfn, gfn, level = core.root[GUEST], -1, core.root_frame[GUEST], top
    while True:
        if hfn < 0:
            found = translate_nested(core, cells, pool, gfn, core.nested_dirty != 0, True)
            if found == FAILED:
                return FAILED
            hfn = found >> ANSWER_FRAME_SHIFT
            if level < top:
                remember_table(core, cells, WALK_PART, core.context, gvpn, level + 1, hfn, node)
        place = slot(node, gvpn, level)
        entry = pool[place]
        core.count[Count.GUEST_REFERENCES] += 1
        _reference(core, cells, hfn, place & 511)
        log(core, Step.GUEST_REFERENCE, level, gvpn, hfn << 12 | (place & 511) << 3, frame_of(entry))
        if entry & PRESENT == 0:
            core.fault = Exit.GUEST_FAULT
            return FAILED
        if is_leaf(entry, level):
            break
        if entry & ACCESSED == 0:
            write_entry(core, pool, place, entry | ACCESSED)
        node, gfn, hfn = node_of(entry), frame_of(entry), -1
        level -= 1
    if is_write and entry & WRITABLE == 0:
        core.fault = Exit.GUEST_WRITE
        return FAILED
    if is_fetch and entry & EXECUTABLE == 0:
        core.fault = Exit.PROTECTION
        return FAILED
    marked = entry | ACCESSED | (DIRTY if is_write or core.shadow else 0)
    if marked != entry:
        write_entry(core, pool, place, marked)
    size = level - 1
    rights = (
        (CAN_WRITE if entry & WRITABLE else 0)
        | (IS_DIRTY if marked & DIRTY else 0)
        | (CAN_EXECUTE if entry & EXECUTABLE else 0)
    )
    is_global = GUEST_GLOBAL if entry & GLOBAL else 0
    return answer(frame_of(entry) + (gvpn & (1 << 9 * size) - 1), size, rights) | is_global
