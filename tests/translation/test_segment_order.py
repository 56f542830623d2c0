"""When the guest segment is compared, and what its translations are put into."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translation.worlds import PAGE, World, toy, without
from vmmsim.config import Switches, TlbPart
from vmmsim.translation.page_table import WRITABLE
from vmmsim.translation.registers import Segment

ONE = (TlbPart(entries=1, ways=1),)
FOUR = (TlbPart(entries=4, ways=4),)


def in_l2_only(**switches: Any) -> World:
    """Return a world in Dual Direct whose L2 TLB, but not whose L1 TLB, holds PAGE."""
    world = World(toy(l1_data_tlb=ONE, l2_tlb=FOUR, switches=Switches(**switches)))
    world.map_guest(PAGE + 1, world.data + 1)
    world.load("vmm-direct")
    world.access(PAGE)
    world.access(PAGE + 1)
    return world.load("dual-direct")


def test_compared_on_an_l1_miss_the_segment_wins_over_the_l2_tlb() -> None:
    world = in_l2_only(segment_at="l1_miss")
    before = world.held("l2_tlb")
    counted = world.counted()
    assert counted == {"accesses": 1, "data_l1_misses": 1, "l2_misses": 1, "segment_0d": 1, "base_bound_checks": 1}
    assert world.held("l2_tlb") == before, "the L2 TLB was touched"


def test_compared_on_an_l2_miss_the_segment_leaves_l2_hits_alone() -> None:
    world = in_l2_only(segment_at="l2_miss")
    assert world.counted() == {"accesses": 1, "data_l1_misses": 1, "l2_hits": 1}
    assert world.entry(structure="l2_tlb") == world.held("l2_tlb")[0], "the L2 TLB was not touched"


@pytest.mark.parametrize("segment_at", ["l1_miss", "l2_miss"])
def test_a_page_that_escapes_is_looked_up_in_the_l2_tlb_and_compared_once(segment_at: Any) -> None:
    world = in_l2_only(segment_at=segment_at)
    world.load("dual-direct", guest_segment=without(world.guest_segment, PAGE))
    counted = world.counted()
    assert counted["l2_hits"] == 1
    assert counted.get("checks_failed", 0) == counted.get("escapes", 0) == (segment_at == "l1_miss")
    world.engine.invalidate_all()
    counted = world.counted()
    assert (counted["walk_guest"], counted["checks_failed"], counted["escapes"]) == (1, 1, 1)


@pytest.mark.parametrize("mode", ["dual-direct", "guest-direct", "native-direct"])
@pytest.mark.parametrize("fills", [False, True])
def test_what_the_guest_segment_took_part_in_reaches_the_l2_tlb_only_if_told(mode: str, fills: bool) -> None:
    world = World(toy(l2_tlb=FOUR, switches=Switches(segment_fills_l2=fills)))
    counted = world.miss(mode)
    assert counted.get("cold_fills", 0) == fills
    assert (world.entry(structure="l2_tlb") is not None) == fills


@pytest.mark.parametrize("mode", ["base", "vmm-direct", "native"])
def test_what_the_guest_table_translated_reaches_the_l2_tlb_always(mode: str) -> None:
    world = World(toy(l2_tlb=FOUR))
    assert world.miss(mode)["cold_fills"] == 1
    assert world.entry(structure="l2_tlb") == world.entry()


def test_a_rewalk_compares_the_segment_once_and_counts_the_check() -> None:
    world = World(toy(l2_tlb=FOUR))
    world.guest.protect(PAGE, clear_flags=WRITABLE)
    world.load("vmm-direct").access()
    counted = world.load("dual-direct").counted(write=True)
    assert (counted["rewalks"], counted["segment_0d"], counted["base_bound_checks"]) == (1, 1, 1)
    assert "dirty_walks" not in counted
    assert "l2_misses" not in counted


def test_failed_compares_are_counted_apart_and_cost_no_check() -> None:
    world = World()
    below = Segment(base=PAGE + 1, limit=PAGE + 9, offset=world.data - PAGE)
    counted = world.miss("dual-direct", guest_segment=below)
    assert (counted["checks_failed"], counted["base_bound_checks"], counted["walk_guest"]) == (1, 5, 1)
    assert "escapes" not in counted


def test_a_fetch_is_translated_by_segments_like_data() -> None:
    world = World().load("dual-direct")
    counted = world.counted(fetch=True)
    assert (counted["segment_0d"], counted["instruction_l1_misses"]) == (1, 1)
    assert "data_l1_misses" not in counted
