"""Radix tables in the pool: what is mapped is found, and only that; tables are trees, at the frames that were given."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import taker
from vmmsim.jit import INTERPRETED
from vmmsim.translation import page_table as pt
from vmmsim.translation.page_table import AlreadyMapped, Leaf, PageTable, TablePool

EXAMPLES = settings(max_examples=20 if INTERPRETED else 60)
FLAGS = pt.WRITABLE | pt.ACCESSED | pt.DIRTY | pt.EXECUTABLE | pt.GLOBAL


def table_of(levels: int = 4, pool: TablePool | None = None, first: int = 1) -> PageTable:
    return PageTable(pool or TablePool(), levels, taker(itertools.count(first)))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_mapping_is_found_at_its_first_and_last_page_and_not_beside(levels: int, size: int) -> None:
    table, pages = table_of(levels), 1 << 9 * size
    last = (1 << 9 * levels) - pages
    for page in (0, 5 << 18, last):
        table.map(page, 1 << 30, size=size, flags=pt.WRITABLE | pt.GLOBAL)
        leaf = table.leaf(page + pages - 1)
        assert leaf is not None
        assert (leaf.page, leaf.size, leaf.flags) == (page, size, pt.WRITABLE | pt.GLOBAL)
        assert table.translate([page, page + pages - 1]).tolist() == [leaf.frame, leaf.frame + pages - 1]
    assert table.translate([(5 << 18) - 1, (5 << 18) + pages, last - 1]).tolist() == [-1, -1, -1]
    table.check()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["map", "map", "map", "unmap", "split", "protect"]),
        st.integers(0, 7).map(lambda i: (0, 1, 511, 512, 1023, 1 << 18, (1 << 18) + 7, (1 << 36) - 1)[i]),
        st.sampled_from([0, 0, 1, 2]), st.integers(0, 127),
    ),
    max_size=25,
)  # fmt: skip


def pages_below(leaf: Leaf) -> range:
    """Return the pages that stand for a leaf's: its ends and those of its 2M parts that the test may meet."""
    return range(leaf.page, leaf.page + (1 << 9 * leaf.size))


@EXAMPLES
@given(STEPS)
def test_a_table_is_a_set_of_leaves(steps: list[tuple[str, int, int, int]]) -> None:
    """Against a dict of leaves: every step, refused or not, leaves the table equal to it."""
    table = table_of()
    leaves: dict[int, Leaf] = {}

    def at(page: int) -> Leaf | None:
        return next((leaf for leaf in leaves.values() if page in pages_below(leaf)), None)

    for number, (step, page, size, flags) in enumerate(steps):
        found = at(page)
        if step == "map":
            new = Leaf(page=page & -(1 << 9 * size), frame=number + 1 << 18, size=size, flags=flags & FLAGS)
            clash = any(leaf.page in pages_below(new) or new.page in pages_below(leaf) for leaf in leaves.values())
            try:
                table.map(new.page, new.frame, size=size, flags=new.flags)
            except AlreadyMapped:
                assert clash
            else:
                assert not clash
                leaves[new.page] = new
        elif found is None:
            assert table.leaf(page) is None
            with pytest.raises(KeyError, match="is not mapped"):
                table.protect(page, set_flags=pt.DIRTY)
        elif step == "unmap":
            assert table.unmap(page) == leaves.pop(found.page)
        elif step == "protect":
            table.protect(page, set_flags=flags & FLAGS, clear_flags=FLAGS)
            leaves[found.page] = Leaf(page=found.page, frame=found.frame, size=found.size, flags=flags & FLAGS)
        elif found.size == 0:
            with pytest.raises(ValueError, match="cannot be split"):
                table.split(page)
        else:
            table.split(page)
            del leaves[found.page]
            part = 1 << 9 * (found.size - 1)
            for i in range(512):
                small = Leaf(
                    page=found.page + i * part, frame=found.frame + i * part, size=found.size - 1, flags=found.flags
                )
                leaves[small.page] = small
        table.check()
    pages, entries, sizes = table.leaves()
    assert pages.tolist() == sorted(leaves)
    expected = [leaves[page] for page in pages.tolist()]
    assert sizes.tolist() == [leaf.size for leaf in expected]
    assert (entries >> pt.FRAME_SHIFT & pt.FRAME_MASK).tolist() == [leaf.frame for leaf in expected]
    assert (entries & FLAGS).tolist() == [leaf.flags for leaf in expected]


@EXAMPLES
@given(st.sets(st.integers(0, (1 << 36) - 1), min_size=1, max_size=300), st.integers(0, 2**32))
def test_many_pages_map_at_once_and_translate_back(pages: set[int], seed: int) -> None:
    table = table_of()
    page = np.array(sorted(pages), np.int64)
    frame = np.random.default_rng(seed).integers(0, 1 << 31, page.size)
    table.map(page, frame, flags=pt.WRITABLE)
    np.testing.assert_array_equal(table.translate(page), frame)
    listed, entries, _ = table.leaves()
    np.testing.assert_array_equal(listed, page)
    np.testing.assert_array_equal(entries >> pt.FRAME_SHIFT & pt.FRAME_MASK, frame)
    table.check()


def test_tables_lie_in_the_frames_given_from_the_root_down() -> None:
    table = table_of(first=100)
    table.map(0, 7)
    assert (table.root_frame, [table.table_at(0, level) for level in (4, 3, 2)]) == (100, [101, 102, 103])
    table.map(512, 8)
    assert table.table_at(512, 2) == 104
    assert set(table.table_frames.tolist()) >= {100, 101, 102, 103, 104}
    assert table.table_at(1 << 27, 4) is None
    assert table.table_at(1 << 18, 3) is None


def test_a_large_leaf_leads_to_no_table() -> None:
    table = table_of()
    table.map(512, 512, size=1)
    assert table.table_at(512, 2) is None
    assert table.table_at(512, 3) is not None


def test_those_before_a_page_that_is_taken_are_mapped() -> None:
    table = table_of()
    table.map(2, 50)
    with pytest.raises(AlreadyMapped, match="page 0x2 is mapped"):
        table.map([0, 1, 2, 3], [10, 11, 12, 13])
    assert table.translate([0, 1, 2, 3]).tolist() == [10, 11, 50, -1]
    table.check()


def test_a_split_keeps_every_translation_and_every_flag() -> None:
    for size in (1, 2):
        table, pages = table_of(), 1 << 9 * size
        table.map(pages, 3 * pages, size=size, flags=pt.WRITABLE | pt.DIRTY | pt.GLOBAL)
        table.split(pages + 5)
        some = pages + np.arange(0, pages, 511)
        np.testing.assert_array_equal(table.translate(some), some + 2 * pages)
        assert {table.leaf(int(page)).flags for page in some[:3]} == {pt.WRITABLE | pt.DIRTY | pt.GLOBAL}
        assert table.leaf(pages).size == size - 1
        table.check()


def test_nothing_unaligned_or_out_of_memory_is_mapped() -> None:
    table = table_of()
    for page, frame, size in ((1, 512, 1), (512, 1, 1), (512, 512, 2)):
        with pytest.raises(ValueError, match="multiples"):
            table.map(page, frame, size=size)
    for frame in (-1, 1 << 31):
        with pytest.raises(ValueError, match="8 TiB"):
            table.map(0, frame)
    assert table.leaf(0) is None


def test_the_pool_grows_and_keeps_what_it_held_and_takes_back_what_is_free() -> None:
    pool = TablePool()
    tables = [table_of(pool=pool, first=100 * i) for i in range(30)]
    for i, table in enumerate(tables):
        table.map(np.arange(8) << 18, np.arange(8) + 10 * i)
    for i, table in enumerate(tables):
        assert table.translate(np.arange(8) << 18).tolist() == [10 * i + j for j in range(8)]
        table.check()
    used = pool.nodes_in_use
    size = pool.entries.size
    for table in tables:
        table.free()
    assert pool.nodes_in_use == 0 < used
    again = table_of(pool=pool)
    assert again.leaf(0) is None, "a table that was given back is empty when taken"
    again.map(np.arange(8) << 18, 0)
    assert pool.entries.size == size


def test_check_finds_a_table_that_is_reached_twice_or_not_at_all() -> None:
    def broken() -> tuple[PageTable, Any]:
        table = table_of()
        table.map([0, 512], [1, 2])
        return table, table.pool.entries

    table, entries = broken()
    above = pt.node_of(int(entries[pt.slot(pt.node_of(int(entries[pt.slot(table.root, 0, 4)])), 0, 3)]))
    entries[pt.slot(above, 512, 2)] = entries[pt.slot(above, 0, 2)]
    with pytest.raises(AssertionError, match="reached twice"):
        table.check()
    table, entries = broken()
    entries[pt.slot(table.root, 0, 4)] = 0
    with pytest.raises(AssertionError, match="differ"):
        table.check()
