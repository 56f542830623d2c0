"""Every command's JSON keeps to its schema, and no schema lets a missing or misspelt key pass."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import pytest

from tests.cli.documents import document, schema
from tests.studies.programs import TOY_FILE, accesses, lackey
from vmmsim.cli.app import run
from vmmsim.machine_file import machine_names

NAMES = sorted(path.name.removesuffix(".json") for path in resources.files("vmmsim.data").joinpath("schemas").iterdir())


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("schemas") / "t.lackey"
    path.write_text(lackey(accesses(60)))
    return str(path)


def printed(arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 0) -> str:
    capfd.readouterr()
    assert run([*arguments, "--json"]) == code
    return capfd.readouterr().out


def test_replay(trace, capfd):
    for more in ([], ["--mode", "native"], ["--accesses", "all", "--bad-pages", "3", "--guest-page", "2M"]):
        told = document(printed(["replay", trace, "--machine", str(TOY_FILE), *more], capfd), "replay")
        assert told["trace"]["accesses"] > 0


def test_machines(capfd):
    assert len(document(printed(["machines"], capfd), "machines")["machines"]) == len(machine_names())
    for name in (*machine_names(), str(TOY_FILE)):
        (told,) = document(printed(["machines", name], capfd), "machines")["machines"]
        assert told["values"]


def test_trace_inspect_and_convert(trace, tmp_path, capfd):
    document(printed(["trace", "inspect", trace], capfd), "trace-inspect")
    out = str(tmp_path / "o.parquet")
    document(printed(["trace", "convert", trace, out], capfd), "trace-convert")
    document(printed(["trace", "inspect", out], capfd), "trace-inspect")


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.valgrind
def test_trace_record(tmp_path, capfd):
    arguments = ["trace", "record", str(tmp_path / "o"), "--limit", "1000", "--json", "--", "true"]
    assert run(arguments) == 0
    assert document(capfd.readouterr().out, "trace-record")["path"] == str(tmp_path / "o")


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "nowhere"],
        ["replay", "nowhere", "--machine", "nothing"],
        ["replay", "--no-such-option"],
        ["replay"],
        ["trace", "inspect", "nowhere"],
        ["trace", "convert", "nowhere", "o"],
        ["trace", "record", "o", "--", "/no/such/program"],
        ["machines", "nothing"],
        ["explain", "0x"],
        ["no-such-command"],
    ],
)
def test_errors(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = ["--json"] if "record" not in arguments else []
    if code:
        assert document(printed(arguments, capfd, 2), "error")["error"]
    else:
        assert run([*arguments[:3], "--json", *arguments[3:]]) == 2
        assert document(capfd.readouterr().out, "error")["error"]
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_names_itself_and_closes_every_object(name):
    body = schema(name)
    assert body["$id"] == f"vmmsim/{name}/1"
    if name != "error":
        assert body["properties"]["schema"] == {"const": f"vmmsim/{name}/1"}
    for part in objects(body):
        assert "additionalProperties" in part, part
        if "properties" in part:
            assert set(part.get("required", ())) <= set(part["properties"])


def objects(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema of an object in a schema."""
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield part
        for value in part.values():
            yield from objects(value)
    elif isinstance(part, list):
        for value in part:
            yield from objects(value)


@pytest.mark.parametrize("how", ["missing", "misspelt"])
@pytest.mark.parametrize("what", ["replay", "trace-inspect", "machines"])
def test_no_key_can_be_missing_or_misspelt(what, how, trace, capfd):
    commands = {
        "replay": ["replay", trace, "--machine", str(TOY_FILE), "--mode", "base"],
        "trace-inspect": ["trace", "inspect", trace],
        "machines": ["machines"],
    }
    whole = document(printed(commands[what], capfd), what)
    checker = jsonschema.Draft202012Validator(schema(what))
    broken = 0
    for place in places(whole):
        other = copy.deepcopy(whole)
        held = other
        for step in place[:-1]:
            held = held[step]
        value = held.pop(place[-1])
        if how == "misspelt":
            held[f"{place[-1]}s"] = value
        if place[:2] == ("reuse", "data") or place[-1] in ("data", "instructions"):
            continue  # whichever sorts of access there are; sizes of TLBs
        assert not checker.is_valid(other), place
        broken += 1
    assert broken > 15


def places(held: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every key of every object."""
    if isinstance(held, dict):
        for key, value in held.items():
            if "misses" not in at[-1:]:
                yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(held, list):
        for number, value in enumerate(held):
            yield from places(value, (*at, number))


def test_documents_are_plain_json(trace, capfd):
    text = printed(["replay", trace, "--machine", str(TOY_FILE)], capfd)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["schema"] == "vmmsim/replay/1"
