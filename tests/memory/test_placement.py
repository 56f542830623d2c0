"""Moving pages into their slots: every target is free, and the copies are those that permutations demand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import PAGEBLOCK
from vmmsim.memory.placement import Placement

SPARE = 1 << 20
"""A frame far outside every window, aligned to 2 MiB."""


class World:
    """Frames as a dict, the obvious way: what each holds, and copies that fail loudly."""

    def __init__(self, backing: Any, *, base: int, offset: int, others: Any = (), escaped: Any = ()) -> None:
        self.base, self.offset = base, offset
        self.holds = {int(hfn): base + i for i, hfn in enumerate(backing) if hfn >= 0}
        self.others = {int(hfn) for hfn in others}
        self.escaped = set(escaped)
        self.pages = len(backing)
        free = [base + offset + i not in self.holds and base + offset + i not in self.others for i in range(self.pages)]
        self.plan = Placement(
            np.array(backing), base=base, offset=offset, free=np.array(free, bool), escaped=sorted(self.escaped)
        )
        self.copies = self.leaf_moves = self.batches = 0
        self.compare_every = 1

    def slot(self, gfn: int) -> int:
        return gfn + self.offset

    def is_inside(self, hfn: int) -> bool:
        return self.base + self.offset <= hfn < self.base + self.offset + self.pages

    def expected(self) -> tuple[int, int, int]:
        """Return b, c and closed cycles, by definition; without escapes."""
        at = {gfn: hfn for hfn, gfn in self.holds.items()}
        wrong = [gfn for gfn, hfn in at.items() if self.is_inside(hfn) and hfn != self.slot(gfn)]
        outside = [gfn for gfn, hfn in at.items() if not self.is_inside(hfn)]
        cycles, seen = 0, set()
        for begin in wrong:
            gfn: int | None = begin
            while gfn is not None and gfn not in seen:
                seen.add(gfn)
                gfn = self.holds.get(self.slot(gfn))  # who is in the way of gfn
                cycles += gfn == begin
        return len(wrong), len(outside), cycles

    def carry_out(self, batch: Any, done: int | None = None) -> None:
        """Copy, line by line, then compare what the batch says of itself with what has become of the frames."""
        before = dict(self.holds) if not (self.batches + 1) % self.compare_every else {}
        for gfn, source, target in list(zip(batch.gfn, batch.source, batch.target, strict=True))[:done]:
            for i in range(batch.pages_each):
                assert target + i not in self.holds, "a target is free when it is written"
                assert target + i not in self.others
                assert self.holds.pop(int(source) + i) == gfn + i
                self.holds[int(target) + i] = int(gfn) + i
                self.copies += 1
            self.leaf_moves += batch.pages_each == PAGEBLOCK
        self.plan.commit(batch, done)
        self.batches += 1
        if self.batches % self.compare_every:
            return
        if done is None:
            assert set(batch.taken().tolist()) == set(self.holds) - set(before)
            assert set(batch.released().tolist()) == set(before) - set(self.holds)
            gfns, frames = batch.result()
            assert all(self.holds[hfn] == gfn for gfn, hfn in zip(gfns.tolist(), frames.tolist(), strict=True))
            assert sorted(set(gfns.tolist())) == gfns.tolist()
        assert {gfn: hfn for hfn, gfn in self.holds.items()} == {
            self.base + i: int(hfn) for i, hfn in enumerate(self.plan.backing) if hfn >= 0
        }
        self.plan.check()

    def run(self, pages: int = 32) -> World:
        while batch := self.plan.batch(pages):
            assert batch.copies <= max(pages, batch.pages_each)
            self.carry_out(batch)
        return self

    def is_settled(self) -> bool:
        return all(hfn == self.slot(gfn) for hfn, gfn in self.holds.items() if gfn not in self.escaped)


@st.composite
def scattered(draw: Any, most: int = 14) -> tuple[list[int], int, int]:
    """Return (backing, base, offset): pages in their slots, in others', outside and absent."""
    pages = draw(st.integers(1, most))
    base, start = draw(st.integers(0, 600)), draw(st.integers(100, 900))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    window = range(start, start + pages)
    backing = draw(
        st.sampled_from(
            [
                list(window),
                [start + (i ^ 1) for i in range(pages - pages % 2)] + list(window)[pages - pages % 2 :],
                random.permutation(window).tolist(),
                random.permutation(range(start - pages, start + 2 * pages))[:pages].tolist(),
            ]
        )
    )
    for i in draw(st.lists(st.integers(0, pages - 1), max_size=pages // 2)):
        backing[i] = -1
    return backing, base, start - base


def test_copies_are_pages_out_of_place_and_closed_cycles() -> None:
    met: Counter[str] = Counter()

    @settings(max_examples=150 if INTERPRETED else 400)
    @given(scattered(), st.integers(1, 40))
    def law(case: tuple[list[int], int, int], most: int) -> None:
        met.update(check_the_law(*case, most))

    law()
    assert min(met[each] for each in ("cycles", "several cycles", "outside", "chains")) >= (2 if INTERPRETED else 10)


def check_the_law(backing: list[int], base: int, offset: int, most: int) -> dict[str, int]:
    """Fill a window in batches of ``most``; return what was met."""
    world = World(backing, base=base, offset=offset)
    wrong, outside, cycles = world.expected()
    assert world.plan.left == wrong + outside
    world.run(most)
    if cycles:
        assert world.plan.waits_for == "spare"
        world.plan.lend(SPARE)
        world.run(most)
        assert world.plan.take_back() == [(SPARE, 1)]
    assert world.is_settled()
    assert (world.plan.left, world.plan.cycles) == (0, cycles)
    assert world.copies == world.plan.copies == wrong + outside + cycles
    return {
        "cycles": cycles > 0,
        "several cycles": cycles > 1,
        "outside": outside > 0,
        "chains": wrong > 0 and cycles == 0,
    }


@pytest.mark.parametrize(("length", "most"), [(2, 32), (3, 2), (7, 3), (64, 10)])
def test_a_closed_cycle_costs_one_copy_more_than_it_has_pages(length: int, most: int) -> None:
    backing = [1000 + (i + 1) % length for i in range(length)]
    world = World(backing, base=0, offset=1000)
    world.plan.lend(SPARE)
    world.run(most)
    assert world.is_settled()
    assert world.copies == length + 1


def test_a_random_permutation_costs_its_cycles() -> None:
    """Closed form: n - (fixed points) + (cycles longer than one), counted here by following the permutation."""
    order = np.random.default_rng(5).permutation(600)
    seen, cycles, fixed = set(), 0, 0
    for begin in range(600):
        length, at = 0, begin
        while at not in seen:
            seen.add(at)
            at, length = int(order[at]), length + 1
        cycles += length > 1
        fixed += length == 1
    world = World(5000 + order, base=7, offset=4993)
    world.plan.lend(SPARE)
    world.run()
    assert world.is_settled()
    assert world.copies == 600 - fixed + cycles
    assert cycles > 1


class TestOthers:
    """Slots that others' pages hold, and that are freed while we go on."""

    @settings(max_examples=40 if INTERPRETED else 300)
    @given(scattered(), st.data())
    def test_what_is_freed_later_is_filled_later(self, case: tuple[list[int], int, int], data: Any) -> None:
        backing, base, offset = case
        window = range(base + offset, base + offset + len(backing))
        vacant = [hfn for hfn in window if hfn not in backing]
        others = [hfn for hfn in vacant if data.draw(st.booleans())]
        world = World(backing, base=base, offset=offset, others=others)
        wrong, outside, cycles = world.expected()
        world.plan.lend(SPARE)
        world.run(data.draw(st.integers(1, 5)))
        while others:
            assert world.plan.waits_for in ("eviction", "nothing")
            freed = [others.pop(data.draw(st.integers(0, len(others) - 1)))]
            world.others -= set(freed)
            world.plan.freed(np.array(freed))
            world.plan.check()
            world.run(data.draw(st.integers(1, 5)))
        assert world.is_settled()
        assert world.copies == wrong + outside + cycles

    def test_cycles_wait_until_nobody_else_is_in_the_window(self) -> None:
        world = World([101, 100, 300], base=0, offset=100, others=[102])
        world.plan.lend(SPARE)
        assert not world.plan.batch()
        assert world.plan.waits_for == "eviction"
        world.others.clear()
        world.plan.freed(np.array([102]))
        world.run()
        assert world.copies == 1 + 2 + 1


class TestInterruptions:
    """Batches that are dropped, done in part, or overtaken by events."""

    @settings(max_examples=40 if INTERPRETED else 300)
    @given(scattered(), st.data())
    def test_a_batch_may_be_dropped_or_done_in_part(self, case: tuple[list[int], int, int], data: Any) -> None:
        world = World(case[0], base=case[1], offset=case[2])
        world.plan.lend(SPARE)
        partly = 0
        while batch := world.plan.batch(data.draw(st.integers(1, 6))):
            done = data.draw(st.sampled_from([None, None, 0, 1, len(batch)]))
            if done is None or partly < 30:
                partly += done is not None
                world.carry_out(batch, done)
            else:
                world.carry_out(batch)
        assert world.is_settled()
        assert world.plan.left == 0

    @settings(max_examples=40 if INTERPRETED else 300)
    @given(scattered(), st.data())
    def test_pages_may_come_and_go_and_move_between_batches(self, case: tuple[list[int], int, int], data: Any) -> None:
        world = World(case[0], base=case[1], offset=case[2])
        world.plan.lend(SPARE)
        for step in range(12):
            gfn = world.base + data.draw(st.integers(0, world.pages - 1))
            held = {gfn: hfn for hfn, gfn in world.holds.items()}
            to = data.draw(st.sampled_from([-1, world.slot(gfn), 3000 + step]))
            if to not in world.holds and held.get(gfn) != SPARE and SPARE not in world.holds:
                world.holds.pop(held.get(gfn, -1), None)
                if to >= 0:
                    world.holds[to] = gfn
                world.plan.changed([gfn], [to])
                world.plan.check()
            if batch := world.plan.batch(data.draw(st.integers(1, 4))):
                world.carry_out(batch)
        world.run()
        assert world.is_settled()

    def test_a_batch_is_committed_once(self) -> None:
        world = World([300, 301], base=0, offset=100)
        first = world.plan.batch(1)
        second = world.plan.batch(1)
        with pytest.raises(AssertionError, match="committed once"):
            world.plan.commit(first)
        world.carry_out(second)


class TestEscapes:
    """Pages that live elsewhere while their slots stay empty."""

    @settings(max_examples=40 if INTERPRETED else 300)
    @given(scattered(), st.data())
    def test_escaped_pages_leave_the_window_and_nobody_takes_their_slots(
        self, case: tuple[list[int], int, int], data: Any
    ) -> None:
        backing, base, offset = case
        escaped = {base + i for i in data.draw(st.lists(st.integers(0, len(backing) - 1), max_size=3))}
        later = {base + i for i in data.draw(st.lists(st.integers(0, len(backing) - 1), max_size=2))}
        world = World(backing, base=base, offset=offset, escaped=escaped)
        for i in range(8):
            world.plan.lend(SPARE + i)
        if batch := world.plan.batch(3):
            world.carry_out(batch)
        world.escaped |= later
        world.plan.escape(later)
        world.plan.check()
        world.run(3)
        assert world.plan.left == 0
        assert world.is_settled()
        empty = {world.slot(gfn) for gfn in world.escaped}
        for hfn, gfn in world.holds.items():
            assert gfn not in world.escaped or not world.is_inside(hfn) or (hfn in empty and hfn != world.slot(gfn))
            assert gfn in world.escaped or hfn not in empty

    def test_without_spare_frames_they_wait(self) -> None:
        world = World([100, 300], base=0, offset=100, escaped=[0])
        world.run()
        assert (world.plan.left, world.plan.waits_for) == (1, "spare")
        world.plan.lend(SPARE)
        world.run()
        assert world.holds == {SPARE: 0, 101: 1}
        assert world.plan.take_back() == [], "the escaped page keeps its frame"


def leaf(hfn: int) -> list[int]:
    """Return the backing of 512 pages in one 2 MiB leaf."""
    return list(range(hfn, hfn + PAGEBLOCK))


WINDOW = 64 * PAGEBLOCK


class TestLeaves:
    """2 MiB leaves, which move whole as long as they can."""

    def test_leaves_outside_move_whole_into_vacant_blocks(self) -> None:
        world = World([*leaf(8 * PAGEBLOCK), *leaf(5 * PAGEBLOCK)], base=512, offset=WINDOW)
        world.run(2 * PAGEBLOCK)
        assert world.is_settled()
        assert (world.copies, world.leaf_moves) == (1024, 2)

    def test_a_chain_of_leaves_is_followed(self) -> None:
        at = [WINDOW + PAGEBLOCK * (i + 1) for i in range(3)]
        world = World([page for hfn in at for page in leaf(hfn)], base=0, offset=WINDOW)
        batches = 0
        while batch := world.plan.batch():
            assert (len(batch), batch.pages_each) == (1, PAGEBLOCK)
            world.carry_out(batch)
            batches += 1
        assert world.is_settled()
        assert batches == 3

    def test_a_cycle_of_leaves_moves_whole_by_way_of_a_spare_block(self) -> None:
        at = [WINDOW + PAGEBLOCK * ((i + 1) % 3) for i in range(3)]
        world = World([page for hfn in at for page in leaf(hfn)], base=0, offset=WINDOW)
        world.plan.lend(SPARE, PAGEBLOCK)
        world.run()
        assert world.is_settled()
        assert (world.copies, world.leaf_moves) == (4 * PAGEBLOCK, 4)
        assert world.plan.cycles == PAGEBLOCK, "512 closed cycles of three pages"
        assert world.plan.take_back() == [(SPARE, PAGEBLOCK)]

    def test_with_one_spare_frame_it_moves_page_by_page_and_costs_the_same(self) -> None:
        at = [WINDOW + PAGEBLOCK * ((i + 1) % 2) for i in range(2)]
        world = World([page for hfn in at for page in leaf(hfn)], base=0, offset=WINDOW)
        world.plan.lend(SPARE)
        world.run()
        assert world.is_settled()
        assert (world.copies, world.leaf_moves, world.plan.cycles) == (3 * PAGEBLOCK, 0, PAGEBLOCK)

    def test_a_leaf_waits_for_its_block_unless_it_may_be_taken_apart(self) -> None:
        world = World(leaf(0), base=0, offset=WINDOW, others=[WINDOW + 3])
        assert not world.plan.batch(split=False)
        assert world.plan.waits_for == "split"
        world.others.clear()
        world.plan.freed(np.array([WINDOW + 3]))
        assert world.plan.batch(split=False).pages_each == PAGEBLOCK
        world.run()
        assert world.leaf_moves == 1

        world = World(leaf(0), base=0, offset=WINDOW, others=[WINDOW + 3])
        world.run()
        assert (world.copies, world.plan.left, world.plan.waits_for) == (PAGEBLOCK - 1, 1, "eviction")

    def test_pages_in_the_way_move_first_and_then_the_leaf_moves_whole(self) -> None:
        """Page 512 + 7 sits in the block that leaf 0 is to fill, and belongs into the next, which is vacant."""
        second = [-1] * PAGEBLOCK
        second[7] = WINDOW + 3
        world = World([*leaf(0), *second], base=0, offset=WINDOW)
        world.run()
        assert world.is_settled()
        assert (world.copies, world.leaf_moves) == (PAGEBLOCK + 1, 1)

    def test_a_leaf_that_loses_a_page_moves_page_by_page_and_one_that_gets_it_back_whole(self) -> None:
        for back, moved in ((-1, 0), (5, 1)):
            world = World(leaf(0), base=0, offset=WINDOW, others=[WINDOW + 3])
            assert not world.plan.batch(split=False)
            for to in (-1, back):
                world.holds.pop(5, None)
                if to >= 0:
                    world.holds[to] = 5
                world.plan.changed([5], [to])
                world.plan.check()
            world.others.clear()
            world.plan.freed(np.array([WINDOW + 3]))
            world.run()
            assert world.is_settled()
            assert (world.leaf_moves, world.plan.absent) == (moved, 1 - moved)

    def test_no_leaf_moves_whole_to_an_offset_that_is_not_a_multiple_of_its_size(self) -> None:
        world = World(leaf(0), base=0, offset=WINDOW + 1)
        world.run()
        assert world.is_settled()
        assert (world.copies, world.leaf_moves) == (PAGEBLOCK, 0)

    def test_mixtures_of_leaves_and_pages_cost_what_permutations_demand(self) -> None:
        met: Counter[str] = Counter()

        @settings(max_examples=4 if INTERPRETED else 40)
        @given(st.integers(0, 2**32), st.sampled_from([0, 3, 200]), st.integers(0, 8), st.sampled_from([1, PAGEBLOCK]))
        def law(seed: int, shift: int, disorder: int, spare: int) -> None:
            world = mixture(seed, shift, disorder)
            wrong, outside, cycles = world.expected()
            world.plan.lend(SPARE, spare)
            world.compare_every = 50
            world.run((7, 32, 600)[seed % 3])
            world.plan.check()
            assert world.is_settled()
            assert world.copies == wrong + outside + cycles
            assert (world.plan.left, world.plan.cycles) == (0, cycles)
            assert world.plan.take_back() == [(SPARE, spare)]
            met["leaves moved whole"] += world.leaf_moves
            met["page by page"] += world.copies > world.leaf_moves * PAGEBLOCK
            met["cycles"] += cycles > 0

        law()
        if not INTERPRETED:
            assert min(met[each] for each in ("leaves moved whole", "page by page", "cycles")) >= 5


def mixture(seed: int, shift: int, disorder: int) -> World:
    """Return blocks of the window and outside in any order, some pages swapped; the ends may lie inside blocks."""
    random = np.random.default_rng(seed)
    blocks = 5
    frames = random.permutation(2 * blocks)[:blocks] if seed % 2 else random.permutation(blocks)
    backing = (WINDOW + PAGEBLOCK * frames[:, None] + np.arange(PAGEBLOCK)).reshape(-1)
    for _ in range(disorder):
        one, other = random.integers(0, backing.size, 2)
        backing[[one, other]] = backing[[other, one]]
    backing[random.integers(0, backing.size, disorder // 2)] = -1
    return World(backing[shift : backing.size - shift // 2], base=shift, offset=WINDOW)


def test_absent_pages_get_their_slots_one_after_another() -> None:
    world = World([-1, 300, -1, 102, -1], base=50, offset=50, escaped=[54])
    assert world.plan.vacancies().tolist() == [50], "the slot of 52 is held by page 53"
    assert world.plan.vacancies(1).tolist() == [50], "it was not filled, and there is no other"
    world.run()
    assert world.plan.vacancies().tolist() == [52], "from where it left off"
    gfns = world.plan.vacancies()
    assert gfns.tolist() == [50, 52]
    world.plan.changed(gfns, gfns + 50)
    world.plan.check()
    assert world.plan.is_complete
