"""The traces in scenarios/traces: whole, small, and what their page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmsim.workloads.parquet import ParquetTrace
from vmmsim.workloads.trace import open_trace

TRACES = sorted((Path(__file__).parents[2] / "scenarios" / "traces").glob("*.parquet"))


ACCESSES = {"compiler": 16_000_000, "database": 16_000_000, "graph500": 4_900_000, "python": 16_000_000}


def test_there_are_four():
    assert [path.stem for path in TRACES] == sorted(ACCESSES)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_shipped_trace_is_small_whole_and_says_nothing_of_the_machine_it_was_made_on(path):
    assert path.stat().st_size < 3_000_000
    trace = open_trace(path)
    assert isinstance(trace, ParquetTrace)
    assert "/" not in trace.about.command
    assert trace.about.recorded_as == "lackey"
    counts = trace.counts()
    assert counts.accesses == ACCESSES[path.stem]
    assert counts.data_pages > 500
    assert sum(chunk.size for chunk in trace.chunks("all")) == counts.runs
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()
