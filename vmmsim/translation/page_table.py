"""Radix page tables of both dimensions, in one pool: 512 entries of 64 bits to a table, as the hardware has them.

::

    62            38 37            7   6   5   4   3   2   1   0
    +---------------+---------------+---+---+---+---+---+---+---+
    |   node (25)   |  frame (31)   | G | X | D | A | L | W | P |
    +---------------+---------------+---+---+---+---+---+---+---+

P present, W writable, L leaf, A accessed, D dirty, X executable, G global (guest leaves). ``frame`` is the frame of
the page mapped or of the table one level down: a gfn in a guest table, an hfn in a nested one. A real entry has no
more than that; ``node`` is where our pool keeps that table, so that the kernels need not look it up.

Level 1 is the leaf level. The entry of page p at level l is number (p >> 9 (l - 1)) mod 512 of its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.addresses import TABLE_ENTRIES, size_pages
from vmmsim.jit import inlined, kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from vmmsim.translation.types import Pool

PRESENT: Final = 1
WRITABLE: Final = 2
LEAF: Final = 4
ACCESSED: Final = 8
DIRTY: Final = 16
EXECUTABLE: Final = 32
GLOBAL: Final = 64
FLAGS: Final = 127
FRAME_SHIFT: Final = 7
FRAME_MASK: Final = (1 << 31) - 1
NODE_SHIFT: Final = 38

MAPPED: Final = 0
NO_TABLES: Final = -1
TAKEN: Final = -2


@inlined
def frame_of(entry: int) -> int:
    """Return the frame that an entry names."""
    return entry >> FRAME_SHIFT & FRAME_MASK


@inlined
def node_of(entry: int) -> int:
    """Return the pool's node of the table that an entry leads to."""
    return entry >> NODE_SHIFT


@inlined
def slot(node: int, page: int, level: int) -> int:
    """Return the place in the pool of the entry for ``page`` in a table of ``level``."""
    return (node << 9) + (page >> 9 * (level - 1) & 511)


@inlined
def is_leaf(entry: int, level: int) -> bool:
    """Tell whether an entry of ``level`` maps a page (rather than leading to a table)."""
    return level == 1 or entry & LEAF != 0


@kernel
def find_leaf(pool: Pool, root: int, levels: int, page: int) -> tuple[int, int]:
    """Return (place, level) of the entry that maps ``page``, or of the absent entry where the walk ends."""
    node = root
    for level in range(levels, 0, -1):
        place = slot(node, page, level)
        entry = pool[place]
        if entry & PRESENT == 0 or is_leaf(entry, level):
            return place, level
        node = node_of(entry)
    return -1, 0


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
def list_leaves(
    pool: Pool,
    root: int,
    levels: int,
    pages: NDArray[np.int64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> int:
    """Write first page, place in the pool and size of every leaf, in address order; return how many there are.

    What does not fit the three int64[n] arrays is counted only.
    """
    found = 0
    nodes = np.zeros(6, np.int64)
    index = np.zeros(6, np.int64)
    nodes[levels] = root
    level = levels
    prefix = 0
    while level <= levels:
        if index[level] == 512:
            index[level] = 0
            level += 1
            prefix >>= 9
            continue
        i = index[level]
        index[level] += 1
        place = (nodes[level] << 9) + i
        entry = pool[place]
        if entry & PRESENT == 0:
            continue
        if is_leaf(entry, level):
            if found < pages.size:
                pages[found] = (prefix << 9 | i) << 9 * (level - 1)
                places[found] = place
                sizes[found] = level - 1
            found += 1
        else:
            nodes[level - 1] = node_of(entry)
            prefix = prefix << 9 | i
            level -= 1
    return found


class TablePool:
    """All page tables of a host: one int64 array that grows by doubling, and the nodes that are free in it."""

    def __init__(self) -> None:
        self.entries: NDArray[np.int64] = np.zeros(64 * TABLE_ENTRIES, np.int64)
        self._used = 0
        self._free: list[int] = []

    @property
    def nodes_in_use(self) -> int:
        """The number of tables (4 KiB each) that are taken."""
        return self._used - len(self._free)

    def take(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: nodes of empty tables, given-back ones first."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = np.arange(self._used, self._used + count - len(reused), dtype=np.int64)
        self._grow(int(fresh.size))
        nodes = np.concatenate([np.array(reused, np.int64), fresh])
        self.entries.reshape(-1, TABLE_ENTRIES)[nodes] = 0
        return nodes

    def take_run(self, count: int) -> int:
        """Return the first of ``count`` adjacent nodes, all zero."""
        first = self._used
        self._grow(count)
        return first

    def give_back(self, nodes: NDArray[np.int64]) -> None:
        """Take back nodes that nothing leads to any more."""
        self._free.extend(int(node) for node in nodes)

    def _grow(self, count: int) -> None:
        self._used += count
        wanted = self._used * TABLE_ENTRIES
        if wanted > self.entries.size:
            grown = np.zeros(max(wanted, 2 * self.entries.size), np.int64)
            grown[: self.entries.size] = self.entries
            self.entries = grown


class AlreadyMapped(Exception):
    """Raised when a page is mapped that has a translation: the caller lost count of its own mappings."""


@attrs.frozen(kw_only=True)
class Leaf:
    """One mapping: what a page-table entry that maps a page says."""

    page: int
    """First 4 KiB page of the mapping."""
    frame: int
    """Frame that ``page`` maps to."""
    size: int
    """Size number: 0 for 4K, 1 for 2M, 2 for 1G."""
    flags: int
    """WRITABLE, ACCESSED, DIRTY, EXECUTABLE, GLOBAL."""


class PageTable:
    """One radix table: a guest's (gvpn to gfn), a VM's nested one (gfn to hfn), or a native one (vpn to hfn)."""

    def __init__(self, pool: TablePool, levels: int, table_frames: Callable[[int], NDArray[np.int64]]) -> None:
        """Make an empty table of 4 or 5 levels.

        table_frames  gives int64[n]: the frames (of the dimension below) that n new tables lie in
        """
        self.pool = pool
        self.levels = levels
        self._take_frames = table_frames
        self._frames: dict[int, int] = {}
        self._spare = (np.empty(0, np.int64), np.empty(0, np.int64))
        nodes, frames = self._supply(1)
        self._frames[int(nodes[0])] = int(frames[0])
        self.root, self.root_frame = int(nodes[0]), int(frames[0])

    def _supply(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ``count`` empty tables: their nodes, and the frames they lie in."""
        nodes = self.pool.take(count)
        frames = np.asarray(self._take_frames(count), np.int64)
        assert frames.size == count, "one frame for each table"
        return nodes, frames

    @property
    def table_frames(self) -> NDArray[np.int64]:
        """The frames that this table's nodes lie in, root first, spare ones last."""
        used = np.fromiter(self._frames.values(), np.int64, len(self._frames))
        return np.concatenate([used, self._spare[1]])

    def map(self, pages: ArrayLike, frames: ArrayLike, *, size: int = 0, flags: ArrayLike = WRITABLE) -> None:
        """Map pages to frames, one leaf of ``size`` each.

        pages, frames  int or int64[n], multiples of the size
        flags          WRITABLE, EXECUTABLE, ACCESSED, DIRTY, GLOBAL; one for all or one for each

        ``AlreadyMapped`` if a page has a translation; those before it are then mapped.
        """
        page = np.atleast_1d(np.asarray(pages, np.int64))
        frame = np.ascontiguousarray(np.broadcast_to(np.asarray(frames, np.int64), page.shape))
        flag = np.ascontiguousarray(np.broadcast_to(np.asarray(flags, np.int64), page.shape))
        if np.any((page | frame) & (size_pages(size) - 1)):
            raise ValueError(f"pages and frames must be multiples of {size_pages(size)}")
        if frame.size and not 0 <= int(frame.min()) <= int(frame.max()) <= FRAME_MASK:
            raise ValueError(f"frames must lie between 0 and {FRAME_MASK}: memory of 8 TiB")
        done = 0
        while done < page.size:
            done += self._map_some(page[done:], frame[done:], size, flag[done:])

    def _map_some(
        self, pages: NDArray[np.int64], frames: NDArray[np.int64], size: int, flags: NDArray[np.int64]
    ) -> int:
        """Map until done or out of tables, at least one page. Spare tables, never more than 4, are kept."""
        short = self.levels - 1 - size - self._spare[0].size
        if short > 0:
            nodes, frames_of_nodes = self._supply(short)
            self._spare = np.append(self._spare[0], nodes), np.append(self._spare[1], frames_of_nodes)
        nodes, frames_of_nodes = self._spare
        done, used, why = map_pages(
            self.pool.entries, self.root, self.levels, pages, frames, size, flags, nodes, frames_of_nodes
        )
        self._frames.update(zip(nodes[:used].tolist(), frames_of_nodes[:used].tolist(), strict=True))
        self._spare = (nodes[used:], frames_of_nodes[used:])
        if why == TAKEN:
            raise AlreadyMapped(f"page {int(pages[done]):#x} is mapped")
        return int(done)

    def leaf(self, page: int) -> Leaf | None:
        """Return the mapping that contains ``page``, or None."""
        place, level = find_leaf(self.pool.entries, self.root, self.levels, page)
        entry = int(self.pool.entries[place])
        if not entry & PRESENT:
            return None
        size = int(level) - 1
        flags = entry & (WRITABLE | ACCESSED | DIRTY | EXECUTABLE | GLOBAL)
        return Leaf(page=page & -size_pages(size), frame=int(frame_of(entry)), size=size, flags=flags)

    def translate(self, pages: ArrayLike) -> NDArray[np.int64]:
        """Return int64[n]: the frame of each page, -1 where there is none."""
        page = np.atleast_1d(np.asarray(pages, np.int64))
        frames = np.empty_like(page)
        translate_pages(self.pool.entries, self.root, self.levels, page, frames)
        return frames

    def protect(self, page: int, *, set_flags: int = 0, clear_flags: int = 0) -> None:
        """Change flags of the leaf that contains ``page``. The caller invalidates when it takes a right away."""
        place = self._place(page)
        self.pool.entries[place] = self.pool.entries[place] & ~clear_flags | set_flags

    def unmap(self, page: int) -> Leaf:
        """Remove the leaf that contains ``page`` and return it; its tables stay. The caller invalidates."""
        leaf = self.leaf(page)
        self.pool.entries[self._place(page)] = 0
        assert leaf is not None
        return leaf

    def split(self, page: int) -> None:
        """Replace the 2M or 1G leaf that contains ``page`` by 512 of the next size and equal translation."""
        place, level = self._place_and_level(page)
        if level == 1:
            raise ValueError(f"page {page:#x} is mapped by a 4K leaf, which cannot be split")
        entry = int(self.pool.entries[place])
        nodes, frames = self._supply(1)
        node = int(nodes[0])
        self._frames[node] = int(frames[0])
        step = size_pages(level - 2)
        children = (int(frame_of(entry)) + step * np.arange(TABLE_ENTRIES)) << FRAME_SHIFT | entry & FLAGS
        self.pool.entries[node << 9 : (node + 1) << 9] = children
        leads_on = node << NODE_SHIFT | int(frames[0]) << FRAME_SHIFT | PRESENT | WRITABLE | entry & ACCESSED
        self.pool.entries[place] = leads_on

    def _place(self, page: int) -> int:
        return self._place_and_level(page)[0]

    def _place_and_level(self, page: int) -> tuple[int, int]:
        place, level = find_leaf(self.pool.entries, self.root, self.levels, page)
        if not self.pool.entries[place] & PRESENT:
            raise KeyError(f"page {page:#x} is not mapped")
        return int(place), int(level)

    def table_at(self, page: int, level: int) -> int | None:
        """Return the frame of the table that the entry of ``level`` for ``page`` leads to, or None."""
        node = self.root
        for above in range(self.levels, level - 1, -1):
            entry = int(self.pool.entries[slot(node, page, above)])
            if not entry & PRESENT or entry & LEAF:
                return None
            node = node_of(entry)
        return int(frame_of(entry))

    def leaves(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return int64[n] each, in address order: first page, entry and size number of every leaf."""
        none = np.empty(0, np.int64)
        count = list_leaves(self.pool.entries, self.root, self.levels, none, none, none)
        pages, places, sizes = (np.empty(count, np.int64) for _ in range(3))
        list_leaves(self.pool.entries, self.root, self.levels, pages, places, sizes)
        return pages, self.pool.entries[places], sizes

    def free(self) -> None:
        """Give all tables back to the pool; the table is not to be used again."""
        used = np.fromiter(self._frames, np.int64, len(self._frames))
        self.pool.give_back(np.concatenate([used, self._spare[0]]))
        self._frames.clear()

    def check(self) -> None:
        """Recount from scratch: every table reached once, at its frame, and none that is not reached."""
        found: dict[int, int] = {self.root: self.root_frame}
        tables = self.pool.entries.reshape(-1, TABLE_ENTRIES)
        layer = [self.root]
        for level in range(self.levels, 1, -1):
            below: list[int] = []
            for node in layer:
                row = tables[node]
                inner = row[(row & PRESENT != 0) & (row & LEAF == 0)]
                for entry in inner.tolist():
                    child = entry >> NODE_SHIFT
                    assert child not in found, f"table {child} is reached twice, again at level {level}"
                    found[child] = entry >> FRAME_SHIFT & FRAME_MASK
                    below.append(child)
            layer = below
        assert found == self._frames, "tables reached and tables taken differ"
