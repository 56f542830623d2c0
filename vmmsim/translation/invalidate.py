"""Invalidation: drop what no longer holds, by address space, page range or frame range.

An entry is dropped if one of three things is true: it is combined, its space is marked and its pages overlap the
range; it is nested and its space is marked; its frames overlap the frames given. One sweep does all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import inlined, kernel
from vmmsim.translation.recency import drop
from vmmsim.translation.state import CACHE_PART, EMPTY, NESTED_PART, TLB_GROUPS, WALK_PART
from vmmsim.translation.tlb import NESTED_SHIFT, PAGE_BITS_OF_KEY, SIZE_SHIFT, SPACE_SHIFT, VALUE_SHIFT
from vmmsim.translation.walk_cache import NODE_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.translation.types import Cells, Core


@inlined
def _overlap(first: int, size: int, start: int, end: int) -> bool:
    return first < end and first + size > start


@kernel
def sweep(core: Core, cells: Cells, marks: NDArray[np.bool_], ranges: NDArray[np.int64]) -> int:
    """Drop everything of one core that is to go; return how many entries and lines.

    marks   bool[3, n], marked contexts for translations, marked contexts for walk-cache entries, marked eptps
    ranges  int64[2, 2], pages [start, end) and hfns [start, end)

    One call: from Python, each costs as much as the sweep of a core.
    """
    dropped = drop_translations(core, cells, marks[0], marks[2], ranges[0], ranges[1])
    dropped += drop_tables(core, cells, marks[1], marks[2], ranges[0], ranges[1])
    if ranges[1, 0] < ranges[1, 1]:
        dropped += drop_lines(core, cells, ranges[1])
    return dropped


@kernel
def drop_translations(
    core: Core,
    cells: Cells,
    spaces: NDArray[np.bool_],
    nested_spaces: NDArray[np.bool_],
    pages: NDArray[np.int64],
    frames: NDArray[np.int64],
) -> int:
    """Drop TLB and nested TLB entries of one core; return how many.

    spaces         bool[n], marked contexts; pages int64[2], their range [start, end)
    nested_spaces  bool[n], marked eptps
    frames         int64[2], range [start, end) of hfns
    """
    dropped = 0
    for part in range(3 * TLB_GROUPS):
        ways = core.part_ways[part]
        if ways == 0 or _seen_before(core, part):
            continue
        for number in range(core.part_mask[part] + 1):
            at = core.part_start[part] + number * 2 * ways
            for way in range(ways - 1, -1, -1):
                key = cells[at + way]
                if key == EMPTY:
                    continue
                space, size = key >> SPACE_SHIFT, key >> SIZE_SHIFT & 3
                span = 1 << 9 * size
                if key >> NESTED_SHIFT & 1:
                    marked = nested_spaces[space]
                else:
                    first = (key & (1 << PAGE_BITS_OF_KEY) - 1) << 9 * size
                    marked = spaces[space] and _overlap(first, span, pages[0], pages[1])
                if marked or _overlap(cells[at + ways + way] >> VALUE_SHIFT, span, frames[0], frames[1]):
                    drop(cells, at, ways, way)
                    dropped += 1
    return dropped


@inlined
def _seen_before(core: Core, part: int) -> bool:
    """Tell whether a part shares its place with an earlier one: several page sizes in one array."""
    for other in range(part):
        if core.part_ways[other] and core.part_start[other] == core.part_start[part]:
            return True
    return False


@kernel
def drop_tables(
    core: Core,
    cells: Cells,
    spaces: NDArray[np.bool_],
    nested_spaces: NDArray[np.bool_],
    pages: NDArray[np.int64],
    frames: NDArray[np.int64],
) -> int:
    """Drop walk-cache entries of one core; return how many. Arguments as for ``drop_translations``.

    A combined entry goes if its prefix overlaps the page range, a nested one if its space is marked, both if the
    table they lead to lies in the frames.
    """
    dropped = 0
    for nested in range(2):
        for level in range(2, 6):
            part = (NESTED_PART if nested else WALK_PART) + level
            ways = core.part_ways[part]
            for number in range(core.part_mask[part] + 1 if ways else 0):
                at = core.part_start[part] + number * 2 * ways
                for way in range(ways - 1, -1, -1):
                    key = cells[at + way]
                    if key == EMPTY:
                        continue
                    space, shift = key >> SPACE_SHIFT, 9 * (level - 1)
                    if nested:
                        marked = nested_spaces[space]
                    else:
                        first = (key & (1 << SPACE_SHIFT) - 1) << shift
                        marked = spaces[space] and _overlap(first, 1 << shift, pages[0], pages[1])
                    if marked or _overlap(cells[at + ways + way] >> NODE_BITS, 1, frames[0], frames[1]):
                        drop(cells, at, ways, way)
                        dropped += 1
    return dropped


@kernel
def drop_lines(core: Core, cells: Cells, frames: NDArray[np.int64]) -> int:
    """Drop the cache lines of hfns [frames[0], frames[1]) of one core; return how many."""
    dropped = 0
    for part in range(CACHE_PART, CACHE_PART + 4):
        ways = core.part_ways[part]
        for number in range(core.part_mask[part] + 1 if ways else 0):
            at = core.part_start[part] + number * ways
            for way in range(ways - 1, -1, -1):
                key = cells[at + way]
                if key != EMPTY and _overlap(key - 1 >> 6, 1, frames[0], frames[1]):
                    for i in range(way, ways - 1):
                        cells[at + i] = cells[at + i + 1]
                    cells[at + ways - 1] = EMPTY
                    dropped += 1
    return dropped
