"""Which block an allocation gets, and what that does to pageblocks: Linux's rules, case by case."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from vmmsim.memory.frames import HEAD, NOBODY, PAGEBLOCK, Kind, MigrateType
from vmmsim.memory.ledger import Memory
from vmmsim.memory.tokens import Busy
from vmmsim.memory.zone import BLOCK_WORDS, TYPE_MASK


def types(memory: Memory) -> list[int]:
    """Return the migrate type of each pageblock."""
    return (memory.blocks[::BLOCK_WORDS] & TYPE_MASK).tolist()


def filled(pageblocks: int, **options: int) -> Memory:
    """Return a memory all of which one user has."""
    memory = Memory(pageblocks * PAGEBLOCK, name="filled", **options)
    memory.take_range(0, pageblocks * PAGEBLOCK, kind=Kind.USER, owner=1)
    return memory


def test_memory_is_handed_out_from_the_lowest_frame_on_in_order() -> None:
    memory = Memory(4096, name="fresh")
    assert memory.take(100, kind=Kind.USER).tolist() == list(range(100))
    assert memory.take(3, kind=Kind.USER, order=9).tolist() == [512, 1024, 1536]
    assert memory.take(50, kind=Kind.USER).tolist() == list(range(100, 150))


@pytest.mark.parametrize("order", [0, 3, 9])
def test_many_at_once_are_the_same_as_one_by_one(order: int) -> None:
    random = np.random.default_rng(order)
    together, apart = (Memory(8192, name=name, kernelcore=4096) for name in ("together", "apart"))
    for memory in (together, apart):
        frames = memory.take(8192, kind=Kind.USER, floor=0)
        memory.give_back(frames[random.permutation(8192)[:3000]] if order == 0 else frames[2000:6000])
        random = np.random.default_rng(order)
    for kind in (Kind.USER, Kind.KERNEL, Kind.SLAB, Kind.CACHE):
        count = 800 >> order
        many = together.take(count, kind=kind, owner=4, order=order, floor=0)
        one_by_one = [apart.take(1, kind=kind, owner=4, order=order, floor=0) for _ in range(count)]
        assert many.tolist() == np.concatenate(one_by_one).tolist()
    together.check()
    used = together.frames["kind"] != Kind.FREE
    assert (together.frames[used] == apart.frames[used]).all()
    assert (together.zone.blocks == apart.zone.blocks).all()


def test_records_say_what_was_asked_for() -> None:
    memory = Memory(4096, name="records")
    first = memory.take(2, kind=Kind.USER, owner=7, pages=[100, 900], order=3)
    for start, page in zip(first.tolist(), (100, 900), strict=True):
        block = memory.frames[start : start + 8]
        assert block["page"].tolist() == list(range(page, page + 8))
        assert set(block["owner"].tolist()) == {7}
        assert set(block["kind"].tolist()) == {Kind.USER}
        assert set(block["order"].tolist()) == {3}
        assert not block["mark"].any()
    alone = memory.take(1, kind=Kind.CACHE)
    assert memory.frames[alone]["owner"][0] == memory.frames[alone]["page"][0] == NOBODY


def test_a_free_block_is_merged_with_its_buddy_and_with_no_other_neighbour() -> None:
    memory = filled(2)
    memory.give_back([5, 6])  # neighbours, but the buddies are 4 and 7
    assert memory.fragmentation().nr_free[:3].tolist() == [2, 0, 0]
    memory.give_back(4)
    assert memory.fragmentation().nr_free[:3].tolist() == [1, 1, 0]
    memory.give_back(7)
    assert memory.fragmentation().nr_free[:3].tolist() == [0, 0, 1]
    assert memory.frames["mark"][4] == HEAD
    assert memory.frames["order"][4] == 2


def test_two_pageblocks_that_merge_are_of_the_type_of_the_one_freed_last() -> None:
    memory = Memory(2 * PAGEBLOCK, name="types")
    lower, upper = memory.take(1, kind=Kind.KERNEL, order=9, floor=0), memory.take(1, kind=Kind.SLAB, order=9, floor=0)
    assert types(memory) == [MigrateType.UNMOVABLE, MigrateType.RECLAIMABLE]
    memory.give_back(lower, order=9)
    memory.give_back(upper, order=9)
    assert memory.fragmentation().nr_free[10] == 1
    assert types(memory) == [MigrateType.RECLAIMABLE] * 2
    memory.check()


def test_a_free_run_begins_at_a_multiple_and_may_cross_pageblocks() -> None:
    memory = filled(8)
    memory.give_back(np.arange(700, 1400))
    assert memory.largest_free_run() == 700
    assert memory.find_free_run(700, align=1) == 700
    assert memory.find_free_run(600, align=256) == 768
    assert memory.find_free_run(376, align=1024) == 1024
    assert memory.find_free_run(377, align=1024) == -1
    assert memory.find_free_run(100, align=1, within=(900, 980)) == -1
    assert memory.find_free_run(80, align=1, within=(900, 980)) == 900


def test_the_smallest_block_that_serves_is_split() -> None:
    memory = filled(4)
    memory.give_back(1024, order=9)
    memory.give_back(16, order=2)
    memory.give_back(64, order=4)
    assert memory.take(1, kind=Kind.USER, floor=0).tolist() == [16]
    assert memory.take(1, kind=Kind.USER, floor=0, order=3).tolist() == [64]
    assert memory.take(1, kind=Kind.USER, floor=0, order=5).tolist() == [1024]


def test_the_list_is_last_in_first_out_but_for_blocks_about_to_merge() -> None:
    memory = filled(2)
    memory.give_back([8, 100])
    assert memory.take(1, kind=Kind.USER, floor=0).tolist() == [100]
    memory.give_back(102, order=1)
    memory.give_back(100)  # once 101 is free it merges into 100..104: it goes to the tail
    assert memory.take(1, kind=Kind.USER, floor=0).tolist() == [8]


def test_unmovable_demand_claims_a_whole_free_pageblock() -> None:
    memory = Memory(8 * PAGEBLOCK, name="claims")
    frame = int(memory.take(1, kind=Kind.KERNEL)[0])
    kernel = frame // PAGEBLOCK
    expected = [int(MigrateType.MOVABLE)] * 8
    expected[kernel & -2] = expected[kernel | 1] = int(MigrateType.UNMOVABLE)  # the free block had 1024 frames
    assert types(memory) == expected
    assert memory.take(1, kind=Kind.TABLE)[0] // PAGEBLOCK == kernel
    user = memory.take(1, kind=Kind.USER)[0] // PAGEBLOCK
    assert types(memory)[user] == MigrateType.MOVABLE
    slab = memory.take(1, kind=Kind.SLAB)[0] // PAGEBLOCK
    assert types(memory)[slab] == MigrateType.RECLAIMABLE, "fallback takes the largest block, whatever its type"


def test_unmovable_demand_claims_the_pageblock_of_which_half_is_free_else_spoils_it() -> None:
    for free, claimed in ((255, False), (256, True)):
        memory = filled(2)
        frames = np.arange(1, PAGEBLOCK, 2)[:free] if free < 256 else np.arange(0, PAGEBLOCK, 2)
        memory.give_back(frames)
        taken = int(memory.take(1, kind=Kind.KERNEL, floor=0)[0])
        assert taken < PAGEBLOCK
        assert (types(memory)[0] == MigrateType.UNMOVABLE) == claimed
        assert int(memory.zone.steals) == (not claimed)
        memory.check()


def test_what_cannot_move_counts_as_compatible_for_unmovable_demand() -> None:
    memory = filled(2)
    memory.assign(np.arange(0, 150), kind=Kind.KERNEL)
    memory.give_back(np.arange(200, 200 + 2 * 106, 2))  # 106 free + 150 unmovable = 256
    memory.take(1, kind=Kind.KERNEL, floor=0)
    assert types(memory)[0] == MigrateType.UNMOVABLE
    memory.check()


def test_movable_demand_claims_only_where_sixteen_pages_are_free_and_else_steals_the_smallest() -> None:
    for order, claimed in ((3, False), (4, True)):
        memory = Memory(2 * PAGEBLOCK, name="kernel's")
        memory.take(2 * PAGEBLOCK, kind=Kind.KERNEL, floor=0)
        # 257 frames are free or movable, one more than is needed: only the largest free block differs.
        memory.assign(np.arange(PAGEBLOCK - (256 - (1 << order)), PAGEBLOCK), kind=Kind.USER)
        memory.give_back(64, order=order)
        memory.give_back(48)
        assert memory.take(1, kind=Kind.USER, floor=0).tolist() == [48], "the smallest block serves in either case"
        assert (types(memory)[0] == MigrateType.MOVABLE) == claimed
        assert int(memory.zone.steals) == (not claimed)
        memory.check()


def test_fallback_prefers_reclaimable_to_movable_and_to_unmovable() -> None:
    for kind, other in ((Kind.KERNEL, Kind.SLAB), (Kind.USER, Kind.SLAB), (Kind.SLAB, Kind.KERNEL)):
        third = ({Kind.KERNEL, Kind.USER, Kind.SLAB} - {kind, other}).pop()
        memory = Memory(4 * PAGEBLOCK, name="fallbacks")
        first = memory.take(2, kind=other, order=9, floor=0)
        second = memory.take(2, kind=third, order=9, floor=0)
        memory.give_back([first[0] + 10, second[0] + 10])
        assert memory.take(1, kind=kind, floor=0).tolist() == [first[0] + 10]


def test_movable_pages_prefer_the_movable_part_and_others_never_go_there() -> None:
    memory = Memory(8192, name="two parts", kernelcore=4096)
    assert memory.take(1, kind=Kind.USER)[0] >= 4096
    assert memory.take(8192, kind=Kind.KERNEL, floor=0).max() < 4096
    assert memory.free_pages == 4095
    below = memory.take(1, kind=Kind.SLAB, floor=0)
    assert not len(below)
    assert len(memory.take(9000, kind=Kind.CACHE, floor=0)) == 4095
    with pytest.raises(ValueError, match="movable part"):
        memory.assign(5000, kind=Kind.KERNEL)
    memory.check()


def test_allocation_stops_at_the_floor() -> None:
    memory = Memory(1 << 16, name="floor")
    marks = memory.watermarks
    memory.take(1 << 17, kind=Kind.USER)
    assert memory.free_pages == marks.min
    assert not len(memory.take(1, kind=Kind.USER))
    assert len(memory.take(10, kind=Kind.KERNEL, floor=0)) == 10
    memory.give_back(memory.owned(NOBODY)[:5000])
    memory.take(1 << 17, kind=Kind.USER, floor=1000)
    assert memory.free_pages == 1000


def test_a_lease_keeps_what_is_freed_and_gives_nothing() -> None:
    memory = filled(4)
    lease = memory.isolate_range(PAGEBLOCK, 2 * PAGEBLOCK, "a window")
    memory.give_back(np.arange(PAGEBLOCK, 2 * PAGEBLOCK))
    memory.give_back(5)
    assert memory.free_pages == 1
    assert memory.take(10, kind=Kind.USER, floor=0).tolist() == [5]
    assert memory.fragmentation().free_pages == 0
    with pytest.raises(Busy, match="a window"):
        memory.isolate([600], "another")
    with pytest.raises(Busy, match="a window"):
        memory.isolate_range(0, 2 * PAGEBLOCK, "another")
    memory.release(lease)
    assert memory.free_pages == PAGEBLOCK
    memory.check()


def test_a_retired_frame_is_never_given_again() -> None:
    memory = Memory(2 * PAGEBLOCK, name="faulty")
    memory.retire([3, 700])
    assert memory.managed_pages == 2 * PAGEBLOCK - 2
    assert not {3, 700} & set(memory.take(2000, kind=Kind.USER, floor=0).tolist())
    with pytest.raises(ValueError, match="BAD"):
        memory.give_back(3)
    memory.check()


def test_memory_added_and_removed_moves_the_watermarks() -> None:
    memory = Memory(1 << 18, name="plugged", holes=[(1 << 17, 1 << 18)])
    before = memory.watermarks
    memory.add(1 << 17, 1 << 18)
    assert memory.watermarks.min > before.min
    assert memory.free_pages == 1 << 18
    memory.remove(1 << 17, 1 << 18)
    assert memory.watermarks == before
    memory.check()
    with pytest.raises(ValueError, match="not all holes"):
        memory.add(0, 1024)


def test_nonsense_is_refused_with_the_parameter_and_its_value() -> None:
    memory = Memory(2048, name="strict")
    with pytest.raises(ValueError, match=r"pages\(=0\)"):
        Memory(0, name="none")
    with pytest.raises(ValueError, match="FREE"):
        memory.take(1, kind=Kind.FREE)
    with pytest.raises(ValueError, match="frame 7 "):
        memory.give_back(7)
    with pytest.raises(ValueError, match="whole pageblocks"):
        memory.isolate_range(0, 100, "x")
    with pytest.raises(ValueError, match="no block"):
        memory.give_back(2048)
    token = memory.isolate([1], "x")
    memory.release(token)
    with pytest.raises(ValueError, match="closed"):
        memory.release(token)


def test_a_copy_lives_on_its_own() -> None:
    memory = Memory(16 * PAGEBLOCK, name="first", holes=[(3000, 5000)], kernelcore=8 * PAGEBLOCK)
    memory.take(1500, kind=Kind.USER, owner=1)
    token = memory.isolate(memory.owned(1)[:10], "someone")
    twins = [memory.copy(), copy.deepcopy(memory)]
    before = memory.words.copy()
    for twin in twins:
        assert (twin.words == memory.words).all()
        twin.check()
        twin.release(token)
        twin.give_back(twin.owned(1))
        twin.take(700, kind=Kind.KERNEL)
        twin.check()
        assert not twin.tokens
    memory.check()
    assert (memory.words == before).all()
    assert list(memory.tokens.values()) == [token]
    assert (twins[0].words == twins[1].words).all()


def test_spare_pages_are_what_movable_kinds_can_still_be_given() -> None:
    memory = Memory(1 << 16, name="host", kernelcore=1 << 14)
    spare = memory.spare_pages
    assert 0 < spare < memory.free_pages
    assert memory.take(spare + 1, kind=Kind.USER).size == spare
    assert memory.spare_pages == 0
    assert memory.take(16, kind=Kind.TABLE).size == 16, "the lower part has kept room for page tables"
