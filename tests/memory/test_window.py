"""The window of a VMM segment: what is counted there, which OFFSET is cheapest, and what stands in the way."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.jit import INTERPRETED
from vmmsim.memory import window
from vmmsim.memory.frames import FRAME, IMMOVABLE, ISOLATED, NOBODY, PAGEBLOCK, PINNED, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.survey import Column
from vmmsim.memory.window import Choice, Infeasible, choose

VM, OTHER = 1, 2


def survey_of(frames: Any, owner: int) -> Any:
    """Count the frames of each pageblock by column, one after another."""
    table = np.zeros((-(-frames.size // PAGEBLOCK), len(Column)), np.int16)
    for hfn, frame in enumerate(frames):
        kind = Kind(frame["kind"])
        movable = Column.OWN if frame["owner"] == owner else Column.OTHERS
        column = (
            Column.ISOLATED if frame["mark"] & ISOLATED
            else Column.FREE if kind == Kind.FREE
            else Column.BAD if kind == Kind.BAD
            else Column.IMMOVABLE if kind in IMMOVABLE or frame["mark"] & PINNED
            else movable
        )  # fmt: skip
        table[hfn // PAGEBLOCK, column] += 1
    return table


class Host:
    """A host's frames, written by hand."""

    def __init__(self, pages: int) -> None:
        self.frames = np.zeros(pages, FRAME)
        self.frames["owner"] = self.frames["page"] = NOBODY
        self.backing: Any = np.empty(0, np.int64)
        self.base = 0

    def put(self, hfns: Any, kind: Kind, *, owner: int = OTHER, mark: int = 0) -> Host:
        self.frames["kind"][hfns], self.frames["owner"][hfns], self.frames["mark"][hfns] = kind, owner, mark
        return self

    def vm(self, backing: Any, *, base: int = 0) -> Host:
        self.base, self.backing = base, np.array(backing)
        resident = self.backing >= 0
        hfns = self.backing[resident]
        self.put(hfns, Kind.USER, owner=VM)
        self.frames["page"][hfns] = base + np.flatnonzero(resident)
        return self

    def choose(self, *, budget: int = 0, **others: Any) -> Choice | Infeasible:
        free = others.pop("free_pages", int(np.count_nonzero(self.frames["kind"] == Kind.FREE)))
        return choose(
            self.backing, survey_of(self.frames, VM), self.frames,
            base=self.base, budget=budget, free_pages=free, **others,
        )  # fmt: skip


def by_definition(host: Host, offset: int) -> dict[str, int]:
    """Count a, b, c, n, m, x at ``offset``, page by page, as C2 says. Nothing is pinned."""
    start, pages = host.base + offset, len(host.backing)
    at = {int(hfn): i for i, hfn in enumerate(host.backing) if hfn >= 0}
    counts = dict.fromkeys(("in_place", "wrong_slot", "outside", "absent", "others", "free", "escaped"), 0)
    bad = {i for i in range(pages) if Kind(host.frames["kind"][start + i]) in IMMOVABLE}
    counts["escaped"] = len(bad)
    for i, hfn in enumerate(host.backing.tolist()):
        inside = start <= hfn < start + pages
        if hfn < 0:
            counts["absent"] += 1
        elif hfn == start + i:
            counts["in_place"] += 1
        elif inside:
            counts["wrong_slot"] += not (i in bad and hfn - start in bad)
        else:
            counts["outside"] += i not in bad
    for hfn in range(start, start + pages):
        kind = Kind(host.frames["kind"][hfn])
        counts["free"] += kind == Kind.FREE
        counts["others"] += kind != Kind.FREE and kind not in IMMOVABLE and hfn not in at
    return counts


def found(choice: Any) -> dict[str, int]:
    known = attrs.asdict(choice)
    return {name: known[name] for name in ("in_place", "wrong_slot", "outside", "absent", "others", "free")} | {
        "escaped": choice.escaped.size
    }


def random_host(seed: int, *, blocks: int = 12, base: int = 0, pages: int = 3 * PAGEBLOCK) -> Host:
    """Return a host in which most pageblocks are movable, with a VM scattered over it, most of it at one offset."""
    random = np.random.default_rng(seed)
    host = Host(blocks * PAGEBLOCK)
    hfns = np.arange(host.frames.size)
    host.put(hfns[random.random(hfns.size) < random.choice([0.1, 0.5])], Kind.USER)
    for block in random.choice(blocks, random.integers(0, 5), replace=False):
        host.put(block * PAGEBLOCK + random.integers(0, PAGEBLOCK, random.integers(1, 4)), Kind.KERNEL)
    taken = random.permutation(np.flatnonzero(host.frames["kind"] != Kind.KERNEL))
    backing = taken[:pages].copy()
    if seed % 2:
        start = int(random.integers(0, host.frames.size - pages))
        own = start + np.arange(pages)
        keep = (host.frames["kind"][own] != Kind.KERNEL) & (random.random(pages) < 0.5)
        rest = taken[~np.isin(taken, own[keep])]
        backing = np.where(keep, own, rest[:pages])
    backing[random.random(pages) < 0.1] = -1
    return host.vm(backing, base=base)


@settings(max_examples=8 if INTERPRETED else 60)
@given(st.integers(0, 2**32), st.sampled_from([0, 512, 300]), st.integers(0, 5))
def test_no_aligned_offset_is_cheaper_and_feasible_than_the_one_chosen(seed: int, base: int, budget: int) -> None:
    host = random_host(seed, base=base)
    choice = host.choose(budget=budget)
    free = int(np.count_nonzero(host.frames["kind"] == Kind.FREE))
    pages = len(host.backing)
    costs = {}
    for start in range(host.frames.size - pages + 1):
        if (start - base) % PAGEBLOCK == 0:
            counts = by_definition(host, start - base)
            if counts["escaped"] <= budget and counts["absent"] <= free:
                costs[start - base] = counts["others"] + counts["wrong_slot"] + counts["outside"]
    if isinstance(choice, Choice):
        assert found(choice) == by_definition(host, choice.offset)
        # With base inside a 2 MiB block, what the two blocks at the ends hold is not known before it is counted.
        slack = 2 * PAGEBLOCK if base % PAGEBLOCK else 0
        assert choice.copies <= min(costs.values(), default=choice.copies) + slack
        assert choice.offset % PAGEBLOCK == 0 or not costs
        assert (choice.start, choice.end) == (base + choice.offset, base + choice.offset + pages)
    else:
        assert not costs
        assert choice.what in ("immovable", "memory")


@settings(max_examples=8 if INTERPRETED else 60)
@given(st.integers(0, 2**32), st.sampled_from([0, 512, 300]), st.sampled_from([0.0, 0.0005, 0.002]))
def test_where_others_may_not_be_moved_the_cheapest_window_without_them_is_chosen(
    seed: int, base: int, crowd: float
) -> None:
    """Judged page by page: page cache and the VM's own pages, outside its segment too, are in nobody's way."""
    random = np.random.default_rng(seed)
    host = Host(12 * PAGEBLOCK)
    hfns = np.arange(host.frames.size)
    for kind, owner, share in ((Kind.CACHE, NOBODY, 0.1), (Kind.USER, VM, 0.1), (Kind.USER, OTHER, crowd)):
        host.put(hfns[random.random(hfns.size) < share], kind, owner=owner)
    pages = 3 * PAGEBLOCK
    backing = random.permutation(np.flatnonzero(host.frames["kind"] == Kind.FREE))[:pages].copy()
    backing[random.random(pages) < 0.3] = -1
    host.vm(backing, base=base)
    book = host.frames
    costs, fewest = {}, pages
    for start in range(hfns.size - pages + 1):
        offset = start - base
        window = book[start : start + pages]
        foreign = int(np.count_nonzero((window["kind"] == Kind.USER) & (window["owner"] != VM)))
        if offset % PAGEBLOCK == 0:
            fewest = min(fewest, foreign)
            if not foreign:
                counts = by_definition(host, offset)
                costs[offset] = counts["others"] + counts["wrong_slot"] + counts["outside"]
    choice = host.choose(only_owner=VM)
    if isinstance(choice, Choice):
        window = book[choice.start : choice.end]
        assert not np.any((window["kind"] == Kind.USER) & (window["owner"] != VM))
        assert choice.copies <= min(costs.values(), default=choice.copies) + (2 * PAGEBLOCK if base % PAGEBLOCK else 0)
    else:
        assert not costs
        assert (choice.what, choice.pages) == ("others", fewest)


def test_a_cheap_window_with_pages_of_others_is_passed_over_for_a_free_one() -> None:
    """Blocks 0 and 1 hold the VM, all in place but one page, which another has; 2 and 3 hold the rest of its own."""
    host = Host(6 * PAGEBLOCK).vm(np.where(np.arange(1024) == 7, 5 * PAGEBLOCK, np.arange(1024)))
    host.put([7], Kind.USER).put(slice(2 * PAGEBLOCK, 4 * PAGEBLOCK, 3), Kind.USER, owner=VM)
    free = host.choose()
    assert isinstance(free, Choice)
    assert (free.offset, free.copies, free.barred) == (0, 2, 0), "one page out, one in"
    alone = host.choose(only_owner=VM)
    assert isinstance(alone, Choice)
    assert (alone.start, alone.copies, alone.others, alone.barred) == (4 * PAGEBLOCK, 1024, 0, 0), "all of them move"


def test_pages_of_the_vm_outside_its_segment_may_be_moved_away_like_those_in_it() -> None:
    """As before, with a page of others in each window but the second and the third."""
    host = Host(6 * PAGEBLOCK).vm(np.where(np.arange(1024) == 7, 5 * PAGEBLOCK, np.arange(1024)))
    host.put(slice(2 * PAGEBLOCK, 4 * PAGEBLOCK, 3), Kind.USER, owner=VM).put([7, 4 * PAGEBLOCK + 9], Kind.USER)
    choice = host.choose(only_owner=VM)
    assert isinstance(choice, Choice)
    assert choice.start == PAGEBLOCK
    assert (choice.others, choice.wrong_slot, choice.outside) == (171, 512, 512), "every third page of a block"


def test_a_vm_in_one_piece_stays_where_it_is() -> None:
    host = Host(16 * PAGEBLOCK).vm(np.arange(2048) + 3 * PAGEBLOCK, base=512)
    choice = host.choose()
    assert isinstance(choice, Choice)
    assert (choice.offset, choice.in_place, choice.copies) == (2 * PAGEBLOCK, 2048, 0)


def test_a_multiple_of_2_mib_is_preferred_to_no_copies() -> None:
    host = Host(16 * PAGEBLOCK).vm(np.arange(1024) + 1000)
    choice = host.choose()
    assert isinstance(choice, Choice)
    assert choice.offset % PAGEBLOCK == 0
    # Offset 512: 488 pages of the window's 1024 are outside; every page is to move. Those further off: all outside.
    assert choice.copies == 1024


def test_another_offset_is_taken_if_no_multiple_of_2_mib_will_do() -> None:
    host = Host(4 * PAGEBLOCK).vm(np.arange(1024) + 700)
    host.put([699, 1724], Kind.KERNEL)
    choice = host.choose()
    assert isinstance(choice, Choice)
    assert (choice.offset, choice.copies) == (700, 0)
    assert host.choose(budget=1).offset % PAGEBLOCK == 0, "1024 to 2048 holds one immovable frame"  # type: ignore[union-attr]


def test_the_only_place_that_fits_is_found_though_no_page_is_there() -> None:
    host = Host(2000).vm([-1] * 1500, base=100)
    choice = host.choose(within=(300, 1800))
    assert isinstance(choice, Choice)
    assert (choice.start, choice.end) == (300, 1800)


def test_free_memory_is_preferred_to_memory_that_must_be_cleared() -> None:
    host = Host(12 * PAGEBLOCK).put(slice(0, 6 * PAGEBLOCK), Kind.CACHE).vm(np.arange(1024) * 2 + 6 * PAGEBLOCK)
    host.vm(host.backing)
    choice = host.choose()
    assert isinstance(choice, Choice)
    assert choice.start >= 6 * PAGEBLOCK
    assert choice.others == 0


def test_a_window_keeps_off_leases_and_within_limits() -> None:
    host = Host(10 * PAGEBLOCK).vm(np.arange(1024))
    assert host.choose(leased=[(0, 1024)]).start == 1024  # type: ignore[union-attr]
    assert host.choose(leased=[(0, 700), (1024, 1025)]).start == 1536  # type: ignore[union-attr]
    assert host.choose(within=(2048, 4096)).start == 2048  # type: ignore[union-attr]


class TestRefusals:
    """Every refusal names what, how many and where."""

    def test_a_host_that_is_too_small(self) -> None:
        refused = Host(1000).vm([-1] * 1001).choose()
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.pages) == ("size", 1)
        assert "1 frames are missing" in str(refused)

    def test_leases_everywhere(self) -> None:
        refused = Host(2048).vm([-1] * 1024).choose(leased=[(1000, 1100)])
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.pages, refused.where) == ("lease", 100, 1000)
        assert "hfn 0x3e8" in str(refused)

    def test_immovable_frames_beyond_the_budget_at_the_window_with_the_fewest(self) -> None:
        host = Host(4 * PAGEBLOCK).vm([-1] * (2 * PAGEBLOCK))
        host.put([5, 600, 1200, 1201, 1202], Kind.KERNEL).put([1300], Kind.BAD).put([1900], Kind.TABLE)
        refused = host.choose(budget=1)
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.pages, refused.allowed, refused.where) == ("immovable", 2, 1, 5)
        assert refused.kinds == (("kernel", 2),)
        assert "2 pages of the best window can have no slot (2 kernel; the first at hfn 0x5)" in str(refused)
        assert isinstance(host.choose(budget=2), Choice)

    def test_pages_of_others_everywhere(self) -> None:
        host = Host(4 * PAGEBLOCK).vm([-1] * 1024).put([100, 600, 601, 1500, 1501, 1502], Kind.USER)
        refused = host.choose(only_owner=VM)
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.pages) == ("others", 3), "100, 600 and 601; and from 1500 on"
        assert "every window holds pages of others, 3 at the least" in str(refused)
        host.put([100, 600, 601], Kind.CACHE)
        assert host.choose(only_owner=VM).start == 0, "page cache is dropped"  # type: ignore[union-attr]

    def test_too_little_free_memory(self) -> None:
        host = Host(4 * PAGEBLOCK).put(slice(100, None), Kind.USER).vm([-1] * 512)
        refused = host.choose()
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.pages) == ("memory", 412)
        assert "412 free frames are missing" in str(refused)
        host.put(slice(2048 - 412, None), Kind.FREE, owner=NOBODY)
        assert isinstance(host.choose(), Choice)

    def test_a_full_host_whose_own_pages_make_room_for_those_evicted(self) -> None:
        """m = c: what is evicted goes where our pages were; one frame is free, as the first step needs."""
        host = Host(1537).vm(np.arange(512) * 2)
        host.put(np.flatnonzero(host.frames["kind"] == Kind.FREE), Kind.USER).put([1536], Kind.FREE, owner=NOBODY)
        assert isinstance(host.choose(), Choice)


class TestPinnedPages:
    """Movable by kind, but pinned: as immovable as a kernel's, unless they are where they belong."""

    def test_a_pinned_page_in_its_slot_is_in_place(self) -> None:
        host = Host(4 * PAGEBLOCK).vm(np.arange(512))
        host.put([7, 8], Kind.USER, owner=VM, mark=PINNED)
        choice = host.choose()
        assert isinstance(choice, Choice)
        assert (choice.in_place, choice.escaped.size) == (512, 0)

    def test_a_pinned_page_elsewhere_escapes_and_so_does_the_slot_it_is_in(self) -> None:
        backing = np.arange(512)
        backing[[3, 4]] = backing[[4, 3]]
        host = Host(PAGEBLOCK).vm(backing)
        host.put([4], Kind.USER, owner=VM, mark=PINNED)  # page 3, in the slot of page 4
        refused = host.choose(budget=1)
        assert isinstance(refused, Infeasible)
        assert refused.kinds == (("pinned", 2),)
        choice = host.choose(budget=2)
        assert isinstance(choice, Choice)
        assert choice.escaped.tolist() == [3, 4]
        assert (choice.wrong_slot, choice.refuges) == (0, 0), (
            "each may stay in the other's slot, where nobody else goes"
        )

    def test_others_pinned_pages_are_immovable(self) -> None:
        host = Host(2 * PAGEBLOCK).vm([-1] * 1024).put([100], Kind.USER, mark=PINNED)
        refused = host.choose()
        assert isinstance(refused, Infeasible)
        assert (refused.what, refused.where, refused.kinds) == ("immovable", 100, (("pinned", 1),))


def test_escaped_pages_that_must_leave_or_come_need_frames_outside() -> None:
    """Page 0's slot is a kernel frame and it is in page 1's; page 2's is bad and it is not resident."""
    host = Host(PAGEBLOCK + 5).vm([1, 0 + 512, -1, *range(3, 512)])
    host.put([0], Kind.KERNEL).put([2], Kind.BAD)
    choice = host.choose(budget=2)
    assert isinstance(choice, Choice)
    assert choice.escaped.tolist() == [0, 2]
    assert (choice.wrong_slot, choice.outside, choice.absent, choice.refuges) == (1, 1, 1, 2)


def test_frames_in_the_hands_of_others_are_reported() -> None:
    host = Host(PAGEBLOCK).vm(np.arange(512))
    host.frames["mark"][[3, 9]] = ISOLATED
    assert host.choose().busy == 2  # type: ignore[union-attr]


class TestMemories:
    """The book of a host itself, whose holes were never written to."""

    def test_a_window_keeps_off_holes(self) -> None:
        host = Memory(8 * PAGEBLOCK, name="host", holes=[(2 * PAGEBLOCK, 4 * PAGEBLOCK), (7 * PAGEBLOCK - 9, 1 << 12)])
        absent = np.full(2 * PAGEBLOCK, -1, np.int32)
        found = choose(
            absent, host.survey(VM), host.frames, base=0, budget=0, free_pages=host.free_pages, within=(1, 4095)
        )
        assert isinstance(found, Choice)
        assert found.start == 4 * PAGEBLOCK
        refused = choose(
            np.full(3 * PAGEBLOCK, -1), host.survey(VM), host.frames, base=0, budget=8, free_pages=host.free_pages
        )
        assert isinstance(refused, Infeasible)
        assert (refused.pages, refused.where, refused.kinds) == (9, 7 * PAGEBLOCK - 9, (("hole", 9),))
        across = choose(
            absent, host.survey(VM), host.frames, base=0, budget=8, free_pages=1 << 20, within=(512, 6 * PAGEBLOCK - 1)
        )
        assert isinstance(across, Infeasible)
        assert (across.pages, across.where, across.kinds) == (512, 2 * PAGEBLOCK, (("hole", 512),))

    def test_a_vm_is_brought_together_on_it(self) -> None:
        host = Memory(16 * PAGEBLOCK, name="host")
        mixed = host.take(3000, kind=Kind.USER, owner=OTHER)
        host.give_back(mixed[::2])
        host.take(40, kind=Kind.KERNEL)
        backing = host.take(2 * PAGEBLOCK, kind=Kind.USER, owner=VM, pages=np.arange(2 * PAGEBLOCK))
        found = choose(backing, host.survey(VM), host.frames, base=0, budget=0, free_pages=host.free_pages)
        assert isinstance(found, Choice)
        window = np.arange(found.start, found.end)
        kinds = host.kinds(window)
        assert found.free == np.count_nonzero(kinds == Kind.FREE)
        assert found.others == np.count_nonzero((kinds == Kind.USER) & ~np.isin(window, backing))
        assert found.in_place + found.wrong_slot == np.count_nonzero(np.isin(window, backing))
        assert not np.any(kinds == Kind.KERNEL)


def test_prices_weigh_copies_and_zeroed_pages() -> None:
    host = Host(4 * PAGEBLOCK).vm([*range(600, 700), -1, -1])
    choice = host.choose(prices=window.Prices(copy=10, zero=1))
    assert isinstance(choice, Choice)
    assert choice.cost == 100 * 10 + 2


@pytest.mark.parametrize("seed", range(3))
def test_a_choice_can_be_built(seed: int) -> None:
    """The copies that the plan then makes are those that were counted, and the closed cycles."""
    from vmmsim.memory.placement import Placement

    host = random_host(seed)
    choice = host.choose(budget=3)
    assert isinstance(choice, Choice)
    kinds = host.frames["kind"][choice.start : choice.end]
    plan = Placement(
        host.backing, base=host.base, offset=choice.offset, free=kinds == Kind.FREE, escaped=choice.escaped
    )
    assert plan.foreign == choice.others
    foreign = np.flatnonzero((kinds != Kind.FREE) & ~np.isin(np.arange(choice.start, choice.end), host.backing))
    foreign = foreign[~np.isin(foreign + host.base, choice.escaped)]
    plan.freed(foreign + choice.start)  # as if they had been evicted
    for i in range(4):
        plan.lend((1 << 20) + i)
    while batch := plan.batch():
        plan.commit(batch)
    plan.check()
    assert plan.left == 0
    assert plan.copies == choice.wrong_slot + choice.outside + plan.cycles
