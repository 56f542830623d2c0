"""Watermarks and fragmentation: Linux's formulae against worked values and arithmetic of another kind."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vmmsim.memory.fragmentation import Fragmentation, extfrag, fragmentation_index, unusable_index
from vmmsim.memory.frames import PAGEBLOCK, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.survey import Column
from vmmsim.memory.watermarks import min_free_pages, most_boost, watermarks
from vmmsim.rates import entry, number, source, sure, table

GIB = 1 << 18
"""Pages of a GiB."""

WORKED = (
    (4, 8.0, 12.1, 16.2),
    (16, 16.0, 32.4, 48.8),
    (64, 32.0, 97.5, 163.1),
    (128, 45.3, 176.3, 307.4),
    (256, 64.0, 326.1, 588.3),
    (1024, 128.0, 1176.6, 2225.2),
)
"""GiB managed, then min, low and high in MiB: dynamics.md 1.2."""

BLOCKS = st.lists(st.integers(0, 5000), min_size=11, max_size=11)


@pytest.mark.parametrize(("gib", "least", "low", "high"), WORKED)
def test_watermarks_are_the_worked_values(gib: int, least: float, low: float, high: float) -> None:
    # dynamics.md, target 22
    marks = watermarks(gib * GIB)
    # The table rounds MiB to tenths; Linux rounds each step down to whole pages.
    for mark, worked in ((marks.min, least), (marks.low, low), (marks.high, high)):
        assert abs(mark / 256 - worked) <= 0.05 + 2 / 256


@given(st.integers(1, 1 << 31))
def test_min_free_is_the_root_of_sixteen_times_the_kib_within_its_bounds(pages: int) -> None:
    kib = 4 * min_free_pages(pages)
    assert 128 <= kib <= 262144
    exact = math.sqrt(16 * 4 * pages)
    if 140 < exact < 262000:
        assert exact - 5 < kib <= exact


def test_parts_share_the_watermarks_by_their_size() -> None:
    memory = Memory(16 * GIB, name="parts", kernelcore=4 * GIB)
    least, low, high = memory.zone.watermark
    assert least.tolist() == [1024, 3072]
    assert memory.watermarks.min == watermarks(16 * GIB).min == 4096
    assert low.tolist() == [1024 + GIB * 4 // 1000, 3072 + GIB * 12 // 1000]
    assert (high - low).tolist() == (low - least).tolist()


def test_boosting_adds_at_most_half_as_much_again_as_high() -> None:
    assert most_boost(10_000, GIB) == 15_000
    assert most_boost(100, GIB) == PAGEBLOCK
    assert most_boost(10_000, 4 * PAGEBLOCK - 1) == 0


@given(BLOCKS, st.integers(0, 10))
def test_fragmentation_measures_equal_exact_fractions(blocks: list[int], order: int) -> None:
    sizes = [1 << size for size in range(11) for _ in range(blocks[size])]
    free, usable = sum(sizes), sum(size for size in sizes if size >= 1 << order)
    # In rational numbers; Linux divides in integers, which may lose less than one at each division.
    if not sizes:
        assert fragmentation_index(blocks, order) == 0
        assert extfrag(blocks, order) == unusable_index(blocks, order) == 0
        return
    assert extfrag(blocks, order) == math.floor(Fraction(100 * (free - usable), free))
    assert unusable_index(blocks, order) == math.floor(Fraction(1000 * (free - usable), free))
    if usable:
        assert fragmentation_index(blocks, order) == -1000
    else:
        exact = 1000 - (1000 + Fraction(1000 * free, 1 << order)) / len(sizes)
        assert exact <= fragmentation_index(blocks, order) < exact + 2


def test_fragmentation_index_tells_splintered_from_short() -> None:
    assert fragmentation_index([1 << 15] + [0] * 10, 9) > 990
    assert fragmentation_index([0] * 8 + [1, 0, 0], 9) < 0 + 1000 // 2
    assert fragmentation_index([0] * 9 + [1, 0], 9) == -1000


def test_the_score_of_a_node_weighs_its_parts() -> None:
    nr_free = np.zeros((2, 11), np.int64)
    nr_free[0, 0], nr_free[1, 10] = 512, 1
    mixed = Fragmentation.of(nr_free, np.array([1000, 3000]))
    assert mixed.score == 100 * 1000 // 4001
    assert mixed.free_pages == 512 + 1024
    assert mixed.extfrag(9) == 33


def test_measures_of_a_memory_follow_what_is_taken() -> None:
    memory = Memory(64 * PAGEBLOCK, name="measured")
    assert memory.fragmentation().nr_free[10] == 32
    assert memory.fragmentation().score == 0
    assert memory.largest_free_run() == 64 * PAGEBLOCK
    frames = memory.take(64 * PAGEBLOCK, kind=Kind.USER, owner=3, floor=0)
    memory.give_back(frames[frames % PAGEBLOCK > 0])
    assert memory.fragmentation().nr_free.tolist() == [64] * 9 + [0, 0]
    assert memory.fragmentation().extfrag(9) == 100
    assert memory.largest_free_run() == PAGEBLOCK - 1
    assert memory.count(Kind.USER, owner=3) == memory.count(owner=3) == 64
    assert memory.owned(3).tolist() == list(range(0, 64 * PAGEBLOCK, PAGEBLOCK))
    assert (memory.survey(3)[:, Column.OWN] == 1).all()
    assert (memory.survey(2)[:, Column.OTHERS] == 1).all()
    assert (memory.survey(2).sum(axis=1) == PAGEBLOCK).all()


def test_a_survey_tells_each_frame_once() -> None:
    memory = Memory(3 * PAGEBLOCK, name="surveyed", holes=[(0, 20)])
    memory.take_range(20, 25, kind=Kind.USER, owner=1)
    memory.take_range(25, 31, kind=Kind.CACHE, owner=2)
    memory.take_range(31, 38, kind=Kind.SLAB)
    memory.pin([20])
    memory.retire([38, 39, 40])
    memory.isolate([25, 41], "someone")
    row = dict(zip(Column, memory.survey(1)[0].tolist(), strict=True))
    assert row == {
        Column.FREE: PAGEBLOCK - 42,
        Column.OTHERS: 5,
        Column.OWN: 4,
        Column.IMMOVABLE: 20 + 7 + 1,
        Column.BAD: 3,
        Column.ISOLATED: 2,
    }


def test_a_large_memory_costs_nothing_until_it_is_used() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = Memory(1 << 28, name="1 TiB", kernelcore=1 << 25, holes=[(3 << 18, 1 << 20)])
    assert memory.free_pages == (1 << 28) - (1 << 18)
    assert memory.fragmentation().score == 0
    assert memory.find_free_run(1 << 27) == 1 << 20
    assert memory.count(Kind.HOLE) == 1 << 18
    assert memory.kinds([0, 3 << 18, (1 << 20) - 1, 1 << 20]).tolist() == [Kind.FREE, Kind.HOLE, Kind.HOLE, Kind.FREE]
    memory.take(1000, kind=Kind.USER, owner=1)
    memory.take(1000, kind=Kind.KERNEL, owner=1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # The records would be 3 GiB. ru_maxrss counts KiB on Linux and bytes on macOS, so the bound is a generous one.
    assert grown < 200 * 1024 * (1024 if grown > 1 << 22 else 1)


def test_every_number_has_a_value_a_source_and_a_degree() -> None:
    def numbers(part: dict[str, object], path: str) -> list[str]:
        if "value" in part:
            return [path]
        return [
            found for key, inner in part.items() if isinstance(inner, dict) for found in numbers(inner, f"{path}.{key}")
        ]

    paths = [path.removeprefix(".") for path in numbers(table(), "")]
    assert len(paths) > 30
    for path in paths:
        assert sure(path) in {"read", "derived", "recalled", "assumed"}
        assert source(path)
        assert "value" in entry(path)
    assert number("compaction.cluster_pages") == 32
    with pytest.raises(KeyError):
        number("compaction.no_such_number")
