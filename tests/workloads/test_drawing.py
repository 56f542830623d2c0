"""Draws by key and position: the published generator, and the distributions that it is made into."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from vmmsim.jit import INTERPRETED, kernel
from vmmsim.workloads import drawing
from vmmsim.workloads.drawing import UNIT, alias, key_of, rows_of
from vmmsim.workloads.ranks import Ranks, draw_rank, zipf

SIGMAS = 5
DRAWS = 2_000 if INTERPRETED else 200_000

KNOWN = [
    # philox2x32, 7 rounds, of the known answers that Random123 is published with: counter, key, result
    ((0, 0), 0, (0x257A3673, 0xCD26BE2A)),
    ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0xAB302C4D, 0x3DC9D239)),
    ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xBEDBBE6B, 0xE4C770B3)),
]


@kernel
def _bits(key: int, position: int) -> tuple[int, int]:
    return drawing.bits(key, position)


@kernel
def _below(key: int, bound: int, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = drawing.below(key, i, bound)


@kernel
def _exponential(key: int, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = drawing.exponential(key, i)


@kernel
def _choose(key: int, stay: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        high, low = drawing.bits(key, i)
        out[i] = drawing.choose(stay, other, high, low)


@kernel
def _shuffled(key: int, rows: int, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = drawing.shuffled(key, i, out.size, rows)


@kernel
def _ranks(key: int, bounds: np.ndarray, stay: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = draw_rank(key, i, bounds, stay, other)


def drawn(draw: Callable[..., None], *arguments: object, count: int = DRAWS) -> np.ndarray:
    out = np.empty(count, np.int64)
    draw(*arguments, out)
    return out


def assert_counts(drawn: np.ndarray, expected: np.ndarray) -> None:
    """Assert that a chi-square of counts lies within SIGMAS standard deviations of its mean."""
    counts = np.bincount(drawn, minlength=expected.size)
    assert counts.size == expected.size
    assert expected.min() > 5, "the approximation holds"
    chi = ((counts - expected) ** 2 / expected).sum()
    freedom = expected.size - 1
    assert abs(chi - freedom) < SIGMAS * math.sqrt(2 * freedom)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_bits_are_those_of_the_published_generator(counter, key, result):
    position = counter[0] | counter[1] << 32
    assert _bits(key, position - (1 << 64) if position >> 63 else position) == result


def test_bits_differ_by_key_and_by_position_and_are_the_same_at_every_call():
    assert len({_bits(key, position) for key in range(20) for position in range(20)}) == 400
    assert _bits(3, 1 << 55) == _bits(3, 1 << 55)


@pytest.mark.parametrize("bound", [1, 2, 7, 100])
def test_whole_numbers_are_uniform(bound):
    numbers = drawn(_below, 12, bound)
    assert numbers.min() >= 0
    assert numbers.max() == bound - 1
    if bound > 1:
        assert_counts(numbers, np.full(bound, DRAWS / bound))


def test_whole_numbers_reach_the_largest_bound():
    bound = (1 << 31) - 1
    numbers = drawn(_below, 5, bound)
    assert numbers.min() >= 0
    assert numbers.max() < bound
    assert abs(numbers.mean() / bound - 0.5) < SIGMAS / math.sqrt(12 * DRAWS)


def test_neighbouring_positions_and_keys_are_not_alike():
    for one, two in (
        (drawn(_below, 8, 1 << 20)[:-1], drawn(_below, 8, 1 << 20)[1:]),
        (drawn(_below, 8, 1 << 20), drawn(_below, 9, 1 << 20)),
    ):
        assert abs(np.corrcoef(one, two)[0, 1]) < SIGMAS / math.sqrt(DRAWS)


def test_exponentials_have_the_exponential_distribution():
    times = drawn(_exponential, 3) / UNIT
    assert abs(times.mean() - 1) < SIGMAS / math.sqrt(DRAWS)
    for bound in (0.01, 0.1, 1, 3):
        share = -math.expm1(-bound)
        assert abs((times < bound).mean() - share) < SIGMAS * math.sqrt(share * (1 - share) / DRAWS) + 1 / DRAWS


def test_the_table_of_logarithms_is_the_same_on_any_machine():
    """Rounded to whole numbers no closer to a tie than any library's logarithm is to the true one."""
    steps = drawing._LOGARITHM.size - 1
    exact = [-math.log(0.5 + n / (2 * steps)) * UNIT for n in range(steps + 1)]
    assert np.abs(drawing._LOGARITHM - exact).max() < 0.5
    assert min(abs(value % 1 - 0.5) for value in exact) > 100 * math.ulp(math.log(2) * UNIT)


def test_an_alias_table_has_the_probabilities_asked_for():
    weights = [5.0, 0.0, 1.0, 3.0, 0.5, 0.5]
    table = alias(weights)
    assert table.weight == pytest.approx(np.array(weights) / 10, abs=2**-23)
    assert math.isclose(table.weight.sum(), 1)
    exact = np.zeros(len(weights))  # what the two columns say together
    np.add.at(exact, np.arange(len(weights)), table.stay / 2**32 / len(weights))
    np.add.at(exact, table.other, (2**32 - table.stay) / 2**32 / len(weights))
    assert exact == pytest.approx(table.weight, abs=1e-15)
    numbers = drawn(_choose, 6, table.stay, table.other)
    assert not (numbers == 1).any()
    assert_counts(np.array([0, 9, 1, 2, 3, 4])[numbers], np.array([5.0, 1.0, 3.0, 0.5, 0.5]) / 10 * DRAWS)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_a_shuffle_is_a_permutation_and_differs_by_key(size):
    one, two = (drawn(_shuffled, key, rows_of(size), count=size) for key in (1, 2))
    assert sorted(one) == sorted(two) == list(range(size))
    if size >= 64:
        assert (one == two).mean() < 0.1
        assert abs(np.corrcoef(np.arange(size), one)[0, 1]) < SIGMAS / math.sqrt(size)
        # the gaps between images of neighbours are as of a random permutation, not those of a fixed stride
        assert np.unique(np.diff(one)).size > size / 3


@pytest.mark.parametrize(("first", "count"), [(0, 1000), (17, 400), (999, 1), (3, 0)])
def test_many_numbers_are_shuffled_at_once_as_they_are_one_by_one(first, count):
    out = np.empty(count, np.int64)
    drawing.shuffle(6, first, 1000, rows_of(1000), out)
    assert np.array_equal(out, drawn(_shuffled, 6, rows_of(1000), count=1000)[first : first + count])


def test_keys_differ_by_everything_that_names_them():
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a0"), (1, "a", "0x")]
    keys = [key_of(*name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(0 <= key < 1 << 32 for key in keys)
    assert key_of(1, "a", 0) == key_of(1, "a", 0)


def test_zipf_is_zipf():
    """Of 10,000 ranks, the shares of the first few and of the last half, by the exact sums."""
    ranks = zipf(10_000, 0.99)
    exact = np.arange(1, 10_001) ** -0.99
    exact /= exact.sum()
    each = np.repeat(ranks.each, np.diff(ranks.bounds))
    assert each[:64] == pytest.approx(exact[:64], rel=1e-4)
    assert each == pytest.approx(exact, rel=0.1)
    assert each[5000:].sum() == pytest.approx(exact[5000:].sum(), rel=0.01)
    assert each.sum() == pytest.approx(1)


def test_half_of_the_keys_can_take_one_percent_of_the_requests():
    ranks = zipf(500, 0.99, cold=500, cold_share=0.01)
    assert ranks.size == 1000
    each = np.repeat(ranks.each, np.diff(ranks.bounds))
    assert each[500:].sum() == pytest.approx(0.01, abs=1e-6)
    assert np.ptp(each[500:]) == 0


@pytest.mark.parametrize("ranks", [zipf(5, 1), zipf(300, 0.99, cold=300, cold_share=0.5)])
def test_ranks_are_drawn_as_likely_as_they_are(ranks: Ranks):
    numbers = drawn(_ranks, 4, ranks.bounds, ranks.stay, ranks.other)
    each = np.repeat(ranks.each, np.diff(ranks.bounds))
    edges = np.unique([0, *np.searchsorted(np.cumsum(each), [0.2, 0.4, 0.6, 0.8]), each.size])
    expected = np.add.reduceat(each, edges[:-1]) * DRAWS
    assert_counts(np.searchsorted(edges, numbers, side="right") - 1, expected)
