"""Writes, dirty bits and permissions at both levels: what a TLB entry permits, and when an access walks again."""

from __future__ import annotations

import itertools

import pytest

from tests.translation.worlds import ALL, ALL_SIZES, PAGE, World, difference, toy
from vmmsim.config import Switches
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, GLOBAL, WRITABLE
from vmmsim.translation.state import Exit

WITH_L2 = toy(l2_tlb=ALL_SIZES)
BOTH = [*itertools.product((False, True), repeat=2)]


def flags(world: World, page: int = PAGE) -> tuple[int, int]:
    """Return accessed and dirty bits of the guest leaf and of the nested leaf under it."""
    guest, nested = world.guest.leaf(page), world.nested.leaf(world.data + page - PAGE)
    assert guest is not None
    assert nested is not None
    return guest.flags & (ACCESSED | DIRTY), nested.flags & (ACCESSED | DIRTY)


def test_a_read_sets_accessed_and_a_write_sets_dirty_in_both_leaves() -> None:
    world = World().load("base")
    world.access()
    assert flags(world) == (ACCESSED, ACCESSED)
    world.access(write=True)
    assert flags(world) == (ACCESSED | DIRTY, ACCESSED | DIRTY)


def test_a_first_write_walks_again_once_and_its_references_are_charged() -> None:
    world = World(WITH_L2).load("base")
    world.access()
    counted = world.counted(write=True)
    assert (counted["rewalks"], counted["dirty_walks"], counted["walks"]) == (1, 1, 1)
    assert counted["guest_references"] + counted["nested_references"] == 24
    assert "data_l1_misses" not in counted
    assert "l2_misses" not in counted
    assert world.counted(write=True) == {"accesses": 1, "l1_hits": 1}


@pytest.mark.parametrize(("guest", "nested"), BOTH)
def test_an_entry_is_dirty_only_if_both_leaves_are(guest: bool, nested: bool) -> None:
    world = World().load("base")
    world.guest.protect(PAGE, set_flags=DIRTY if guest else 0)
    world.nested.protect(world.data, set_flags=DIRTY if nested else 0)
    world.access()
    assert world.entry()[5] == (guest and nested)
    assert world.counted(write=True).get("dirty_walks", 0) == (not (guest and nested))


@pytest.mark.parametrize(("guest", "nested"), BOTH)
def test_an_entry_is_writable_only_if_both_leaves_are(guest: bool, nested: bool) -> None:
    world = World().load("base")
    if not guest:
        world.guest.protect(PAGE, clear_flags=WRITABLE)
    if not nested:
        world.nested.protect(world.data, clear_flags=WRITABLE)
    world.access()
    assert world.entry()[4] == (guest and nested)
    expected = Exit.GUEST_WRITE if not guest else Exit.NESTED_WRITE if not nested else Exit.DONE
    outcome = world.access(write=True)
    assert outcome.exit is expected
    assert outcome.gfn == (world.data if expected is Exit.NESTED_WRITE else -1)


def test_a_refused_write_leaves_the_entry_and_a_served_one_replaces_it() -> None:
    world = World(WITH_L2).load("base")
    world.guest.protect(PAGE, clear_flags=WRITABLE)
    world.access()
    before = world.engine.contents()
    assert world.access(write=True).exit is Exit.GUEST_WRITE
    assert world.engine.contents() == before
    world.guest.protect(PAGE, set_flags=WRITABLE)
    counted = world.counted(write=True)
    assert counted["rewalks"] == 1
    assert "dirty_walks" not in counted
    for structure in ("l1_data_tlb", "l2_tlb"):
        assert world.entry(structure=structure)[4:6] == (True, True)


def test_a_write_refused_by_the_l2_entry_is_an_l1_miss_and_no_l2_miss() -> None:
    world = World(WITH_L2).load("base")
    world.map_guest(PAGE + 1, world.data + 1)
    world.map_guest(PAGE + 2, world.data + 2)
    world.engine.empty()
    world.access(fetch=True)  # fills the L1 instruction TLB and the L2 TLB
    counted = world.counted(write=True)
    assert (counted["data_l1_misses"], counted["rewalks"], counted["dirty_walks"]) == (1, 1, 1)
    assert "l2_misses" not in counted
    assert "l2_hits" not in counted


def test_a_rewalk_drops_the_copies_that_refused_it() -> None:
    world = World(WITH_L2).load("base")
    world.access()
    world.guest.protect(PAGE, set_flags=GLOBAL)
    world.access(write=True)
    for structure in ("l1_data_tlb", "l2_tlb"):
        assert [entry[0] for entry in world.held(structure)] == [("combined", 1, None, 1)]


def test_segments_are_writable_and_need_no_dirty_walk() -> None:
    world = World()
    world.guest.protect(PAGE, clear_flags=WRITABLE)
    world.nested.protect(world.data, clear_flags=WRITABLE)
    world.load("dual-direct").access()
    assert world.counted(write=True) == {"accesses": 1, "l1_hits": 1}
    assert world.entry()[4:] == (True, True, True)
    assert flags(world) == (0, 0)


def test_each_mode_keeps_the_permissions_of_the_dimension_that_it_walks() -> None:
    world = World()
    world.guest.protect(PAGE, clear_flags=WRITABLE)
    assert world.load("vmm-direct").access(write=True).exit is Exit.GUEST_WRITE
    assert world.load("guest-direct").access(write=True).exit is Exit.DONE
    world.engine.invalidate_all()
    world.guest.protect(PAGE, set_flags=WRITABLE)
    world.nested.protect(world.data, clear_flags=WRITABLE)
    assert world.load("vmm-direct").access(write=True).exit is Exit.DONE
    world.engine.invalidate_all()
    assert world.load("guest-direct").access(write=True).exit is Exit.NESTED_WRITE


def test_with_nested_dirty_bits_reading_a_guest_table_is_a_write_to_its_frame() -> None:
    world = World().load("base")
    table = world.tables()[-1]
    world.access()
    leaf = world.nested.leaf(table)
    assert leaf is not None
    assert leaf.flags & DIRTY
    world.nested.protect(table, clear_flags=WRITABLE)
    world.engine.invalidate_all()
    outcome = world.access()
    assert (outcome.exit, outcome.gvpn, outcome.gfn) == (Exit.NESTED_WRITE, PAGE, table)


def test_without_nested_dirty_bits_they_are_left_alone_and_count_as_dirty() -> None:
    world = World(toy(switches=Switches(ept_accessed_dirty=False))).load("base")
    world.access()
    for gfn in (world.data, *world.tables()):
        leaf = world.nested.leaf(gfn)
        assert leaf is not None
        assert leaf.flags == WRITABLE
    world.access(write=True)
    assert world.counted(write=True) == {"accesses": 1, "l1_hits": 1}
    for gfn in world.tables():
        world.nested.protect(gfn, clear_flags=WRITABLE)
    world.engine.invalidate_all()
    assert world.access().exit is Exit.DONE


def test_a_fetch_needs_an_executable_guest_leaf_and_no_nested_right() -> None:
    world = World()
    for mode in ("base", "native", "vmm-direct"):
        world.load(mode).engine.invalidate_all()
        assert world.access(fetch=True).exit is Exit.DONE
    world.guest.protect(PAGE, clear_flags=EXECUTABLE)
    world.engine.invalidate_all()
    world.access()
    assert world.entry()[6] is False
    assert world.access(fetch=True).exit is Exit.PROTECTION
    assert world.load("guest-direct").access(fetch=True).exit is Exit.DONE


def test_fetches_and_data_use_separate_l1_tlbs_and_one_l2_tlb() -> None:
    world = World(WITH_L2).load("base")
    world.map_guest(PAGE + 1, world.data + 1, flags=ALL)
    world.access(fetch=True)
    counted = world.counted()
    assert counted == {"accesses": 1, "data_l1_misses": 1, "l2_hits": 1}
    assert world.entry(structure="l1_instruction_tlb") == world.entry()
    before = world.engine.counters()
    world.access(PAGE + 1, fetch=True)
    assert difference(before, world.engine.counters())["instruction_l1_misses"] == 1


def test_exits_name_the_page_and_the_frame_and_count_nothing_else() -> None:
    world = World().load("base")
    table = world.tables()[-1]
    expected = {}
    for change, how, exit_, gfn in (
        (lambda: None, {"page": PAGE + 1}, Exit.GUEST_FAULT, -1),
        (lambda: world.guest.protect(PAGE, clear_flags=ALL), {"write": True}, Exit.GUEST_WRITE, -1),
        (lambda: None, {"fetch": True}, Exit.PROTECTION, -1),
        (lambda: world.nested.unmap(world.data), {}, Exit.NESTED_FAULT, world.data),
        (lambda: world.nested.unmap(table), {}, Exit.NESTED_FAULT, table),
    ):
        change()
        outcome = world.access(**how)
        assert (outcome.done, outcome.exit, outcome.gvpn, outcome.gfn) == (0, exit_, how.get("page", PAGE), gfn)
        name = exit_.name.lower() + "s"
        expected[name] = expected.get(name, 0) + 1
    assert difference(dict.fromkeys(world.engine.counters(), 0), world.engine.counters()) == expected
