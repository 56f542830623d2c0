"""The compiled engine against the published counts: what must come out of the walk itself, and is in no table."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import OFF, PAGE, SHIFT, TABLES, World, busy, cost, difference, toy, without
from vmmsim.config import MODES, Switches, TlbPart
from vmmsim.jit import INTERPRETED
from vmmsim.translation.chunk import pack
from vmmsim.translation.registers import Registers, Segment
from vmmsim.translation.state import Exit, Step

EXAMPLES = settings(max_examples=25 if INTERPRETED else 80)
VIRTUAL = ("base", "dual-direct", "vmm-direct", "guest-direct")


def test_a_base_miss_references_24_entries_and_a_native_one_4() -> None:
    world = World()
    assert cost(world.miss("base")) == (24, 0, "walk_both")
    assert cost(world.miss("native")) == (4, 0, "walk_guest")


@pytest.mark.parametrize(("guest", "nested"), [*itertools.product(range(3), repeat=2)])
def test_mixed_page_sizes_reference_what_the_formula_says(guest: int, nested: int) -> None:
    g, h = 4 - guest, 4 - nested
    world = World(toy(), guest, nested)
    assert cost(world.miss("base")) == ((g + 1) * (h + 1) - 1, 0, "walk_both")
    assert cost(world.miss("native")) == (g, 0, "walk_guest")
    assert cost(world.miss("vmm-direct")) == (g, g + 1, "walk_guest")
    assert cost(world.miss("guest-direct")) == (h, 1, "walk_nested")
    assert cost(world.miss("dual-direct")) == (0, 1, "segment_0d")
    assert cost(world.miss("native-direct")) == (0, 1, "segment_0d")


def test_the_mix_table_is_symmetric_and_as_published() -> None:
    names = ("4K", "2M", "1G")
    found = {
        (names[guest], names[nested]): cost(World(toy(), guest, nested).miss("base"))[0]
        for guest, nested in itertools.product(range(3), repeat=2)
    }
    assert [found["4K", "4K"], found["4K", "2M"], found["4K", "1G"]] == [24, 19, 14]
    assert [found["2M", "2M"], found["2M", "1G"], found["1G", "1G"]] == [15, 11, 8]
    assert all(found[guest, nested] == found[nested, guest] for guest, nested in found)


def test_five_levels_reference_35_entries() -> None:
    world = World(toy(levels=5))
    assert cost(world.miss("base")) == (35, 0, "walk_both")
    assert cost(world.miss("native")) == (5, 0, "walk_guest")
    assert cost(world.miss("vmm-direct")) == (5, 6, "walk_guest")
    assert cost(world.miss("guest-direct")) == (5, 1, "walk_nested")


def test_dual_direct_adds_both_offsets() -> None:
    world = World().load("dual-direct")
    world.access(PAGE + 77)
    assert world.hfn(PAGE + 77) == PAGE + 77 + world.guest_segment.offset + world.vmm_segment.offset


def test_dual_direct_with_one_segment_is_the_row_of_that_mode_and_with_none_base() -> None:
    world = World()
    assert world.miss("dual-direct", guest_segment=OFF) == world.miss("vmm-direct")
    assert world.miss("dual-direct", vmm_segment=OFF) == world.miss("guest-direct")
    assert world.miss("dual-direct", guest_segment=OFF, vmm_segment=OFF) == world.miss("base")
    assert cost(world.miss("dual-direct", guest_segment=OFF, vmm_segment=OFF))[0] == 24


def test_the_four_classes_sum_to_the_misses() -> None:
    world = World(toy(l1_data_tlb=(TlbPart(entries=1, ways=1),)))
    for page in range(1, 8):
        world.map_guest(PAGE + page, world.data + page)
    guest = attrs.evolve(world.guest_segment, limit=PAGE + 5)
    vmm = without(world.vmm_segment, world.data + 1, world.data + 6)
    world.load("dual-direct", guest_segment=guest, vmm_segment=vmm)
    before = world.engine.counters()
    pages = [page for page in (0, 1, 6, 7, 2, 5, 1, 3) for _ in range(2)]
    assert world.engine.run(pack(np.array(pages) + PAGE)).exit is Exit.DONE
    counted = difference(before, world.engine.counters())
    classes = {name: counted[name] for name in ("segment_0d", "walk_guest", "walk_nested", "walk_both")}
    assert classes == {"segment_0d": 3, "walk_guest": 2, "walk_nested": 2, "walk_both": 1}
    assert sum(classes.values()) == counted["l2_misses"] == 8
    assert counted["walks"] == 5
    assert counted["l1_hits"] == 8


def test_escapes_cost_what_their_dimension_does() -> None:
    world = World()
    data_out = without(world.vmm_segment, world.data)
    table_out = without(world.vmm_segment, world.tables()[-1])
    guest_out = without(world.guest_segment, PAGE)
    assert cost(world.miss("vmm-direct")) == (4, 5, "walk_guest")
    assert cost(world.miss("vmm-direct", vmm_segment=data_out)) == (8, 4, "walk_both")
    assert cost(world.miss("vmm-direct", vmm_segment=table_out)) == (8, 4, "walk_guest")
    assert cost(world.miss("dual-direct", vmm_segment=data_out)) == (4, 1, "walk_nested")
    assert cost(world.miss("dual-direct", guest_segment=guest_out)) == (4, 5, "walk_guest")


@pytest.mark.parametrize("outside", [*itertools.product((False, True), repeat=5)])
def test_each_gpa_outside_the_vmm_segment_costs_four_references(outside: tuple[bool, ...]) -> None:
    """Of the four tables and the data page, every subset lies above LIMIT."""
    k = sum(outside)
    places = [TABLES + 9000 * out + i for i, out in enumerate(outside)]
    world = World(data=places[4], table_gfns=places[:4])
    assert world.tables() == places[:4]
    segment = Segment(base=TABLES, limit=TABLES + 9000, offset=SHIFT)
    counted = world.miss("vmm-direct", vmm_segment=segment)
    assert cost(counted) == (4 + 4 * k, 5 - k, "walk_both" if outside[4] else "walk_guest")
    assert counted.get("checks_failed", 0) == k
    assert "escapes" not in counted


@pytest.mark.parametrize("k", range(6))
def test_each_gpa_that_escapes_the_vmm_segment_costs_four_references(k: int) -> None:
    world = World()
    for escaping in itertools.combinations((world.data, *world.tables()), k):
        counted = world.miss("vmm-direct", vmm_segment=without(world.vmm_segment, *escaping))
        assert cost(counted)[:2] == (4 + 4 * k, 5 - k)
        assert counted.get("escapes", 0) == counted.get("checks_failed", 0) == k
        assert "false_escapes" not in counted


def test_a_walk_reads_its_entries_in_the_order_of_the_two_dimensional_walk() -> None:
    world = World().load("base")
    _, steps = world.engine.walk_log(int(pack(PAGE)[0]))
    kinds = [step.step for step in steps]
    assert kinds == 4 * ([Step.NESTED_REFERENCE] * 4 + [Step.GUEST_REFERENCE]) + [Step.NESTED_REFERENCE] * 4
    guest = [step for step in steps if step.step is Step.GUEST_REFERENCE]
    assert [step.level for step in guest] == [4, 3, 2, 1]
    assert [step.address >> 12 for step in guest] == [gfn + SHIFT for gfn in world.tables()]
    assert [step.address >> 3 & 511 for step in guest] == [PAGE >> 9 * level & 511 for level in (3, 2, 1, 0)]
    nested = [step for step in steps if step.step is Step.NESTED_REFERENCE]
    assert [step.page for step in nested[::4]] == [*world.tables(), world.data]
    assert nested[-1].result == world.data + SHIFT


def test_limit_is_exclusive_and_base_inclusive_in_both_dimensions() -> None:
    world = World()
    for page in (3, 4, 7, 8):
        world.map_guest(PAGE + page, world.data + page)
    short = Segment(base=PAGE + 4, limit=PAGE + 8, offset=world.data - PAGE)
    classes = {page: cost(world.miss("dual-direct", PAGE + page, guest_segment=short))[2] for page in (3, 4, 7, 8)}
    assert classes == {3: "walk_guest", 4: "segment_0d", 7: "segment_0d", 8: "walk_guest"}
    short = Segment(base=world.data + 4, limit=world.data + 8, offset=SHIFT)
    classes = {page: cost(world.miss("dual-direct", PAGE + page, vmm_segment=short))[2] for page in (3, 4, 7, 8)}
    assert classes == {3: "walk_nested", 4: "segment_0d", 7: "segment_0d", 8: "walk_nested"}


@pytest.mark.parametrize("segment_at", ["l1_miss", "l2_miss"])
def test_an_l1_hit_consults_no_segment(segment_at: Any) -> None:
    world = World(toy(switches=Switches(segment_at=segment_at))).load("vmm-direct")
    world.access()
    world.load("dual-direct", guest_segment=without(world.guest_segment, PAGE))
    assert world.counted(again=3) == {"accesses": 4, "l1_hits": 4}
    assert world.counted(write=False) == {"accesses": 1, "l1_hits": 1}


def test_a_native_direct_segment_that_covers_everything_leaves_no_walk() -> None:
    world = World(toy(l1_data_tlb=(TlbPart(entries=1, ways=1),)))
    whole = Segment(base=PAGE, limit=PAGE + 4096, offset=world.data - PAGE)
    world.load("native-direct", guest_segment=whole)
    pages = PAGE + np.arange(4096) * 1031 % 4096
    assert world.engine.run(pack(pages)).done == 4096
    counted = world.engine.counters()
    assert (counted["segment_0d"], counted["base_bound_checks"]) == (4096, 4096)
    assert counted["walks"] == counted["references"] == 0
    assert world.hfn(int(pages[-1])) == pages[-1] + whole.offset


# Whatever the addresses and the mode

PAGES = (PAGE, PAGE + 1, PAGE + 2, PAGE + 9, PAGE + 512, PAGE + 513, PAGE + (1 << 18), 5, (1 << 36) - 1)
SWITCHES = st.fixed_dictionaries(
    {
        "segment_at": st.sampled_from(["l1_miss", "l2_miss"]),
        "segment_fills_l2": st.booleans(),
        "dd_fill": st.sampled_from(["4K", "largest"]),
        "ntlb_data": st.booleans(),
        "ntlb_in_l2": st.booleans(),
        "ept_accessed_dirty": st.booleans(),
    }
)
ACCESSES = st.lists(st.tuples(st.sampled_from(PAGES), st.booleans(), st.integers(0, 3)), min_size=20, max_size=40)


def spread_world(switches: dict[str, Any], *, hierarchy: bool = False) -> World:
    """Return a world of 4K pages and a 2M page, some covered by segments, some escaping; bad frames have others."""
    world = World(busy(**switches), hierarchy=hierarchy)
    for i, page in enumerate(PAGES):
        if page == PAGE + 512:
            world.map_guest(page, world.data + 512, 1)
        elif page not in (PAGE, PAGE + 513):
            world.map_guest(page, world.data + (page - PAGE if 0 < page - PAGE < 10 else 1024 + i))
    for gfn in range(world.data + 512, world.data + 516):
        world.back(gfn)
    world.nested.unmap(world.data + 2)  # a bad frame: its gfn has another, and escapes
    world.nested.map(world.data + 2, SHIFT + (1 << 19))
    world.guest_segment = without(Segment(base=PAGE, limit=PAGE + 9, offset=world.data - PAGE), PAGE + 1)
    world.vmm_segment = without(
        Segment(base=TABLES + 1, limit=world.data + 1026, offset=SHIFT), world.data + 2, world.data + 1025
    )
    return world


@EXAMPLES
@given(SWITCHES, st.booleans(), st.sampled_from(VIRTUAL), ACCESSES)
def test_every_translation_is_the_composition_of_the_tables(
    switches: dict[str, Any], hierarchy: bool, mode: str, accesses: list[tuple[int, bool, int]]
) -> None:
    world = spread_world(switches, hierarchy=hierarchy).load(mode)
    for page, write, line in accesses:
        assert world.access(page, write=write, line=line).exit is Exit.DONE
        assert world.hfn(page) == world.nested.translate(world.guest.translate(page))[0]
    world.engine.check()


@EXAMPLES
@given(SWITCHES, st.sampled_from(VIRTUAL), ACCESSES)
def test_segments_with_base_at_limit_reproduce_base_bit_for_bit(
    switches: dict[str, Any], mode: str, accesses: list[tuple[int, bool, int]]
) -> None:
    off = without(Segment(base=PAGE, limit=PAGE, offset=5), PAGE)
    base, other = (spread_world(switches, hierarchy=True) for _ in range(2))
    base.load("base", guest_segment=None, vmm_segment=None)
    other.load(mode, guest_segment=off, vmm_segment=off)
    for page, write, line in accesses:
        assert base.access(page, write=write, line=line) == other.access(page, write=write, line=line)
    assert base.engine.counters() == other.engine.counters()
    assert base.engine.contents() == other.engine.contents()
    assert base.engine.counters()["walks"] > 0
    used = base.engine.tables.entries.size
    np.testing.assert_array_equal(base.engine.tables.entries, other.engine.tables.entries[:used])


@EXAMPLES
@given(ACCESSES)
def test_vmm_direct_references_what_native_references_access_by_access(accesses: list[tuple[int, bool, int]]) -> None:
    """All gPAs covered: no nested entry, the same structures, the same fills, so the same references each time."""
    same = (
        "l1_hits",
        "l2_hits",
        "walks",
        "guest_references",
        "walk_cache_hits",
        "rewalks",
        "dirty_walks",
        "cold_fills",
    )
    native, direct = (spread_world({}) for _ in range(2))
    native.load("native")
    direct.load("vmm-direct", vmm_segment=Segment(base=0, limit=1 << 18, offset=SHIFT))
    for page, write, line in accesses:
        before = [world.engine.counters() for world in (native, direct)]
        for world in (native, direct):
            assert world.access(page, write=write, line=line).exit is Exit.DONE
        changes = [
            difference(old, world.engine.counters()) for old, world in zip(before, (native, direct), strict=True)
        ]
        assert [changes[0].get(name, 0) for name in same] == [changes[1].get(name, 0) for name in same]
        assert changes[1].get("nested_references", 0) == changes[0].get("nested_references", 0) == 0
        walked = changes[1].get("guest_references", 0)
        # A check for each table whose frame no walk cache knew, and one for the data page.
        known = changes[1].get("walk_cache_hits", 0)
        assert changes[1].get("base_bound_checks", 0) == (walked - known + 1 if walked else 0)
    assert direct.hfn(accesses[-1][0]) == native.hfn(accesses[-1][0]) + SHIFT


def test_a_process_without_a_segment_has_base_at_limit() -> None:
    world = World().load("guest-direct", guest_segment=None)
    assert cost(world.counted()) == (24, 0, "walk_both")
    assert Registers(mode=MODES["native"], guest_table=world.guest).guest_segment is None
