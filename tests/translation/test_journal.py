"""An access that exits leaves every byte as it was, except its own counter: whole arrays, before and after."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import ALL, PAGE, SHIFT, TABLES, World, busy, toy
from vmmsim.config import Switches, TableCache, TlbPart
from vmmsim.translation.page_table import EXECUTABLE, WRITABLE, node_of, slot
from vmmsim.translation.registers import Segment
from vmmsim.translation.state import FAULT_COUNT, JOURNAL, Exit

PAGES = (PAGE, PAGE + 1, PAGE + 2, PAGE + 512, PAGE + (1 << 18), 5)
WARM = st.lists(st.tuples(st.sampled_from(PAGES), st.sampled_from(["read", "write", "fetch"])), max_size=12)
SWITCHES = st.fixed_dictionaries(
    {
        "segment_at": st.sampled_from(["l1_miss", "l2_miss"]),
        "ntlb_data": st.booleans(),
        "ntlb_in_l2": st.booleans(),
        "ept_accessed_dirty": st.booleans(),
    }
)
HURTS = (
    "guest absent",
    "guest read-only",
    "guest no execute",
    "table absent",
    *("nested absent", "nested read-only") * 3,
)


MODES_TRIED = ("base", "base", "vmm-direct", "guest-direct", "dual-direct")


def world_of(switches: dict[str, Any], hierarchy: bool, levels: int) -> World:
    """Return a world whose segments leave some tables and pages to the walks."""
    world = World(attrs.evolve(busy(**switches), levels=levels), hierarchy=hierarchy)
    for i, page in enumerate(PAGES[1:], start=1):
        world.map_guest(page, world.data + i)
    world.guest_segment = Segment(base=PAGE, limit=PAGE + 1, offset=world.data - PAGE)
    world.vmm_segment = Segment(base=TABLES + 1, limit=world.data + 1, offset=SHIFT)
    return world


def everything(world: World) -> list[Any]:
    """Return copies of all that an access may change: cells, tables, counters, and which kinds were ever filled."""
    held = world.engine._cores[0]
    return [held.cells.copy(), world.engine.tables.entries.copy(), held.record.count.copy()]


def hurt(world: World, what: str, page: int, level: int) -> None:
    """Damage what a walk for ``page`` reads, somewhere; the nested hurts at a table's gfn or the data's."""
    gfns = [*world.tables(page), int(world.guest.translate(page)[0])]
    gfn = gfns[level % len(gfns)]
    if what == "guest absent":
        world.guest.unmap(page)
    elif what == "guest read-only":
        world.guest.protect(page, clear_flags=WRITABLE)
    elif what == "guest no execute":
        world.guest.protect(page, clear_flags=EXECUTABLE)
    elif what == "nested absent":
        world.nested.unmap(gfn)
    elif what == "nested read-only":
        world.nested.protect(gfn, clear_flags=WRITABLE)
    else:  # a table of the walk is not there: an entry above the leaf
        node = world.guest.root
        for above in range(world.guest.levels, 2 + level % (world.guest.levels - 1), -1):
            node = int(node_of(world.guest.pool.entries[slot(node, page, above)]))
        place = slot(node, page, 2 + level % (world.guest.levels - 1))
        world.guest.pool.entries[place] = 0


def test_an_exit_leaves_every_byte_as_it_was_except_its_own_counter() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, derandomize=True)
    @given(
        SWITCHES, st.booleans(), st.sampled_from([4, 5]), st.sampled_from(MODES_TRIED),
        WARM, st.sampled_from(HURTS), st.sampled_from(PAGES), st.integers(0, 5), st.booleans(),
    )  # fmt: skip
    def exits(
        switches: dict[str, Any], hierarchy: bool, levels: int, mode: str, warm: list[tuple[int, str]],
        what: str, page: int, level: int, known: bool,
    ) -> None:  # fmt: skip
        world = world_of(switches, hierarchy, levels).load(mode)
        kind = {"guest read-only": "write", "guest no execute": "fetch"}.get(what, "write" if known else "read")
        warm = [each for each in warm if known or each[0] != page]
        for each, how in warm:
            world.access(each, write=how == "write", fetch=how == "fetch")
        hurt(world, what, page, level)
        before = everything(world)
        outcome = world.access(page, write=kind == "write", fetch=kind == "fetch", line=level)
        seen[f"{outcome.exit.name} {'warm' if warm else 'cold'}"] += 1
        if outcome.exit is Exit.DONE:
            return
        assert outcome.gvpn == page
        before[2][FAULT_COUNT + outcome.exit] += 1
        for ours, theirs in zip(everything(world), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    exits()
    wanted = [f"{each.name} warm" for each in Exit] + ["GUEST_FAULT cold", "NESTED_FAULT cold"]
    too_little = {each: seen[each] for each in wanted if seen[each] < 2}
    assert not too_little, seen


@pytest.mark.parametrize("hierarchy", [False, True])
def test_a_cold_walk_may_fail_at_every_one_of_its_entries(hierarchy: bool) -> None:
    """Take away, one at a time, each of the five nested leaves and each of the four guest entries that a walk reads."""
    met = Counter[Exit]()
    for level, what in itertools.product(range(5), ("nested absent", "table absent", "guest absent")):
        world = world_of({}, hierarchy, 4).load("base")
        hurt(world, what, PAGE, level)
        before = everything(world)
        outcome = world.access(write=True)
        met[outcome.exit] += 1
        before[2][FAULT_COUNT + outcome.exit] += 1
        for ours, theirs in zip(everything(world), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert met == {Exit.NESTED_FAULT: 5, Exit.GUEST_FAULT: 10}


def test_the_longest_walk_fits_the_journal() -> None:
    """Five levels at both sides, and gfns so far apart that each nested walk reads, fills and marks all it can."""
    parts = attrs.evolve(busy().walk_cache, l5=TableCache(entries=1, ways=1))
    machine = attrs.evolve(busy(ntlb_data=True), levels=5, walk_cache=parts, nested_walk_cache=parts)
    far = [i << 27 for i in range(1, 5)]
    world = World(machine, hierarchy=True, table_gfns=[TABLES, *far, *range(9000, 9040)], data=5 << 27)
    world.load("base").access(write=True)
    assert world.engine.counters()["references"] > 25
    assert 60 < int(world.engine.record().journal_length) <= JOURNAL


def test_an_entry_that_a_failed_walk_replaced_is_restored() -> None:
    """A clean nested entry of 2M serves no table that must be dirty: the walk updates it, and fails later."""
    machine = toy(nested_tlb=(TlbPart(entries=4, ways=4, pages=("4K", "2M")),), switches=Switches(ntlb_data=True))
    world = World(machine, 0, 1, data=TABLES + 100)
    world.load("guest-direct").access()
    (entry,) = world.held("nested_tlb")
    assert entry[5] is False
    before, contents = everything(world), world.engine.contents()
    world.load("base")
    assert world.access(PAGE + 1).exit is Exit.GUEST_FAULT
    before[2][FAULT_COUNT + Exit.GUEST_FAULT] += 1
    for ours, theirs in zip(everything(world), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert world.engine.contents() == contents


def test_faults_do_not_add_up_in_the_journal() -> None:
    """Forty of them would not fit: a walk leaves 20 lines or more."""
    world = World(busy(), hierarchy=True).load("base")
    world.map_guest(PAGE + 1, world.data + 1, flags=ALL & ~WRITABLE)
    before = everything(world)
    for _ in range(40):
        assert world.access(PAGE + 1, write=True).exit is Exit.GUEST_WRITE
    assert JOURNAL < 40 * 20
    before[2][FAULT_COUNT + Exit.GUEST_WRITE] = 40
    for ours, theirs in zip(everything(world), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
