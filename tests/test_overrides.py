"""Values in place of those that a file gives: how they are written, and where they go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import BadInput
from vmmsim.overrides import parse_override, parse_path, parse_value, replaced
from vmmsim.strict import join, leaves

KEYS = st.text(min_size=1, max_size=4) | st.sampled_from(["vm", "db", "web-0", 'a"b', "a.b", "[0]"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32GiB", "32GiB"),
        ('"32GiB"', "32GiB"),
        ("1h", "1h"),
        ("8", 8),
        ("2.7", 2.7),
        ("true", True),
        ("dual-direct", "dual-direct"),
        ('["base"]', ["base"]),
        ('{ name = "web" }', {"name": "web"}),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_a_value_is_what_toml_makes_of_it_or_else_text(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert parse_override(f"vm.db.memory = {text}") == ("vm.db.memory", value if text != "" else "")


@pytest.mark.parametrize("text", ["", "vm.db", "=3", " = 3"])
def test_what_is_no_path_and_value_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"is no path=value; write e\.g\. vm\.db\.memory=32GiB"):
        parse_override(text)


@pytest.mark.parametrize("path", [".a", "a.", "a..b", "[0]", "a[x]", "a[0", "a b", 'a."b'])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(BadInput, match=r"is no path; write e.g. vm.db.memory or event\[0\].at"):
        parse_path(path)


@given(first=KEYS, steps=st.lists(KEYS | st.integers(0, 99)))
def test_paths_are_read_as_messages_print_them(first: str, steps: list[str | int]) -> None:
    path = ""
    for step in [first, *steps]:
        path = join(path, step)
    assert parse_path(path) == [first, *steps]


@given(
    data=st.dictionaries(
        KEYS,
        st.recursive(st.integers(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=6),
        max_size=4,
    ),
    choice=st.data(),
)
def test_just_the_value_at_the_path_is_replaced(data: dict[str, Any], choice: st.DataObject) -> None:
    before = dict(leaves(data))
    if not before:
        return
    path = choice.draw(st.sampled_from(list(before)))
    after = dict(leaves(replaced(data, path, "new")))
    assert after == {**before, path: "new"}
    assert dict(leaves(data)) == before


def test_tables_on_the_way_are_made_but_no_vm_is() -> None:
    assert replaced({"vm": {"db": {}}}, "vm.db.escape_filter.bits", 0) == {"vm": {"db": {"escape_filter": {"bits": 0}}}}
    with pytest.raises(BadInput, match=r'^vm: "dbb" is not in the file; did you mean "db"\?$'):
        replaced({"vm": {"db": {}}}, "vm.dbb.memory", 0)


def test_a_step_into_what_is_no_table_or_list_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^event\[3\]: event has 1 entries, the first of them \[0\]$"):
        replaced({"event": [1]}, "event[3]", 0)
    with pytest.raises(BadInput, match=r"^run\[3\]: run is no list$"):
        replaced({"run": {}}, "run[3]", 0)
    with pytest.raises(BadInput, match=r"^run\.seed\.x: run\.seed is 1, and no table$"):
        replaced({"run": {"seed": 1}}, "run.seed.x", 0)
