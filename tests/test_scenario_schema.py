"""The JSON Schema of scenario files: it takes what the reader takes, and refuses what it can."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import scenarios as made
from tests.test_scenario_file import BAD, GOOD, write
from vmmsim import addresses, strict
from vmmsim.errors import BadInput
from vmmsim.scenario import EVENTS, Host, Scenario
from vmmsim.scenario_file import load_scenario
from vmmsim.scenario_schema import PATTERNS, scenario_schema
from vmmsim.scenarios_folder import shipped_scenarios

CHECKER = jsonschema.Draft202012Validator(scenario_schema())

ONE_VALUE = (" is not a ", "unknown", " is missing", " is not between ", " is no name ", "does not name a ")
"""What is said of single values, as opposed to what parts do not allow together."""
BEYOND_A_SCHEMA = (
    "multiple of",
    "is not a power of two",
    "run.costs[0]",
    "host.machine",
    "selects no VM",
    "footprnt",
    "host.balloon.t",
)


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(scenario_schema())


@pytest.mark.parametrize("name", shipped_scenarios())
def test_the_shipped_scenarios_keep_to_it(name: str) -> None:
    CHECKER.validate(tomllib.loads(shipped_scenarios()[name].read_text(encoding="utf-8")))


def test_the_good_file_keeps_to_it() -> None:
    CHECKER.validate(tomllib.loads(GOOD))


def bad_values() -> list[tuple[str, str, str]]:
    """Return those of the bad files in which a single value is wrong in a way that a schema can say."""
    return [
        bad
        for bad in BAD
        if any(words in bad[2] for words in ONE_VALUE) and not any(words in bad[2] for words in BEYOND_A_SCHEMA)
        if not bad[2].startswith(("sweep.", "event[0].vm"))
    ]


@pytest.mark.parametrize(("old", "new", "said"), bad_values(), ids=[said[:60] for _, _, said in bad_values()])
def test_a_bad_value_is_refused_by_it_too(old: str, new: str, said: str) -> None:
    assert not CHECKER.is_valid(tomllib.loads(GOOD.replace(old, new)))


def test_enough_bad_values_were_tried() -> None:
    assert len(bad_values()) >= 15


@given(scenario=made.scenarios())
def test_every_scenario_that_can_be_described_keeps_to_it(scenario: Scenario) -> None:
    CHECKER.validate(_plain(strict.unstructure(scenario)))


def _plain(value: Any) -> Any:
    """Return ``value`` with lists for tuples, as a file has them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


QUANTITIES = st.text("0123456789.kKMGTiBbGzs/ ydhmunse-\n", max_size=9) | st.from_regex(
    r"[0-9]{1,2}(\.[0-9])?(y|d|h|m|s|ms|KiB|GiB|B|/s){1,3}", fullmatch=True
)


@given(text=QUANTITIES)
def test_quantities_look_as_they_are_read(text: str) -> None:
    for unit, parse in (("_bytes", addresses.parse_bytes), ("_ns", addresses.parse_duration)):
        looks = re.search(PATTERNS[unit].replace("$", r"\Z"), text) is not None
        try:
            parse(text)
        except BadInput:
            # Only what is no whole number of bytes or nanoseconds, or too large, looks right and is not.
            assert not looks or "." in text or len(text) > 6
        else:
            assert looks


@pytest.mark.parametrize("text", ["1GiB/s", "1.5 MiB/s", "100B/s"])
def test_rates_look_as_they_are_read(text: str) -> None:
    assert re.search(PATTERNS["_bytes_per_second"], text)
    assert addresses.write_rate(addresses.parse_rate(text)).endswith("/s")


def test_a_vm_is_needed_unless_a_script_boots_some() -> None:
    host = {"memory": "1GiB"}
    assert not CHECKER.is_valid({"host": host})
    assert not CHECKER.is_valid({"host": host, "vm": {}})
    assert not CHECKER.is_valid({"host": host, "run": {"seed": 1}})
    assert CHECKER.is_valid({"host": host, "run": {"script": "life.py:life"}})


def test_every_key_has_its_meaning() -> None:
    schema = scenario_schema()
    tables = [schema, *schema["$defs"].values(), *schema["$defs"]["Event"]["oneOf"]]
    texts = [
        held["description"] for table in tables for held in table.get("properties", {}).values() if "enum" not in held
    ]
    assert len(texts) > 80
    assert all(len(text) > 5 for text in texts)


def test_the_guide_explains_every_key() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    schema = scenario_schema()
    tables = [schema, *schema["$defs"].values(), *schema["$defs"]["Event"]["oneOf"]]
    later = {"device", "sleep", "pages_to_scan"}  # of services that are not modelled yet
    keys = {key for table in tables for key in table.get("properties", {})} - later
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", guide)] == []
    assert [verb for verb in EVENTS if f"`{verb}`" not in guide] == []


def test_the_example_of_the_guide_is_right(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    (example,) = (block.split("```")[0] for block in guide.split("```toml\n")[1:])
    assert load_scenario(write(tmp_path, example)).host == Host(memory_bytes=16 << 30)


def test_there_is_a_branch_for_every_verb() -> None:
    branches = scenario_schema()["$defs"]["Event"]["oneOf"]
    assert [branch["properties"]["do"]["const"] for branch in branches] == list(EVENTS)
