"""The hierarchy model: where the walker enters, latencies that add up, lines that die with their frame."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.translation.worlds import CACHES, PAGE, SHIFT, World, difference, toy
from vmmsim.config import Cycles, DataCache, TableCache, TlbPart, WalkCache
from vmmsim.translation.state import Step

LARGE = attrs.evolve(
    CACHES,
    l1_data=DataCache(size_bytes=1 << 15, ways=512, cycles=4),
    l1_instruction=DataCache(size_bytes=1 << 15, ways=8, cycles=3),
    l2=DataCache(size_bytes=1 << 18, ways=8, cycles=14),
    l3=DataCache(size_bytes=1 << 21, ways=16, cycles=54),
)
"""Caches that hold whatever a test touches: everything misses once."""
MEMORY = 200
FIXED = Cycles(check=10, walk_cache_hit=100, nested_tlb_hit=1000)


def world_of(**changes: Any) -> World:
    return World(toy(**{"caches": LARGE, "cycles": FIXED} | changes), hierarchy=True)


def lines_of(world: World) -> list[int]:
    """Return the lines that the walk of a cold access reads, from its log."""
    from vmmsim.translation.chunk import pack

    _, steps = world.engine.walk_log(int(pack(PAGE)[0]))
    return [step.address >> 6 for step in steps if step.step in (Step.GUEST_REFERENCE, Step.NESTED_REFERENCE)]


def test_a_cold_walk_costs_memory_for_each_line_and_the_first_level_for_a_line_again() -> None:
    lines = lines_of(world_of().load("base"))
    counted = world_of().load("base").counted()
    new = len(set(lines))
    assert len(lines) == 24
    assert counted["references_from_memory"] == counted["cold_lines"] == new
    assert counted["walk_cycles"] == new * MEMORY + (24 - new) * 4
    assert counted["data_cycles"] == MEMORY


def test_a_warm_walk_costs_the_first_level_for_each_reference() -> None:
    world = world_of().load("base")
    world.access()
    world.engine.invalidate_all()
    counted = world.counted()
    assert counted["walk_cycles"] == 24 * 4
    assert "references_from_memory" not in counted
    assert counted["data_cycles"] == 4


def test_the_walker_may_enter_at_the_second_level() -> None:
    world = world_of(caches=attrs.evolve(LARGE, walker_enters="l2")).load("base")
    world.access()
    world.engine.invalidate_all()
    assert world.counted()["walk_cycles"] == 24 * 14
    data = (world.data + SHIFT) << 6
    assert world.held("l1_data") == [data], "the walker's lines are in no first level"
    assert set(world.held("l2")) >= set(lines_of(world)) | {data}


def test_checks_and_hits_of_walk_caches_and_of_the_nested_tlb_add_their_cycles() -> None:
    part = WalkCache(l2=TableCache(entries=8, ways=8))
    world = world_of(walk_cache=part).load("vmm-direct")
    lines = len(set(lines_of(world_of(walk_cache=part).load("vmm-direct"))))
    assert world.counted()["walk_cycles"] == lines * MEMORY + (4 - lines) * 4 + 5 * 10
    world.map_guest(PAGE + 1, world.data + 1)
    assert world.counted(PAGE + 1)["walk_cycles"] == 4 + 100 + 10

    world = world_of(nested_tlb=(TlbPart(entries=8, ways=8),), nested_walk_cache=part).load("base")
    world.access()
    world.engine.invalidate_context(1, 1)
    counted = world.counted()
    assert (counted["nested_tlb_hits"], counted["nested_walk_cache_hits"]) == (4, 1)
    assert counted["walk_cycles"] == 5 * 4 + 4 * 1000 + 100


def test_a_translation_by_both_segments_costs_no_walk_cycle() -> None:
    counted = world_of().load("dual-direct").counted()
    assert "walk_cycles" not in counted
    assert counted["data_cycles"] == MEMORY


def test_latencies_tell_the_level_that_held_the_line() -> None:
    """Data at each level in turn, thrown out of the levels above by others."""
    world = World(toy(), hierarchy=True).load("dual-direct")  # 2 sets of 2, 2 of 4, 4 of 8
    assert world.counted(line=0)["data_cycles"] == MEMORY
    assert world.counted(line=0) == {"accesses": 1, "l1_hits": 1, "data_cycles": 4}
    for line in (2, 4):
        world.access(line=line)
    assert world.counted(line=0)["data_cycles"] == 14
    for line in (2, 4, 6, 10):
        world.access(line=line)
    assert world.counted(line=0)["data_cycles"] == 54
    for line in range(4, 44, 4):
        world.access(line=line)
    assert world.counted(line=0)["data_cycles"] == MEMORY


def test_a_miss_fills_every_level_looked_up_and_fetches_have_a_first_level_of_their_own() -> None:
    world = World(toy(), hierarchy=True).load("dual-direct")
    world.access(line=3)
    line = (world.data + SHIFT) * 64 + 3
    assert [world.held(name) for name in ("l1_data", "l2", "l3", "l1_instruction")] == [[line], [line], [line], []]
    assert world.counted(line=3, fetch=True)["data_cycles"] == 14
    assert world.held("l1_instruction") == [line]


def test_a_migrated_page_s_old_lines_are_dead() -> None:
    world = world_of().load("base")
    world.access(line=5)
    old, new = world.data + SHIFT, 1 << 25
    world.nested.unmap(world.data)
    world.nested.map(world.data, new)
    world.engine.invalidate_frames(old, old + 1)
    assert not any(line >> 6 == old for name in ("l1_data", "l2", "l3") for line in world.held(name))
    counted = world.counted(line=5)
    assert counted["data_cycles"] == MEMORY
    assert new * 64 + 5 in world.held("l1_data")


def test_again_goes_through_no_cache() -> None:
    world = world_of().load("base")
    world.access()
    assert world.counted(again=7) == {"accesses": 8, "l1_hits": 8, "data_cycles": 4}


@pytest.mark.parametrize("mode", ["base", "vmm-direct", "dual-direct", "native"])
def test_without_the_hierarchy_nothing_costs_cycles_and_everything_else_is_counted_alike(mode: str) -> None:
    changes = []
    for hierarchy in (False, True):
        world = World(toy(), hierarchy=hierarchy).load(mode)
        before = world.engine.counters()
        world.access()
        world.access(write=True)
        changes.append(difference(before, world.engine.counters()))
    plain, modelled = changes
    cycles = {"walk_cycles", "data_cycles", "references_from_memory", "cold_lines"}
    assert not cycles & plain.keys()
    assert plain == {name: count for name, count in modelled.items() if name not in cycles}


def test_l2_tlb_hits_cost_nothing_here() -> None:
    world = world_of(l2_tlb=(TlbPart(entries=8, ways=8),), l1_data_tlb=(TlbPart(entries=1, ways=1),)).load("base")
    world.map_guest(PAGE + 1, world.data + 1)
    world.access()
    world.access(PAGE + 1)
    counted = world.counted()
    assert counted["l2_hits"] == 1
    assert "walk_cycles" not in counted
