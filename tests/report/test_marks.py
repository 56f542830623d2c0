"""Time drawn in characters: each column shows its own part of the run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_up import DAY, HOUR, MIN
from vmmsim.config import MODES
from vmmsim.report import theme
from vmmsim.report.marks import LEVELS, Grid, levels, mark, prevailing, runs, scale, share

FOUR = Grid(end_ns=40, width=4 + 5 + 3 + 1, label=5, note=3)
"""Four columns of 10 ns."""


def whole(*values):
    return np.array(values, np.int64)


def test_a_column_shows_the_mean_over_its_time():
    assert FOUR.columns == 4
    means = FOUR.means(whole(0, 15), whole(15, 40), np.array([2.0, 4.0]))
    assert means.tolist() == [2.0, 3.0, 4.0, 4.0]


def test_what_is_unknown_is_left_out_of_a_mean():
    means = FOUR.means(whole(0, 15, 20), whole(15, 20, 40), np.array([2.0, np.nan, np.nan]))
    assert means[:2].tolist() == [2.0, 2.0]
    assert np.isnan(means[2:]).all()


def test_before_the_first_row_nothing_is_known():
    means = FOUR.means(whole(20), whole(40), np.array([1.0]))
    assert np.isnan(means[:2]).all()
    assert means[2:].tolist() == [1.0, 1.0]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_no_time_is_lost_between_columns(spans, data):
    ends = np.cumsum(spans)
    starts = np.concatenate(([0], ends[:-1]))
    which = np.array(data.draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans))))
    grid = Grid(end_ns=int(ends[-1]), width=60)
    assert grid.seconds(starts, ends, which).sum() == pytest.approx(np.array(spans)[which].sum())


def test_the_mode_of_a_column_is_the_one_that_holds_longest_in_it():
    names = np.array(["base", "dual-direct", "base"])
    shown = prevailing(FOUR, whole(0, 4, 30), whole(4, 30, 35), names)
    assert shown == ["dual-direct", "dual-direct", "dual-direct", "base"]


def test_levels_go_from_the_lowest_to_the_highest():
    assert levels(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8.0]), 8.0) == LEVELS + LEVELS[-1]
    assert levels(np.array([np.nan, 0.0, 8.0]), 8.0) == " ▁█"
    assert levels(np.array([0.0]), 0.0) == " "
    assert levels(np.array([0.0, 8.0]), 8.0, unicode=False).isascii()


def test_a_scale_is_for_all_values_but_spikes():
    assert scale(np.array([1.0, 2.0, np.nan])) == 2.0
    assert scale(np.array([1.0] * 19 + [1.9])) == 1.9, "less than twice as high is no spike"
    assert scale(np.array([1.0] * 19 + [9.0])) == 1.0
    assert scale(np.array([1.0] * 18 + [9.0] * 2)) == 9.0, "more than a twentieth are no spikes"
    assert scale(np.array([0.0] * 19 + [9.0])) == 9.0, "beside nothing there is nothing to flatten"
    assert scale(np.array([np.nan])) == 0.0
    assert levels(np.array([1.0, 9.0]), 1.0) == "█▲"
    assert levels(np.array([1.0, 9.0]), 1.0, unicode=False) == "#^"


def test_a_level_does_not_flicker_at_a_border():
    assert levels(np.array([3 * (1 - 1e-12), 3.0, 3 * (1 + 1e-12)]), 8.0) == "▄▄▄"


def test_every_mode_has_marks_and_a_colour_of_its_own():
    assert list(theme.MODES) == list(MODES)
    for marks in ([mark(mode) for mode in MODES], [mark(mode, unicode=False) for mode in MODES]):
        assert len(set(marks)) == len(MODES)
        assert all(len(one) == 1 and one != " " for one in marks)
    assert len({look.colour for look in theme.MODES.values()}) == len(MODES)
    assert mark("") == " "


@pytest.mark.parametrize("end", [0, 1, 999, 20 * 10**9, 7 * MIN, HOUR, 4 * HOUR, DAY, 400 * DAY, 5 * 365 * DAY])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_time_axis_fits_and_has_several_labels(end, width):
    grid = Grid(end_ns=end, width=width)
    axis = grid.axis()
    assert axis.startswith("0")
    assert len(axis) <= grid.columns + grid.note
    if end > 1:
        assert len([label for label in axis.split("  ") if label.strip()]) >= 2


def test_labels_stand_where_their_times_are():
    grid = Grid(end_ns=4 * HOUR, width=100)
    axis = grid.axis()
    assert axis.index("2 h") == pytest.approx(grid.columns / 2, abs=1)


def test_runs_of_equal_names():
    assert runs(["a", "a", "b", "a"]) == [("a", 2), ("b", 1), ("a", 1)]
    assert runs([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"), (0.16113, "16.1 %"), (1.0, "100 %"), (12.3456, "1,230 %"), (0.00012, "0.012 %"),
        (1e-9, "under 0.001 %"), (-0.005, "-0.5 %"),
    ],
)  # fmt: skip
def test_shares_have_three_figures(value, text):
    assert share(value) == text
