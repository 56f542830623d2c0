"""The slow reference against the published counts, the rules of docs/engine.md, and itself."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.config import (
    MODES,
    Cycles,
    DataCache,
    DataCaches,
    Machine,
    Switches,
    TableCache,
    TlbPart,
    WalkCache,
)
from vmmsim.spec import (
    COUNTERS,
    Exit,
    Outcome,
    SpecCore,
    SpecSegment,
    SpecTable,
    Translation,
    spec_filter,
)

CACHES = DataCaches(
    l1_data=DataCache(size_bytes=256, ways=2, cycles=4),
    l1_instruction=DataCache(size_bytes=128, ways=2, cycles=3),
    l2=DataCache(size_bytes=512, ways=4, cycles=14),
    l3=DataCache(size_bytes=2048, ways=8, cycles=54),
    memory_cycles=200,
)
ALL_SIZES = (TlbPart(entries=2, ways=2, pages=("4K", "2M", "1G")),)
SMALL_WALK_CACHE = WalkCache(
    l2=TableCache(entries=2, ways=2), l3=TableCache(entries=2, ways=1), l4=TableCache(entries=1, ways=1)
)
PAGE = 0x7_4000_0000
"""A gvpn that is 0 mod 1G."""
DATA = 0x8_0000_0000
"""Its gfn; guest tables start at gfn TABLES. Both are 0 mod 1G."""
TABLES = 0x1_0000_0000
SHIFT = 0x10_0000_0000
"""hfn - gfn."""


def toy(**changes: Any) -> Machine:
    """Return a machine with the smallest of TLBs and no walk caches, changed as told."""
    bare = Machine(name="toy", frequency_hz=1, l1_data_tlb=ALL_SIZES, l1_instruction_tlb=ALL_SIZES, caches=CACHES)
    return attrs.evolve(bare, **changes)


def busy(**switches: Any) -> Machine:
    """Return a machine that has every structure, each tiny."""
    return toy(
        l1_data_tlb=(TlbPart(entries=2, ways=1), TlbPart(entries=1, ways=1, pages=("2M", "1G"))),
        l2_tlb=(TlbPart(entries=4, ways=2, pages=("4K", "2M")),),
        nested_tlb=() if switches.get("ntlb_in_l2") else (TlbPart(entries=2, ways=2, pages=("4K", "2M")),),
        walk_cache=SMALL_WALK_CACHE,
        nested_walk_cache=SMALL_WALK_CACHE,
        switches=Switches(**switches),
    )


class World:
    """A guest table, a nested table that maps gfn to gfn + SHIFT, and segments that say the same."""

    def __init__(self, machine: Machine, guest_size: int = 0, nested_size: int = 0, *, hierarchy: bool = False) -> None:
        self.core = SpecCore(machine, hierarchy=hierarchy)
        self.guest_frames = itertools.count(TABLES + 1)
        self.nested_frames = itertools.count(1)
        self.guest = SpecTable(machine.levels, root_frame=TABLES)
        self.nested = SpecTable(machine.levels, root_frame=0)
        self.nested_size = nested_size
        self.guest_segment = SpecSegment(PAGE, PAGE + (1 << 18), DATA - PAGE)
        self.vmm_segment = SpecSegment(0, DATA + (1 << 19), SHIFT)
        self.map_guest(PAGE, DATA, guest_size)

    def map_guest(self, page: int, frame: int, size: int = 0, **bits: bool) -> None:
        self.guest.map(page, frame, size, table_frames=self.guest_frames, **bits)
        self.back(frame)
        self.back(TABLES)
        for _, entry in self.tables():
            self.back(entry)

    def tables(self) -> list[tuple[int, int]]:
        """Return level and gfn of each guest table, the root's first."""
        below = [(key[0] - 1, entry.frame) for key, entry in self.guest.entries.items() if not entry.leaf]
        return [(self.guest.levels, TABLES), *sorted(below, reverse=True)]

    def back(self, gfn: int) -> None:
        start = gfn - gfn % (1 << 9 * self.nested_size)
        if self.nested.leaf(gfn) is None:
            self.nested.map(start, start + SHIFT, self.nested_size, table_frames=self.nested_frames)

    def load(self, mode: str, **segments: SpecSegment) -> World:
        both = {"guest_segment": self.guest_segment, "vmm_segment": self.vmm_segment} | segments
        self.core.load(MODES[mode], self.guest, self.nested, vpid=1, asid=1, eptp=1, **both)
        return self

    def miss(self, mode: str, page: int = PAGE, **segments: SpecSegment) -> dict[str, int]:
        """Return what one access on an empty machine counts, zeros left out."""
        before = dict(self.core.counters)
        self.load(mode, **segments).core.invalidate_all()
        outcome = self.core.access(page)
        assert outcome.hfn == self.core.translate(page)
        self.core.check()
        return difference(before, self.core.counters)


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def cost(counted: dict[str, int]) -> tuple[int, int, str]:
    """Return references, checks and class."""
    walk_class = [name for name in ("segment_0d", "walk_guest", "walk_nested", "walk_both") if name in counted]
    assert len(walk_class) == 1
    references = counted.get("guest_references", 0) + counted.get("nested_references", 0)
    return references, counted.get("base_bound_checks", 0), walk_class[0]


def without(segment: SpecSegment, *pages: int) -> SpecSegment:
    return SpecSegment(segment.base, segment.limit, segment.offset, frozenset(pages))


# Published counts


@pytest.mark.parametrize("guest", [0, 1, 2])
@pytest.mark.parametrize("nested", [0, 1, 2])
def test_mixed_page_sizes_reference_what_the_mix_table_says(guest: int, nested: int) -> None:
    references = ((24, 19, 14), (19, 15, 11), (14, 11, 8))[guest][nested]
    world = World(toy(), guest, nested)
    assert cost(world.miss("base")) == (references, 0, "walk_both")
    assert cost(world.miss("native")) == ((4, 3, 2)[guest], 0, "walk_guest")
    assert cost(world.miss("vmm-direct")) == ((4, 3, 2)[guest], (5, 4, 3)[guest], "walk_guest")
    assert cost(world.miss("guest-direct")) == ((4, 3, 2)[nested], 1, "walk_nested")
    assert cost(world.miss("dual-direct")) == (0, 1, "segment_0d")
    assert cost(world.miss("native-direct")) == (0, 1, "segment_0d")


def test_five_levels_reference_35_entries() -> None:
    assert cost(World(toy(levels=5)).miss("base")) == (35, 0, "walk_both")
    assert cost(World(toy(levels=5)).miss("native")) == (5, 0, "walk_guest")


def test_dual_direct_adds_both_offsets() -> None:
    world = World(toy()).load("dual-direct")
    assert world.core.access(PAGE + 77) == Outcome(Exit.DONE, PAGE + 77, hfn=DATA + 77 + SHIFT)


def test_a_dual_direct_walk_of_one_dimension_is_the_row_of_that_mode() -> None:
    world = World(toy())
    off = SpecSegment(0, 0, 0)
    assert world.miss("dual-direct", guest_segment=off) == world.miss("vmm-direct")
    assert world.miss("dual-direct", vmm_segment=off) == world.miss("guest-direct")
    assert world.miss("dual-direct", guest_segment=off, vmm_segment=off) == world.miss("base")


def test_escapes_cost_what_semantics_say() -> None:
    world = World(toy())
    table = world.tables()[-1][1]
    data_out, table_out = without(world.vmm_segment, DATA), without(world.vmm_segment, table)
    guest_out = without(world.guest_segment, PAGE)
    assert cost(world.miss("vmm-direct")) == (4, 5, "walk_guest")
    assert cost(world.miss("vmm-direct", vmm_segment=data_out)) == (8, 4, "walk_both")
    assert cost(world.miss("vmm-direct", vmm_segment=table_out)) == (8, 4, "walk_guest")
    assert cost(world.miss("dual-direct", vmm_segment=data_out)) == (4, 1, "walk_nested")
    assert cost(world.miss("dual-direct", guest_segment=guest_out)) == (4, 5, "walk_guest")


def test_each_table_outside_the_vmm_segment_costs_four_references() -> None:
    world = World(toy())
    gfns = [DATA, *(gfn for _, gfn in world.tables())]
    for k in range(6):
        outside = without(world.vmm_segment, *gfns[:k])
        counted = world.miss("vmm-direct", vmm_segment=outside)
        assert cost(counted)[:2] == (4 + 4 * k, 5 - k)
        assert counted.get("escapes", 0) == counted.get("checks_failed", 0) == k


def test_limit_is_exclusive_and_base_inclusive() -> None:
    world = World(toy())
    world.back(DATA + 8)
    for page in (PAGE + 4, PAGE + 7, PAGE + 3, PAGE + 8):
        world.map_guest(page, DATA + page - PAGE)
    short = SpecSegment(PAGE + 4, PAGE + 8, DATA - PAGE)
    classes = {page: cost(world.miss("dual-direct", PAGE + page, guest_segment=short))[2] for page in (3, 4, 7, 8)}
    assert classes == {3: "walk_guest", 4: "segment_0d", 7: "segment_0d", 8: "walk_guest"}


def test_an_l1_hit_consults_no_segment() -> None:
    world = World(toy()).load("vmm-direct")
    world.core.access(PAGE)
    world.load("dual-direct", guest_segment=without(world.guest_segment, PAGE))
    before = dict(world.core.counters)
    world.core.access(PAGE, again=3)
    assert difference(before, world.core.counters) == {"accesses": 4, "l1_hits": 4}


# Rules


def test_a_false_escape_is_not_a_member_and_translates_the_same() -> None:
    world = World(toy())
    table = world.tables()[0][1]
    hits = SpecSegment(0, DATA + 512, SHIFT, frozenset({table}), lambda page: page in (table, DATA))
    counted = world.miss("vmm-direct", vmm_segment=hits)
    assert (counted["escapes"], counted["false_escapes"], counted["checks_failed"]) == (2, 1, 2)
    assert world.core.translate(PAGE) == DATA + SHIFT


def test_a_page_below_the_segment_fails_the_check_but_does_not_escape() -> None:
    world = World(toy())
    counted = world.miss("dual-direct", guest_segment=SpecSegment(PAGE + 1, PAGE + 9, DATA - PAGE))
    assert counted["checks_failed"] == 1
    assert "escapes" not in counted


@pytest.mark.parametrize("at", ["l1_miss", "l2_miss"])
def test_the_guest_segment_wins_over_the_l2_tlb_only_beside_it(at: str) -> None:
    machine = toy(l1_data_tlb=(TlbPart(entries=1, ways=1),), l2_tlb=(TlbPart(entries=4, ways=4),))
    world = World(attrs.evolve(machine, switches=Switches(segment_at=at)))  # type: ignore[arg-type]
    world.map_guest(PAGE + 1, DATA + 1)
    world.load("vmm-direct")
    world.core.access(PAGE)
    world.core.access(PAGE + 1)
    world.load("dual-direct")
    before = dict(world.core.counters)
    world.core.access(PAGE)
    counted = difference(before, world.core.counters)
    assert ("segment_0d" in counted, "l2_hits" in counted) == (at == "l1_miss", at == "l2_miss")
    assert ("l2_misses" in counted, "base_bound_checks" in counted) == (at == "l1_miss", at == "l1_miss")


@pytest.mark.parametrize("fills", [False, True])
def test_a_segment_translation_reaches_the_l2_tlb_only_if_told(fills: bool) -> None:
    world = World(toy(l2_tlb=(TlbPart(entries=4, ways=4),), switches=Switches(segment_fills_l2=fills)))
    counted = world.miss("dual-direct")
    assert counted.get("cold_fills", 0) == fills
    assert bool(world.core.contents()["l2_tlb"]) == fills


def size_of_l1_entry(world: World, mode: str, page: int = PAGE, **segments: SpecSegment) -> int:
    world.miss(mode, page, **segments)
    (held,) = world.core.contents()["l1_data_tlb"].values()
    (entry,) = held
    assert isinstance(entry, Translation)
    return entry.size


def test_an_entry_is_as_large_as_both_dimensions_allow() -> None:
    for guest, nested in itertools.product(range(3), repeat=2):
        world = World(toy(), guest, nested)
        assert size_of_l1_entry(world, "base") == min(guest, nested)
        assert size_of_l1_entry(world, "native") == guest
        assert size_of_l1_entry(world, "vmm-direct") == guest
        assert size_of_l1_entry(world, "guest-direct") == nested
        assert size_of_l1_entry(world, "dual-direct") == 0


def test_a_segment_entry_stays_inside_the_segment_aligned_and_free_of_escapes() -> None:
    world = World(toy(), 2, 2)
    vmm, guest = world.vmm_segment, world.guest_segment
    assert size_of_l1_entry(world, "vmm-direct", vmm_segment=without(vmm, DATA + 5000)) == 1
    assert size_of_l1_entry(world, "vmm-direct", vmm_segment=without(vmm, DATA + 511)) == 0
    assert size_of_l1_entry(world, "vmm-direct", vmm_segment=SpecSegment(0, DATA + 512, SHIFT)) == 1
    assert size_of_l1_entry(world, "vmm-direct", vmm_segment=SpecSegment(0, DATA + 511, SHIFT)) == 0
    assert size_of_l1_entry(world, "guest-direct", guest_segment=SpecSegment(PAGE, PAGE + 600, DATA - PAGE)) == 1
    odd = SpecSegment(PAGE, guest.limit, guest.offset + 512)
    assert size_of_l1_entry(world, "guest-direct", guest_segment=odd) == 1
    odd = SpecSegment(PAGE, guest.limit, guest.offset + 1)
    assert size_of_l1_entry(world, "guest-direct", guest_segment=odd) == 0


def test_dual_direct_may_fill_the_largest_page_that_lies_in_both() -> None:
    world = World(toy(switches=Switches(dd_fill="largest")))
    assert size_of_l1_entry(world, "dual-direct") == 2
    assert size_of_l1_entry(world, "native-direct") == 2
    assert size_of_l1_entry(world, "dual-direct", vmm_segment=without(world.vmm_segment, DATA + 600)) == 1
    assert size_of_l1_entry(world, "dual-direct", guest_segment=without(world.guest_segment, PAGE + 1)) == 0


def test_an_l2_hit_is_cut_to_what_the_l1_holds() -> None:
    l1, l2 = (TlbPart(entries=1, ways=1),), (TlbPart(entries=2, ways=2, pages=("2M",)),)
    world = World(toy(l1_data_tlb=l1, l1_instruction_tlb=ALL_SIZES, l2_tlb=l2), 1, 1).load("base")
    world.core.access(PAGE, fetch=True)
    world.core.access(PAGE + 9)
    world.core.check()
    assert world.core.counters["l2_hits"] == world.core.counters["cold_fills"] == 1
    tag = ("combined", 1, 1, 1)
    assert world.core.contents()["l1_data_tlb"] == {0: [(tag, 0, PAGE + 9, DATA + SHIFT + 9, True, False, True)]}


def test_a_write_sets_dirty_bits_once_by_a_rewalk() -> None:
    world = World(toy(l2_tlb=ALL_SIZES)).load("base")
    world.core.access(PAGE)
    leaf, below = world.guest.leaf(PAGE), world.nested.leaf(DATA)
    assert leaf is not None
    assert below is not None
    assert (leaf.accessed, leaf.dirty, below.accessed, below.dirty) == (True, False, True, False)
    for _ in range(2):
        assert world.core.access(PAGE, write=True).exit == Exit.DONE
    assert (leaf.dirty, below.dirty) == (True, True)
    counts = world.core.counters
    assert (counts["rewalks"], counts["dirty_walks"], counts["l1_hits"], counts["walks"]) == (1, 1, 1, 2)
    assert counts["l2_misses"] == counts["data_l1_misses"] == 1
    world.core.check()


def test_an_entry_is_dirty_only_if_both_leaves_are() -> None:
    for guest_dirty, nested_dirty in itertools.product((False, True), repeat=2):
        world = World(toy()).load("base")
        world.guest.protect(PAGE, dirty=guest_dirty)
        world.nested.protect(DATA, dirty=nested_dirty)
        world.core.access(PAGE)
        world.core.access(PAGE, write=True)
        assert world.core.counters["dirty_walks"] == (not (guest_dirty and nested_dirty))


def test_a_rewalk_drops_the_copies_it_was_refused_by() -> None:
    world = World(toy(l2_tlb=ALL_SIZES)).load("base")
    world.core.access(PAGE)
    world.guest.protect(PAGE, is_global=True)
    world.core.access(PAGE, write=True)
    for name in ("l1_data_tlb", "l2_tlb"):
        assert [entry[0] for entry in world.core.contents()[name][0]] == [("combined", 1, None, 1)]


def test_a_guest_page_invalidation_reaches_global_entries_of_its_vpid() -> None:
    world = World(toy()).load("base")
    world.guest.protect(PAGE, is_global=True)
    world.core.access(PAGE)
    world.core.invalidate_context(1, 1)
    world.core.invalidate_page(2, 1, PAGE)
    assert world.core.contents()["l1_data_tlb"]
    world.core.invalidate_page(1, 7, PAGE)
    assert not world.core.contents()["l1_data_tlb"]


def test_the_root_is_in_no_walk_cache() -> None:
    world = World(toy(walk_cache=WalkCache(l5=TableCache(entries=1, ways=1)))).load("base")
    world.core.access(PAGE)
    assert not world.core.contents()["walk_cache_l5"]


def test_without_nested_dirty_bits_they_are_left_alone_and_count_as_dirty() -> None:
    world = World(toy(switches=Switches(ept_accessed_dirty=False))).load("base")
    world.core.access(PAGE, write=True)
    world.core.access(PAGE, write=True)
    assert world.core.counters["l1_hits"] == 1
    assert not any(entry.accessed or entry.dirty for entry in world.nested.entries.values())
    for _, gfn in world.tables():
        world.nested.protect(gfn, writable=False)
    world.core.invalidate_all()
    assert world.core.access(PAGE).exit == Exit.DONE


def test_a_segment_translation_needs_no_dirty_walk() -> None:
    world = World(toy()).load("dual-direct")
    world.core.access(PAGE)
    world.core.access(PAGE, write=True)
    assert world.core.counters["l1_hits"] == 1


def test_a_lookup_takes_the_smaller_page_and_the_own_context_first() -> None:
    world = World(toy(l1_data_tlb=(TlbPart(entries=4, ways=4, pages=("4K", "2M", "1G")),))).load("base")
    world.guest.protect(PAGE, is_global=True)
    world.core.access(PAGE)
    world.core.load(MODES["base"], world.guest, world.nested, vpid=1, asid=2, eptp=1)
    world.core.access(PAGE)
    assert world.core.counters["l1_hits"] == 1
    world.core.invalidate_context(1, 1)
    world.core.invalidate_context(1, 2)
    world.core.access(PAGE)
    assert world.core.counters["l1_hits"] == 2
    world.core.check()
    world.core.load(MODES["base"], world.guest, world.nested, vpid=2, asid=2, eptp=1)
    world.core.access(PAGE)
    assert world.core.counters["l1_hits"] == 2
    world.core.invalidate_vpid(1)
    assert [entry[0] for entry in world.core.contents()["l1_data_tlb"][0]] == [("combined", 2, None, 1)]


@pytest.mark.parametrize(
    ("mode", "costs"), [("vmm-direct", [(4, 5), (1, 1), (3, 3)]), ("base", [(24, 0), (5, 0), (15, 0)])]
)
def test_walk_caches_skip_what_lies_above(mode: str, costs: list[tuple[int, int]]) -> None:
    parts = WalkCache(l2=TableCache(entries=4, ways=4), l4=TableCache(entries=4, ways=4))
    world = World(toy(walk_cache=parts))
    for page in (PAGE + 1, PAGE + 512):
        world.map_guest(page, DATA + page - PAGE)
    world.load(mode)
    for page, (references, checks) in zip((PAGE, PAGE + 1, PAGE + 512), costs, strict=True):
        before = dict(world.core.counters)
        world.core.access(page)
        assert cost(difference(before, world.core.counters))[:2] == (references, checks)
        world.core.check()
    assert world.core.counters["walk_cache_hits"] == 2


def test_the_nested_tlb_holds_tables_and_data_only_if_told() -> None:
    for with_data in (False, True):
        machine = toy(nested_tlb=(TlbPart(entries=8, ways=8),), switches=Switches(ntlb_data=with_data))
        world = World(machine).load("base")
        world.core.access(PAGE)
        assert len(world.core.contents()["nested_tlb"][0]) == 4 + with_data
        world.core.invalidate_context(1, 1)
        before = dict(world.core.counters)
        world.core.access(PAGE)
        counted = difference(before, world.core.counters)
        assert counted["nested_tlb_hits"] == 4 + with_data
        assert counted.get("nested_references", 0) == (0 if with_data else 4)


def test_nothing_is_inserted_for_what_a_segment_translated() -> None:
    world = World(busy(ntlb_data=True)).load("vmm-direct")
    world.core.access(PAGE)
    held = world.core.contents()
    assert not held["nested_tlb"]
    assert not any(held[f"nested_walk_cache_l{level}"] for level in (2, 3, 4))


def test_nested_entries_compete_for_the_l2_tlb() -> None:
    world = World(toy(l2_tlb=(TlbPart(entries=5, ways=5),), switches=Switches(ntlb_in_l2=True))).load("base")
    world.core.access(PAGE)
    tags = [entry[0][0] for entry in world.core.contents()["l2_tlb"][0]]
    assert tags == ["combined", "nested", "nested", "nested", "nested"]
    assert "nested_tlb" not in world.core.contents()


def test_walks_cost_their_references_checks_and_hits() -> None:
    machine = toy(
        cycles=Cycles(check=10, walk_cache_hit=100, nested_tlb_hit=1000),
        walk_cache=WalkCache(l2=TableCache(entries=4, ways=4)),
    )
    world = World(machine, hierarchy=True).load("vmm-direct")
    world.map_guest(PAGE + 1, DATA + 1)
    world.core.access(PAGE)
    assert world.core.counters["walk_cycles"] == 4 * 200 + 5 * 10
    assert world.core.counters["data_cycles"] == 200
    assert world.core.counters["references_from_memory"] == 4
    before = dict(world.core.counters)
    world.core.access(PAGE + 1)
    counted = difference(before, world.core.counters)
    # The leaf table's line is the last but one that its set of the first level was filled with.
    assert counted["walk_cycles"] == 4 + 100 + 10
    world.core.check()
    before = dict(world.core.counters)
    world.core.access(PAGE + 1, again=5)
    assert difference(before, world.core.counters) == {"accesses": 6, "l1_hits": 6, "data_cycles": 4}


def test_caches_fill_every_level_that_was_looked_up() -> None:
    world = World(toy(), hierarchy=True).load("dual-direct")
    world.core.access(PAGE, line=3)
    line = (DATA + SHIFT) * 64 + 3
    held = world.core.contents()
    assert held["l1_data"] == {1: [line]}
    assert held["l2"] == {1: [line]}
    assert held["l3"] == {3: [line]}
    assert held["l1_instruction"] == {}
    world.core.access(PAGE, line=3, fetch=True)
    assert world.core.counters["data_cycles"] == 200 + 14
    assert world.core.counters["cold_lines"] == 0  # it counts references, and a 0D translation makes none
    world.core.invalidate_frames(DATA + SHIFT, DATA + SHIFT + 1)
    assert not any(held for held in world.core.contents().values())


def test_a_set_keeps_the_most_recently_used() -> None:
    world = World(toy(l1_data_tlb=(TlbPart(entries=4, ways=2),))).load("dual-direct")
    for page in (0, 2, 0, 4):
        world.core.access(PAGE + page)
    pages = {index: [entry[2] for entry in held] for index, held in world.core.contents()["l1_data_tlb"].items()}
    assert pages == {0: [PAGE + 4, PAGE]}


# Exits


def test_exits_name_the_page_and_the_frame() -> None:
    world = World(toy()).load("base")
    table = world.tables()[-1][1]
    assert world.core.access(PAGE + 1) == Outcome(Exit.GUEST_FAULT, PAGE + 1)
    world.guest.protect(PAGE, writable=False, executable=False)
    assert world.core.access(PAGE, write=True) == Outcome(Exit.GUEST_WRITE, PAGE)
    assert world.core.access(PAGE, fetch=True) == Outcome(Exit.PROTECTION, PAGE)
    world.guest.protect(PAGE, writable=True)
    world.nested.protect(DATA, writable=False)
    assert world.core.access(PAGE, write=True) == Outcome(Exit.NESTED_WRITE, PAGE, gfn=DATA)
    world.nested.protect(table, writable=False)
    assert world.core.access(PAGE) == Outcome(Exit.NESTED_WRITE, PAGE, gfn=table)
    world.nested.unmap(table)
    assert world.core.access(PAGE) == Outcome(Exit.NESTED_FAULT, PAGE, gfn=table)
    counted = {name: count for name, count in world.core.counters.items() if count}
    exits = {"guest_faults": 1, "guest_writes": 1, "protections": 1, "nested_writes": 2, "nested_faults": 1}
    assert counted == exits


PAGES = (PAGE, PAGE + 1, PAGE + 2, PAGE + 512, PAGE + 513, PAGE + (1 << 18))
"""Two leaf tables, and one far away."""
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
ACCESS = (st.sampled_from(PAGES), st.sampled_from(["read", "write", "fetch"]), st.integers(0, 3))
ACCESSES = st.lists(st.tuples(*ACCESS), min_size=25, max_size=50)
VIRTUAL = [name for name in MODES if not name.startswith("native")]
JUDGED = settings(deadline=None, max_examples=40, database=None, derandomize=True)


def do(core: SpecCore, page: int, kind: str, line: int) -> Outcome:
    return core.access(page, line=line, write=kind == "write", fetch=kind == "fetch")


def mixed_world(machine: Machine, *, hierarchy: bool) -> World:
    """Return a world with 4K pages around a hole, each of another permission, some of them global."""
    world = World(machine, hierarchy=hierarchy)
    world.map_guest(PAGE + 1, DATA + 1, is_global=True)
    world.map_guest(PAGE + 512, DATA + 512, 1)
    world.map_guest(PAGE + (1 << 18), DATA + (1 << 18), writable=False, executable=False)
    world.back(DATA + 513)
    world.guest_segment = SpecSegment(PAGE, PAGE + 513, DATA - PAGE, frozenset({PAGE, PAGE + 2}))
    world.vmm_segment = SpecSegment(TABLES, DATA + 512, SHIFT, frozenset({DATA + 1, TABLES}))
    return world


def everything(world: World) -> tuple[Any, dict[str, int], list[Any]]:
    tables = [
        (key, attrs.astuple(entry)) for table in (world.guest, world.nested) for key, entry in table.entries.items()
    ]
    return world.core.contents(), dict(world.core.counters), tables


def test_exits_leave_everything_as_it_was() -> None:
    seen: Counter[str] = Counter()

    hurts = st.sampled_from(["nothing", "absent", "absent", "read-only"])
    hurt_accesses = st.lists(st.tuples(*ACCESS, st.integers(0, 4), hurts), min_size=25, max_size=40)

    @JUDGED
    @given(SWITCHES, st.booleans(), st.sampled_from(VIRTUAL), hurt_accesses)
    def exits(switches: dict[str, Any], hierarchy: bool, mode: str, accesses: list[tuple[Any, ...]]) -> None:
        world = mixed_world(busy(**switches), hierarchy=hierarchy).load(mode)
        gfns = [DATA, DATA + 1, DATA + 512, TABLES, world.tables()[-1][1]]
        for *access, which, hurt in accesses:
            gfn = gfns[which]
            leaf = world.nested.leaf(gfn)
            assert leaf is not None
            if hurt == "absent":
                world.nested.unmap(gfn)
            leaf.writable = hurt != "read-only"
            core = world.core
            before = everything(world)
            outcome = do(core, *access)
            seen[outcome.exit] += 1
            if outcome.exit != Exit.DONE:
                before[1][f"{outcome.exit}s"] += 1
                assert everything(world) == before
            if hurt == "absent":
                world.nested.entries[1, gfn] = leaf

    exits()
    assert all(seen[each] > 15 for each in Exit), seen


def test_translations_are_true_and_entries_never_stale_whatever_happens() -> None:
    seen: Counter[str] = Counter()
    invalidations = ["page", "range", "context", "vpid", "eptp", "frames", "all", "remap", "move"]
    events = st.sampled_from([*["none"] * 6, *invalidations])
    eventful = st.lists(st.tuples(*ACCESS, events), min_size=25, max_size=40)

    @JUDGED
    @given(SWITCHES, st.booleans(), st.sampled_from([*MODES]), eventful)
    def lives(switches: dict[str, Any], hierarchy: bool, mode: str, accesses: list[tuple[Any, ...]]) -> None:
        world = mixed_world(busy(**switches), hierarchy=hierarchy)
        spare = itertools.count(DATA + (1 << 20))
        core = world.load(mode).core
        for page, kind, line, event in accesses:
            if event == "page":
                core.invalidate_page(1, 1, page)
            elif event == "range":
                core.invalidate_range(1, 1, PAGE + 1, PAGE + 513)
            elif event == "context":
                core.invalidate_context(1, 1)
            elif event == "vpid":
                core.invalidate_vpid(1)
            elif event == "eptp":
                core.invalidate_eptp(1)
            elif event == "frames":
                core.invalidate_frames(DATA + SHIFT, DATA + SHIFT + 2)
            elif event == "all":
                core.invalidate_all()
            elif event == "remap" and mode in ("base", "native", "vmm-direct"):
                frame = next(spare)
                world.guest.unmap(PAGE)
                world.map_guest(PAGE, frame)
                core.invalidate_page(1, 1, PAGE)
            elif event == "move" and mode in ("base", "guest-direct"):
                leaf = world.nested.leaf(TABLES)
                assert leaf is not None
                core.invalidate_frames(leaf.frame, leaf.frame + 1)
                leaf.frame = next(spare) + SHIFT
            outcome = do(core, page, kind, line)
            core.check()
            seen[outcome.exit] += 1
            seen[event] += 1
            if outcome.exit == Exit.DONE:
                assert outcome.hfn == core.translate(page)
        seen.update(core.counters)

    lives()
    for name in COUNTERS:
        assert seen[name] > 0 or name in ("nested_faults", "nested_writes", "false_escapes"), name
    assert all(seen[event] > 20 for event in invalidations), seen
    assert seen["l1_hits"] > 100, seen
    assert seen["l2_hits"] > 50, seen
    assert seen["walks"] > 200, seen


def test_a_stale_entry_is_found_out() -> None:
    for hurt in ("guest", "nested", "permission", "table"):
        world = World(busy()).load("base")
        world.core.access(PAGE, write=True)
        world.core.check()
        if hurt == "guest":
            world.guest.unmap(PAGE)
        elif hurt == "nested":
            world.nested.unmap(DATA)
        elif hurt == "permission":
            world.guest.protect(PAGE, writable=False)
        else:
            leaf = world.nested.leaf(world.tables()[-1][1])
            assert leaf is not None
            leaf.frame += 1
        with pytest.raises(AssertionError, match="stale"):
            world.core.check()


# Equivalences


def test_vmm_direct_references_what_native_references_access_by_access() -> None:
    seen: Counter[str] = Counter()
    same = (
        "l1_hits",
        "l2_hits",
        "walks",
        "guest_references",
        "walk_cache_hits",
        "rewalks",
        "cold_fills",
        "guest_writes",
    )

    @JUDGED
    @given(ACCESSES)
    def equal(accesses: list[tuple[Any, ...]]) -> None:
        worlds = [mixed_world(busy(), hierarchy=False) for _ in range(2)]
        whole = SpecSegment(0, DATA + (1 << 20), SHIFT)
        native, direct = worlds[0].load("native").core, worlds[1].load("vmm-direct", vmm_segment=whole).core
        for access in accesses:
            assert do(native, *access).exit == do(direct, *access).exit
            assert [native.counters[name] for name in same] == [direct.counters[name] for name in same]
        assert direct.counters["nested_references"] == native.counters["nested_references"] == 0
        seen.update({name: native.counters[name] for name in same})

    equal()
    assert all(seen[name] > 30 for name in same), seen


def test_segments_with_base_at_limit_reproduce_base_bit_for_bit() -> None:
    seen: Counter[str] = Counter()

    @JUDGED
    @given(SWITCHES, st.sampled_from(VIRTUAL), ACCESSES)
    def equal(switches: dict[str, Any], mode: str, accesses: list[tuple[Any, ...]]) -> None:
        worlds = [mixed_world(busy(**switches), hierarchy=True) for _ in range(2)]
        off = SpecSegment(PAGE, PAGE, 5)
        base = worlds[0].load("base").core
        other = worlds[1].load(mode, guest_segment=off, vmm_segment=off).core
        for access in accesses:
            assert do(base, *access) == do(other, *access)
        assert base.counters == other.counters
        assert base.contents() == other.contents()
        seen.update(base.counters)

    equal()
    assert min(seen["l1_hits"], seen["l2_hits"], seen["walk_both"], seen["guest_faults"]) > 50, seen


# Tables, filters, invalidation


def test_splitting_a_leaf_keeps_its_translations() -> None:
    table = SpecTable()
    table.map(0, 1 << 18, 2, dirty=True, table_frames=iter([7, 8]))
    for size in (2, 1):
        leaf = table.leaf(0)
        assert leaf is not None
        assert leaf.size == size
        table.split(0, table_frames=lambda: 99)
    for page in (0, 1, 511, 512, 100_000):
        leaf = table.leaf(page)
        assert leaf is not None
        assert leaf.dirty
        assert leaf.frame + page % (1 << 9 * leaf.size) == page + (1 << 18)


def test_a_large_leaf_replaces_a_table_only_when_that_is_empty() -> None:
    table = SpecTable()
    table.map(5, 5, table_frames=itertools.count(1))
    with pytest.raises(ValueError, match="mapped already"):
        table.map(0, 512, 1)
    table.unmap(5)
    table.map(0, 512, 1)
    leaf = table.leaf(5)
    assert leaf is not None
    assert (leaf.frame, leaf.size) == (512, 1)
    with pytest.raises(ValueError, match="aligned"):
        table.map(513, 512, 1)


def test_the_filter_is_h3_with_parity_hashes() -> None:
    rows = ((0b01, 0b10), (0b11, 0b100))
    hits = spec_filter(rows, 8, frozenset({0b001}))
    # Bank 0 at 1, bank 1 at 1: pages with bit 0 set, bit 1 clear and bit 2 clear, whatever the others.
    assert [page for page in range(16) if hits(page)] == [0b0001, 0b1001]
    assert not any(map(spec_filter((), 0, frozenset({1})), range(4)))


def test_a_range_that_holds_nothing_drops_nothing() -> None:
    world = World(busy(), 1, 1).load("base")
    world.core.access(PAGE + 5)
    held = world.core.contents()
    world.core.invalidate_range(1, 1, PAGE + 5, PAGE + 5)
    world.core.invalidate_page(1, 2, PAGE + 5)
    world.core.invalidate_page(2, 1, PAGE + 5)
    world.core.invalidate_frames(DATA + SHIFT + 5, DATA + SHIFT + 5)
    world.core.invalidate_eptp(2)
    assert world.core.contents() == held
    world.core.invalidate_page(1, 1, PAGE)
    assert not any(world.core.contents()[name] for name in ("l1_data_tlb[1]", "l2_tlb", "walk_cache_l3"))
    assert world.core.contents()["nested_tlb"] == held["nested_tlb"]
    world.core.invalidate_eptp(1)
    assert not any(world.core.contents().values())
