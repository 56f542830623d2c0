"""A chunk of accesses: where it is cut does not matter, and `again` is a repetition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translation.worlds import PAGE, World, busy, difference, toy
from vmmsim.jit import INTERPRETED
from vmmsim.spec import SpecCore, SpecTable
from vmmsim.translation import chunk as chunks
from vmmsim.translation.chunk import pack
from vmmsim.translation.page_table import WRITABLE
from vmmsim.translation.state import Exit

EXAMPLES = settings(max_examples=25 if INTERPRETED else 80)
PAGES = (PAGE, PAGE + 1, PAGE + 2, PAGE + 3, PAGE + 512)
RUNS = st.lists(
    st.tuples(st.sampled_from(PAGES), st.sampled_from([0, 1, 2]), st.integers(0, 63), st.integers(0, 9)),
    min_size=1, max_size=60,
)  # fmt: skip


def world_of(mode: str = "base") -> World:
    world = World(busy(), hierarchy=True).load(mode)
    for i, page in enumerate(PAGES[1:], start=1):
        world.map_guest(page, world.data + i)
    return world


def packed(runs: list[tuple[int, int, int, int]]) -> Any:
    page, kind, line, again = (np.array(column, np.int64) for column in zip(*runs, strict=True))
    return pack(page, kind == 1, is_fetch=kind == 2, line=line, again=again)


def state_of(world: World) -> tuple[Any, ...]:
    """Return all state that a run may change."""
    return world.engine.counters(), world.engine.contents(), world.engine.tables.entries.tobytes()


@EXAMPLES
@given(RUNS, st.lists(st.integers(0, 60), max_size=6), st.sampled_from(["base", "vmm-direct", "dual-direct"]))
def test_any_split_of_a_chunk_gives_the_same_state_and_misses(
    runs: list[tuple[int, int, int, int]], cuts: list[int], mode: str
) -> None:
    chunk = packed(runs)
    whole, parts = world_of(mode), world_of(mode)
    missed = np.zeros(chunk.size, np.int64)
    assert whole.engine.run(chunk, missed=missed).done == chunk.size
    listed: list[int] = []
    for part in np.split(chunk, sorted(min(cut, chunk.size) for cut in cuts)):
        before = parts.engine.counters()["l2_misses"]
        out = np.zeros(part.size, np.int64)
        assert parts.engine.run(part, missed=out).done == part.size
        listed += out[: parts.engine.counters()["l2_misses"] - before].tolist()
    assert state_of(whole) == state_of(parts)
    assert listed == missed[: whole.engine.counters()["l2_misses"]].tolist()


@EXAMPLES
@given(RUNS)
def test_again_is_a_repetition(runs: list[tuple[int, int, int, int]]) -> None:
    """All but its latency: `again`s do not go through the caches once more, and change nothing there."""
    short, long = world_of(), world_of()
    short.engine.run(packed(runs))
    repeated = [(page, kind, line, 0) for page, kind, line, again in runs for _ in range(1 + again)]
    long.engine.run(packed(repeated))
    change = difference(short.engine.counters(), long.engine.counters())
    extra = sum((3 if kind == 2 else 4) * again for _, kind, _, again in runs)
    assert change == ({"data_cycles": extra} if extra else {})
    assert short.engine.contents() == long.engine.contents()


@EXAMPLES
@given(RUNS)
def test_missed_names_the_pages_that_the_reference_misses(runs: list[tuple[int, int, int, int]]) -> None:
    world = world_of("native")
    core = SpecCore(world.engine.machine, hierarchy=True)
    table, frames = SpecTable(), iter(range(10_000, 10_100))
    for i, page in enumerate(PAGES):
        table.map(page, world.data + i, table_frames=frames)
    core.load(world.engine._cores[0].registers.mode, table, vpid=1, asid=1, eptp=1)
    expected = []
    for page, kind, line, again in runs:
        before = core.counters["l2_misses"]
        core.access(page, line=line, write=kind == 1, fetch=kind == 2, again=again)
        expected += [page] * (core.counters["l2_misses"] - before)
    missed = np.zeros(len(runs), np.int64)
    world.engine.run(packed(runs), missed=missed)
    assert world.engine.counters()["l2_misses"] == len(expected) > 0
    assert missed[: len(expected)].tolist() == expected


@pytest.mark.parametrize("at", [0, 1, 5, 6])
def test_a_run_stops_before_what_exits_and_goes_on_when_served(at: int) -> None:
    world, other = world_of(), world_of()
    pages = [PAGE, PAGE + 1, PAGE + 2, PAGE, PAGE + 3, PAGE + 1, PAGE]
    chunk = pack(pages)
    chunk[at] = pack(PAGE + 77)[0]
    outcome = world.engine.run(chunk)
    assert (outcome.done, outcome.exit, outcome.gvpn) == (at, Exit.GUEST_FAULT, PAGE + 77)
    assert world.engine.counters()["accesses"] == at
    for each in (world, other):
        each.map_guest(PAGE + 77, each.data + 77)
    assert world.engine.run(chunk[outcome.done :]).done == len(pages) - at
    assert other.engine.run(chunk).done == len(pages)
    served, never = state_of(world), state_of(other)
    assert difference(never[0], served[0]) == {"guest_faults": 1}
    assert served[1:] == never[1:]


def test_an_empty_chunk_changes_nothing() -> None:
    world = world_of()
    before = state_of(world)
    assert world.engine.run(np.empty(0, np.int64)).exit is Exit.DONE
    assert state_of(world) == before


def test_missed_may_be_left_out_but_not_be_of_another_length() -> None:
    world = world_of()
    with pytest.raises(AssertionError, match="a place for each run"):
        world.engine.run(pack([PAGE, PAGE]), missed=np.zeros(1, np.int64))


def test_a_rewalk_is_no_miss_and_is_not_listed() -> None:
    world = World(toy()).load("base")
    missed = np.zeros(2, np.int64)
    world.engine.run(pack([PAGE, PAGE], [0, 1]), missed=missed)
    assert world.engine.counters()["rewalks"] == 1
    assert missed.tolist() == [PAGE, 0]


@given(
    st.integers(0, (1 << 45) - 1), st.booleans(), st.booleans(), st.integers(0, 63), st.integers(0, chunks.AGAIN_MAX)
)  # fmt: skip
def test_a_packed_access_tells_what_was_packed(page: int, write: bool, fetch: bool, line: int, again: int) -> None:
    chunk = pack(page, write, is_fetch=fetch, line=line, again=again)
    assert chunk.dtype == np.int64
    assert chunk[0] >= 0
    assert chunks.gvpn_of(chunk)[0] == page
    assert chunks.again_of(chunk)[0] == again
    assert chunks.accesses_in(chunk) == 1 + again
    assert (int(chunk[0]) & chunks.WRITE != 0, int(chunk[0]) & chunks.FETCH != 0) == (write, fetch)
    assert int(chunk[0]) >> chunks.LINE_SHIFT & chunks.FIELD_MASK_LINE == line


def test_arguments_are_broadcast() -> None:
    assert pack([1, 2, 3], True).tolist() == [(page << chunks.GVPN_SHIFT) | chunks.WRITE for page in (1, 2, 3)]


def test_reading_a_page_that_may_not_be_written_goes_on() -> None:
    world = world_of()
    world.guest.protect(PAGE + 1, clear_flags=WRITABLE)
    assert world.engine.run(pack([PAGE, PAGE + 1, PAGE + 1], [1, 0, 1])).exit is Exit.GUEST_WRITE
