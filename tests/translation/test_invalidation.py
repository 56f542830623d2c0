"""Each invalidation drops what it must, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import ALL, PAGE, SHIFT, World, toy
from vmmsim.config import Switches, TableCache, TlbPart, WalkCache
from vmmsim.jit import INTERPRETED
from vmmsim.translation.page_table import GLOBAL

PARTS = WalkCache(l2=TableCache(entries=16, ways=16), l3=TableCache(entries=16, ways=16))
WIDE = (TlbPart(entries=32, ways=32, pages=("4K", "2M", "1G")),)
MACHINE = toy(
    l1_data_tlb=WIDE, l1_instruction_tlb=WIDE, l2_tlb=WIDE, nested_tlb=WIDE, walk_cache=PARTS, nested_walk_cache=PARTS
)
NAMES = ((1, 1, 1), (1, 2, 1), (2, 1, 2))
"""(vpid, asid, eptp): two processes of one VM, and another VM with a table of its own."""
TLBS = ("l1_data_tlb", "l1_instruction_tlb", "l2_tlb")


def full(**switches: Any) -> World:
    """Return a world, caches on, whose structures hold entries of three contexts, some global, some 2M."""
    world = World(attrs.evolve(MACHINE, switches=Switches(**switches)), hierarchy=True, cores=2)
    world.map_guest(PAGE + 1, world.data + 1, flags=ALL | GLOBAL)
    world.nested.map(world.data + 512, world.data + 512 + SHIFT, size=1)
    world.map_guest(PAGE + 512, world.data + 512, 1)
    for vpid, asid, eptp in NAMES:
        for core in range(2):
            world.load("base", vpid=vpid, asid=asid, eptp=eptp, core=core)
            for page in (PAGE, PAGE + 1, PAGE + 512):
                world.access(page, core=core)
                world.access(page, fetch=True, core=core)
    world.engine.check()
    return world


def entries(world: World) -> set[tuple[Any, ...]]:
    """Return (core, structure, entry) of everything held, caches' lines too."""
    return {
        (core, name, *(entry if isinstance(entry, tuple) else (entry,)))
        for core in range(2)
        for name, sets in world.engine.contents(core=core).items()
        for held in sets.values()
        for entry in held
    }


def pages_of(structure: str, entry: tuple[Any, ...]) -> tuple[int, int]:
    """Return the pages [start, end) that a TLB entry or a walk-cache entry is about."""
    if "walk" in structure:
        shift = 9 * (int(structure[-1]) - 1)
        return entry[1] << shift, entry[1] + 1 << shift
    return entry[2] << 9 * entry[1], entry[2] + 1 << 9 * entry[1]


def frames_of(structure: str, entry: tuple[Any, ...]) -> tuple[int, int]:
    """Return the host frames [start, end) that an entry leads to."""
    if not isinstance(entry[0], tuple):
        return entry[0] >> 6, (entry[0] >> 6) + 1
    if "walk" in structure:
        return entry[2], entry[2] + 1
    return entry[3], entry[3] + (1 << 9 * entry[1])


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


Condition = Callable[[str, tuple[Any, ...]], bool]


def drops(world: World, call: Callable[[World], object], expected: Condition) -> int:
    """Invalidate; assert that exactly the tagged entries that satisfy the condition are gone; return how many."""
    before = entries(world)
    call(world)
    gone = before - entries(world)
    assert entries(world) <= before
    assert gone == {each for each in before if expected(each[1], each[2:])}
    world.engine.check()
    return len(gone)


def tagged(entry: tuple[Any, ...]) -> bool:
    return isinstance(entry[0], tuple)


@pytest.mark.parametrize("page", [PAGE, PAGE + 1, PAGE + 600])
def test_a_page_drops_its_own_context_the_global_ones_and_the_way_to_it(page: int) -> None:
    def expected(structure: str, entry: tuple[Any, ...]) -> bool:
        owners = (("combined", 1, 1, 1), ("combined", 1, None, 1))
        return tagged(entry) and entry[0] in owners and overlap(pages_of(structure, entry), (page, page + 1))

    assert drops(full(), lambda world: world.engine.invalidate_page(1, 1, page), expected) >= 2 * 3


@settings(max_examples=5 if INTERPRETED else 20)
@given(st.integers(-2, 1100), st.integers(1, 700))
def test_a_range_drops_what_overlaps_it_and_nothing_else(first: int, pages: int) -> None:
    start, end = PAGE + first, PAGE + first + pages

    def expected(structure: str, entry: tuple[Any, ...]) -> bool:
        owners = (("combined", 1, 2, 1), ("combined", 1, None, 1))
        return tagged(entry) and entry[0] in owners and overlap(pages_of(structure, entry), (start, end))

    drops(full(), lambda world: world.engine.invalidate_range(1, 2, start, end), expected)


def test_a_context_drops_its_own_entries_and_keeps_global_ones() -> None:
    world = full()
    count = drops(
        world, lambda w: w.engine.invalidate_context(1, 1), lambda _, e: tagged(e) and e[0] == ("combined", 1, 1, 1)
    )
    assert count > 0
    assert any(entry[0] == ("combined", 1, None, 1) for entry in world.held("l1_data_tlb"))


def test_a_vpid_drops_all_its_combined_entries_and_no_nested_ones() -> None:
    assert drops(full(), lambda w: w.engine.invalidate_vpid(1), lambda _, e: tagged(e) and e[0][:2] == ("combined", 1))


def test_an_eptp_drops_combined_and_nested_entries_of_that_vm_alone_on_every_core() -> None:
    world = full()
    assert drops(world, lambda w: w.engine.invalidate_eptp(1), lambda _, e: tagged(e) and e[0][-1] == 1)
    assert {entry[2][-1] for entry in entries(world) if tagged(entry[2:])} == {2}


def test_everything_drops_all_but_the_lines_of_caches() -> None:
    assert drops(full(), lambda w: w.engine.invalidate_all(), lambda _, e: tagged(e))


@settings(max_examples=5 if INTERPRETED else 20)
@given(st.sampled_from(["data", "data + 1", "large", "table", "nested table"]), st.integers(1, 3))
def test_frames_drop_what_leads_into_them_and_their_lines(where: str, pages: int) -> None:
    world = full()
    start = {
        "data": world.data + SHIFT, "data + 1": world.data + 1 + SHIFT, "large": world.data + 700 + SHIFT,
        "table": world.tables()[-1] + SHIFT, "nested table": 3,
    }[where]  # fmt: skip

    def expected(structure: str, entry: tuple[Any, ...]) -> bool:
        return overlap(frames_of(structure, entry), (start, start + pages))

    count = drops(world, lambda w: w.engine.invalidate_frames(start, start + pages), expected)
    assert count > 0


@pytest.mark.parametrize("how", ["context", "precise"])
def test_a_vmm_that_moved_frames_drops_the_vm_or_only_what_overlaps(how: Any) -> None:
    world = full(vmm_invalidate=how)
    start = world.data + SHIFT

    def expected(structure: str, entry: tuple[Any, ...]) -> bool:
        overlaps = overlap(frames_of(structure, entry), (start, start + 1))
        if how == "precise" or not tagged(entry):
            return overlaps
        return bool(entry[0][-1] == 1)

    assert drops(world, lambda w: w.engine.invalidate_moved(1, start, start + 1), expected)


def test_calls_return_how_many_entries_they_dropped() -> None:
    for call in (
        lambda w: w.engine.invalidate_page(1, 1, PAGE), lambda w: w.engine.invalidate_context(1, 2),
        lambda w: w.engine.invalidate_vpid(1), lambda w: w.engine.invalidate_eptp(2),
        lambda w: w.engine.invalidate_frames(SHIFT, 2 * SHIFT),
    ):  # fmt: skip
        world = full()
        before = len(entries(world))
        assert call(world) == before - len(entries(world)) > 0


def test_a_split_needs_no_invalidation_and_precise_matching_finds_the_old_entry_later() -> None:
    world = World(MACHINE, 1, 1).load("base")
    world.access(PAGE + 3)
    world.nested.split(world.data)
    world.guest.split(PAGE)
    assert world.counted(PAGE + 3) == {"accesses": 1, "l1_hits": 1}
    moved = world.data + SHIFT + 300
    world.nested.unmap(world.data + 300)
    world.nested.map(world.data + 300, 1 << 25)
    assert world.engine.invalidate_frames(moved, moved + 1) == 2  # of 2M, in L1 and L2; they hold page 3 as well
    for gfn in world.guest.table_frames.tolist():
        world.back(gfn)
    assert world.counted(PAGE + 300)["walks"] == 1
    assert world.hfn(PAGE + 300) == 1 << 25


def test_a_page_that_was_absent_needs_no_invalidation() -> None:
    world = World(MACHINE).load("base")
    world.access(PAGE + 9)
    world.map_guest(PAGE + 9, world.data + 9)
    assert world.counted(PAGE + 9)["walks"] == 1


def test_emptied_is_as_just_switched_on() -> None:
    world = full()
    world.engine.empty()
    for core in range(2):
        assert not entries(world)
        assert not any(world.engine.counters(core=core).values())
