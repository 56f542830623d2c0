"""Many mappings at once: map, unmap, move, protect, split and list the leaves of one radix table.

Each kernel takes ``pool`` (int64[nodes * 512], all page tables of the host), and ``root`` and ``levels`` of the table.
``pages`` are int64[n]; a page inside a large leaf stands for the whole leaf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.jit import kernel
from vmmsim.translation.table_entry import (
    ACCESSED,
    FLAGS,
    FRAME_MASK,
    FRAME_SHIFT,
    LEAF,
    NODE_SHIFT,
    PRESENT,
    RIGHTS_AND_MARKS,
    WRITABLE,
    find_leaf,
    frame_of,
    is_leaf,
    node_of,
    slot,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.translation.types import Pool

MAPPED: Final = 0
NO_TABLES: Final = -1
TAKEN: Final = -2


@kernel
def map_pages(
    pool: Pool,
    root: int,
    levels: int,
    pages: NDArray[np.int64],
    frames: NDArray[np.int64],
    size: int,
    flags: NDArray[np.int64],
    nodes: NDArray[np.int64],
    node_frames: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Map each of ``pages`` by a leaf of ``size`` to the frame beside it, with the flags beside it.

    pool                written to
    pages, frames       int64[n], aligned to the size
    nodes, node_frames  int64[k], empty tables to use, and the frames they lie in

    Return (pages mapped, tables used, why): MAPPED; NO_TABLES, the supply is used up; TAKEN, something is mapped at
    the next page, at this level or above or below it.
    """
    used = 0
    for i in range(pages.size):
        node = root
        for level in range(levels, size + 1, -1):
            place = slot(node, pages[i], level)
            entry = pool[place]
            if entry & PRESENT == 0:
                if used == nodes.size:
                    return i, used, NO_TABLES
                entry = nodes[used] << NODE_SHIFT | node_frames[used] << FRAME_SHIFT | PRESENT | WRITABLE
                pool[place] = entry
                used += 1
            elif entry & LEAF:
                return i, used, TAKEN
            node = node_of(entry)
        place = slot(node, pages[i], size + 1)
        if pool[place] & PRESENT:
            return i, used, TAKEN
        pool[place] = frames[i] << FRAME_SHIFT | flags[i] | PRESENT | LEAF
    return pages.size, used, MAPPED


@kernel
def translate_pages(pool: Pool, root: int, levels: int, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
    """Write to ``frames`` (int64[n]) the frame of each page, -1 where it is not mapped. No access bit changes."""
    for i in range(pages.size):
        place, level = find_leaf(pool, root, levels, pages[i])
        entry = pool[place]
        within = pages[i] & (1 << 9 * (level - 1)) - 1
        frames[i] = frame_of(entry) + within if entry & PRESENT else -1


@kernel
def translate_range(pool: Pool, root: int, levels: int, start: int, frames: NDArray[np.int32]) -> None:
    """Write to ``frames`` (int32[n]) the frames of pages start .. start + n, -1 where a page is not mapped."""
    end = start + frames.size
    page = start
    while page < end:
        place, level = find_leaf(pool, root, levels, page)
        entry = pool[place]
        span = 1 << 9 * (level - 1)
        last = min(end, (page & -span) + span)
        frame = frame_of(entry) + (page & span - 1) if entry & PRESENT else -1
        step = 1 if entry & PRESENT else 0
        for at in range(page - start, last - start):
            frames[at] = frame
            frame += step
        page = last


@kernel
def look_at_pages(
    pool: Pool, root: int, levels: int, pages: NDArray[np.int64], flags: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Write the flags and the size number of each page's leaf to two int64[n], -1 where the page is not mapped."""
    for i in range(pages.size):
        place, level = find_leaf(pool, root, levels, pages[i])
        entry = pool[place]
        flags[i] = entry & RIGHTS_AND_MARKS if entry & PRESENT else -1
        sizes[i] = level - 1 if entry & PRESENT else -1


@kernel
def remap_leaves(pool: Pool, root: int, levels: int, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
    """Write another frame into the leaf of each page, which is there; all else of the entry stays."""
    for i in range(pages.size):
        place, _ = find_leaf(pool, root, levels, pages[i])
        pool[place] = pool[place] & ~(FRAME_MASK << FRAME_SHIFT) | frames[i] << FRAME_SHIFT


@kernel
def unmap_leaves(pool: Pool, root: int, levels: int, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> int:
    """Remove the leaf of each page; write its frame, or -1 if there is none, to ``frames``. Return how many went."""
    removed = 0
    for i in range(pages.size):
        place, _ = find_leaf(pool, root, levels, pages[i])
        entry = pool[place]
        frames[i] = frame_of(entry) if entry & PRESENT else -1
        removed += entry & PRESENT
        pool[place] = 0
    return removed


@kernel
def protect_leaves(
    pool: Pool, root: int, levels: int, pages: NDArray[np.int64], on: int, off: int, flags: NDArray[np.int64]
) -> None:
    """Clear flags ``off`` and set flags ``on`` of each page's leaf; write to ``flags`` what they were, or -1."""
    for i in range(pages.size):
        place, _ = find_leaf(pool, root, levels, pages[i])
        entry = pool[place]
        if entry & PRESENT:
            flags[i] = entry & RIGHTS_AND_MARKS
            pool[place] = entry & ~off | on
        else:
            flags[i] = -1


@kernel
def split_leaves(
    pool: Pool,
    root: int,
    levels: int,
    pages: NDArray[np.int64],
    nodes: NDArray[np.int64],
    node_frames: NDArray[np.int64],
) -> None:
    """Replace the large leaf of each page, one page to a leaf, by a table of 512 leaves of the next size.

    nodes, node_frames  int64[n], an empty table for each, and the frame it lies in
    """
    for i in range(pages.size):
        place, level = find_leaf(pool, root, levels, pages[i])
        entry = pool[place]
        step = 1 << 9 * (level - 2)
        for j in range(512):
            pool[(nodes[i] << 9) + j] = frame_of(entry) + step * j << FRAME_SHIFT | entry & FLAGS
        leads_on = nodes[i] << NODE_SHIFT | node_frames[i] << FRAME_SHIFT | PRESENT | WRITABLE
        pool[place] = leads_on | entry & ACCESSED


@kernel
def list_leaves(
    pool: Pool,
    root: int,
    levels: int,
    start: int,
    end: int,
    pages: NDArray[np.int64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> int:
    """Write first page, place in the pool and size of every leaf that overlaps pages [start, end), in address order.

    Return how many there are; what does not fit the three int64[n] arrays is counted only.
    """
    found = 0
    page = start
    while page < end:
        place, level = find_leaf(pool, root, levels, page)
        span = 1 << 9 * (level - 1)
        page &= -span
        table_end = min(end, (page | (span << 9) - 1) + 1)
        # On through the same table, until an entry leads to another.
        while page < table_end:
            entry = pool[place]
            if entry & PRESENT:
                if not is_leaf(entry, level):
                    break
                if found < pages.size:
                    pages[found], places[found], sizes[found] = page, place, level - 1
                found += 1
            page += span
            place += 1
    return found


@kernel
def place_leading_to(pool: Pool, root: int, levels: int, frame: int) -> tuple[int, int, int]:
    """Return (place, level, first page) of the table in ``frame``: the place is of the entry that leads to it.

    (-1, 0, 0) if no entry does. Leaf tables are not looked into: tables are few beside pages.
    """
    nodes = np.zeros(6, np.int64)
    index = np.zeros(6, np.int64)
    nodes[levels] = root
    level = levels
    page = 0
    while level <= levels:
        i = index[level]
        span = 1 << 9 * (level - 1)
        if i == 512:
            index[level] = 0
            level += 1
            continue
        index[level] += 1
        place = (nodes[level] << 9) + i
        entry = pool[place]
        if entry & PRESENT == 0 or entry & LEAF:
            continue
        page = page & -(span << 9) | i * span
        if frame_of(entry) == frame:
            return place, level - 1, page
        if level > 2:
            level -= 1
            nodes[level] = node_of(entry)
    return -1, 0, 0
