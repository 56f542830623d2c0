"""Frames are handed out once each, whatever the placement, and lie as scattered as it says."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vmmsim.addresses import size_pages
from vmmsim.errors import BadInput
from vmmsim.studies.placement import MEAN_RUN, PLACEMENTS, Frames


def frames(placement: str, start: int, end: int, *, size: int = 0, tables: int = 0, seed: int = 1) -> Frames:
    random = np.random.default_rng(seed)
    return Frames(start, end, size=size, placement=placement, random=random, tables=tables)


def runs_in(numbers: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of ascending neighbours."""
    ends = np.flatnonzero(np.append(np.diff(numbers) != 1, True))
    return np.diff(np.concatenate([[-1], ends]))


@given(
    placement=st.sampled_from(PLACEMENTS),
    size=st.sampled_from((0, 1, 2)),
    start=st.integers(0, 3000),
    length=st.integers(0, 3000),
    tables=st.integers(0, 700),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    seed=st.integers(0, 5),
)
def test_every_frame_is_handed_out_once(placement, size, start, length, tables, cuts, seed):
    unit = size_pages(size)
    end = (start + length) * unit
    given_out = frames(placement, start * unit, end, size=size, tables=tables, seed=seed)
    units = given_out.free_units
    kept = min(-(-tables // unit), length)
    assert units == length - kept
    bounds = sorted({0, *(min(cut, units) for cut in cuts), units})
    taken = np.concatenate([given_out.take(b - a) for a, b in itertools.pairwise(bounds)] or [np.empty(0)])
    np.testing.assert_array_equal(np.sort(taken), np.arange(start, start + units) * unit)
    if kept * unit >= tables:
        more = given_out.take_tables(tables)
        assert np.unique(more).size == tables
        assert not tables or (start + units) * unit <= more.min() <= more.max() < end


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_more_than_there_is_is_refused(placement):
    given_out = frames(placement, 10, 20)
    given_out.take(9)
    with pytest.raises(BadInput, match="only 10 frames are free here, 11 are needed"):
        given_out.take(2)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_asking_at_once_or_bit_by_bit_gives_the_same_frames(placement):
    at_once = frames(placement, 5, 2000).take(700)
    one = frames(placement, 5, 2000)
    np.testing.assert_array_equal(np.concatenate([one.take(n) for n in (1, 0, 299, 400)]), at_once)


def test_contiguous_is_one_run():
    assert runs_in(frames("contiguous", 3, 5000).take(4000)).tolist() == [4000]


def test_random_frames_are_neighbours_by_accident_only():
    # Of n! orders, the mean number of "i, then i + 1" is (n - 1) / n, and nearly Poisson: so a run has about
    # n / (n - 1) frames. 200 orders: 200 +- 5 sqrt(200).
    met = sum(1000 - runs_in(frames("random", 0, 1000, seed=seed).take(1000)).size for seed in range(200))
    assert 130 < met < 270


def test_fragmented_frames_lie_in_runs_of_geometric_length():
    n = 1 << 16
    lengths = runs_in(frames("fragmented", 0, n).take(n))
    # Each frame but the first begins a run with probability 1/8: 1 + (n - 1) / 8 runs, standard deviation
    # sqrt(n 7/64) = 85; runs that follow each other in the order by accident are one or two.
    assert abs(lengths.size - (1 + (n - 1) / MEAN_RUN)) < 5 * 85
    # Geometric: P(length > k) = (7/8)^k.
    for k in (1, 4, 8, 16, 32):
        expected = (1 - 1 / MEAN_RUN) ** k
        deviation = (expected * (1 - expected) / lengths.size) ** 0.5
        assert abs((lengths > k).mean() - expected) < 5 * deviation, k


@pytest.mark.parametrize("placement", ["random", "fragmented"])
def test_every_place_is_as_likely_to_come_first(placement):
    first = np.array([frames(placement, 0, 10, seed=seed).take(1)[0] for seed in range(1000)])
    counts = np.bincount(first, minlength=10)
    # Fragmented: a run's start comes first; 0 always is one, the others with probability 1/8.
    share = np.full(10, 1 / 10)
    if placement == "fragmented":
        begins = np.random.default_rng(0).random((200_000, 10)) < 1 / MEAN_RUN
        begins[:, 0] = True
        share = (begins / begins.sum(axis=1, keepdims=True)).mean(axis=0)
    expected = 1000 * share
    assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-square, 9 degrees of freedom: 1 in 2000


def test_neither_order_nor_neighbourhood_shows_in_random_frames():
    taken = frames("random", 0, 6 << 18).take(1 << 16).astype(float)
    assert abs(np.corrcoef(taken[1:], taken[:-1])[0, 1]) < 5 / 256
    eighths = np.bincount((taken // (6 << 15)).astype(int), minlength=8)
    assert (abs(eighths - 8192) < 5 * 8192**0.5).all()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_few_frames_of_eight_terabytes_take_little_memory(placement):
    import tracemalloc

    tracemalloc.start()
    try:
        taken = frames(placement, 0, 1 << 31, tables=1 << 10).take(10_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.unique(taken).size == 10_000
    assert taken.max() < 1 << 31
    assert peak < 20 << 20


@pytest.mark.parametrize("placement", ["random", "fragmented"])
def test_a_seed_is_a_placement(placement):
    one, same, other = (frames(placement, 0, 1000, seed=seed).take(500) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
