"""A set of ways in recency order, against a plain list; and every noted change against its undoing."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.translation.worlds import toy
from vmmsim.jit import kernel
from vmmsim.translation import recency, state
from vmmsim.translation.journal import roll_back

AT = 3
"""Where the set lies: what is beside it must not change."""
STEPS = st.lists(st.tuples(st.sampled_from(["touch", "drop", "put", "put"]), st.integers(1, 6)), max_size=30)


@kernel
def find(cells: Any, at: int, ways: int, key: int) -> int:
    return recency.find(cells, at, ways, key)


@kernel
def touch(cells: Any, at: int, ways: int, key: int) -> None:
    recency.touch(cells, at, ways, key)


@kernel
def put(cells: Any, at: int, ways: int, key: int, value: int) -> tuple[int, int, int]:
    return recency.put(cells, at, ways, key, value)


@kernel
def touch_noted(core: Any, cells: Any, at: int, ways: int, way: int) -> None:
    recency.touch_noted(core, cells, at, ways, way)


@kernel
def put_noted(core: Any, cells: Any, at: int, ways: int, key: int, value: int) -> None:
    recency.put_noted(core, cells, at, ways, key, value)


def cells_for(ways: int, held: list[tuple[int, int]], *, values: bool = True) -> Any:
    """Return cells with the set at AT, and something else around it."""
    empty = [(0, 0)] * (ways - len(held))
    keys, its_values = zip(*held, *empty, strict=True)
    return np.array([71, 72, 73, *keys, *(its_values if values else ()), 74, 75], np.int64)


@given(st.integers(1, 4), STEPS)
def test_a_set_is_a_list_that_keeps_the_most_recently_used(ways: int, steps: list[tuple[str, int]]) -> None:
    held: list[tuple[int, int]] = []
    cells = cells_for(ways, held)
    for number, (step, key) in enumerate(steps):
        where = [each for each, _ in held].index(key) if key in dict(held) else -1
        assert find(cells, AT, ways, key) == where
        if step == "touch" and where >= 0:
            touch(cells, AT, ways, key)
            held.insert(0, held.pop(where))
        elif step == "drop" and where >= 0:
            recency.drop(cells, AT, ways, where)
            held.pop(where)
        elif step == "put":
            gave_way = held[where] if where >= 0 else held[-1] if len(held) == ways else (0, 0)
            place = where if where >= 0 else min(len(held), ways - 1)
            assert put(cells, AT, ways, key, 100 + number) == (place, *gave_way)
            held = [(key, 100 + number), *(each for each in held if each[0] != key)][:ways]
        np.testing.assert_array_equal(cells, cells_for(ways, held))


@given(st.integers(1, 4), STEPS, STEPS)
def test_noted_changes_are_undone_to_the_last_word(
    ways: int, before: list[tuple[str, int]], steps: list[tuple[str, int]]
) -> None:
    core, _, _ = state.allocate(toy(), hierarchy=False)
    pool = np.zeros(512, np.int64)
    cells = cells_for(ways, [])
    held: list[tuple[int, int]] = []
    for number, (step, key) in enumerate(before + steps):
        if number == len(before):
            core.journal_length = 0
            start = cells.copy()
        where = [each for each, _ in held].index(key) if key in dict(held) else -1
        if step == "touch" and where >= 0:
            touch_noted(core, cells, AT, ways, where)
            held.insert(0, held.pop(where))
        elif step == "put":
            put_noted(core, cells, AT, ways, key, 100 + number)
            held = [(key, 100 + number), *(each for each in held if each[0] != key)][:ways]
        np.testing.assert_array_equal(cells, cells_for(ways, held))
    if steps:
        roll_back(core, cells, pool)
        np.testing.assert_array_equal(cells, start)
        assert core.journal_length == 0


@given(st.integers(1, 4), st.lists(st.integers(1, 6), max_size=30))
def test_cache_lines_keep_the_most_recently_used_and_are_undone(ways: int, lines: list[int]) -> None:
    core, _, _ = state.allocate(toy(), hierarchy=False)
    held: list[tuple[int, int]] = []
    cells = cells_for(ways, held, values=False)
    for line in lines:
        hit, cold = (line, 0) in held, len(held) < ways
        answer = recency.line_lookup_noted(core, cells, AT, ways, line, True)
        assert answer == (1 if hit else -1 if cold else 0)
        held = [(line, 0), *(each for each in held if each[0] != line)][:ways]
        np.testing.assert_array_equal(cells, cells_for(ways, held, values=False))
    roll_back(core, cells, np.zeros(512, np.int64))
    np.testing.assert_array_equal(cells, cells_for(ways, [], values=False))
    assert core.journal_length == 0


def test_a_lookup_that_is_not_noted_leaves_no_line_in_the_journal() -> None:
    core, _, _ = state.allocate(toy(), hierarchy=False)
    cells = cells_for(2, [], values=False)
    assert recency.line_lookup_noted(core, cells, AT, 2, 5, False) == -1
    assert core.journal_length == 0
    assert cells[AT] == 5
