"""Cores, VMs and processes come and go, and some cores only look on: nothing of them stays behind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.translation.worlds import PAGE, World, busy, taker, toy, without
from vmmsim.config import MODES, TlbPart
from vmmsim.translation.page_table import ACCESSED, DIRTY
from vmmsim.translation.registers import Registers
from vmmsim.translation.state import Exit

WIDE = (TlbPart(entries=8, ways=8, pages=("4K", "2M", "1G")),)


def held(world: World, core: int) -> int:
    """Return how many entries and lines a core holds."""
    return sum(len(entries) for sets in world.engine.contents(core=core).values() for entries in sets.values())


def test_a_core_that_is_added_is_like_the_first_and_its_number_is_used_again() -> None:
    world = World(busy(), hierarchy=True)
    added = world.engine.add_core()
    assert (added, world.engine.cores) == (1, (0, 1))
    assert world.load("base", core=added).counted(core=added) == world.load("base").counted()
    assert world.engine.contents(core=added) == world.engine.contents()
    world.engine.drop_core(added)
    assert world.engine.cores == (0,)
    assert world.engine.invalidate_vpid(1) > 0, "a core that is gone is not looked into"
    again = world.engine.add_core()
    assert again == added
    assert held(world, again) == 0
    assert not any(world.engine.counters(core=again).values())
    with pytest.raises(AssertionError, match="no registers loaded"):
        world.access(core=again)


def test_caches_are_modelled_core_by_core() -> None:
    world = World(busy())
    with_caches = world.engine.add_core(hierarchy=True)
    for core in (0, with_caches):
        world.load("base", core=core).access(core=core)
    assert world.engine.counters(core=0)["walk_cycles"] == 0
    assert world.engine.counters(core=with_caches)["walk_cycles"] > 0
    world.engine.check()


@pytest.mark.parametrize("counters", [False, True])
def test_a_core_is_emptied_alone_and_its_counters_if_asked(counters: bool) -> None:
    world = World(busy(), hierarchy=True, cores=2)
    for core in range(2):
        world.load("base", core=core).access(core=core)
    first = world.counted(core=1) | {}
    world.engine.empty_core(0, counters=counters)
    assert held(world, 0) == 0 < held(world, 1)
    assert any(world.engine.counters(core=0).values()) is not counters
    assert world.counted(core=1) == first, "the other core still hits"
    assert world.counted(core=0)["walks"] == 1, "registers stay"


def test_an_invalidation_of_some_cores_leaves_the_others() -> None:
    for call in ("page", "range", "context", "vpid", "eptp", "frames", "moved"):
        world = World(toy(), cores=3)
        for core in range(3):
            world.load("base", core=core).access(core=core)
        hfn = world.hfn()
        arguments = {
            "page": (1, 1, PAGE), "range": (1, 1, PAGE, PAGE + 1), "context": (1, 1), "vpid": (1,), "eptp": (1,),
            "frames": (hfn, hfn + 1), "moved": (1, hfn, hfn + 1),
        }[call]  # fmt: skip
        assert getattr(world.engine, f"invalidate_{call}")(*arguments, cores=(0, 2)) == 2
        assert [len(world.held("l1_data_tlb", core=core)) for core in range(3)] == [0, 1, 0]


def second_vm(world: World, *, eptp: int = 2) -> Registers:
    """Return the registers of another VM, with tables of its own that say what the world's say."""
    guest = world.engine.table(taker(itertools.count(3000)))
    guest.map(PAGE, world.data)
    nested = world.engine.table(taker(itertools.count(500)))
    for gfn in (world.data, *guest.table_frames.tolist()):
        nested.map(gfn, gfn + (1 << 20))
    return Registers(mode=MODES["base"], guest_table=guest, nested_table=nested, vpid=2, eptp=eptp)


def test_a_vm_that_is_gone_leaves_no_entry_no_register_and_no_number() -> None:
    world = World(busy(), cores=2).load("base")
    world.access()
    ours = held(world, 0)
    numbers = set()
    for _ in range(5):
        gone = second_vm(world)
        for core in range(2):
            world.engine.load(gone, core=core)
            world.access(core=core)
        numbers.add(int(world.engine.record(core=1).context))
        world.engine.forget(2)
        assert gone.nested_table is not None
        gone.nested_table.free()
        gone.guest_table.free()
        assert {name[0] for name in world.engine.contexts()} == {1}
        assert held(world, 1) == 0
        world.engine.check()
        with pytest.raises(AssertionError, match="no registers loaded"):
            world.access(core=1)
    assert len(numbers) <= 2, "numbers, of which a process takes two, are used again"
    assert 0 < held(world, 0) <= ours, "the other VM keeps what the gone one did not drive out"
    assert world.load("base").access().exit is Exit.DONE


def test_a_vm_whose_nested_table_another_uses_leaves_nested_entries() -> None:
    world = World(toy(nested_tlb=WIDE), cores=2).load("base")
    world.access()
    shared = len(world.held("nested_tlb"))
    world.engine.load(second_vm(world, eptp=1), core=1)
    world.engine.forget(2)
    assert len(world.held("nested_tlb")) == shared > 0


def test_a_process_that_is_gone_leaves_the_vm_s_others() -> None:
    world = World(toy(l1_data_tlb=WIDE), cores=2).load("base")
    world.access()
    child = world.engine.table(taker(itertools.count(3000)))
    child.map(PAGE, world.data)
    for gfn in child.table_frames.tolist():
        world.back(gfn)
    world.load("base", asid=2, guest=child, core=1).access(core=1)
    world.engine.forget(1, 2)
    child.free()
    world.engine.check()
    assert (len(world.held("l1_data_tlb")), len(world.held("l1_data_tlb", core=1))) == (1, 0)


def test_a_core_that_forgot_its_vm_holds_on_to_no_escape_map() -> None:
    world = World(toy(), cores=2)
    world.load("dual-direct", core=1, vmm_segment=without(world.vmm_segment, 5))
    assert int(world.engine.record(core=1).escape_map[1]) >= 0
    world.engine.forget(1)
    assert world.engine.record(core=1).escape_map.tolist() == [-1, -1]


# A native twin: the same guest table walked as if its gfns were host frames


def table_words(world: World) -> np.ndarray:
    return world.engine.tables.entries.copy()


@pytest.mark.parametrize("shadow", [False, True])
def test_a_native_twin_sets_accessed_and_dirty_bits_at_most_and_a_shadow_none(shadow: bool) -> None:
    world = World(busy(), hierarchy=True)
    world.map_guest(PAGE + 1, world.data + 1)
    twin = world.engine.add_core(shadow=shadow)
    world.load("base").load("native", core=twin)
    before = table_words(world)
    for page, write in ((PAGE, False), (PAGE + 1, True), (PAGE, True)):
        assert world.access(page, write=write, core=twin).exit is Exit.DONE
    changed = before ^ table_words(world)
    if shadow:
        assert not changed.any()
    else:
        assert np.bitwise_or.reduce(changed) == ACCESSED | DIRTY
    assert world.engine.counters(core=twin)["guest_references"] >= 4
    assert world.engine.counters(core=twin)["nested_references"] == 0
    assert world.hfn(PAGE + 1, core=twin) == world.data + 1, "a gfn stands for the host's frame"
    assert not any(world.engine.counters(core=0).values())
    if shadow:
        world.engine.check()


@pytest.mark.parametrize("mode", list(MODES))
def test_a_shadow_counts_what_any_core_counts_and_leaves_no_trace(mode: str) -> None:
    """Leaves are accessed and dirty beforehand: what a core that sets the bits would find."""
    accesses = [(PAGE + page, write) for page, write in ((0, 0), (1, 1), (2, 0), (0, 1), (3, 0), (1, 0), (2, 1))]
    world = World(busy(), hierarchy=True)
    for page in range(1, 4):
        world.map_guest(PAGE + page, world.data + page)
    for table in (world.guest, world.nested):
        table.protect_many(table.leaves()[0], set_flags=ACCESSED | DIRTY)
    shadow = world.engine.add_core(shadow=True)
    world.load("base").load(mode, core=shadow)
    before = table_words(world)
    for page, write in accesses:
        assert world.access(page, write=bool(write), core=shadow).exit is Exit.DONE
    np.testing.assert_array_equal(before, table_words(world))
    world.engine.check()
    world.load(mode)
    for page, write in accesses:
        world.access(page, write=bool(write))
    assert world.engine.counters(core=shadow) == world.engine.counters(core=0)
    assert world.engine.contents(core=shadow) == world.engine.contents(core=0)


def test_a_shadow_whose_access_exits_leaves_no_trace_either() -> None:
    world = World(busy())
    shadow = world.engine.add_core(shadow=True)
    world.load("base", core=shadow)
    world.nested.unmap(world.data)
    before = table_words(world)
    assert world.access(core=shadow).exit is Exit.NESTED_FAULT
    np.testing.assert_array_equal(before, table_words(world))
    world.engine.check()


def test_invalidation_reaches_a_shadow_under_the_real_core_s_names() -> None:
    world = World(toy())
    shadow = world.engine.add_core(shadow=True)
    world.load("vmm-direct").load("base", core=shadow)
    for core in (0, shadow):
        world.access(core=core)
    assert world.engine.invalidate_page(1, 1, PAGE) == 2
    assert held(world, shadow) == 0


def test_a_large_leaf_over_an_emptied_table_is_walked_to_at_once() -> None:
    world, gone = World(toy()), list[int]()
    world.guest = world.engine.table(taker(itertools.count(3000)), give_back_frames=gone.extend)
    world.guest.map(PAGE, world.data)
    world.load("native").access()
    table = world.guest.table_at(PAGE, 2)
    world.guest.unmap(PAGE)
    world.engine.invalidate_page(1, 1, PAGE)
    world.guest.map(PAGE, 1 << 18, size=1)
    assert gone == [table]
    assert world.counted(PAGE + 7)["guest_references"] == 3
    assert world.hfn(PAGE + 7) == (1 << 18) + 7
