"""Strata summed: by hand, by Student's tables, and by what a variance must do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vmmsim.actors.calibration import Prices
from vmmsim.actors.overheads import Overheads, _student
from vmmsim.actors.sample import Sample
from vmmsim.translation.costs import Coverage


def sample(walk_cycles: float, **changes: Any) -> Sample:
    """Return a sample of 100 accesses with this rate."""
    told: dict[str, Any] = {
        "mode": "base", "x": 0, "accesses": 100, "warm": 50, "whole": False, "hierarchy_walk_cycles": None,
        "l2_tlb_cycles": 0.5, "misses": 10, "cold_misses": 0, "prices": Prices(native_cycles=1, virtual_cycles=1),
        "coverage": Coverage(), "counters": {}, "points": np.array([64, 128]), "refill": np.array([320.0, 448.0]),
        "as_if": {}, "exits": 0,
    }  # fmt: skip
    return Sample(walk_cycles=walk_cycles, linear_walk_cycles=walk_cycles, **told | changes)


def test_a_stratum_s_cycles_by_hand() -> None:
    overheads = Overheads()
    stack = overheads.add(1200, sample(2.0), flushes=2, ideal=3.0)
    # d = 400: C(400) = 448 + 2 (400 - 128) = 992; r d + n C(d) = 800 + 2 x 992.
    assert stack.walk + stack.refill == 800 + 2 * 992
    assert (stack.ideal, stack.walk, stack.l2_tlb) == (3600, 2400, 600)
    assert stack.total == 3600 + 2784 + 600
    assert overheads.overhead == pytest.approx(2400 / 3600)
    assert overheads.refill_overhead == pytest.approx(384 / 3600)


def test_refill_between_two_points_is_a_straight_line() -> None:
    assert sample(2.0).refill_cycles(32) == 160
    assert sample(2.0).refill_cycles(96) == 384


def test_a_stratum_run_whole_holds_its_flushes_and_has_no_variance() -> None:
    overheads = Overheads()
    whole = sample(2.0, whole=True, warm=0, points=np.empty(0, np.int64), refill=np.empty(0), cold_misses=3)
    assert overheads.add(100, whole, flushes=5, ideal=1.0).refill == 0
    assert overheads.interval() == (2.0, 2.0)
    assert overheads.bias == 0, "what is cold there was cold"


def test_the_overhead_weighs_strata_by_their_accesses() -> None:
    overheads = Overheads()
    overheads.add(1000, sample(1.0), flushes=0, ideal=2.0)
    overheads.add(3000, sample(2.0), flushes=0, ideal=2.0)
    assert overheads.overhead == pytest.approx(7000 / 8000)


def test_the_variance_by_hand() -> None:
    """Half the squared difference to the next, the last one's to the one before; what was measured does not vary."""
    overheads = Overheads()
    for accesses, rate in ((1000, 1.0), (2000, 3.0), (1000, 2.0)):
        overheads.add(accesses, sample(rate), flushes=0, ideal=1.0)
    by_hand = (1000 * 900 * 4 + 2000 * 1900 * 1 + 1000 * 900 * 1) / 2
    assert overheads.variance == pytest.approx(by_hand / 4000**2)
    half = 4.3027 * math.sqrt(by_hand) / 4000  # Student's 97.5 % quantile with 2 degrees: two thirds of three
    low, high = overheads.interval()
    assert (low + high) / 2 == pytest.approx(2.25)
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)


def test_an_epoch_ends_neighbourhood_and_a_lone_stratum_takes_the_average() -> None:
    together, apart = Overheads(), Overheads()
    for overheads in (together, apart):
        for rate in (1.0, 2.0):
            overheads.add(1000, sample(rate), flushes=0, ideal=1.0)
        if overheads is apart:
            overheads.new_epoch()
        overheads.add(1000, sample(50.0), flushes=0, ideal=1.0)
    assert apart.variance == pytest.approx(3 * 1000 * 900 * 0.5 / 3000**2)
    assert together.variance > 100 * apart.variance
    before = apart.variance
    assert apart.variance == before, "asking changes nothing"


def test_one_stratum_tells_nothing_of_the_variance() -> None:
    overheads = Overheads()
    overheads.add(1000, sample(1.0), flushes=0, ideal=1.0)
    assert overheads.interval() == (-math.inf, math.inf)


def several(rates: list[float], **changes: Any) -> Overheads:
    overheads = Overheads()
    for rate in rates:
        overheads.add(1000, sample(rate, **changes), flushes=0, ideal=1.0)
    return overheads


def test_few_samples_have_no_interval_that_says_something() -> None:
    rates = [10.0, 11.0] * 4
    assert several(rates[:7]).share_of_error() is None, "six differences, and the last one's to the one before"
    overheads = several(rates)
    low, high = overheads.interval()
    assert overheads.share_of_error() == pytest.approx((high - low) / (high + low))
    assert several([0.0, 0.0]).share_of_error() is None, "twice nothing is not always nothing"
    assert several([0.0] * 8).share_of_error() == 0


def test_an_interval_that_is_all_one_change_of_the_program_is_none() -> None:
    assert several([0.0] * 8 + [25.0]).share_of_error() is None


def test_strata_run_whole_are_known_however_few() -> None:
    assert several([2.0], whole=True, warm=0).share_of_error() == 0


def test_bias_is_apart() -> None:
    overheads = Overheads()
    overheads.add(1000, sample(2.0, misses=10, cold_misses=1), flushes=0, ideal=1.0)
    overheads.add(1000, sample(2.0, misses=10, cold_misses=0), flushes=0, ideal=1.0)
    assert overheads.bias == pytest.approx(0.1)
    assert overheads.interval() == (2.0, 2.0)


def test_as_if_is_over_the_strata_that_were_priced() -> None:
    overheads = Overheads()
    overheads.add(1000, sample(2.0), flushes=0, ideal=1.0)
    overheads.add(1000, sample(2.0, as_if={"dual-direct": 0.25}), flushes=0, ideal=2.0)
    assert overheads.as_if("dual-direct") == 0.125
    assert overheads.as_if("vmm-direct") is None


def test_nothing_is_no_overhead() -> None:
    assert (Overheads().overhead, Overheads().interval(), Overheads().bias) == (0.0, (0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423), (120, 1.9799)]
)
def test_student_s_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert _student(freedom) == pytest.approx(quantile, rel=0.003)


def test_successive_differences_estimate_the_variance_of_independent_rates() -> None:
    random, estimates = np.random.default_rng(1), []
    for _ in range(200):
        overheads = Overheads()
        for rate in random.normal(5.0, 1.0, 20):
            overheads.add(10_000, sample(float(rate)), flushes=0, ideal=1.0)
        estimates.append(overheads.variance)
    # Of a mean of 20 rates with variance 1, of which 1 % was measured.
    assert np.mean(estimates) == pytest.approx(0.99 / 20, rel=0.05)
