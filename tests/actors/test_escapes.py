"""Keeping an escape filter: members within budget, false positives found, and rates as published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.actors.escapes import Escapes, OverBudget
from vmmsim.jit import INTERPRETED
from vmmsim.spec import spec_filter
from vmmsim.translation.escape_filter import EscapeFilter, random_filter

SEGMENT = 1 << 24
"""A 64 GiB segment."""


def empty(seed: int = 1, *, bits: int = 256, hashes: int = 4, key_bits: int = 36) -> EscapeFilter:
    return random_filter(np.random.default_rng(seed), bits=bits, hashes=hashes, key_bits=key_bits)


@settings(max_examples=15 if INTERPRETED else 80)
@given(st.integers(0, 2**32), st.lists(st.integers(1000, 3999), max_size=12, unique=True), st.integers(0, 3))
def test_what_escapes_is_what_the_textbook_filter_hits(seed: int, members: list[int], gone: int) -> None:
    """A small filter, so that many pages hit; after a removal too."""
    held = Escapes(empty(seed, bits=64), base=1000, limit=4000, members=12)
    held.insert(members)
    held.remove(members[:gone])
    kept = tuple(members[gone:])
    assert held.members == kept
    textbook = spec_filter(empty(seed, bits=64).rows, 64, frozenset(kept))
    expected = [page for page in range(1000, 4000) if kept and textbook(page)]
    assert held.hits_between(0, 1 << 20).tolist() == expected
    assert held.hits_between(2000, 2100).tolist() == [page for page in expected if 2000 <= page < 2100]
    assert held.false_between(0, 1 << 20).tolist() == [page for page in expected if page not in kept]
    assert held.count_hits() == len(expected)
    for page in (*kept, *range(1000, 1050)):
        assert held.hits(page) == (page in expected)
        assert held.is_false(page) == (page in expected and page not in kept)


def test_each_change_makes_a_new_filter_and_leaves_the_old() -> None:
    first = empty()
    held = Escapes(first, base=0, limit=SEGMENT)
    second = held.insert([5, 6])
    third = held.insert([6, 7])
    assert (first.members, second.members, third.members) == ((), (5, 6), (5, 6, 7))
    fourth = held.remove([5])
    assert fourth is held.filter
    assert fourth.members == (6, 7)
    assert third.members == (5, 6, 7)
    assert fourth.rows == first.rows
    assert not held.hits(5)
    assert held.room == 14


class TestBudget:
    """The filter never fills; a budget says when the segment is to be given up."""

    def test_sixteen_members_by_default(self) -> None:
        held = Escapes(empty(), base=0, limit=SEGMENT)
        held.insert(range(100, 116))
        assert held.room == 0
        assert held.fits([100, 115]), "they are in already"
        assert not held.fits([99])
        with pytest.raises(OverBudget, match="1 pages more than 16"):
            held.insert([99])
        assert len(held.members) == 16
        assert not held.hits(99) or held.is_false(99)

    def test_all_or_none(self) -> None:
        held = Escapes(empty(), base=0, limit=SEGMENT, members=4)
        held.insert([1, 2])
        with pytest.raises(OverBudget):
            held.insert([3, 4, 5])
        assert held.members == (1, 2)

    def test_no_more_than_hardware_s_software_keeps(self) -> None:
        assert not Escapes(empty(), base=0, limit=SEGMENT, members=1000).fits(range(257))

    def test_a_budget_of_false_positives_counts_bits_that_are_set(self) -> None:
        """Random members: the 64 GiB segment has about 41,000 at 16 members (closed form), 3,300 at 8."""
        members = np.random.default_rng(4).integers(0, SEGMENT, 16).tolist()
        held = Escapes(empty(), base=0, limit=SEGMENT, members=256, false_positives=10_000)
        held.insert(members[:8])
        with pytest.raises(OverBudget):
            held.insert(members[8:])
        generous = Escapes(empty(), base=0, limit=SEGMENT, members=256, false_positives=100_000)
        generous.insert(members)
        assert 15_000 < generous.expected_false_positives() < 80_000

    def test_without_a_filter_nothing_may_escape(self) -> None:
        held = Escapes(None, base=0, limit=SEGMENT)
        assert not held.fits([1])
        with pytest.raises(OverBudget):
            held.insert([1])
        assert (held.filter, held.members, held.room, held.hits(1), held.remove([1])) == (None, (), 0, False, None)
        assert held.expected_rate() == held.density() == held.expected_false_positives() == 0
        assert held.hits_between(0, 100).size == held.count_hits() == 0


PUBLISHED = {8: 1.96e-4, 16: 2.46e-3, 32: 2.46e-2}


@pytest.mark.parametrize("count", PUBLISHED)
def test_random_members_give_the_published_rate(count: int) -> None:
    """Over random sets, hits of a segment are counted; sigma is that of the mean, from the sets themselves."""
    sets, pages = (10, 2000) if INTERPRETED else (60, 1 << 20)
    random = np.random.default_rng(count)
    measured, density = [], []
    for i in range(sets):
        base = int(random.integers(0, 1 << 20)) << 9
        held = Escapes(empty(1000 * count + i), base=base, limit=base + pages, members=64)
        outside = base + (1 << 31)  # members elsewhere, so that all pages counted are false positives
        held.insert(np.unique(random.integers(outside, outside + SEGMENT, count)).tolist())
        assert held.expected_rate() == pytest.approx(PUBLISHED[count], rel=0.01)
        measured.append(held.count_hits() / pages)
        density.append(held.density())
    for rates in (measured, density):
        sigma = max(float(np.std(rates, ddof=1)), math.sqrt(PUBLISHED[count] / pages)) / math.sqrt(sets)
        assert abs(float(np.mean(rates)) - PUBLISHED[count]) <= 3 * sigma


def test_the_bits_that_are_set_tell_the_rate_over_a_segment() -> None:
    """One member set: hits in 2**20 pages are the density's, for random members and for a row's."""
    for members in (np.random.default_rng(9).integers(1 << 33, 1 << 34, 16).tolist(), range(1 << 33, (1 << 33) + 16)):
        rates = []
        for seed in range(3 if INTERPRETED else 25):
            pages = 1 << 11 if INTERPRETED else 1 << 20
            held = Escapes(empty(seed), base=0, limit=pages, members=64)
            held.insert(members)
            rates.append((held.count_hits() / pages, held.density()))
        measured, expected = np.array(rates).T
        sigma = float(np.std(measured - expected, ddof=1)) / math.sqrt(len(rates))
        assert abs(float(np.mean(measured - expected))) <= 3 * sigma + 1e-9


def rank_law(rank: int, rows: int = 6, columns: int = 4) -> float:
    """Return the probability that a random matrix over GF(2) has this rank."""
    ways = math.prod((2**rows - 2**i) * (2**columns - 2**i) / (2**rank - 2**i) for i in range(rank))
    return ways / 2 ** (rows * columns)


def test_sixteen_adjacent_members_hit_by_powers_of_two_and_in_whole_rows() -> None:
    """A DRAM row over 8 channels: 16 pages that differ in 4 bits set 2^r of a bank's 64 bits, r the rank of 6 x 4 bits.

    Closed form: (E 2^r / 64)^4 = 2.441e-3 on average, beside 2.461e-3 for random members, and (16 / 64)^4 = 3.91e-3
    for 37 % of filters and never more. Pages that differ in those 4 bits hit or miss together: rows of 16.
    """
    sets = 40 if INTERPRETED else 600
    densities = []
    for seed in range(sets):
        held = Escapes(empty(seed), base=0, limit=SEGMENT)
        held.insert(range(16 * 12345, 16 * 12346))
        densities.append(held.density())
    assert max(densities) == (16 / 64) ** 4
    mean = sum(rank_law(r) * 2**r for r in range(5)) / 64
    square = sum(rank_law(r) * 4**r for r in range(5)) / 64**2
    sigma = math.sqrt((square**4 - mean**8) / sets)
    assert abs(float(np.mean(densities)) - mean**4) <= 3 * sigma
    full = rank_law(4) ** 4
    share = float(np.mean(np.array(densities) == (16 / 64) ** 4))
    assert abs(share - full) <= 3 * math.sqrt(full * (1 - full) / sets)
    hits = held.hits_between(0, 1 << 13 if INTERPRETED else 1 << 18)
    assert hits.size % 16 == 0
    assert np.array_equal(hits.reshape(-1, 16), hits[::16, None] // 16 * 16 + np.arange(16))
