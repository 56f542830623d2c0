"""The two lists against true LRU, by a reference written for this test, and page by page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.actors.lru import CLUSTER, PageLru
from vmmsim.memory.frames import PAGEBLOCK


class Toy:
    """A memory of so many frames: pages fault in, and reclaim makes room a cluster at a time."""

    def __init__(self, pages: int, frames: int) -> None:
        self.lru, self.frames = PageLru(pages), frames
        self.resident, self.bits = np.zeros(pages, np.bool_), np.zeros(pages, np.bool_)
        self.faults = 0

    def look(self, pages):
        there, accessed = self.resident[pages], self.bits[pages].copy()
        self.bits[pages] = False
        return there, accessed, np.ones(pages.size, np.int64)

    def access(self, page: int) -> None:
        if not self.resident[page]:
            self.faults += 1
            if np.count_nonzero(self.resident) >= self.frames:
                gone = self.lru.coldest(CLUSTER, self.look)
                assert self.resident[gone].all(), "what is not there cannot go"
                self.resident[gone] = False
            self.resident[page] = True
            self.lru.add(np.array([page]))
        self.bits[page] = True
        self.lru.check()


def true_lru(accesses: list[int], frames: int) -> int:
    """Return the faults of exact LRU, by the book: a list in order of use."""
    used: list[int] = []
    faults = 0
    for page in accesses:
        if page in used:
            used.remove(page)
        else:
            faults += 1
            if len(used) >= frames:
                used.pop(0)
        used.append(page)
    return faults


def at_random(accesses: list[int], frames: int, random: np.random.Generator) -> int:
    """Return the faults of a memory from which any page goes."""
    held: list[int] = []
    faults = 0
    for page in accesses:
        if page not in held:
            faults += 1
            if len(held) >= frames:
                held.pop(int(random.integers(len(held))))
            held.append(page)
    return faults


@pytest.mark.parametrize("skew", [0.8, 1.0, 1.2])
def test_faults_are_near_those_of_true_lru_and_fewer_than_by_chance(skew: float):
    """Within a quarter of exact LRU, which no list with accessed bits only can be (256 frames, clusters of 32)."""
    random = np.random.default_rng(1)
    share = 1 / np.arange(1, 1025) ** skew
    accesses = random.permutation(1024)[random.choice(1024, 8000, p=share / share.sum())].tolist()
    toy = Toy(1024, 256)
    for page in accesses:
        toy.access(page)
    exact, chance = true_lru(accesses, 256), at_random(accesses, 256, random)
    assert toy.lru.activated > 50
    assert exact * 0.9 < toy.faults < min(1.25 * exact, chance * 1.02), (exact, toy.faults, chance)


def test_a_page_that_is_used_all_the_time_stays_through_a_scan():
    """What second chances are for: a scan of cold pages does not push out those that are in use."""
    toy = Toy(4096, 256)
    for page in range(200, 4096):
        if page % 4 == 0:
            for hot in range(64):
                toy.access(hot)
        toy.access(page)
    assert toy.resident[:64].all()
    least = 64 + 4096 - 200
    assert least <= toy.faults < 1.05 * least, "each page faults once, but for a few that were moved a moment before"


def test_the_first_access_spares_a_page_the_second_makes_it_active():
    """L: folio_check_references: one reference is another round, two are the active list."""
    lru, bits = PageLru(64), np.zeros(64, np.bool_)

    def look(pages):
        accessed = bits[pages].copy()
        bits[pages] = False
        return np.ones(pages.size, np.bool_), accessed, np.ones(pages.size, np.int64)

    lru.add(np.arange(64))
    bits[:8] = True
    assert np.array_equal(lru.coldest(24, look), np.arange(8, 32))
    assert (lru.spared, lru.activated) == (8, 0)
    bits[:8] = True
    assert np.array_equal(lru.coldest(32, look), np.arange(32, 64))
    assert lru.active == 0
    assert lru.coldest(0, look).size == 0
    bits[:8] = [True] * 4 + [False] * 4
    assert np.array_equal(np.sort(lru.coldest(4, look)), np.arange(4, 8))
    assert (lru.active, lru.activated) == (4, 4)
    lru.check()


def test_active_pages_move_when_the_inactive_list_is_low_by_linux_ratio():
    """L: inactive_is_low: below 1 GiB of pages one to one; with 16 GiB, 12 active pages to an inactive one."""
    lru = PageLru(1)
    lru._inactive.size, lru._active.size = 100, 100
    assert not lru.inactive_is_low()
    lru._active.size = 101
    assert lru.inactive_is_low()
    lru._active.size = 16 << 18
    lru._inactive.size = (16 << 18) // 12 + 1
    assert not lru.inactive_is_low()
    lru._inactive.size = (16 << 18) // 13
    assert lru.inactive_is_low()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "reclaim", "free", "touch", "split"]), st.integers(0, 3)), max_size=40)
)
def test_a_page_is_listed_once_whatever_happens_to_huge_pages(acts):
    lru, n = PageLru(4 * PAGEBLOCK), 4 * PAGEBLOCK
    resident, huge, bits = np.zeros(n, np.bool_), np.zeros(4, np.bool_), np.zeros(n, np.bool_)

    def look(pages):
        large = huge[pages // PAGEBLOCK]
        there = resident[pages] & (~large | (pages % PAGEBLOCK == 0))
        return there, bits[pages] & there, np.where(large, PAGEBLOCK, 1)

    for act, block in acts:
        span = np.arange(block * PAGEBLOCK, (block + 1) * PAGEBLOCK)
        if act == "add" and not resident[span].any():
            resident[span], huge[block] = True, True
            lru.add(span[:1], span[1:])
        elif act == "split" and huge[block]:
            huge[block] = False
        elif act == "free":
            resident[span] = huge[block] = False
        elif act == "touch":
            bits[span] = ~bits[span]
        else:
            new = np.flatnonzero(resident & ~lru.are_listed(0, n))
            alone = (new % PAGEBLOCK == 0) | ~huge[new // PAGEBLOCK]
            lru.add(new[alone], new[~alone])
            gone = lru.coldest(40, look)
            assert np.unique(gone).size == gone.size
            assert resident[gone].all()
            for page in gone.tolist():
                whole = slice(page, page + (PAGEBLOCK if huge[page // PAGEBLOCK] else 1))
                resident[whole] = False
        lru.check()
