"""Copies planned and copies made: every page of the difference has a reason."""

from __future__ import annotations

import numpy as np
import pytest

from vmmsim.actors.copy_tally import CopyTally, built

BACKING = np.array([7, -1, 9, -1])


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_a_plan_that_held_needs_no_reason() -> None:
    tally = CopyTally(2, BACKING)
    tally.copied(pages(0, 2))
    assert tally.why(made=2, dropped=0) == ""


def test_pages_that_were_not_there_when_it_was_planned_were_touched_meanwhile() -> None:
    tally = CopyTally(2, BACKING)
    tally.copied(pages(0, 1))
    tally.copied(pages(2))
    assert tally.why(made=3, dropped=0) == "of 2 copies planned, 1 more for pages touched meanwhile"


@pytest.mark.parametrize(
    ("made", "dropped", "rest"),
    [
        (7, 3, ""),  # 10 planned, 3 of them dropped
        (9, 3, ", 2 more for pages copied twice, that changed meanwhile or were in each other's way"),
        (6, 3, ", 1 fewer for pages that were given back or moved meanwhile"),
    ],
)
def test_what_was_dropped_was_not_copied_and_the_rest_is_told_too(made: int, dropped: int, rest: str) -> None:
    said = CopyTally(10, BACKING).why(made=made, dropped=dropped)
    assert said == f"of 10 copies planned, {dropped} fewer for page cache that was dropped instead{rest}"


def test_what_a_build_took_in_words() -> None:
    assert built(2 * 10**9, 5, 7) == "host memory made contiguous in 2 s: 5 pages moved, 7 zeroed"
    assert built(0, 0, 0) == "host memory made contiguous in 0 ns: nothing to move"
