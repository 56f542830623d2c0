"""Walk caches: for a prefix of an address, where the next table is, so that a walk need not begin at the root.

The combined walk cache (guest dimension) leads from a gVA prefix to the hPA of a guest table, nested translation
included; the nested walk cache from a gPA prefix to a nested table. Level l holds entries of level l, which lead to
tables of level l - 1. Changes are noted in the journal: they happen inside walks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.recency import find, put_noted, touch_noted
from vmmsim.translation.tlb import set_at

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core

NODE_BITS: Final = 25
NODE_MASK: Final = (1 << NODE_BITS) - 1
NOT_CACHED: Final = -1


@inlined
def prefix_key(space: int, page: int, level: int) -> int:
    """Return the key for ``page`` in a walk cache of ``level``; space is a context or an eptp."""
    return space << 48 | page >> 9 * (level - 1)


@kernel
def look_up_table(core: Core, cells: Cells, first: int, space: int, page: int, top: int) -> tuple[int, int]:
    """Return (level, value): the lowest cached level of entry for ``page``, below level ``top`` + 1, and its value.

    The entry is touched. (0, NOT_CACHED) if no level holds one.
    """
    apart()
    level = 1
    while level < top:
        level += 1
        ways = core.part_ways[first + level]
        if ways:
            at = set_at(core, first + level, page >> 9 * (level - 1))
            way = find(cells, at, ways, prefix_key(space, page, level))
            if way >= 0:
                value = cells[at + ways + way]
                touch_noted(core, cells, at, ways, way)
                return level, value
    return 0, NOT_CACHED


@kernel
def remember_table(
    core: Core, cells: Cells, first: int, space: int, page: int, level: int, frame: int, node: int
) -> None:
    """Fill the level-``level`` entry for ``page``, leading to the table ``node`` in host frame ``frame``."""
    apart()
    ways = core.part_ways[first + level]
    if ways:
        at = set_at(core, first + level, page >> 9 * (level - 1))
        put_noted(core, cells, at, ways, prefix_key(space, page, level), frame << NODE_BITS | node)
