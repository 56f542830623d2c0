"""Questions about a walk whose numbers are hidden, each with its answer and the reason, from the walk itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from vmmsim.report.theme import MODES
from vmmsim.report.walk_text import count, noun, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmmsim.studies.explanation import Explanation, Kept, Row


@attrs.frozen
class Question:
    """One question."""

    ask: str
    """What to ask, without a question mark's space."""
    answer: str
    """The right answer, as the model writes it."""
    why: str
    """The reason, to be said after the answer."""

    def accepts(self, said: str) -> bool:
        """Tell whether ``said`` means the answer: "5, 10, 15, 20" as well as "5 10 15 20", "2d" as "2D"."""
        return _meaning(said) == _meaning(self.answer)


def _meaning(said: str) -> frozenset[int] | None:
    """Return the numbers that an answer names; None for what is no answer. Words that say nothing are let be."""
    words = re.findall(r"\d+(?:\s*-\s*\d+)?|[a-z]+", said.lower().replace("none", " "))
    named: set[int] = set()
    for word in words:
        first, _, last = word.partition("-")
        if word not in ("d", "and", "references", "reference", "checks", "check"):
            if not first.strip().isdigit() or len(word) > 12:
                return None
            named.update(range(int(first), min(int(last or first), int(first) + 999) + 1))
    return frozenset(named) if said.strip() else None


def questions(walk: Explanation) -> tuple[Question, ...]:
    """Return the questions on ``walk``, from what one sees first to what takes thought."""
    return tuple(_questions(walk))


def _questions(walk: Explanation) -> Iterator[Question]:
    yield Question("How many page-table references does this walk make?", str(walk.total_references), _row_by_row(walk))
    yield Question("How many base-bound checks succeed and count?", str(walk.base_bound_checks), _checks(walk))
    yield Question("Of what dimension is it: 0D, 1D or 2D?", walk.dimension, _DIMENSION_WHY[walk.dimension])
    entries = [row for row in walk.rows if row.guest]
    if entries:
        row = entries[len(entries) // 2]
        yield _which_reads(walk, row)
    for kept in walk.kept:
        yield _which_are_left(walk, kept)


_DIMENSION_WHY = {
    "2D": "tables translate the data page in both dimensions",
    "1D": "tables translate the data page in one dimension only",
    "0D": "no table is read at all",
}


def _row_by_row(walk: Explanation) -> str:
    counts = [sum(step.kind == "reference" for step in row.steps) for row in walk.rows if row.name != "gVA"]
    return f"row by row, {' + '.join(map(str, counts))} = {walk.total_references}"


def _checks(walk: Explanation) -> str:
    if not walk.segments:
        return "there is no segment to compare with"
    counted = [noun(walk, check.of) for check in walk.checks if check.counted]
    said = f"of {', '.join(counted)}" if counted else "no compare finds its address covered"
    fused = any(check.outcome == "covered" and not check.counted for check in walk.checks)
    return f"{said}; the VMM segment's of the data page is fused with it" if fused else said


def _which_reads(walk: Explanation, row: Row) -> Question:
    assert row.guest is not None
    table = noun(walk, f"{row.name} table")
    before = [step.number for step in row.nested]
    why = (
        f"first {numbers(before)} find out where that table is" if before else "where that table is takes no reference"
    )
    return Question(f"Which reference reads the entry of the {table}?", str(row.guest.number), why)


def _which_are_left(walk: Explanation, kept: Kept) -> Question:
    label = MODES[kept.mode].label
    ask = f"Which of them does {label} leave?"
    if walk.mode != "base":
        ask = f"Base virtualized makes {kept.of}, numbered the same way. Which of them does {label} leave?"
    why = f"{count(len(kept.numbers), 'reference')} and {count(kept.checks, 'check')} instead of {kept.of} references"
    return Question(f"{ask} (such as 1 3 5-8, or none)", numbers(kept.numbers) or "none", why)
