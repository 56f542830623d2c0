"""Many mappings at once, and tables that come and go: equal to a dict of leaves, changed one page at a time."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmmsim.jit import INTERPRETED
from vmmsim.translation import page_table as pt
from vmmsim.translation.page_table import AlreadyMapped, PageTable, TablePool

EXAMPLES = settings(max_examples=100)
SEEN: Counter[str] = Counter()
PAGES = (0, 1, 2, 511, 512, 513, 1024, (1 << 18) - 1, 1 << 18, (1 << 18) + 512, (1 << 27) + 3)
KINDS = ("map", "map", "map large", "unmap", "remap", "protect", "split", "collapse", "move table", "replace")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.lists(st.sampled_from(PAGES), min_size=1, max_size=6, unique=True),
        st.integers(0, 127),
    ),
    min_size=5, max_size=25,
)  # fmt: skip


class Frames:
    """Frames for tables: each is given once, and only those that were given come back."""

    def __init__(self, first: int = 1 << 20) -> None:
        self.next = first
        self.out: set[int] = set()

    def take(self, count: int) -> NDArray[np.int64]:
        taken = range(self.next, self.next + count)
        self.next += count
        self.out |= set(taken)
        return np.array(taken, np.int64)

    def give_back(self, frames: NDArray[np.int64]) -> None:
        assert set(frames.tolist()) <= self.out
        self.out -= set(frames.tolist())


class Model:
    """A page table as {first page: (frame, size, flags)}."""

    def __init__(self) -> None:
        self.leaves: dict[int, tuple[int, int, int]] = {}

    def at(self, page: int) -> int | None:
        """Return the first page of the leaf that maps ``page``."""
        starts = (page & -(1 << 9 * size) for size in range(3))
        return next((s for s in starts if s in self.leaves and page < s + (1 << 9 * self.leaves[s][1])), None)

    def frame(self, page: int) -> int:
        start = self.at(page)
        return -1 if start is None else self.leaves[start][0] + page - start

    def size(self, page: int) -> int:
        start = self.at(page)
        return -1 if start is None else self.leaves[start][1]

    def within(self, start: int, end: int) -> list[int]:
        held = self.leaves.items()
        return [p for p, (_, size, _) in held if start < end and p < end and p + (1 << 9 * size) > start]

    def split(self, page: int) -> None:
        start = self.at(page)
        assert start is not None
        frame, size, flags = self.leaves.pop(start)
        step = 1 << 9 * (size - 1)
        for i in range(512):
            self.leaves[start + i * step] = (frame + i * step, size - 1, flags)


class Both:
    """The table and its model, changed alike."""

    def __init__(self) -> None:
        self.frames = Frames()
        self.pool = TablePool()
        self.table = PageTable(self.pool, 4, self.frames.take, self.frames.give_back)
        self.model = Model()
        self.next = itertools.count(1)

    def step(self, what: str, pages: list[int], flags: int) -> None:
        flags &= pt.RIGHTS_AND_MARKS
        {
            "map": self.map,
            "map large": self.map_large,
            "unmap": self.unmap,
            "remap": self.remap,
            "protect": self.protect,
            "split": self.split,
            "collapse": self.collapse,
            "move table": self.move_table,
            "replace": self.replace,
        }[what](pages, flags)
        SEEN[what] += 1

    def map(self, pages: list[int], flags: int) -> None:
        absent = [page for page in pages if self.model.at(page) is None]
        frames = [next(self.next) for _ in absent]
        self.table.map(absent, frames, flags=flags)
        self.model.leaves |= {page: (frame, 0, flags) for page, frame in zip(absent, frames, strict=True)}

    def map_large(self, pages: list[int], flags: int) -> None:
        for size, page in ((1 + flags % 2, page) for page in pages[:2]):
            start, frame = page & -(1 << 9 * size), next(self.next) << 18
            table = self.table.table_at(start, size + 1)
            if self.model.within(start, start + (1 << 9 * size)):
                with pytest.raises(AlreadyMapped):
                    self.table.map(start, frame, size=size, flags=flags)
                assert self.table.table_at(start, size + 1) == table
            else:
                self.table.map(start, frame, size=size, flags=flags)
                self.model.leaves[start] = (frame, size, flags)
                assert table not in self.frames.out, "the table that was in its place has come back"
                SEEN["pruned"] += table is not None

    def replace(self, pages: list[int], flags: int) -> None:
        """Empty the block around a page, and map it by one large leaf."""
        size = 1 + flags % 2
        start = pages[0] & -(1 << 9 * size)
        for page in self.model.within(start, start + (1 << 9 * size)):
            self.table.unmap(page)
            del self.model.leaves[page]
        self.map_large(pages[:1], flags)

    def unmap(self, pages: list[int], flags: int) -> None:
        large = [page for page in pages if self.model.size(page) > 0]
        if large:
            with pytest.raises(KeyError, match=r"is mapped by a [21][MG] leaf"):
                self.table.unmap_many(pages)
            for page in large[:1]:
                self.table.unmap(page)
                del self.model.leaves[self.model.at(page)]  # type: ignore[arg-type]
            return
        assert self.table.unmap_many(pages).tolist() == [self.model.frame(page) for page in pages]
        for page in pages:
            self.model.leaves.pop(page, None)

    def remap(self, pages: list[int], flags: int) -> None:
        there = [page for page in pages if self.model.size(page) == 0]
        frames = [next(self.next) for _ in pages]
        if len(there) < len(pages):
            with pytest.raises(KeyError, match="page 0x"):
                self.table.remap(pages, frames)
        self.table.remap(there, frames[: len(there)])
        for page, frame in zip(there, frames, strict=False):
            self.model.leaves[page] = (frame, *self.model.leaves[page][1:])
        for start in {self.model.at(page) for page in pages if self.model.size(page) == 1}:
            assert start is not None
            frame = next(self.next) << 9
            self.table.remap_large(start, frame)
            self.model.leaves[start] = (frame, *self.model.leaves[start][1:])

    def protect(self, pages: list[int], flags: int) -> None:
        starts = [self.model.at(page) for page in pages]
        expected = [-1 if start is None else self.model.leaves[start][2] for start in starts]
        assert self.table.flags(pages).tolist() == expected
        off = pt.RIGHTS_AND_MARKS & ~flags
        if len({start for start in starts if start is not None}) == sum(start is not None for start in starts):
            assert self.table.protect_many(pages, set_flags=flags & pt.DIRTY, clear_flags=off).tolist() == expected
        else:
            self.table.protect_many(pages, set_flags=flags & pt.DIRTY, clear_flags=off)
        for start in {start for start in starts if start is not None}:
            frame, size, old = self.model.leaves[start]
            self.model.leaves[start] = (frame, size, old & ~off | flags & pt.DIRTY)

    def split(self, pages: list[int], flags: int) -> None:
        starts = {self.model.at(page) for page in pages if self.model.size(page) > 0}
        assert self.table.split_many(pages) == len(starts)
        for start in starts:
            assert start is not None
            self.model.split(start)

    def collapse(self, pages: list[int], flags: int) -> None:
        start, frame = pages[0] & -512, next(self.next) << 9
        if self.table.table_at(start, 2) is None:
            with pytest.raises(KeyError, match="no leaf table"):
                self.table.collapse(start, frame)
            return
        expected = [self.model.frame(page) for page in range(start, start + 512)]
        table = self.table.table_at(start, 2)
        assert self.table.collapse(start, frame, flags).tolist() == expected
        assert table not in self.frames.out
        for page in range(start, start + 512):
            self.model.leaves.pop(page, None)
        self.model.leaves[start] = (frame, 1, flags)
        SEEN["collapsed"] += 1

    def move_table(self, pages: list[int], flags: int) -> None:
        for level in (2, 3, 4):
            old = self.table.table_at(pages[0], level)
            if old is not None:
                new = int(self.frames.take(1)[0])
                assert self.table.move_table(old, new) == (pages[0] & -(1 << 9 * (level - 1)), level - 1)
                self.frames.give_back(np.array([old]))
                assert self.table.table_at(pages[0], level) == new
                SEEN["moved"] += 1

    def check(self) -> None:
        self.table.check()
        assert set(self.table.table_frames.tolist()) == self.frames.out
        assert self.table.translate(PAGES).tolist() == [self.model.frame(page) for page in PAGES]
        for start, end in ((1, 4), (509, 515), ((1 << 18) - 1, (1 << 18) + 2)):
            frames = self.table.translate_range(start, end)
            assert frames.tolist() == [self.model.frame(page) for page in range(start, end)]
        assert self.table.mapped_sizes(PAGES).tolist() == [self.model.size(page) for page in PAGES]
        sizes = Counter(size for _, size, _ in self.model.leaves.values())
        assert self.table.leaf_counts == tuple(sizes[size] for size in range(3))
        for start, end in ((0, 1 << 36), (1, 513), (600, 600), (512, (1 << 18) + 1)):
            listed, entries, of_size = self.table.leaves_between(start, end)
            assert listed.tolist() == sorted(self.model.within(start, end))
            expected = [self.model.leaves[page] for page in listed.tolist()]
            frames = entries >> pt.FRAME_SHIFT & pt.FRAME_MASK
            told = zip(frames.tolist(), of_size.tolist(), (entries & pt.RIGHTS_AND_MARKS).tolist(), strict=True)
            assert list(told) == expected


def test_a_table_changed_by_the_many_is_a_table_changed_one_by_one() -> None:
    SEEN.clear()

    @EXAMPLES
    @given(STEPS)
    def live(steps: list[tuple[str, list[int], int]]) -> None:
        both = Both()
        for step in steps:
            both.step(*step)
            both.check()
        both.table.free()
        assert not both.frames.out, "every frame of a table comes back"
        assert both.pool.nodes_in_use == 0

    live()
    assert all(SEEN[what] for what in ("pruned", "collapsed", "moved", "split", "remap")), SEEN


def test_a_large_leaf_takes_the_place_of_tables_that_map_nothing() -> None:
    both = Both()
    both.table.map([0, 512], [7, 8])
    for page in (0, 512):
        both.table.unmap(page)
    tables = [both.table.table_at(0, 2), both.table.table_at(512, 2), both.table.table_at(0, 3)]
    both.table.map(0, 1 << 18, size=2)
    assert not set(tables) & both.frames.out
    assert both.table.leaf_counts == (0, 0, 1)
    both.table.check()


def test_a_root_and_a_spare_table_move_too_and_an_unknown_one_does_not() -> None:
    both = Both()
    both.table.map(0, 7)
    old_root, spare = both.table.root_frame, int(both.table.table_frames[-1])
    assert both.table.move_table(old_root, 99) == (0, 4)
    assert both.table.root_frame == 99
    both.table.check()
    if spare not in (old_root, *(both.table.table_at(0, level) for level in (4, 3, 2))):
        both.table.move_table(spare, 98)
    with pytest.raises(KeyError, match="no table in frame 0x5"):
        both.table.move_table(5, 6)


def test_what_is_refused_changes_nothing() -> None:
    both = Both()
    both.table.map([0, 1], [7, 8])
    both.table.map(512, 512, size=1)
    with pytest.raises(KeyError, match="page 0x200 is mapped by a 2M leaf"):
        both.table.remap([0, 512], [17, 18])
    with pytest.raises(KeyError, match="page 0x2 is not mapped"):
        both.table.remap([0, 2], [17, 18])
    with pytest.raises(KeyError, match="page 0x200 is mapped by a 2M leaf"):
        both.table.unmap_many([0, 512])
    with pytest.raises(ValueError, match="8 TiB"):
        both.table.remap(0, 1 << 31)
    with pytest.raises(ValueError, match="multiples of 512"):
        both.table.collapse(0, 5)
    assert both.table.translate([0, 1, 512]).tolist() == [7, 8, 512]


@pytest.mark.skipif(INTERPRETED, reason="sixteen million pages are for compiled kernels")
def test_sixteen_million_pages_fit() -> None:
    both, pages = Both(), 1 << 24
    page = np.arange(pages)
    both.table.map(page, page)
    assert both.table.leaf_counts == (pages, 0, 0)
    np.testing.assert_array_equal(both.table.translate(page[::997]), page[::997])
    both.table.check()
    assert len(both.frames.out) <= pages // 512 + pages // (1 << 18) + 1 + 1 + 4
