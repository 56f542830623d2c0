"""A trace as a workload against the obvious: a list of its accesses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED
from vmmsim.protocols import Region
from vmmsim.scenarios_folder import shipped_traces
from vmmsim.testing import check_workload
from vmmsim.translation.chunk import FETCH, WRITE, again_of, gvpn_of
from vmmsim.translation.costs import numbers
from vmmsim.workloads.recorded import TraceWorkload, held
from vmmsim.workloads.regions import REGION_GAP, regions_of
from vmmsim.workloads.trace import open_trace

BASES = (0x400, 0x401, 0x7000, 0x7001, 0x7002)
"""Pages of a toy program: two of code (of which one is read too), three of data."""


def trace_of(operations: list[tuple[str, int, int]], folder: Path) -> Path:
    """Write a trace of lackey's: operation, page, line."""
    path = folder / "toy.lackey"
    text = (f"{'I ' if op == 'I' else ' ' + op} {(page << 12) + 64 * line:08x},4\n" for op, page, line in operations)
    path.write_text("".join(text))
    return path


def accesses_of(path: Path) -> list[tuple[int, bool]]:
    """Return page and is-write of each data access, one by one, from the trace's runs."""
    runs = np.concatenate(list(open_trace(path).chunks("data")))
    return [
        (int(page), bool(run & WRITE))
        for run, page, more in zip(runs, gvpn_of(runs), again_of(runs), strict=True)
        for _ in range(more + 1)
    ]


def first_touches(accesses: list[tuple[int, bool]], is_write: bool) -> list[int]:
    return list(dict.fromkeys(page for page, write in accesses if write == is_write))


operations = st.lists(
    st.tuples(st.sampled_from("LSMI"), st.sampled_from(BASES), st.integers(0, 2)), min_size=1, max_size=60
).filter(lambda found: any(op != "I" for op, _, _ in found))


@given(operations=operations, repeat=st.booleans(), data=st.data())
def test_any_span_of_a_trace_is_what_the_trace_says(operations, repeat, data, tmp_path_factory):
    path = trace_of(operations, tmp_path_factory.mktemp("traces"))
    exact = accesses_of(path)
    assert len(exact) == sum(op != "I" for op, _, _ in operations)
    workload = TraceWorkload(open_trace(path), repeat=repeat)
    assert workload.length == (None if repeat else len(exact))
    x = data.draw(st.integers(0, 3 * len(exact)))
    n = data.draw(st.integers(0, 3 * len(exact)))
    wanted = [exact[i % len(exact)] for i in range(x, x + n) if repeat or i < len(exact)]
    pages, writes = workload.stream(x, n)
    assert list(zip(pages.tolist(), writes.tolist(), strict=True)) == wanted
    read, written = workload.touched(x, x + n)
    assert read.tolist() == first_touches(wanted, is_write=False)
    assert written.tolist() == first_touches(wanted, is_write=True)
    asked = np.array([*sorted({page for page, _ in exact}), 5])
    among = workload.touched_among(asked, x, x + n)
    assert [flags.tolist() for flags in among] == [np.isin(asked, part).tolist() for part in (read, written)]


@given(operations=operations, cut=st.integers(0, 60))
def test_chunks_hold_the_same_accesses_with_their_lines(operations, cut, tmp_path_factory):
    path = trace_of(operations, tmp_path_factory.mktemp("traces"))
    workload = TraceWorkload(open_trace(path))
    assert workload.length is not None
    whole = np.concatenate(list(open_trace(path).chunks("data")))
    assert np.array_equal(workload.chunk(0, workload.length), whole)
    cut = min(cut, workload.length)
    parts = np.concatenate([workload.chunk(0, cut), workload.chunk(cut, workload.length)])
    spread = [np.repeat(runs & ~(1023 << 2), again_of(runs) + 1) for runs in (whole, parts)]
    assert np.array_equal(*spread)


@given(operations=operations)
def test_regions_are_disjoint_and_hold_every_page(operations, tmp_path_factory):
    path = trace_of(operations, tmp_path_factory.mktemp("traces"))
    workload = TraceWorkload(open_trace(path))
    inside: set[int] = set()
    for region in workload.regions:
        pages = set(range(region.start, region.end))
        assert not pages & inside
        inside |= pages
    assert {page for page, _ in accesses_of(path)} <= inside
    assert sum(region.primary for region in workload.regions) <= 1
    code = {page for op, page, _ in operations if op == "I"}
    for region in workload.regions:
        if region.primary:
            assert not code & set(range(region.start, region.end))


def test_regions_end_where_16_mib_are_not_touched_and_at_code():
    pages = np.array([10, 11, 12, 13, 14, 15, 15 + REGION_GAP, 16 + 2 * REGION_GAP])
    found = [(region.start, region.end, region.primary) for region in regions_of(pages, np.array([9, 12]))]
    assert found == [
        (10, 12, False),
        (12, 13, False),
        (13, 16 + REGION_GAP, True),
        (16 + 2 * REGION_GAP, 17 + 2 * REGION_GAP, False),
    ]


def test_code_that_is_not_touched_as_data_is_in_no_region():
    assert regions_of(np.array([5]), np.array([7])) == (Region("data at 0x5000", 5, 1, primary=True),)


@pytest.mark.parametrize("name", ["graph500"] if INTERPRETED else sorted(shipped_traces()))
@pytest.mark.parametrize("repeat", [False, True])
def test_shipped_traces_keep_the_contract(name, repeat):
    if INTERPRETED and repeat:
        pytest.skip("the same without it, and slow")
    check_workload(TraceWorkload(held(shipped_traces()[name]), repeat=repeat))


def test_a_trace_is_read_once_for_all_who_run_it_and_again_when_it_changes(tmp_path):
    path = trace_of([("L", 5, 0), ("S", 6, 0)], tmp_path)
    assert held(path) is held(path)
    assert not held(path).runs.flags.writeable
    before = held(path).accesses
    trace_of([("L", 5, 0), ("S", 6, 0), ("S", 7, 0)], tmp_path)
    assert held(path).accesses == before + 1


def test_ideal_cycles_are_those_of_the_instructions_where_a_trace_holds_them(tmp_path):
    """One instruction a cycle: 3 fetches to 2 data accesses; else the constant for data accesses alone."""
    fetched = [("I", 0x400, 0), ("L", 5, 0), ("I", 0x400, 0), ("S", 6, 0), ("I", 0x400, 1)]
    assert TraceWorkload(open_trace(trace_of(fetched, tmp_path))).ideal_cycles == 1.5
    data = [("L", 5, 0), ("S", 6, 0)]
    constant = numbers()["ideal_cycles_per_data_access"].value
    assert TraceWorkload(open_trace(trace_of(data, tmp_path))).ideal_cycles == constant


def test_a_trace_without_data_accesses_is_refused(tmp_path):
    path = trace_of([("I", 0x400, 0)], tmp_path)
    with pytest.raises(BadInput, match="holds no data accesses"):
        held(path)


def test_fetches_are_not_among_the_accesses():
    path = shipped_traces()["graph500"]
    workload = TraceWorkload(held(path))
    counts = open_trace(path).counts()
    assert workload.length == counts.reads + counts.writes + counts.modifies + counts.data_crossings
    assert not (workload.chunk(0, 10_000) & FETCH).any()
