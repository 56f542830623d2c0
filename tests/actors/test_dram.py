"""DRAM faults: as often and of such kinds as the field study says, and in frames that the geometry makes neighbours."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.actors.dram import (
    MODES,
    DramFault,
    devices,
    draw_faults,
    expected_faults,
    fit,
    geometry,
    is_correctable,
    scrub_interval_ns,
    scrub_wait_ns,
    total_by_mode,
)
from vmmsim.actors.dram_geometry import Frames, Geometry
from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED

YEAR_HOURS = 8760
YEAR_NS = YEAR_HOURS * 3600 * 10**9
PAGES = 96 << 18
"""96 GiB."""
SIGMAS = 4.0
"""How far a count may lie from its Poisson mean: 6 in 100,000 sound runs would fail, and seeds are fixed."""


@attrs.frozen
class Modules:
    count: int = 16
    ranks: int = 2
    width: str = "x4"


@attrs.frozen
class Rates:
    rates: str = "jaguar-ddr2"
    spread: float = 0.0
    acceleration: float = 1.0


def draw(seed: int, *, years: float = 5, faults: Rates = Rates(), pages: int = PAGES, **others: Any) -> list[DramFault]:
    random = np.random.default_rng(seed)
    until = int(years * YEAR_NS)
    return draw_faults(Modules(), faults, host_pages=pages, until_ns=until, random=random, **others)


def within(count: float, mean: float) -> bool:
    """Tell whether a Poisson count lies within SIGMAS of its mean."""
    return abs(count - mean) <= SIGMAS * math.sqrt(mean)


class TestRates:
    """Validation target 29: permanent faults of a server with 576 devices."""

    def test_the_closed_form_gives_the_published_values(self) -> None:
        assert devices(Modules()) == 576
        year = expected_faults(Modules(), "jaguar-ddr2", hours=YEAR_HOURS)
        assert year == pytest.approx(0.237, abs=0.0005)
        assert 5 * year == pytest.approx(1.18, abs=0.005)
        both = expected_faults(Modules(), "jaguar-ddr2", hours=YEAR_HOURS, permanent=None)
        assert both == pytest.approx(0.334, abs=0.0005)
        published = {(8, 1): (0.059, 0.083), (8, 2): (0.118, 0.167), (24, 2): (0.355, 0.500)}
        for (count, ranks), (permanent, every) in published.items():
            modules = Modules(count, ranks)
            assert expected_faults(modules, "jaguar-ddr2", hours=YEAR_HOURS) == pytest.approx(permanent, abs=0.0006)
            total = expected_faults(modules, "jaguar-ddr2", hours=YEAR_HOURS, permanent=None)
            assert total == pytest.approx(every, abs=0.0006)

    def test_sums_and_shares_are_the_table_s(self) -> None:
        rates = fit("jaguar-ddr2")
        permanent = {mode: rates[mode, True] for mode in MODES}
        assert sum(permanent.values()) == pytest.approx(46.9)
        assert sum(rates[mode, False] for mode in MODES) == pytest.approx(19.2)
        shares = {"bit": 39.7, "word": 0.6, "column": 11.9, "row": 17.5, "bank": 21.3, "multi-bank": 3.0}
        for mode, share in shares.items():
            assert 100 * permanent[mode] / 46.9 == pytest.approx(share, abs=0.06)  # type: ignore[index]

    def test_drawn_faults_are_poisson_with_that_mean_and_those_shares(self) -> None:
        """Over many hosts: each mode's count within 4 sigma of its mean, and the counts' variance that of the law."""
        hosts = 400 if INTERPRETED else 2000
        drawn = [draw(seed) for seed in range(hosts)]
        rates = fit("jaguar-ddr2")
        for permanent in (True, False):
            counts = sum(total_by_mode(each, permanent=permanent) for each in drawn)
            for mode, count in zip(MODES, counts, strict=True):
                mean = hosts * 576 * rates[mode, permanent] * 5 * YEAR_HOURS * 1e-9
                assert within(float(count), mean), (mode, permanent)
        numbers = [sum(fault.permanent for fault in each) for each in drawn]
        mean = 576 * 46.9 * 5 * YEAR_HOURS * 1e-9
        assert within(sum(numbers), hosts * mean)
        # The sample variance of a Poisson variable has a standard error of about sqrt((mu + 2 mu^2) / n).
        assert abs(np.var(numbers, ddof=1) - mean) <= SIGMAS * math.sqrt((mean + 2 * mean**2) / hosts)

    def test_acceleration_multiplies_the_number(self) -> None:
        faults = draw(1, years=1, faults=Rates(acceleration=2000))
        assert within(len(faults), 2000 * 576 * 66.1 * YEAR_HOURS * 1e-9)

    def test_times_are_in_order_and_even(self) -> None:
        faults = draw(2, years=1, faults=Rates(acceleration=5000))
        times = np.array([fault.t_ns for fault in faults])
        assert np.all(np.diff(times) >= 0)
        assert times.min() >= 0
        assert times.max() < YEAR_NS
        # The mean of n uniform numbers in [0, 1) has a standard deviation of 1 / sqrt(12 n).
        assert abs(times.mean() / YEAR_NS - 0.5) <= SIGMAS / math.sqrt(12 * times.size)


class TestSpread:
    """A host's own factor: log-normal, mean 1."""

    @pytest.mark.parametrize("spread", [0.5, 1.0])
    def test_it_keeps_the_mean_and_widens_the_numbers(self, spread: float) -> None:
        """Numbers are mixed Poisson: variance mu + mu^2 (exp(spread^2) - 1)."""
        hosts = 400 if INTERPRETED else 4000
        numbers = np.array([len(draw(seed, faults=Rates(spread=spread))) for seed in range(hosts)])
        mean = 576 * 66.1 * 5 * YEAR_HOURS * 1e-9
        variance = mean + mean**2 * (math.exp(spread**2) - 1)
        assert abs(numbers.mean() - mean) <= SIGMAS * math.sqrt(variance / hosts)
        assert numbers.var() > mean + (variance - mean) / 3

    def test_it_is_one_factor_for_a_host_s_whole_life(self) -> None:
        """The halves of a life are correlated over hosts as the shared factor says, and not without it."""
        hosts = 300 if INTERPRETED else 1500
        fast = 40.0

        def correlation(spread: float) -> float:
            halves = []
            for seed in range(hosts):
                faults = draw(seed, faults=Rates(spread=spread, acceleration=fast), years=1)
                first = sum(fault.t_ns < YEAR_NS // 2 for fault in faults)
                halves.append((first, len(faults) - first))
            return float(np.corrcoef(np.array(halves).T)[0, 1])

        half = fast * 576 * 66.1 * YEAR_HOURS * 1e-9 / 2
        shared = half**2 * (math.exp(0.25) - 1)
        assert correlation(0.5) == pytest.approx(shared / (shared + half), abs=0.15)
        assert abs(correlation(0.0)) <= SIGMAS / math.sqrt(hosts)


def test_equal_streams_give_equal_faults_and_others_others() -> None:
    fast = Rates(spread=1.0, acceleration=100)
    assert draw(3, faults=fast) == draw(3, faults=fast)
    assert draw(3, faults=fast) != draw(4, faults=fast)
    strikes = [(fault.t_ns, fault.mode, fault.frames) for fault in draw(3, faults=fast)]
    assert strikes == [(fault.t_ns, fault.mode, fault.frames) for fault in draw(3, faults=fast, reread_ns=10**9)]


class TestFrames:
    """Runs of frames at regular distances, as lists say."""

    @settings(max_examples=100 if INTERPRETED else 300)
    @given(
        st.integers(0, 50), st.integers(1, 6), st.integers(0, 9), st.integers(1, 12), st.integers(0, 200),
        st.integers(0, 200),
    )  # fmt: skip
    def test_they_are_what_a_list_of_them_is(
        self, first: int, run: int, gap: int, count: int, start: int, end: int
    ) -> None:
        frames = Frames(first, run, run + gap, count)
        listed = [first + i * (run + gap) + j for i in range(count) for j in range(run)]
        assert frames.all().tolist() == listed
        assert len(frames) == len(listed)
        assert frames.end == listed[-1] + 1
        assert frames.between(start, end).tolist() == [hfn for hfn in listed if start <= hfn < end]
        assert [hfn for hfn in range(250) if hfn in frames] == [hfn for hfn in listed if hfn < 250]
        assert [hfn for piece in frames.pieces(7) for hfn in piece.tolist()] == listed
        assert max(piece.size for piece in frames.pieces(7)) <= max(7, run)
        for place in (start, start + 0.5):
            assert frames.next_from(place) == next((hfn for hfn in listed if hfn >= place), None)


class TestGeometry:
    """Pages of a host over 8 channels, 2 modules of 2 ranks each, 8 banks."""

    def test_pages_broken_by_each_mode(self) -> None:
        place = geometry(PAGES, Modules())
        assert (place.channels, place.modules, place.stretch) == (8, 2, 16), "8 rows of 8 KiB: 16 pages"
        rows = PAGES // 16 // 8 // 4
        expected = {
            "bit": 1, "word": 1, "row": 16, "column": rows, "bank": 16 * rows,
            "multi-bank": PAGES // 4, "multi-rank": PAGES // 2,
        }  # fmt: skip
        for mode in MODES:
            frames = place.frames(mode, 12345678)
            assert len(frames) == expected[mode]
            assert 12345678 in frames

    def test_a_row_fault_is_16_adjacent_pages(self) -> None:
        frames = geometry(PAGES, Modules()).frames("row", 1000).all()
        assert frames.tolist() == list(range(992, 1008))

    def test_with_the_study_s_rows_a_bank_is_as_large_as_published(self) -> None:
        """16,384 rows of 16 pages: 262,144 pages, 1 GiB."""
        place = geometry(8 * 4 * 16384 * 16, Modules())
        assert len(place.frames("bank", 0)) == 262_144

    def test_module_counts_that_eight_channels_do_not_divide_use_fewer(self) -> None:
        assert [geometry(PAGES, Modules(count)).channels for count in (1, 4, 6, 12, 24)] == [1, 4, 6, 6, 8]
        assert geometry(PAGES).channels == 8

    @settings(max_examples=30 if INTERPRETED else 100)
    @given(st.integers(4 * 8 * 16, 4 * 8 * 16 * 5), st.sampled_from([1, 2, 3]), st.integers(1, 2), st.data())
    def test_modes_are_nested_and_partition_the_host(self, pages: int, modules: int, ranks: int, data: Any) -> None:
        """Each page is in one row, one column, one bank, one rank; rows lie in banks, banks in ranks, in modules."""
        place = Geometry(host_pages=pages * 2, channels=8, modules=modules, ranks=ranks, banks=8, row_bytes=8192)
        hfn = data.draw(st.integers(0, place.pages - 1))
        sets = {mode: set(place.frames(mode, hfn).all().tolist()) for mode in MODES}
        assert {hfn} == sets["bit"] == sets["word"]
        assert sets["bit"] == sets["row"] & sets["column"]
        assert sets["row"] | sets["column"] <= sets["bank"]
        assert sets["bank"] <= sets["multi-bank"] <= sets["multi-rank"]
        assert max(sets["multi-rank"]) < place.pages <= pages * 2
        other = data.draw(st.integers(0, place.pages - 1))
        for mode in MODES:
            again = set(place.frames(mode, other).all().tolist())
            assert again == sets[mode] if other in sets[mode] else not again & sets[mode]

    def test_a_host_too_small_for_its_modules_is_refused(self) -> None:
        with pytest.raises(BadInput, match="less than one row in each bank of 16 modules"):
            geometry(100, Modules())


class TestDiscovery:
    """When what is broken is read first."""

    def test_the_scrubber_comes_by_within_its_interval(self) -> None:
        faults = draw(5, faults=Rates(acceleration=300))
        waits = np.array([fault.discovered_ns - fault.t_ns for fault in faults])
        assert scrub_interval_ns() == 10_800 * 10**9
        assert all(fault.how == "scrub" for fault in faults)
        assert waits.min() >= 0
        assert waits.max() <= scrub_interval_ns()
        # For one page the wait is uniform: mean half the interval.
        single = waits[[fault.mode == "bit" for fault in faults]] / scrub_interval_ns()
        assert abs(single.mean() - 0.5) <= SIGMAS / math.sqrt(12 * single.size)

    def test_it_reads_memory_in_order_and_begins_anew(self) -> None:
        def wait(hfn: int, t: float) -> float:
            nanoseconds = scrub_wait_ns(Frames(hfn), int(t * scrub_interval_ns()), pages=1000, phase=0.25)
            return nanoseconds / scrub_interval_ns()

        assert wait(500, 0) == pytest.approx(0.25)
        assert wait(500, 7.125) == pytest.approx(0.125)
        assert wait(100, 0) == pytest.approx(0.85)
        whole = Frames(100, 16, 16)
        assert scrub_wait_ns(whole, 0, pages=1000, phase=0.105) == 0, "it is in the middle of the run"

    def test_the_host_may_be_first(self) -> None:
        """With a mean of a tenth of the interval: P(exponential < uniform) = 1 - 0.1 (1 - exp(-10)) for one page."""
        faults = draw(6, faults=Rates(acceleration=500), reread_ns=scrub_interval_ns() / 10)
        by_access = np.array([fault.how == "access" for fault in faults if fault.mode == "bit"])
        share = 1 - 0.1 * (1 - math.exp(-10))
        assert abs(by_access.mean() - share) <= SIGMAS * math.sqrt(share * (1 - share) / by_access.size)


class TestCorrection:
    """Chipkill corrects what one x4 device does; wider devices have single-bit correction."""

    def test_what_is_correctable(self) -> None:
        assert {mode for mode in MODES if not is_correctable(mode, "x4")} == {"multi-rank"}
        for width in ("x8", "x16"):
            assert {mode for mode in MODES if is_correctable(mode, width)} == {"bit"}

    def test_drawn_faults_say_so(self) -> None:
        faults = draw(7, faults=Rates(acceleration=100))
        assert all(fault.correctable == (fault.mode != "multi-rank") for fault in faults)
        assert any(not fault.correctable for fault in faults)


def test_frames_lie_in_the_host_and_faults_on_devices_of_their_rank() -> None:
    pages = 4 * 8 * 16 * 1000 + 77
    faults = draw(8, faults=Rates(acceleration=3000), pages=pages)
    place = geometry(pages, Modules())
    for fault in faults:
        assert 0 <= fault.frames.first < fault.frames.end <= pages
        rank = fault.device // 18 % 4
        first = place.rank_of(fault.frames.first)
        assert rank == first or (fault.mode == "multi-rank" and rank // 2 == first // 2)
    assert {fault.device // (18 * 4) for fault in faults} == set(range(8)), "all channels"
    assert len({fault.device for fault in faults}) > 560, "of 576, with nine faults to each"
    assert {fault.mode for fault in faults} == set(MODES)


def test_no_time_is_no_fault() -> None:
    assert draw(1, years=0) == []
