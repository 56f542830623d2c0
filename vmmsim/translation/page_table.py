"""Radix page tables of both dimensions: a guest's, a VM's nested one, a native one.

Level 1 is the leaf level. The entry of page p at level l is number (p >> 9 (l - 1)) mod 512 of its table. What an
entry holds: table_entry.py. Whoever takes a translation, a right or a table away invalidates it in the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.addresses import SIZE_NAMES, TABLE_ENTRIES, size_pages
from vmmsim.jit import one_each
from vmmsim.translation.table_entry import (
    ACCESSED,
    DIRTY,
    EXECUTABLE,
    FLAGS,
    FRAME_MASK,
    FRAME_SHIFT,
    GLOBAL,
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
from vmmsim.translation.table_kernels import (
    TAKEN,
    list_leaves,
    look_at_pages,
    map_pages,
    place_leading_to,
    protect_leaves,
    remap_leaves,
    split_leaves,
    translate_pages,
    translate_range,
    unmap_leaves,
)
from vmmsim.translation.table_pool import TablePool, Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ACCESSED", "DIRTY", "EXECUTABLE", "FLAGS", "FRAME_MASK", "FRAME_SHIFT", "GLOBAL", "LEAF", "NODE_SHIFT",
    "PRESENT", "RIGHTS_AND_MARKS", "WRITABLE", "AlreadyMapped", "Leaf", "PageTable", "TablePool",
    "find_leaf", "frame_of", "is_leaf", "node_of", "slot",
]  # fmt: skip

_NONE: Final = np.empty(0, np.int64)


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

    def __init__(
        self,
        pool: TablePool,
        levels: int,
        table_frames: Callable[[int], NDArray[np.int64]],
        give_back_frames: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        """Make an empty table of 4 or 5 levels.

        table_frames      gives int64[n]: the frames (of the dimension below) that n new tables lie in
        give_back_frames  takes int64[n]: frames of tables that are no more; walk caches may still lead there, so the
                          owner invalidates them before anything runs
        """
        self.pool = pool
        self.levels = levels
        self._tables = Tables(pool, table_frames, give_back_frames)
        self._leaves = np.zeros(3, np.int64)
        nodes, frames = self._tables.supply(1)
        self._tables.add(nodes, frames)
        self.root, self.root_frame = int(nodes[0]), int(frames[0])

    @property
    def table_frames(self) -> NDArray[np.int64]:
        """The frames that this table's nodes lie in, root first, spare ones last."""
        return self._tables.all_frames()

    @property
    def leaf_counts(self) -> tuple[int, int, int]:
        """How many leaves there are of 4K, 2M and 1G."""
        small, large, huge = self._leaves.tolist()
        return small, large, huge

    @property
    def mapped_pages(self) -> int:
        """How many 4 KiB pages are mapped."""
        return sum(count * size_pages(size) for size, count in enumerate(self.leaf_counts))

    # Mapping

    def map(self, pages: ArrayLike, frames: ArrayLike, *, size: int = 0, flags: ArrayLike = WRITABLE) -> None:
        """Map pages to frames, one leaf of ``size`` each.

        pages, frames  int or int64[n], multiples of the size
        flags          WRITABLE, EXECUTABLE, ACCESSED, DIRTY, GLOBAL; one for all or one for each

        A large leaf takes the place of tables that map nothing, and these are given back.
        ``AlreadyMapped`` if a page has a translation; those before it are then mapped.
        """
        page = _as_pages(pages)
        frame = _checked_frames(page, frames, size)
        flag = one_each(flags, page.size)
        done = 0
        while done < page.size:
            done += self._map_some(page[done:], frame[done:], size, flag[done:])

    def _map_some(
        self, pages: NDArray[np.int64], frames: NDArray[np.int64], size: int, flags: NDArray[np.int64]
    ) -> int:
        """Map until done or out of tables, at least one page. Spare tables, never more than 4, are kept."""
        nodes, frames_of_nodes = self._tables.spare_ones(self.levels - 1 - size)
        done, used, why = map_pages(
            self.pool.entries, self.root, self.levels, pages, frames, size, flags, nodes, frames_of_nodes
        )
        self._tables.add_spare_ones(used)
        self._leaves[size] += done
        if why == TAKEN and not self._prune(int(pages[done]), size):
            raise AlreadyMapped(f"page {int(pages[done]):#x} is mapped")
        return int(done)

    def _prune(self, page: int, size: int) -> bool:
        """Take away the tables under an aligned large page, if there are some and they map nothing."""
        place, level = find_leaf(self.pool.entries, self.root, self.levels, page)
        if self.pool.entries[place] & PRESENT or level > size:
            return False
        place = self._leading_to(page, size + 1)
        tables = self.pool.entries.reshape(-1, TABLE_ENTRIES)
        nodes = [node_of(int(self.pool.entries[place]))]
        for node in nodes:  # grows as tables under tables are met
            row = tables[node]
            if np.any(row & LEAF):
                return False
            nodes += (row[row & PRESENT != 0] >> NODE_SHIFT).tolist()
        self.pool.entries[place] = 0
        self._tables.drop(nodes)
        return True

    def _leading_to(self, page: int, level: int) -> int:
        """Return the place of the entry of ``level`` for ``page``; the tables above it are there."""
        node = self.root
        for above in range(self.levels, level, -1):
            node = node_of(int(self.pool.entries[slot(node, page, above)]))
        return slot(node, page, level)

    # Looking

    def leaf(self, page: int) -> Leaf | None:
        """Return the mapping that contains ``page``, or None."""
        place, level = find_leaf(self.pool.entries, self.root, self.levels, page)
        entry = int(self.pool.entries[place])
        if not entry & PRESENT:
            return None
        size = int(level) - 1
        flags = entry & RIGHTS_AND_MARKS
        return Leaf(page=page & -size_pages(size), frame=int(frame_of(entry)), size=size, flags=flags)

    def translate(self, pages: ArrayLike) -> NDArray[np.int64]:
        """Return int64[n]: the frame of each page, -1 where there is none."""
        page = _as_pages(pages)
        frames = np.empty_like(page)
        translate_pages(self.pool.entries, self.root, self.levels, page, frames)
        return frames

    def translate_range(self, start: int, end: int) -> NDArray[np.int32]:
        """Return int32[end - start]: the frame of each page of [start, end), -1 where there is none."""
        frames = np.empty(end - start, np.int32)
        translate_range(self.pool.entries, self.root, self.levels, start, frames)
        return frames

    def mapped_sizes(self, pages: ArrayLike) -> NDArray[np.int64]:
        """Return int64[n]: the size number of the leaf that contains each page, -1 where there is none."""
        return self._look_at(pages)[1]

    def flags(self, pages: ArrayLike) -> NDArray[np.int64]:
        """Return int64[n]: the flags of the leaf that contains each page, -1 where there is none."""
        return self._look_at(pages)[0]

    def _look_at(self, pages: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        page = _as_pages(pages)
        flags, sizes = np.empty_like(page), np.empty_like(page)
        look_at_pages(self.pool.entries, self.root, self.levels, page, flags, sizes)
        return flags, sizes

    # Changing one leaf

    def protect(self, page: int, *, set_flags: int = 0, clear_flags: int = 0) -> None:
        """Change flags of the leaf that contains ``page``. The caller invalidates when it takes a right away."""
        place = self._place(page)
        self.pool.entries[place] = self.pool.entries[place] & ~clear_flags | set_flags

    def unmap(self, page: int) -> Leaf:
        """Remove the leaf that contains ``page`` and return it; its tables stay. The caller invalidates."""
        leaf = self.leaf(page)
        self.pool.entries[self._place(page)] = 0
        assert leaf is not None
        self._leaves[leaf.size] -= 1
        return leaf

    def split(self, page: int) -> None:
        """Replace the 2M or 1G leaf that contains ``page`` by 512 of the next size and equal translation."""
        if self._place_and_level(page)[1] == 1:
            raise ValueError(f"page {page:#x} is mapped by a 4K leaf, which cannot be split")
        self.split_many(page)

    def collapse(self, page: int, frame: int, flags: int = WRITABLE) -> NDArray[np.int64]:
        """Replace the leaf table under a 2 MiB page, empty or not, by one 2M leaf; the table is given back.

        Return int64[512]: the frames that its pages had, -1 where there was none.
        ``KeyError`` if there is no such table. The caller invalidates the 512 pages.
        """
        page = int(page)
        _checked_frames(_as_pages(page), frame, 1)
        if self.table_at(page, 2) is None:
            raise KeyError(f"page {page:#x} has no leaf table")
        place = self._leading_to(page, 2)
        node = node_of(int(self.pool.entries[place]))
        row = self.pool.entries[node << 9 : (node + 1) << 9]
        old = np.where(row & PRESENT, row >> FRAME_SHIFT & FRAME_MASK, -1)
        self.pool.entries[place] = frame << FRAME_SHIFT | flags | PRESENT | LEAF
        self._leaves += (-int((old >= 0).sum()), 1, 0)
        self._tables.drop([node])
        return old

    # Changing many leaves: all or, with an error, none

    def remap(self, pages: ArrayLike, frames: ArrayLike, *, size: int = 0) -> None:
        """Change the frame of existing leaves of ``size``; flags stay. ``KeyError`` if one is not there."""
        page = _as_pages(pages)
        frame = _checked_frames(page, frames, size)
        self._want(page, size, allowed=(size,))
        remap_leaves(self.pool.entries, self.root, self.levels, page, frame)

    def remap_large(self, page: int, frame: int) -> None:
        """Change the frame of an existing 2M leaf; flags stay."""
        self.remap(page, frame, size=1)

    def unmap_many(self, pages: ArrayLike, *, size: int = 0) -> NDArray[np.int64]:
        """Remove leaves of ``size``; return int64[n], the frames they had, -1 where nothing was mapped.

        ``KeyError`` if a page is mapped by a leaf of another size.
        """
        page = _as_pages(pages)
        self._want(page, size, allowed=(size, -1))
        frames = np.empty_like(page)
        self._leaves[size] -= unmap_leaves(self.pool.entries, self.root, self.levels, page, frames)
        return frames

    def protect_many(self, pages: ArrayLike, set_flags: int = 0, clear_flags: int = 0) -> NDArray[np.int64]:
        """Change flags of the leaves that contain ``pages``; return int64[n], what they were, -1 where none is."""
        page = _as_pages(pages)
        flags = np.empty_like(page)
        protect_leaves(self.pool.entries, self.root, self.levels, page, set_flags, clear_flags, flags)
        return flags

    def split_many(self, pages: ArrayLike) -> int:
        """Split each large leaf that contains one of ``pages`` into 512 of the next size; return how many there were.

        Translations stay equal. Pages that are not mapped, or by a 4K leaf, are left alone.
        """
        page = _as_pages(pages)
        sizes = self.mapped_sizes(page)
        large, huge = (np.unique(page[sizes == size] & -size_pages(size)) for size in (1, 2))
        nodes, frames = self._tables.supply(large.size + huge.size)
        split_leaves(self.pool.entries, self.root, self.levels, np.concatenate([large, huge]), nodes, frames)
        self._tables.add(nodes, frames)
        self._leaves += (large.size << 9, (huge.size << 9) - large.size, -huge.size)
        return large.size + huge.size

    def _want(self, pages: NDArray[np.int64], size: int, *, allowed: tuple[int, ...]) -> None:
        """Raise unless each page is the first of a leaf of a size that is allowed (-1: or is not mapped)."""
        if np.any(pages & (size_pages(size) - 1)):
            raise ValueError(f"pages must be multiples of {size_pages(size)}")
        sizes = self.mapped_sizes(pages)
        wrong = np.flatnonzero(~np.isin(sizes, allowed))
        if wrong.size:
            page, found = int(pages[wrong[0]]), int(sizes[wrong[0]])
            is_there = f"mapped by a {SIZE_NAMES[found]} leaf" if found >= 0 else "not mapped"
            raise KeyError(f"page {page:#x} is {is_there}")

    def _place(self, page: int) -> int:
        return self._place_and_level(page)[0]

    def _place_and_level(self, page: int) -> tuple[int, int]:
        place, level = find_leaf(self.pool.entries, self.root, self.levels, page)
        if not self.pool.entries[place] & PRESENT:
            raise KeyError(f"page {page:#x} is not mapped")
        return int(place), int(level)

    # Tables

    def table_at(self, page: int, level: int) -> int | None:
        """Return the frame of the table that the entry of ``level`` for ``page`` leads to, or None."""
        node = self.root
        for above in range(self.levels, level - 1, -1):
            entry = int(self.pool.entries[slot(node, page, above)])
            if not entry & PRESENT or entry & LEAF:
                return None
            node = node_of(entry)
        return int(frame_of(entry))

    def move_table(self, old_frame: int, new_frame: int) -> tuple[int, int]:
        """Note that one of the tables lies in another frame now; return (first page, level) of the table.

        The caller invalidates what leads there: the pages of its span and walk-cache entries to the old frame. If it
        is the root, registers that name this table are to be loaded anew. ``KeyError`` if no table is in that frame.
        """
        if old_frame == self.root_frame:
            self.root_frame = new_frame
            self._tables.move(self.root, new_frame)
            return 0, self.levels
        if self._tables.move_spare(old_frame, new_frame):
            return 0, 0
        place, level, page = place_leading_to(self.pool.entries, self.root, self.levels, old_frame)
        if place < 0:
            raise KeyError(f"no table in frame {old_frame:#x}")
        entry = int(self.pool.entries[place])
        self.pool.entries[place] = entry & ~(FRAME_MASK << FRAME_SHIFT) | new_frame << FRAME_SHIFT
        self._tables.move(node_of(entry), new_frame)
        return int(page), int(level)

    def leaves(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return int64[n] each, in address order: first page, entry and size number of every leaf."""
        return self.leaves_between(0, 1 << 9 * self.levels)

    def leaves_between(self, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the same of the leaves that overlap pages [start, end); a large one may begin before ``start``."""
        where = (self.pool.entries, self.root, self.levels, max(start, 0), min(end, 1 << 9 * self.levels))
        count = list_leaves(*where, _NONE, _NONE, _NONE)
        pages, places, sizes = (np.empty(count, np.int64) for _ in range(3))
        list_leaves(*where, pages, places, sizes)
        return pages, self.pool.entries[places], sizes

    def free(self) -> None:
        """Give all tables back to the pool, and their frames; the table is not to be used again."""
        self._tables.drop_all()

    def check(self) -> None:
        """Recount from scratch: every table reached once, at its frame, and none that is not reached."""
        found: dict[int, int] = {self.root: self.root_frame}
        leaves = np.zeros(3, np.int64)
        tables = self.pool.entries.reshape(-1, TABLE_ENTRIES)
        layer = [self.root]
        for level in range(self.levels, 1, -1):
            below: list[int] = []
            for node in layer:
                row = tables[node]
                leaves[min(level - 1, 2)] += np.count_nonzero(row & LEAF)
                inner = row[(row & PRESENT != 0) & (row & LEAF == 0)]
                for entry in inner.tolist():
                    child = entry >> NODE_SHIFT
                    assert child not in found, f"table {child} is reached twice, again at level {level}"
                    found[child] = entry >> FRAME_SHIFT & FRAME_MASK
                    below.append(child)
            layer = below
        assert found == self._tables.frames, "tables reached and tables taken differ"
        leaves[0] = sum(np.count_nonzero(tables[node] & PRESENT) for node in layer)
        assert leaves.tolist() == list(self.leaf_counts), "leaves found and leaves counted differ"


def _as_pages(pages: ArrayLike) -> NDArray[np.int64]:
    return np.ascontiguousarray(np.atleast_1d(np.asarray(pages, np.int64)))


def _checked_frames(pages: NDArray[np.int64], frames: ArrayLike, size: int) -> NDArray[np.int64]:
    """Return a frame for each page; ``ValueError`` if one cannot be in a leaf of ``size``."""
    frame = one_each(frames, pages.size)
    if np.any((pages | frame) & (size_pages(size) - 1)):
        raise ValueError(f"pages and frames must be multiples of {size_pages(size)}")
    if frame.size and not 0 <= int(frame.min()) <= int(frame.max()) <= FRAME_MASK:
        raise ValueError(f"frames must lie between 0 and {FRAME_MASK}: memory of 8 TiB")
    return frame
