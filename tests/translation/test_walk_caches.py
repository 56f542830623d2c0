"""Walk caches and the nested TLB: what a hit skips, what is filled, and what never is."""

from __future__ import annotations

import pytest

from tests.translation.worlds import ALL_SIZES, PAGE, SHIFT, World, busy, cost, toy, without
from vmmsim.config import Switches, TableCache, TlbPart, WalkCache

PART = TableCache(entries=8, ways=8)
EIGHT = (TlbPart(entries=8, ways=8, pages=("4K", "2M", "1G")),)


def world_of(**changes: object) -> World:
    """Return a world with a page beside PAGE, one in the next leaf table, and one 1G and one 512G further."""
    world = World(toy(**changes))
    for i, page in enumerate((PAGE + 1, PAGE + 512, PAGE + (1 << 18), PAGE + (1 << 27)), start=1):
        world.map_guest(page, world.data + i)
    return world


@pytest.mark.parametrize(
    ("mode", "costs"),
    [("native", [4, 1, 2, 3, 4]), ("vmm-direct", [4, 1, 2, 3, 4]), ("base", [24, 5, 10, 15, 24])],
)
def test_a_combined_hit_skips_references_nested_translations_and_checks_above(mode: str, costs: list[int]) -> None:
    """With every level cached, each page goes on from the lowest table that it shares with those before."""
    world = world_of(walk_cache=WalkCache(l2=PART, l3=PART, l4=PART)).load(mode)
    pages = (PAGE, PAGE + 1, PAGE + 512, PAGE + (1 << 18), PAGE + (1 << 27))
    for page, references in zip(pages, costs, strict=True):
        counted = world.counted(page)
        hits = counted.get("walk_cache_hits", 0)  # the last page shares nothing but the root
        assert hits == (page not in (pages[0], pages[-1]))
        walked = counted["guest_references"]
        checks = walked + 1 - hits if mode == "vmm-direct" else 0
        assert cost(counted)[:2] == (references, checks)


def test_vmm_direct_with_the_leaf_table_cached_costs_one_reference_and_one_check() -> None:
    world = world_of(walk_cache=WalkCache(l2=PART)).load("vmm-direct")
    world.access(PAGE)
    assert cost(world.counted(PAGE + 1)) == (1, 1, "walk_guest")


def test_a_level_that_is_absent_is_passed_over() -> None:
    world = world_of(walk_cache=WalkCache(l2=PART, l4=PART)).load("base")
    world.access(PAGE)
    assert cost(world.counted(PAGE + 512))[0] == 15  # from the level-4 entry: three tables to read
    assert cost(world.counted(PAGE + 1))[0] == 5


def test_a_combined_entry_leads_to_the_host_frame_of_the_table() -> None:
    world = world_of(walk_cache=WalkCache(l2=PART, l3=PART, l4=PART)).load("base")
    world.access(PAGE)
    _, third, second, first = world.tables()
    for level, gfn in ((4, third), (3, second), (2, first)):
        owner = ("combined", 1, 1, 1)
        assert world.held(f"walk_cache_l{level}") == [(owner, PAGE >> 9 * (level - 1), gfn + SHIFT)]


def test_the_root_is_in_no_walk_cache_and_a_leaf_neither() -> None:
    parts = WalkCache(l2=PART, l3=PART, l4=PART, l5=PART)
    world = World(toy(walk_cache=parts, nested_walk_cache=parts), 1, 1).load("base")
    world.access(PAGE)
    for name in ("walk_cache", "nested_walk_cache"):
        assert not world.held(f"{name}_l5")
        assert not world.held(f"{name}_l2")  # 2M leaves stand at level 2: no table below
        assert world.held(f"{name}_l3")


def test_a_nested_hit_skips_the_references_above_it() -> None:
    world = world_of(nested_walk_cache=WalkCache(l2=PART)).load("base")
    counted = world.counted(PAGE)
    # Tables and data lie in two 2M blocks of gPA: the first walk in each reads 4 entries, the others 1.
    assert len({gfn >> 9 for gfn in (*world.tables(), world.data)}) == 2
    assert (counted["nested_references"], counted["nested_walk_cache_hits"]) == (4 + 1 + 1 + 1 + 4, 3)
    world.engine.invalidate_context(1, 1)
    counted = world.counted(PAGE)
    assert (counted["nested_references"], counted["nested_walk_cache_hits"]) == (5, 5)
    assert counted["guest_references"] == 4


@pytest.mark.parametrize("ntlb_data", [False, True])
def test_the_nested_tlb_serves_tables_and_data_only_if_told(ntlb_data: bool) -> None:
    world = world_of(nested_tlb=EIGHT, switches=Switches(ntlb_data=ntlb_data)).load("base")
    assert cost(world.counted())[0] == 24
    assert len(world.held("nested_tlb")) == 4 + ntlb_data
    world.engine.invalidate_context(1, 1)
    counted = world.counted()
    assert counted["nested_tlb_hits"] == 4 + ntlb_data
    assert cost(counted)[0] == 4 + (0 if ntlb_data else 4)


def test_nested_entries_belong_to_the_eptp_alone() -> None:
    world = world_of(nested_tlb=EIGHT, nested_walk_cache=WalkCache(l2=PART)).load("base")
    world.access()
    assert {entry[0] for entry in world.held("nested_tlb")} == {("nested", 1)}
    world.load("base", asid=2)
    assert world.counted()["nested_tlb_hits"] == 4
    world.load("base", eptp=2)
    assert "nested_tlb_hits" not in world.counted()


@pytest.mark.parametrize("ntlb_in_l2", [False, True])
def test_nothing_is_inserted_for_what_a_segment_translated(ntlb_in_l2: bool) -> None:
    world = World(busy(ntlb_data=True, ntlb_in_l2=ntlb_in_l2)).load("vmm-direct")
    world.access(write=True)
    held = world.engine.contents()
    assert not held.get("nested_tlb")
    assert not any(held[f"nested_walk_cache_l{level}"] for level in (2, 3, 4))
    assert all(entry[0][0] == "combined" for entry in world.held("l2_tlb"))


def test_an_escaped_gpa_uses_nested_structures_and_the_others_do_not() -> None:
    world = World(busy(ntlb_data=True))
    table = world.tables()[2]
    world.load("vmm-direct", vmm_segment=without(world.vmm_segment, table)).access()
    assert [entry[2] for entry in world.held("nested_tlb")] == [table]


def test_nested_entries_compete_for_the_l2_tlb() -> None:
    world = world_of(l2_tlb=(TlbPart(entries=5, ways=5),), switches=Switches(ntlb_in_l2=True)).load("base")
    world.access()
    kinds = [entry[0][0] for entry in world.held("l2_tlb")]
    assert kinds == ["combined", "nested", "nested", "nested", "nested"]
    world.access(PAGE + (1 << 27))  # three more tables: something must go, the combined entry first but one
    assert world.entry(structure="l2_tlb") is None
    assert "nested_tlb" not in world.engine.contents()


def test_a_nested_entry_is_as_large_as_the_nested_leaf_cut_to_what_the_tlb_holds() -> None:
    for parts, size in (
        (EIGHT, 2),
        ((TlbPart(entries=8, ways=8, pages=("4K", "2M")),), 1),
        ((TlbPart(entries=8, ways=8),), 0),
    ):
        world = World(toy(nested_tlb=parts), 0, 2).load("base")
        world.access()
        assert {entry[1] for entry in world.held("nested_tlb")} == {size}
        hits = {2: 3, 1: 3, 0: 0}[size]  # the four tables lie in one 2M page
        assert world.engine.counters()["nested_tlb_hits"] == hits


def test_a_clean_nested_entry_does_not_serve_a_write_and_is_updated() -> None:
    world = World(toy(nested_tlb=EIGHT, switches=Switches(ntlb_data=True))).load("base")
    world.access()
    world.engine.invalidate_context(1, 1)
    assert world.counted(write=True)["nested_tlb_hits"] == 4
    (entry,) = [entry for entry in world.held("nested_tlb") if entry[2] == world.data]
    assert entry[4:6] == (True, True)
    assert len(world.held("nested_tlb")) == 5


def test_walk_caches_are_tagged_by_context() -> None:
    world = world_of(walk_cache=WalkCache(l2=PART), l2_tlb=ALL_SIZES).load("vmm-direct")
    world.access()
    world.load("vmm-direct", asid=2)
    assert cost(world.counted())[0] == 4
    assert {entry[0] for entry in world.held("walk_cache_l2")} == {("combined", 1, 1, 1), ("combined", 1, 2, 1)}
