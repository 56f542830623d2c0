"""Compaction and evacuation: what is moved, what never is, and how a run ends."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vmmsim.jit import INTERPRETED
from vmmsim.memory import compaction_policy as policy
from vmmsim.memory.compaction import Compaction, Mode, Result, abandon, compact, evacuate, finish
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, PINNED, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.zone import LEASED

MIB = 256
"""Pages of a MiB."""


def checkered(pages: int = 16 * PAGEBLOCK, *, every: int = 2, kernel: int = 0) -> Memory:
    """Return a memory of which every ``every``-th frame is one user's, after ``kernel`` scattered kernel pages."""
    memory = Memory(pages, name="checkered")
    frames = np.sort(memory.take(pages, kind=Kind.USER, owner=1, pages=np.arange(pages), floor=0))
    memory.assign(frames, pages=frames)
    memory.give_back(frames[frames % every != 0])
    if kernel:
        chosen = frames[frames % every == 0][:: pages // every // kernel][:kernel]
        memory.assign(chosen, kind=Kind.KERNEL, owner=-1)
    memory.check()
    return memory


def content(memory: Memory) -> Counter[tuple[int, int, int]]:
    """Return how often each (owner, page, kind) is in use: what moving must not change."""
    used = memory.frames[~np.isin(memory.kinds(np.arange(memory.pages)), (Kind.FREE, Kind.HOLE))]
    return Counter(zip(used["owner"].tolist(), used["page"].tolist(), used["kind"].tolist(), strict=True))


def run_to_end(run: Compaction, pages: int = 32) -> tuple[int, list[int], list[int]]:
    """Carry out all moves of a run; return how many there were, and each side in order."""
    old: list[int] = []
    new: list[int] = []
    while len(moves := run.plan(pages)):
        assert 0 < len(moves) <= pages
        old += moves.old.tolist()
        new += moves.new.tolist()
        finish(run.memory, moves)
    return len(old), old, new


def test_a_run_ends_when_its_scanners_meet_and_leaves_no_block_that_it_could_have_made() -> None:
    memory = checkered()
    before = content(memory)
    run = Compaction(memory, mode=Mode.ALL)
    _, old, new = run_to_end(run)
    memory.check()
    assert run.result == Result.COMPLETE
    assert content(memory) == before
    # Half of 16 pageblocks is in use, so that 8 can be emptied; the two that the scanners met in may stay mixed.
    assert int((memory.survey()[:, 0] == PAGEBLOCK).sum()) >= 7
    assert old == sorted(old), "the migration scanner goes up"
    assert [frame // PAGEBLOCK for frame in new] == sorted((frame // PAGEBLOCK for frame in new), reverse=True)
    assert max(old) < min(new), "the scanners do not pass each other"


def test_the_scanners_do_not_pass_each_other_however_little_room_there_is() -> None:
    memory = Memory(2 * PAGEBLOCK, name="tight")
    memory.take_range(0, 2 * PAGEBLOCK, kind=Kind.USER, owner=1)
    memory.give_back(np.arange(0, PAGEBLOCK, 2))
    memory.give_back(np.arange(900, 910))
    run = Compaction(memory, mode=Mode.ALL)
    _, old, new = run_to_end(run)
    assert new == list(range(900, 910))
    assert old == list(range(1, 21, 2))
    assert run.result == Result.COMPLETE


def test_an_unmovable_frame_is_never_moved() -> None:
    # paper.md section 7, no. 41
    memory = checkered(kernel=100)
    memory.pin(memory.owned(1)[::50])
    stay = np.flatnonzero((memory.frames["kind"] == Kind.KERNEL) | (memory.frames["mark"] & PINNED != 0))
    assert len(stay) > 150
    records = memory.frames[stay].copy()
    for mode in (Mode.ALL, Mode.PROACTIVE):
        run = Compaction(memory, mode=mode, proactiveness=100)
        _, old, new = run_to_end(run)
        assert max(old, default=-1) < min(new, default=1 << 30), "the scanners passed each other"
        assert not set(old) & set(stay.tolist())
        assert not set(new) & set(stay.tolist())
        assert (memory.frames[stay] == records).all()
    memory.check()


def test_blocks_allocated_whole_and_leased_pageblocks_are_left_alone() -> None:
    memory = Memory(16 * PAGEBLOCK, name="whole")
    frames = memory.take(2, kind=Kind.USER, owner=1, order=9)
    singles = memory.take(6000, kind=Kind.USER, owner=2)
    memory.give_back(singles[::2])
    window = range(11 * PAGEBLOCK, 13 * PAGEBLOCK)
    lease = memory.isolate_range(window.start, window.stop, "a window")
    _, old, new = run_to_end(Compaction(memory, mode=Mode.ALL))
    assert len(old) > 500
    whole = {first + offset for first in frames.tolist() for offset in range(PAGEBLOCK)}
    assert not whole & set(old)
    assert not set(window) & set(old + new)
    assert min(new) < window.start, "the window was never in the way"
    memory.release(lease)
    memory.check()


def test_nothing_is_planned_that_is_held_and_abandoned_moves_leave_no_trace() -> None:
    memory = checkered()
    before = memory.frames.copy()
    token = memory.isolate(memory.owned(1)[:100], "someone")
    moves = compact(memory, pages=64, mode=Mode.ALL)
    assert len(moves) == 64
    assert not set(moves.old.tolist()) & set(token.frames.tolist())
    assert moves.token is not None
    assert (memory.frames["mark"][np.concatenate((moves.old, moves.new))] & ISOLATED).all()
    memory.check()
    abandon(memory, moves)
    memory.release(token)
    memory.check()
    assert (memory.frames["kind"] == before["kind"]).all()
    assert not memory.tokens


def test_a_run_for_a_request_ends_once_it_can_be_served() -> None:
    memory = checkered()
    run = Compaction(memory, mode=Mode.SYNC, order=9)
    moved, _, _ = run_to_end(run)
    assert run.result == Result.SUCCESS
    assert moved <= 2 * PAGEBLOCK, "it went on after a block was free"
    assert memory.fragmentation().nr_free[9:].sum() >= 1


def test_proactive_runs_end_at_the_low_mark() -> None:
    # dynamics.md, target 14
    memory = checkered(64 * PAGEBLOCK)
    assert policy.score(memory, 0) == 100
    run = Compaction(memory, mode=Mode.PROACTIVE)
    before = []
    while len(moves := run.plan(32)):
        before.append(policy.score(memory, 0))
        finish(memory, moves)
    assert run.result == Result.SUCCESS
    assert policy.score(memory, 0) <= 80
    assert min(before) > 80, "it planned although the mark was reached"


def test_nearly_all_free_memory_can_be_had_in_2_mib_blocks_while_proactive_compaction_runs() -> None:
    # dynamics.md, target 16: three quarters of each pageblock free; 98 % of free memory was obtainable.
    memory = checkered(64 * PAGEBLOCK, every=4)
    free, taken = memory.free_pages, 0
    while True:
        if policy.should_begin(memory.fragmentation().score):
            run_to_end(Compaction(memory, mode=Mode.PROACTIVE), pages=512)
        got = memory.take(1, kind=Kind.USER, owner=2, order=9, floor=0)
        if not len(got):
            break
        taken += PAGEBLOCK
    assert taken >= 0.96 * free
    memory.check()


def test_the_next_run_goes_on_where_the_last_one_ended() -> None:
    memory = checkered()
    run = Compaction(memory, mode=Mode.SYNC, order=9)
    _, first, _ = run_to_end(run)
    assert run.result == Result.SUCCESS
    # What is movable below the place where it ended is not looked at.
    block = int(memory.take(1, kind=Kind.USER, owner=3, order=9, floor=0)[0])
    memory.split(np.arange(block, block + PAGEBLOCK))
    run = Compaction(memory, mode=Mode.SYNC, order=9)
    _, second, _ = run_to_end(run)
    assert min(second) > max(first)


def test_a_part_of_memory_is_compacted_within_itself() -> None:
    pages, core = 16 * PAGEBLOCK, 8 * PAGEBLOCK
    memory = Memory(pages, name="two parts", kernelcore=core)
    frames = memory.take(pages, kind=Kind.USER, owner=1, floor=0)
    memory.give_back(frames[frames % 2 != 0])
    _, old, new = run_to_end(Compaction(memory, mode=Mode.ALL))
    sides = {(before < core, after < core) for before, after in zip(old, new, strict=True)}
    assert sides == {(True, True), (False, False)}
    memory.check()


# Policy


def test_marks_interval_and_back_off_are_those_of_linux() -> None:
    # dynamics.md, target 14
    assert policy.marks() == policy.Marks(low=80, high=90)
    assert policy.marks(100) == policy.Marks(low=5, high=15)
    assert policy.marks(5) == policy.Marks(low=95, high=100)
    assert [policy.should_begin(score) for score in (0, 80, 90, 91, 100)] == [False, False, False, True, True]
    assert not policy.should_begin(100, reclaiming=True)
    assert not policy.should_begin(100, proactiveness=0)
    assert policy.check_interval_ns() == 500_000_000
    assert policy.next_check_ns(95, 94) == 500_000_000
    assert policy.next_check_ns(95, 95) == policy.next_check_ns(95, 96) == 32_000_000_000
    assert policy.gap(9) == 1024


def test_compaction_is_suitable_when_memory_is_splintered_but_not_short() -> None:
    memory = checkered(64 * PAGEBLOCK)
    assert policy.suitable(memory, 0, 9) == Result.CONTINUE
    assert policy.suitable(memory, 0, 0) == Result.SUCCESS
    low = memory.watermarks.low
    singles = memory.free_pages
    memory.take(singles - (low + 1024) - 1, kind=Kind.USER, owner=2, floor=0)
    assert memory.free_pages == low + 1024 + 1
    assert policy.suitable(memory, 0, 9) == Result.CONTINUE
    memory.take(1, kind=Kind.USER, owner=2, floor=0)
    assert policy.suitable(memory, 0, 9) == Result.SKIPPED
    run = Compaction(memory, mode=Mode.SYNC, order=9)
    assert run.result == Result.SKIPPED
    assert not len(run.plan(32))


def test_failures_are_deferred_for_ever_more_attempts() -> None:
    zone = Memory(1024, name="deferral").zone
    assert not policy.deferred(zone, 0, 9)
    skipped = []
    for _ in range(8):
        policy.defer(zone, 0, 9)
        attempts = 0
        while policy.deferred(zone, 0, 9):
            attempts += 1
        skipped.append(attempts + 1)
    assert skipped == [2, 4, 8, 16, 32, 64, 64, 64]
    assert policy.restarting(zone, 0, 9)
    assert not policy.deferred(zone, 0, 8), "smaller orders are not deferred"
    policy.undefer(zone, 0, 9, allocated=True)
    assert not policy.deferred(zone, 0, 9)


def test_a_run_that_fails_defers_the_next() -> None:
    # Every pageblock holds kernel pages, so that no amount of moving makes a free one.
    memory = checkered(16 * PAGEBLOCK, kernel=32)
    assert (memory.survey()[:, 3] > 0).all()
    run = Compaction(memory, mode=Mode.SYNC, order=9)
    run_to_end(run)
    assert run.result == Result.COMPLETE
    assert Compaction(memory, mode=Mode.SYNC, order=9).result == Result.DEFERRED


# Evacuation


def emptied(memory: Memory, start: int, end: int, pages: int, avoid: tuple[int, int] | None = None) -> list[int]:
    """Evacuate a leased range to its end; return where its frames went."""
    new: list[int] = []
    at = start
    while at < end:
        moves, blockers = evacuate(memory, at, end, pages=pages, avoid=avoid)
        assert not blockers.short
        at = moves.next
        new += moves.new.tolist()
        memory.check()
        finish(memory, moves)
    memory.check()
    return new


@pytest.mark.parametrize("pages", [1, 32, 1000])
def test_evacuation_empties_a_leased_range_and_nothing_else(pages: int) -> None:
    memory = checkered(8 * PAGEBLOCK, every=3)
    before = content(memory)
    start, end = 2 * PAGEBLOCK, 3 * PAGEBLOCK if pages == 1 else 5 * PAGEBLOCK
    lease = memory.isolate_range(start, end, "a window")
    new = emptied(memory, start, end, pages)
    assert memory.is_free(start, end)
    assert not [frame for frame in new if start <= frame < end]
    assert content(memory) == before
    assert memory.find_free_run(end - start) != start, "a lease is not free to others"
    taken = memory.take_range(start, end, kind=Kind.USER, owner=4, pages=np.arange(end - start), token=lease)
    assert taken.tolist() == list(range(start, end))
    memory.release(lease)
    memory.check()


def test_evacuation_names_what_cannot_move_and_who_is_in_the_way() -> None:
    memory = checkered(8 * PAGEBLOCK, every=2)
    memory.assign([1024, 1030], kind=Kind.KERNEL)
    memory.assign(1026, kind=Kind.TABLE)
    memory.pin(1028)
    memory.retire(1033)
    token = memory.isolate([1040, 1041], "someone")
    lease = memory.isolate_range(1024, 1536, "a window")
    moves, blockers = evacuate(memory, 1024, 1536, pages=10_000)
    named = dict(zip(blockers.frames.tolist(), blockers.kinds.tolist(), strict=True))
    assert named == {1024: Kind.KERNEL, 1026: Kind.TABLE, 1028: Kind.USER, 1030: Kind.KERNEL, 1033: Kind.BAD}
    assert blockers.held.tolist() == [1040, 1041]
    assert moves.next == 1536
    finish(memory, moves)
    memory.check()
    moves, blockers = evacuate(memory, 1024, 1536, pages=10_000)
    assert not len(moves), "all that can move has moved"
    assert blockers
    memory.release(token)
    memory.release(lease)
    memory.check()


def test_evacuation_avoids_the_range_named() -> None:
    memory = checkered(8 * PAGEBLOCK, every=4)
    lease = memory.isolate_range(0, PAGEBLOCK, "a window")
    avoid = (4 * PAGEBLOCK, 8 * PAGEBLOCK)
    moves, _ = evacuate(memory, 0, PAGEBLOCK, pages=64)
    assert moves.new.min() >= avoid[0], "it would have gone there"
    abandon(memory, moves)
    new = emptied(memory, 0, PAGEBLOCK, 64, avoid)
    assert max(new) < avoid[0]
    memory.release(lease)


def test_a_block_allocated_whole_moves_whole_while_there_is_a_whole_one() -> None:
    memory = Memory(8 * PAGEBLOCK, name="whole")
    first = int(memory.take(1, kind=Kind.USER, owner=1, pages=[512], order=9, floor=0)[0])
    lease = memory.isolate_range(first, first + PAGEBLOCK, "a window")
    moves, _ = evacuate(memory, first, first + PAGEBLOCK, pages=32)
    assert len(moves) == PAGEBLOCK
    assert moves.whole.all()
    assert moves.new[0] % PAGEBLOCK == 0
    assert (np.diff(moves.new) == 1).all()
    finish(memory, moves)
    there = memory.frames[moves.new]
    assert (there["order"] == 9).all()
    assert (there["page"] == np.arange(512, 1024)).all()
    memory.release(lease)
    memory.check()


def test_without_a_whole_free_block_it_moves_page_by_page_and_says_so() -> None:
    memory = Memory(4 * PAGEBLOCK, name="splintered")
    first = int(memory.take(1, kind=Kind.USER, owner=1, order=9, floor=0)[0])
    rest = memory.take(3 * PAGEBLOCK, kind=Kind.USER, owner=2, floor=0)
    memory.give_back(rest[::2])
    lease = memory.isolate_range(first, first + PAGEBLOCK, "a window")
    moves, blockers = evacuate(memory, first, first + PAGEBLOCK, pages=512)
    assert len(moves) == PAGEBLOCK
    assert not moves.whole.any()
    assert not blockers
    finish(memory, moves)
    assert (memory.frames["order"][moves.new] == 0).all()
    memory.release(lease)
    memory.check()


def test_evacuation_says_when_there_is_nowhere_to_go() -> None:
    memory = Memory(4 * PAGEBLOCK, name="full")
    memory.take(4 * PAGEBLOCK, kind=Kind.USER, owner=1)
    lease = memory.isolate_range(0, PAGEBLOCK, "a window")
    moves, blockers = evacuate(memory, 0, PAGEBLOCK, pages=100)
    assert not len(moves)
    assert blockers.short
    assert moves.next == 0
    memory.release(lease)


def test_only_a_leased_range_is_evacuated() -> None:
    memory = checkered(4 * PAGEBLOCK)
    with pytest.raises(ValueError, match="not leased"):
        evacuate(memory, 0, PAGEBLOCK, pages=32)


def test_lives_with_compaction_and_evacuation_keep_the_book_in_order() -> None:
    met: Counter[str] = Counter()
    for seed in range(3 if INTERPRETED else 20):
        random = np.random.default_rng(seed)
        memory = Memory(16 * PAGEBLOCK, name="life", kernelcore=8 * PAGEBLOCK)
        for step in range(15):
            kind = Kind(int(random.choice([Kind.USER, Kind.CACHE, Kind.KERNEL, Kind.SLAB])))
            memory.take(int(random.integers(600)), kind=kind, owner=step, pages=np.arange(600)[:0].sum())
            used = np.flatnonzero(np.isin(memory.frames["kind"], (Kind.USER, Kind.CACHE, Kind.KERNEL, Kind.SLAB)))
            memory.give_back(random.permutation(used)[: len(used) // 3])
            before = content(memory)
            if random.random() < 0.6:
                moves = compact(memory, pages=int(random.integers(1, 200)), mode=Mode(int(random.integers(4))))
                memory.check()
                if random.random() < 0.2:
                    abandon(memory, moves)
                    met["abandoned"] += len(moves) > 0
                else:
                    finish(memory, moves)
                    met["compacted"] += len(moves)
            else:
                start = int(random.integers(15)) * PAGEBLOCK
                lease = memory.isolate_range(start, start + PAGEBLOCK, "life")
                moves, blockers = evacuate(memory, start, start + PAGEBLOCK, pages=int(random.integers(1, 600)))
                met["blocked"] += len(blockers.frames)
                memory.check()
                finish(memory, moves)
                met["evacuated"] += len(moves)
                memory.release(lease)
            memory.check()
            assert content(memory) == before
            assert not (memory.blocks[::4] & LEASED).any()
    assert min(met[word] for word in ("abandoned", "compacted", "blocked", "evacuated")) > 0, met
