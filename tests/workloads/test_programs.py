"""Models of programs: seekable, exact while they begin, and in their random part as likely as they should be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.descriptions import PAGES, built, small
from vmmsim.jit import INTERPRETED
from vmmsim.protocols import Workload
from vmmsim.testing import check_workload
from vmmsim.workloads import phased
from vmmsim.workloads.graph500 import Graph500
from vmmsim.workloads.kernel_build import TURN, KernelBuild
from vmmsim.workloads.memcached import Memcached
from vmmsim.workloads.programs import PROGRAMS, numbers
from vmmsim.workloads.touching import LINES, first_of_each

SIGMAS = 5
ROUND = 3 * TURN
"""Accesses after which each of three jobs has had its turn."""
N = ROUND if INTERPRETED else 120 * ROUND
NAMES = sorted(PAGES)

every_program = pytest.mark.parametrize("name", NAMES)


def test_all_programs_are_tested():
    assert sorted(PROGRAMS) == NAMES


@every_program
def test_it_keeps_the_contract(name):
    if INTERPRETED and name != "gups":
        pytest.skip("takes minutes without compilation")
    check_workload(small(name))


@every_program
def test_regions_are_disjoint_and_only_big_memory_programs_have_a_primary_one(name):
    regions = small(name).regions
    assert all(before.end <= after.start for before, after in pairwise(regions))
    assert sum(region.pages for region in regions) == PAGES[name]
    assert sum(region.primary for region in regions) == (name in ("gups", "memcached", "graph500"))


@every_program
@given(data=st.data())
def test_a_stream_cut_anywhere_is_the_same(name, data):
    workload = small(name)
    x = data.draw(st.integers(0, 3 * workload.begins) | st.integers(10**11, 10**11 + 5000))
    n = data.draw(st.integers(0, 120))
    cut = data.draw(st.integers(0, n))
    vcpu = data.draw(st.integers(0, 3))
    whole = workload.stream(x, n, vcpu)
    second = workload.stream(x + cut, n - cut, vcpu)
    first = workload.stream(x, cut, vcpu)
    for part in (0, 1):
        assert np.array_equal(whole[part], np.concatenate([first[part], second[part]]))


@every_program
@given(data=st.data())
def test_every_page_is_touched_once_at_first_however_spans_are_cut(name, data):
    workload = small(name)
    cuts = data.draw(st.lists(st.integers(1, workload.begins - 1), max_size=12))
    every = np.concatenate([np.arange(region.start, region.end) for region in workload.regions])
    seen: set[int] = set()
    order = []
    for x0, x1 in pairwise(sorted({0, workload.begins, *cuts})):
        read, written = workload.touched(x0, x1)
        assert read.size == 0
        assert np.array_equal(written, first_of_each(workload.stream(x0, x1 - x0)[0]))
        order += [page for page in written.tolist() if page not in seen]
        seen.update(written.tolist())
    assert order == every.tolist()


@every_program
def test_a_page_is_begun_by_a_write_to_each_of_its_lines(name):
    workload = small(name)
    assert workload.begins == PAGES[name] * LINES
    pages, writes = workload.stream(0, workload.begins)
    assert writes.all()
    assert (np.unique(pages, return_counts=True)[1] == LINES).all()


@every_program
@pytest.mark.parametrize("n", [300, 3000])
def test_short_spans_touch_what_the_stream_touches(name, n):
    workload = small(name)
    for x in (workload.begins, workload.begins - n // 2, workload.begins + 10**9):
        pages, writes = workload.stream(x, n)
        read, written = workload.touched(x, x + n)
        assert np.array_equal(read, first_of_each(pages[~writes]))
        assert np.array_equal(written, first_of_each(pages[writes]))


def probabilities(workload: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability that an access reads, and writes, each page of the regions, by the models' own account."""
    pages = np.concatenate([np.arange(region.start, region.end) for region in workload.regions])
    both = np.zeros((2, pages.size))
    for piece in workload.pieces(0, 1):
        where = np.searchsorted(pages, piece.start) + np.arange(piece.pages)
        both[0, where] += piece.reads
        both[1, where] += piece.writes
    return both[0], both[1]


@every_program
def test_accesses_fall_on_pages_as_likely_as_the_model_says(name):
    """Counts of accesses of each page: chi-square within 5 standard deviations of its mean."""
    if name == "graph500":
        pytest.skip("the edges are met in stretches; its parents have a test of their own")
    workload = small(name, **({"accesses_per_job": 10**9} if name == "kernel-build" else {}))
    first = workload.regions[0].start
    starts = np.array([region.start for region in workload.regions])
    before = np.concatenate([[0], np.cumsum([region.pages for region in workload.regions])])
    pages, writes = workload.stream(workload.begins, N)
    region = np.searchsorted(starts, pages, side="right") - 1
    index = pages - starts[region] + before[region]
    assert first <= pages.min()
    for kind, likely in zip((~writes, writes), probabilities(workload), strict=True):
        expected = likely * N
        counts = np.bincount(index[kind], minlength=PAGES[name])
        assert (counts[expected == 0] == 0).all()
        many = expected > 5
        if many.sum() > 1:
            chi = ((counts - expected)[many] ** 2 / expected[many]).sum()
            assert abs(chi - many.sum()) < SIGMAS * np.sqrt(2 * many.sum())


@every_program
def test_long_spans_touch_as_many_pages_as_the_closed_form_says(name, monkeypatch):
    """Page i with probability 1 - exp(-p_i n), independently: sums over 40 spans within 5 standard deviations."""
    monkeypatch.setattr(phased, "SHORT", 0)
    workload = small(name, **({"accesses_per_job": 10**9} if name == "kernel-build" else {}))
    likely = probabilities(workload)
    for n in (20, 150, 4000):
        sums = np.zeros(2)
        for k in range(40):
            x = workload.begins + 5000 * k
            sums += [part.size for part in workload.touched(x, x + n)]
        for kind in (0, 1):
            share = -np.expm1(-likely[kind] * n)
            mean, deviation = 40 * share.sum(), np.sqrt(40 * (share * (1 - share)).sum())
            assert abs(sums[kind] - mean) <= SIGMAS * deviation + 1e-3, f"{n} accesses, kind {kind}"


@every_program
def test_long_spans_touch_as_many_pages_as_the_stream_does(name, monkeypatch):
    """Means over 30 spans differ by less than 5 standard errors, and 2 % for what 1 - exp(-p n) is not exact in."""
    factor = 1 if INTERPRETED else 20
    workload = small(name, factor=factor, **({"accesses_per_job": 10**9} if name == "kernel-build" else {}))
    n = ROUND if name == "kernel-build" else 60 if INTERPRETED else 1500
    differences = []
    for k in range(30):
        x = workload.begins + 11 * n * k
        pages, writes = workload.stream(x, n)
        streamed = [np.unique(pages[kind]).size for kind in (~writes, writes)]
        with monkeypatch.context() as patch:
            patch.setattr(phased, "SHORT", 0)
            drawn = [part.size for part in workload.touched(x, x + n)]
        differences.append(np.subtract(drawn, streamed))
    mean, error = np.mean(differences, axis=0), np.std(differences, axis=0, ddof=1) / np.sqrt(30)
    assert (np.abs(mean) <= SIGMAS * error + 0.02 * n).all()


@every_program
def test_a_shorter_span_touches_the_first_of_the_pages(name, monkeypatch):
    monkeypatch.setattr(phased, "SHORT", 0)
    workload = small(name, **({"accesses_per_job": 10**9} if name == "kernel-build" else {}))
    x = workload.begins + 12_345
    for kind in (0, 1):
        longer, shorter = workload.touched(x, x + 400)[kind], workload.touched(x, x + 90)[kind]
        assert shorter.size <= longer.size
        if name != "graph500" or kind == 1:
            assert np.array_equal(longer[: shorter.size], shorter)
        assert set(shorter) <= set(longer)


@every_program
def test_what_is_touched_among_some_pages_is_what_is_touched(name, monkeypatch):
    workload = small(name)
    every = np.concatenate([np.arange(region.start, region.end) for region in workload.regions])
    some = every[::3][::-1]
    for short in (phased.SHORT, 0):
        monkeypatch.setattr(phased, "SHORT", short)
        for x0, x1 in ((0, 640), (100, 130), (workload.begins - 300, workload.begins + 300), (10**9, 10**9 + 700)):
            told = workload.touched(x0, x1)
            for pages, flags in zip(told, workload.touched_among(some, x0, x1), strict=True):
                assert np.array_equal(flags, np.isin(some, pages))


def test_a_span_so_long_that_all_is_touched_is_told_without_drawing():
    workload = small("gups")
    x = workload.begins
    assert np.array_equal(np.sort(workload.touched(x, x + 10**9)[1]), np.arange(*region_of(workload)))
    assert workload.touched_among(np.array([region_of(workload)[0]]), x, x + 10**9)[1].all()


def region_of(workload: Workload) -> tuple[int, int]:
    return workload.regions[0].start, workload.regions[0].end


def test_vms_seeds_and_vcpus_draw_differently_and_vms_of_the_same_name_alike():
    def first(vcpu: int = 0, **keys: Any) -> list[int]:
        workload = built(name="gups", footprint_bytes=1 << 22, **keys)
        return workload.stream(workload.begins, 50, vcpu)[0].tolist()

    assert first() == first()
    draws = [first(), first(vm="web"), first(seed=2), first(vcpu=1)]
    assert all(one != other for n, one in enumerate(draws) for other in draws[:n])


def test_all_vcpus_begin_alike():
    workload = small("gups")
    assert np.array_equal(workload.stream(100, 500, 0)[0], workload.stream(100, 500, 3)[0])


DIGEST = """
import hashlib, sys
import numpy as np
from vmmsim.jit import INTERPRETED
from tests.workloads.descriptions import PAGES, small
from vmmsim.workloads import phased
digest = hashlib.sha256()
for short in (phased.SHORT, 0):
    phased.SHORT = short
    for name in sorted(PAGES):
        workload = small(name)
        b = workload.begins
        for x, n in ((b - 20, 60), (10**12 + 7, 40)):
            freed = np.array(workload.frees(x, x + 10**5))
            for array in (*workload.stream(x, n), *workload.touched(x, x + 3 * n), freed):
                digest.update(array.astype(np.int64).tobytes())
print(INTERPRETED, digest.hexdigest())
"""


def test_compiled_and_interpreted_agree_on_every_draw():
    results = {}
    for interpreted in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": interpreted}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        how, digest = done.stdout.split()
        results[how] = digest
    assert len(results) == 2
    assert results["True"] == results["False"]


# Each program's own


def test_gups_writes_all_of_its_table_uniformly():
    workload = small("gups")
    pages, writes = workload.stream(workload.begins, N)
    assert writes.all()
    counts = np.bincount(pages - region_of(workload)[0], minlength=100)
    assert abs(((counts - N / 100) ** 2 / (N / 100)).sum() - 99) < SIGMAS * np.sqrt(2 * 99)


def test_gups_uses_its_scratch_memory_as_it_uses_its_table():
    workload = built(name="gups", footprint_bytes=100 << 12, parameters={"scratch_share": 0.25})
    table, scratch = workload.regions
    assert (table.pages, table.primary, scratch.pages, scratch.primary) == (75, True, 25, False)
    pages, _ = workload.stream(workload.begins, N)
    beside = (pages >= scratch.start) & (pages < scratch.end)
    assert np.all(beside | ((pages >= table.start) & (pages < table.end)))
    assert abs(beside.sum() - N / 4) < SIGMAS * np.sqrt(N * 3 / 16)
    every = np.concatenate([np.arange(region.start, region.end) for region in workload.regions])
    for x0 in (0, workload.begins):
        assert np.array_equal(np.sort(workload.touched(x0, x0 + 10**9)[1]), every)


def test_memcached_looks_in_the_table_and_then_at_the_item():
    workload = small("memcached")
    assert isinstance(workload, Memcached)
    pages, writes = workload.stream(workload.begins, 2000)
    edge = region_of(workload)[0] + workload.table_pages
    assert (pages[::2] < edge).all()
    assert (pages[1::2] >= edge).all()
    assert np.array_equal(writes[::2], writes[1::2])


def test_memcached_sets_one_value_for_thirty_that_it_gets():
    workload = small("memcached")
    sets = workload.stream(workload.begins, N)[1].sum() / 2
    share = 1 / 31
    assert abs(sets - share * N / 2) < SIGMAS * np.sqrt(share * (1 - share) * N / 2)


def test_half_of_memcacheds_keys_take_one_percent_of_the_requests():
    workload = small("memcached")
    assert isinstance(workload, Memcached)
    each = np.repeat(workload.ranks.each, np.diff(workload.ranks.bounds))
    assert each.size == workload.items
    assert np.sort(each)[: each.size // 2].sum() == pytest.approx(0.01, rel=0.02)


def test_memcacheds_pages_differ_less_than_its_keys():
    workload = small("memcached", factor=10)
    assert isinstance(workload, Memcached)
    keys = np.repeat(workload.ranks.each, np.diff(workload.ranks.bounds))
    items = workload.rates()[workload.table_pages :]

    def share_of_top_tenth(weights: np.ndarray) -> float:
        return float(np.sort(weights)[-(weights.size // 10) :].sum() / weights.sum())

    assert share_of_top_tenth(items) < share_of_top_tenth(keys)


def test_graph500_reads_edges_in_stretches_and_a_parent_for_each():
    workload = small("graph500", factor=20)
    assert isinstance(workload, Graph500)
    start, end = region_of(workload)
    edges, parents = start + workload.vertex_pages, end - workload.vertex_pages
    pages, writes = workload.stream(workload.begins, N)
    assert (pages[1::2] >= parents).all()
    assert (pages[::2] < parents).all()
    assert not writes[::2].any()
    found, share = writes[1::2].sum(), 1 / 32
    assert abs(found - share * N / 2) < SIGMAS * np.sqrt(share * (1 - share) * N / 2)
    lists = pages[::2]
    inside = lists[lists >= edges]
    assert (np.diff(inside) == 0).mean() > 0.9, "most edges lie in the page of the one before"


def test_graph500s_lists_are_as_long_as_those_of_a_generated_graph():
    """Edges by the length of the list they lie in, against a graph generated edge by edge."""
    workload = small("graph500", factor=20)
    assert isinstance(workload, Graph500)
    random = np.random.default_rng(1)
    scale, edges = workload.scale, 16 << workload.scale
    quadrant = random.choice(4, (scale, edges), p=[0.57, 0.19, 0.19, 0.05])
    ends = np.concatenate([(quadrant >> bit & 1).T @ (1 << np.arange(scale)) for bit in (0, 1)])
    degrees = np.bincount(ends)
    logs = np.clip(np.round(np.log2(np.maximum(degrees, 1))), 1, 10).astype(int)
    generated = np.bincount(logs, weights=degrees, minlength=11)[1:] / degrees.sum()
    assert np.abs(np.cumsum(generated) - np.cumsum(workload._lengths.weight)).max() < 0.06


def test_graph500s_parents_are_met_as_often_as_their_vertices_have_edges():
    """Counts by page: chi-square within 5 standard deviations; and the hottest vertex has the share that R-MAT says."""
    workload = small("graph500", factor=20)
    assert isinstance(workload, Graph500)
    pages = workload.stream(workload.begins, N)[0][1::2]
    likely = 2 * workload.parents().astype(np.float64)
    assert likely.sum() == pytest.approx(1, abs=1e-6)
    counts = np.bincount(pages - (region_of(workload)[1] - workload.vertex_pages), minlength=likely.size)
    expected = likely * N / 2
    assert abs(((counts - expected) ** 2 / expected).sum() - likely.size) < SIGMAS * np.sqrt(2 * likely.size)
    assert likely.max() > 0.76**workload.scale
    one_bit = sum(comb(workload.scale, k) * 0.76 ** (workload.scale - k) * 0.24**k for k in range(2))
    assert np.sort(likely)[-workload.scale - 1 :].sum() > one_bit


def test_web_is_zipf_over_all_its_pages():
    workload = small("web")
    pages, writes = workload.stream(workload.begins, N)
    exact = np.arange(1, 91) ** -0.9
    counts = np.sort(np.unique(pages, return_counts=True)[1])[::-1]
    top = counts[:9].sum() / N
    share = exact[:9].sum() / exact.sum()
    assert abs(top - share) < SIGMAS * np.sqrt(share * (1 - share) / N) + 0.02
    assert abs(writes.mean() - 0.25) < SIGMAS * np.sqrt(0.25 * 0.75 / N)
    assert workload.churn.cache_pages_per_s > 0


class TestKernelBuild:
    """Jobs that end, are freed, and are followed by others."""

    def test_each_job_touches_all_its_pages_in_order_after_the_one_before_is_freed(self):
        workload = small("kernel-build")
        frees = workload.frees(workload.begins, workload.begins + 100_000)
        assert len(frees) > 6
        for x, slot in frees[:6]:
            region = workload.regions[slot]
            pages, writes = workload.stream(x, 3 * (region.pages * LINES + 2 * TURN))
            mine = (pages >= region.start) & (pages < region.end)
            begun = pages[mine][: region.pages * LINES]
            assert np.array_equal(begun, np.repeat(np.arange(region.start, region.end), LINES))
            assert writes[mine][: region.pages * LINES].all()
            assert pages[0] == region.start

    def test_a_slot_is_freed_once_a_life(self):
        workload = small("kernel-build")
        assert isinstance(workload, KernelBuild)
        frees = workload.frees(0, workload.begins + 40 * workload.life)
        for slot in range(3):
            times = [x for x, which in frees if which == slot]
            assert abs(len(times) - 40 / 3) <= 1
            assert (np.diff(times) == 3 * workload.life).all()

    def test_no_two_slots_end_at_once(self):
        frees = small("kernel-build").frees(0, 10**6)
        assert len({x for x, _ in frees}) == len(frees)

    @given(cuts=st.lists(st.integers(1, 299_999), max_size=5))
    def test_frees_are_the_same_however_spans_are_cut(self, cuts):
        workload = small("kernel-build")
        edges = sorted({0, 300_000, *cuts})
        parts = [free for x0, x1 in pairwise(edges) for free in workload.frees(x0, x1)]
        assert parts == workload.frees(0, 300_000)

    def test_nothing_is_freed_while_it_begins(self):
        workload = small("kernel-build")
        assert workload.frees(0, workload.begins) == []

    @pytest.mark.parametrize("n", [500, 3000, 20_000])
    def test_first_touches_of_a_job_are_told_exactly_in_long_spans_too(self, n, monkeypatch):
        """What the scan of a new job touches stands in ``touched``, and in its order, drawn pages apart."""
        monkeypatch.setattr(phased, "SHORT", 0)
        workload = small("kernel-build", jobs=1)
        region = workload.regions[0]
        begin = workload.frees(workload.begins, workload.begins + 50_000)[0][0]
        for x in (begin, begin + 100):
            end = min(x + n, begin + region.pages * LINES)
            scanned = first_of_each(workload.stream(x, end - x)[0])
            written = workload.touched(x, x + n)[1]
            assert np.array_equal(written[: scanned.size], scanned)

    def test_several_slots_take_turns_in_beginning(self, monkeypatch):
        monkeypatch.setattr(phased, "SHORT", 0)
        workload = small("kernel-build")
        begin, slot = workload.frees(workload.begins, workload.begins + 50_000)[0]
        region = workload.regions[slot]
        for n in (TURN, 3 * TURN, 3 * TURN + 100, 4 * TURN):
            pages, _ = workload.stream(begin, n)
            exact = first_of_each(pages[(pages >= region.start) & (pages < region.end)])
            written = workload.touched(begin, begin + n)[1]
            mine = written[(written >= region.start) & (written < region.end)]
            assert np.array_equal(mine, exact)


@every_program
def test_every_number_has_a_source(name):
    known = numbers(name)
    assert {"ideal_cycles", "share_of_memory"} <= set(known)
    for number in known.values():
        assert number.source.source
        assert number.source.sure in ("read", "derived", "recalled", "assumed")


def test_a_digest_tells_two_programs_apart():
    def digest(name: str) -> str:
        workload = small(name)
        return hashlib.sha256(json.dumps(workload.stream(workload.begins, 100)[0].tolist()).encode()).hexdigest()

    assert len({digest(name) for name in NAMES}) == len(NAMES)
