"""A walk as text, character by character."""

from __future__ import annotations

import pytest

from vmmsim.report.walk_quiz import Question, questions
from vmmsim.report.walk_text import drawing, legend, numbers, steps
from vmmsim.studies.explain import explain

BASE = """\
gVA 0x7f5a12345678, base virtualized, 4K pages in guest and host, all caches empty
                  nested walk        guest entry
guest L4     1    2    3    4             5
guest L3     6    7    8    9            10
guest L2    11   12   13   14            15
guest L1    16   17   18   19            20
data page   21   22   23   24
24 references, 0 checks, 2D.     VMM Direct leaves 5 10 15 20 (4, and 5 checks); \
Guest Direct leaves 21-24 (4, and 1 check)."""

ESCAPED = """\
gVA 0x7f5a12345678, VMM Direct, 4K pages in guest and host, the data page escapes, all caches empty
                  nested walk  check guest entry
guest L4     ·    ·    ·    ·    V        1
guest L3     ·    ·    ·    ·    V        2
guest L2     ·    ·    ·    ·    V        3
guest L1     ·    ·    ·    ·    V        4
data page    5    6    7    8   esc
8 references, 4 checks, 2D.     Base virtualized makes 24; VMM Direct leaves 5 10 15 20-24 of them."""

DUAL = """\
gVA 0x7f5a12345678, Dual Direct, 2M pages in the guest, 1G in the host, all caches empty
        nested walk  check guest entry
gVA                    G
guest L4     ·    ·             ·
guest L3     ·    ·             ·
guest L2     ·    ·             ·
data page    ·    ·   +V
0 references, 1 check, 0D.     Base virtualized makes 11; Dual Direct leaves none of them."""

NATIVE = """\
gVA 0x7f5a12345678, native, 1G pages, 5 levels, all caches empty
                 table entry
table L5              1
table L4              2
table L3              3
3 references, 0 checks, 1D."""

GUEST_STEPS = """\
gVA 0x7f5a12345678
   G  check      gVA 0x7f5a12345678 in [BASE_G, LIMIT_G), + OFFSET_G  -> data page at gPA 0x152345678
data page at gPA 0x152345678
   1  nested L4  reads hPA 0x2c6a5d000  -> nested L3 table at hPA 0x2cd4ba000
   2  nested L3  reads hPA 0x2cd4ba028  -> nested L2 table at hPA 0x2da974000
   3  nested L2  reads hPA 0x2da974488  -> data page, in the 2M page at hPA 0x8d2200000
gVA 0x7f5a12345678 is at hPA 0x8d2345678."""


def test_the_base_walk_is_drawn_to_the_letter() -> None:
    assert drawing(explain(0x7F5A12345678)) == BASE
    assert legend(explain()) == ""


def test_segments_show_what_they_bypass_and_where_they_were_compared() -> None:
    assert drawing(explain(mode="vmm-direct", escaped=True)) == ESCAPED
    assert drawing(explain(mode="dual-direct", guest_page="2M", host_page="1G")) == DUAL


def test_native_walks_have_one_column() -> None:
    assert drawing(explain(mode="native", guest_page="1G", levels=5)) == NATIVE


def test_each_step_is_told_with_its_addresses() -> None:
    assert steps(explain(mode="guest-direct", host_page="2M")) == GUEST_STEPS


def test_the_legend_explains_the_marks_that_occur_and_no_others() -> None:
    lines = legend(explain(mode="vmm-direct", tables_outside=1, escaped=True)).splitlines()
    assert [line.split()[0] for line in lines] == ["V", "out", "esc", "·", "VMM"]
    assert lines[-1] == "VMM segment: BASE_V 0x100000000, LIMIT_V 0x180000000, OFFSET_V +0x780000000"
    guest = legend(explain(mode="native-direct")).splitlines()[-1]
    assert guest == "guest segment: BASE_G 0x7f5a00000000, LIMIT_G 0x7f5a40000000, OFFSET_G -0x7f58c0000000"


@pytest.mark.parametrize(
    ("values", "said"), [([], ""), ([7], "7"), ([1, 2], "1 2"), ([1, 2, 3, 5, 8, 9, 10], "1-3 5 8-10")]
)
def test_three_numbers_in_a_row_are_a_range(values: list[int], said: str) -> None:
    assert numbers(values) == said


def test_a_hidden_drawing_gives_nothing_away() -> None:
    hidden = drawing(explain(mode="dual-direct"), hidden=True)
    assert hidden.splitlines()[1:] == drawing(explain(), hidden=True).splitlines()[1:]
    assert hidden.count("?") == 24
    assert "reference" not in hidden


def test_the_quiz_asks_what_the_walk_answers() -> None:
    asked = {question.ask: question.answer for question in questions(explain())}
    assert list(asked.values()) == ["24", "0", "2D", "15", "5 10 15 20", "21-24"]
    why = [question.why for question in questions(explain(mode="dual-direct"))]
    assert why[1] == "of gVA; the VMM segment's of the data page is fused with it"
    assert questions(explain())[0].why == "row by row, 5 + 5 + 5 + 5 + 4 = 24"


@pytest.mark.parametrize(
    ("answer", "said", "is_right"),
    [
        ("5 10 15 20", "5, 10,15 and 20", True),
        ("5 10 15 20", "20 15 10 5", True),
        ("5 10 15 20", "5 10 15", False),
        ("21-24", "21 22 23 24", True),
        ("21-24", "21 - 24", True),
        ("21-24", "21-25", False),
        ("none", "none", True),
        ("none", "", False),
        ("none", "5", False),
        ("2D", "2d", True),
        ("2D", " 2 ", True),
        ("24", "24 references", True),
        ("24", "twenty-four", False),
        ("24", "1-99999999999999999999", False),
        ("24", "-", False),
    ],
)
def test_an_answer_may_be_written_in_many_ways(answer: str, said: str, is_right: bool) -> None:
    assert Question("?", answer, "").accepts(said) is is_right
