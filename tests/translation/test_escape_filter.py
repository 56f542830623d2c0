"""The escape filter: members stay members, others hit as often as the closed form says, and hits stay right."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import PAGE, World, exact_filter, toy, without
from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED
from vmmsim.spec import spec_filter
from vmmsim.translation import state
from vmmsim.translation.escape_filter import (
    EscapeFilter,
    false_positive_rate,
    filter_hits,
    hits_between,
    random_filter,
)
from vmmsim.translation.registers import Segment

PAGES = st.integers(0, (1 << 45) - 1)


def loaded(held: EscapeFilter) -> Any:
    """Return a core with the filter in its VMM registers."""
    core, _, _ = state.allocate(toy(), hierarchy=False)
    held.load(core, state.NESTED)
    return core


def hits(core: Any, first: int, count: int) -> int:
    """Return how many of the pages [first, first + count) hit."""
    return int(hits_between(core, state.NESTED, first, first + count, np.empty(0, np.int64)))


def rank(rows: list[int]) -> int:
    """Return the rank over GF(2), by elimination."""
    basis: list[int] = []
    for row in rows:
        left = row
        for other in basis:
            left = min(left, left ^ other)
        if left:
            basis.append(left)
    return len(basis)


@settings(max_examples=20 if INTERPRETED else 100)
@given(
    st.integers(0, 2**32),
    st.lists(PAGES, min_size=1, max_size=40),
    st.sampled_from([(256, 4), (8, 2), (64, 1), (16384, 4)]),
)
def test_members_always_hit_and_others_as_the_textbook_says(
    seed: int, members: list[int], shape: tuple[int, int]
) -> None:
    held = random_filter(np.random.default_rng(seed), bits=shape[0], hashes=shape[1])
    core = loaded(held.with_members(*members))
    textbook = spec_filter(held.rows, held.bits, frozenset(members))
    assert all(filter_hits(core, state.NESTED, page) for page in members)
    for page in (page ^ flip for page in members for flip in (1, 7, 1 << 12, 1 << 44)):
        assert filter_hits(core, state.NESTED, page) == textbook(page)


def test_an_empty_filter_hits_nothing() -> None:
    core = loaded(random_filter(np.random.default_rng(1)))
    assert hits(core, 0, 1000) == 0


@pytest.mark.parametrize("key_bits", [6, 9, 20, 24, 36, 45])
def test_hash_matrices_have_full_rank_each_and_the_highest_rank_together(key_bits: int) -> None:
    for seed in range(8):
        held = random_filter(np.random.default_rng(seed), key_bits=key_bits)
        assert [len(bank) for bank in held.rows] == [6, 6, 6, 6]
        assert [rank(list(bank)) for bank in held.rows] == [6, 6, 6, 6]
        everything = [row for bank in held.rows for row in bank]
        assert rank(everything) == min(24, key_bits)
        assert all(0 < row < 1 << key_bits for row in everything)


PUBLISHED = {1: 6.0e-8, 2: 9.2e-7, 4: 1.39e-5, 8: 1.96e-4, 16: 2.46e-3, 32: 2.46e-2}


def test_the_closed_form_gives_the_published_rates() -> None:
    for members, rate in PUBLISHED.items():
        assert false_positive_rate(members) == pytest.approx(rate, rel=0.02)
    assert false_positive_rate(16) == pytest.approx((1 - (63 / 64) ** 16) ** 4)


@pytest.mark.parametrize("count", [*range(1, 17), 32])
def test_random_members_are_hit_falsely_as_often_as_the_closed_form_says(count: int) -> None:
    """Over random sets and matrices; the rate varies from set to set, so sigma is taken from the sets themselves.

    For few members nothing may hit at all: then no more than a Poisson draw of the closed form's mean allows.
    """
    sets, pages = (12, 500) if INTERPRETED else (150, 40_000)
    random = np.random.default_rng(count)
    rates = []
    for _ in range(sets):
        members = np.unique(random.integers(1 << 30, 1 << 36, count))
        core = loaded(random_filter(random, key_bits=36).with_members(*members.tolist()))
        rates.append(hits(core, int(random.integers(0, 1 << 29)), pages) / pages)
    expected = false_positive_rate(count)
    poisson = math.sqrt(expected / (sets * pages))
    sigma = max(float(np.std(rates)) / math.sqrt(sets), poisson)
    assert abs(float(np.mean(rates)) - expected) <= 3 * sigma + (
        1 / (sets * pages) if expected * sets * pages < 1 else 0
    )


def test_sixteen_adjacent_members_are_hit_falsely_in_cosets_of_their_span() -> None:
    """A DRAM row over 8 channels: 16 pages that differ in 4 bits, so that each bank holds an affine space.

    Every bank has then at most 16 bits set, and as many as the closed form's 14.3 on average or fewer; a page and those
    that differ from it in the same 4 bits hit or miss alike.
    """
    random = np.random.default_rng(7)
    sets, groups = (40, 100) if INTERPRETED else (120, 4000)
    rates = []
    for _ in range(sets):
        first = int(random.integers(1 << 25, 1 << 31)) << 4
        core = loaded(random_filter(random, key_bits=36).with_members(*range(first, first + 16)))
        filled = [bin(int(word)).count("1") for word in core.filter_bits[state.NESTED, :, :2].reshape(-1)]
        banks = [filled[2 * i] + filled[2 * i + 1] for i in range(4)]
        assert all(bits in (1, 2, 4, 8, 16) for bits in banks)  # an affine space has a power of two of points
        # The share of pages that hit is the product of the banks' densities where the banks are independent.
        density = float(np.prod([bits / 64 for bits in banks]))
        start = int(random.integers(0, 1 << 24)) << 4
        rates.append((hits(core, start, 16 * groups) / (16 * groups), density))
    measured, expected = np.mean(rates, axis=0)
    sigma = float(np.std([one - other for one, other in rates])) / math.sqrt(sets)
    assert abs(measured - expected) <= 3 * sigma + 1e-9
    assert expected <= (16 / 64) ** 4


def test_a_false_positive_translates_as_the_segment_does_and_is_counted() -> None:
    """Found by search, never by chance: a page that hits and is no member, its leaf saying what the segment says."""
    held = random_filter(np.random.default_rng(3), bits=8, hashes=2)
    world = World()
    members = (world.data + 5, world.data + 6)
    textbook = spec_filter(held.rows, 8, frozenset(members))
    gfn = next(gfn for gfn in range(world.data + 7, world.data + 500) if textbook(gfn))
    page = PAGE + gfn - world.data
    world.map_guest(page, gfn)
    clear = next(gfn for gfn in range(world.data + 7, world.data + 500) if not textbook(gfn))
    world.map_guest(PAGE + clear - world.data, clear)
    vmm = attrs.evolve(world.vmm_segment, base=world.data, filter=held.with_members(*members))
    falsely = world.miss("dual-direct", page, vmm_segment=vmm)
    assert (falsely["escapes"], falsely["false_escapes"], falsely["walk_nested"]) == (1, 1, 1)
    assert world.hfn(page) == gfn + vmm.offset
    rightly = world.miss("dual-direct", PAGE + clear - world.data, vmm_segment=vmm)
    assert rightly["segment_0d"] == 1


def test_a_member_is_translated_by_its_page_table_wherever_that_leads() -> None:
    world = World()
    world.nested.unmap(world.data)
    world.nested.map(world.data, 1 << 25)
    world.load("dual-direct", vmm_segment=without(world.vmm_segment, world.data)).access()
    assert world.hfn() == 1 << 25
    counted = world.engine.counters()
    assert (counted["escapes"], counted["false_escapes"], counted["walk_nested"]) == (1, 0, 1)


@settings(max_examples=10 if INTERPRETED else 40)
@given(st.integers(0, 2**32), st.integers(0, 1500), st.integers(1, 3000), st.lists(st.integers(0, 4500), max_size=3))
def test_the_escape_map_says_which_blocks_hold_a_page_that_hits(
    seed: int, base: int, size: int, members: list[int]
) -> None:
    held = random_filter(np.random.default_rng(seed), bits=64, hashes=4).with_members(*members)
    world = World()
    segment = Segment(base=base, limit=base + size, offset=0, filter=held)
    world.load("vmm-direct", vmm_segment=segment)
    core = world.engine.record()
    if not members:
        return
    words = world.engine.tables.entries[int(core.escape_map[state.NESTED]) :]
    for number, block in enumerate(range(base >> 9, base + size + 511 >> 9)):
        first, end = max(base, block << 9), min(base + size, block + 1 << 9)
        expected = hits(core, first, end - first) > 0
        assert bool(int(words[number >> 5]) >> (number & 31) & 1) == expected


def test_inserting_twice_is_inserting_once_and_the_order_is_kept() -> None:
    held = exact_filter(5, 3).with_members(5, 9, 3)
    assert held.members == (5, 3, 9)
    assert int(loaded(held).members_count[state.NESTED]) == 3


def test_shapes_that_no_filter_has_are_refused() -> None:
    random = np.random.default_rng(1)
    for bits, hashes in ((256, 5), (256, 0), (255, 4), (96, 4), (4, 4), (1 << 15, 4)):
        with pytest.raises(BadInput, match="escape filter"):
            random_filter(random, bits=bits, hashes=hashes)
    with pytest.raises(BadInput, match="page numbers of 5 bits"):
        random_filter(random, key_bits=5)
    with pytest.raises(BadInput, match="at most 256 members"):
        random_filter(random).with_members(*range(257))
    assert len(random_filter(random).with_members(*range(256)).members) == 256
