"""Whose structures they are: a core's, tagged; and registers that belong to whoever runs."""

from __future__ import annotations

import itertools

import pytest

from tests.translation.worlds import ALL, OFF, PAGE, World, busy, cost, taker, toy
from vmmsim.config import MODES, TlbPart
from vmmsim.errors import BadInput
from vmmsim.translation.page_table import GLOBAL
from vmmsim.translation.registers import Registers, Segment
from vmmsim.translation.state import Exit

WIDE = (TlbPart(entries=8, ways=8, pages=("4K", "2M", "1G")),)


def test_two_cores_share_page_tables_and_no_structure() -> None:
    world = World(busy(), cores=2, hierarchy=True)
    for core in range(2):
        world.load("base", core=core)
    world.access(core=0)
    assert not any(world.engine.contents(core=1).values())
    assert not any(world.engine.counters(core=1).values())
    first = {name: count for name, count in world.engine.counters(core=0).items() if count}
    assert world.counted(core=1) == {name: count for name, count in first.items() if name != "references"}
    assert world.engine.contents(core=0) == world.engine.contents(core=1)


def test_each_core_has_registers_of_its_own() -> None:
    world = World(toy(), cores=2)
    world.load("base", core=0)
    world.load("dual-direct", core=1)
    assert cost(world.counted(core=0))[0] == 24
    assert cost(world.counted(core=1))[0] == 0


def test_invalidation_reaches_every_core() -> None:
    world = World(toy(), cores=2)
    for core in range(2):
        world.load("base", core=core)
        world.access(core=core)
    assert world.engine.invalidate_page(1, 1, PAGE) == 2
    assert not world.held("l1_data_tlb", core=0) + world.held("l1_data_tlb", core=1)


def test_a_switch_with_pcid_flushes_nothing_and_tags_keep_processes_apart() -> None:
    world = World(toy(l1_data_tlb=WIDE)).load("base")
    world.access()
    other = world.engine.table(taker(itertools.count(3000)))
    other.map(PAGE, world.data + 1, flags=ALL)
    for gfn in (world.data + 1, *other.table_frames.tolist()):
        world.back(gfn)
    world.load("base", asid=2, guest=other)
    assert world.counted()["walks"] == 1
    hfns = {entry[0]: entry[3] for entry in world.held("l1_data_tlb")}
    assert hfns["combined", 1, 2, 1] == hfns["combined", 1, 1, 1] + 1
    world.load("base")
    assert world.counted() == {"accesses": 1, "l1_hits": 1}


def test_a_switch_without_pcid_keeps_global_entries_alone() -> None:
    world = World(toy(l1_data_tlb=WIDE)).load("base")
    world.map_guest(PAGE + 1, world.data + 1, flags=ALL | GLOBAL)
    world.access(PAGE)
    world.access(PAGE + 1)
    world.engine.invalidate_context(1, 1)
    world.load("base", asid=2)
    assert world.counted(PAGE + 1) == {"accesses": 1, "l1_hits": 1}
    assert world.counted(PAGE)["walks"] == 1


def test_a_global_entry_serves_its_own_vpid_and_eptp_alone() -> None:
    for tags in ({"vpid": 2}, {"eptp": 2}):
        world = World(toy(l1_data_tlb=WIDE)).load("base")
        world.guest.protect(PAGE, set_flags=GLOBAL)
        world.access()
        assert world.load("base", **tags).counted()["walks"] == 1


def test_the_own_entry_is_found_before_a_global_one_and_4k_before_2m() -> None:
    world = World(toy(l1_data_tlb=WIDE), 1, 1).load("base")
    world.access(PAGE + 3)
    world.guest.split(PAGE)
    for gfn in world.guest.table_frames.tolist():
        world.back(gfn)
    world.guest.unmap(PAGE + 3)
    world.guest.map(PAGE + 3, world.data + 3, flags=ALL | GLOBAL)
    world.engine.invalidate_page(1, 1, PAGE + 3)
    world.access(PAGE + 4)  # 4K, own
    world.access(PAGE + 3)  # 4K, global
    kinds = [(entry[0][2], entry[1]) for entry in world.held("l1_data_tlb")]
    assert kinds == [(None, 0), (1, 0)]
    world.access(PAGE + 4)
    assert world.held("l1_data_tlb")[0][2] == PAGE + 4
    assert world.engine.counters()["walks"] == 3


def test_registers_of_the_incoming_process_are_in_force_at_once() -> None:
    """A process without a segment has BASE = LIMIT, whatever the one before it had."""
    world = World(toy()).load("guest-direct")
    assert cost(world.counted())[:2] == (4, 1)
    world.load("guest-direct", asid=2, guest_segment=None)
    assert cost(world.counted()) == (24, 0, "walk_both")
    assert "checks_failed" not in world.counted(write=True)
    moved = Segment(base=PAGE, limit=PAGE + 1, offset=world.data + 1 - PAGE)
    world.back(world.data + 1)
    world.load("guest-direct", asid=3, guest_segment=moved)
    assert cost(world.counted())[:2] == (4, 1)
    assert {entry[3] for entry in world.held("l1_data_tlb")} == {world.hfn_of(world.data), world.hfn_of(world.data + 1)}


def test_leaving_a_filter_behind_leaves_no_member_behind() -> None:
    from tests.translation.worlds import without

    world = World(toy())
    world.load("dual-direct", vmm_segment=without(world.vmm_segment, world.data))
    assert cost(world.counted())[0] == 4
    world.load("dual-direct").engine.invalidate_all()
    assert cost(world.counted()) == (0, 1, "segment_0d")


def test_a_mode_takes_a_nested_table_exactly_if_it_has_a_nested_dimension() -> None:
    world = World(toy())
    for mode in MODES.values():
        wrong = world.nested if mode.nested == "identity" else None
        with pytest.raises(BadInput, match=f"mode {mode.name} needs (no|a) nested table"):
            Registers(mode=mode, guest_table=world.guest, nested_table=wrong)


def test_a_segment_that_is_none_is_refused() -> None:
    for base, limit, offset in ((5, 4, 0), (-1, 4, 0), (3, 9, -4)):
        with pytest.raises(BadInput, match="a segment"):
            Segment(base=base, limit=limit, offset=offset)
    assert Segment(base=5, limit=5, offset=-9).base == 5
    assert OFF.limit == 0


def test_nothing_runs_before_registers_are_loaded() -> None:
    world = World(toy())
    with pytest.raises(AssertionError, match="no registers loaded"):
        world.access()
    assert world.load("base").access().exit is Exit.DONE
