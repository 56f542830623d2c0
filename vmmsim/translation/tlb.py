"""TLBs: look up, fill and drop translations in a group of parts, split by page size or not.

A key is 63 bits: what the entry belongs to (a context or an eptp, 15 bits), whether it is nested, its size, and the
page number at that size. A value is the frame where the page starts and three rights::

    key    | space (15) | nested (1) | size (2) | page number at the size (45) |
    value  |                        frame (31)      | executable | dirty | writable |

``core.present[group]`` has a bit for each kind of entry (size; own, global or nested) that was ever filled since the
group was empty, so that a TLB of 4K entries is not searched three times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.recency import drop, find, put
from vmmsim.translation.state import EMPTY, L2, Count

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core

CAN_WRITE: Final = 1
IS_DIRTY: Final = 2
CAN_EXECUTE: Final = 4
RIGHTS: Final = 7
VALUE_SHIFT: Final = 3

PAGE_BITS_OF_KEY: Final = 45
SIZE_SHIFT: Final = 45
NESTED_SHIFT: Final = 47
SPACE_SHIFT: Final = 48

OWN_KIND: Final = 0
GLOBAL_KIND: Final = 3
NESTED_KIND: Final = 6


@inlined
def key_of(space: int, nested: int, size: int, page: int) -> int:
    """Return the key of the entry of ``size`` that holds 4 KiB page ``page``."""
    return space << SPACE_SHIFT | nested << NESTED_SHIFT | size << SIZE_SHIFT | page >> 9 * size


@inlined
def set_at(core: Core, part: int, number: int) -> int:
    """Return where in cells the set of a part with values lies, for a page number or prefix."""
    return core.part_start[part] + (number & core.part_mask[part]) * (2 * core.part_ways[part])


@inlined
def look_up(core: Core, cells: Cells, group: int, page: int) -> tuple[int, int, int, int]:
    """Return (kind, place of its set, ways of it, way) of the entry for ``page``; way -1 if there is none.

    Order: 4K, 2M, 1G; at each size the context's own entry before a global one.
    """
    present = core.present[group]
    size = 0
    while present & 0o77:
        part = 3 * group + size
        ways = core.part_ways[part]
        at = set_at(core, part, page >> 9 * size)
        if present & 1:
            way = find(cells, at, ways, key_of(core.context, 0, size, page))
            if way >= 0:
                return OWN_KIND + size, at, ways, way
        if present & 8:
            way = find(cells, at, ways, key_of(core.global_context, 0, size, page))
            if way >= 0:
                return GLOBAL_KIND + size, at, ways, way
        present = present >> 1 & 0o33
        size += 1
    return 0, 0, 0, -1


@inlined
def look_up_nested(core: Core, cells: Cells, page: int) -> tuple[int, int, int]:
    """Return (size, place of its set, way) of the nested entry for gfn ``page``; way -1 if there is none."""
    group = core.nested_group
    present = core.present[group] >> NESTED_KIND
    size = 0
    while present:
        if present & 1:
            part = 3 * group + size
            at = set_at(core, part, page >> 9 * size)
            way = find(cells, at, core.part_ways[part], key_of(core.eptp, 1, size, page))
            if way >= 0:
                return size, at, way
        present >>= 1
        size += 1
    return 0, 0, -1


@inlined
def size_of(kind: int) -> int:
    """Return the size of an own or a global entry."""
    return kind - GLOBAL_KIND if kind >= GLOBAL_KIND else kind


@inlined
def frame_in(value: int, size: int, page: int) -> int:
    """Return the frame of ``page`` by an entry of ``size`` with ``value``."""
    return (value >> VALUE_SHIFT) + (page & (1 << 9 * size) - 1)


@inlined
def value_for(frame: int, rights: int, size: int, page: int) -> int:
    """Return the value of an entry of ``size`` by which ``page`` is at ``frame``."""
    return frame - (page & (1 << 9 * size) - 1) << VALUE_SHIFT | rights


@inlined
def fill(core: Core, cells: Cells, group: int, kind: int, page: int, value: int) -> bool:
    """Fill an own or global entry; return whether it took an empty way. The group must hold the size."""
    size = size_of(kind)
    space = core.global_context if kind >= GLOBAL_KIND else core.context
    part = 3 * group + size
    ways = core.part_ways[part]
    at = set_at(core, part, page >> 9 * size)
    core.present[group] |= 1 << kind
    _, gone, _ = put(cells, at, ways, key_of(space, 0, size, page), value)
    return gone == EMPTY


@kernel
def drop_found(core: Core, cells: Cells, group: int, page: int) -> None:
    """Drop the entry that a look-up of ``page`` finds, if any."""
    apart()
    _, at, ways, way = look_up(core, cells, group, page)
    if way >= 0:
        drop(cells, at, ways, way)


@inlined
def fill_both(core: Core, cells: Cells, l1: int, kind: int, page: int, frame: int, rights: int, to_l2: bool) -> None:
    """Fill the L1 TLB ``l1``, cut to the largest size it holds, and the L2 TLB if it holds that very size."""
    is_global = GLOBAL_KIND if kind >= GLOBAL_KIND else 0
    size = core.cut[l1, kind - is_global]
    value = value_for(frame, rights, size, page)
    fill(core, cells, l1, is_global + size, page, value)
    if to_l2 and core.cut[L2, size] == size and fill(core, cells, L2, is_global + size, page, value):
        core.count[Count.COLD_FILLS] += 1
