"""``vmmsim compare`` and ``vmmsim check``: what they say of saved results, and how they end."""

from __future__ import annotations

import copy

import jsonschema
import pyarrow.parquet as pq
import pytest

from tests.cli.documents import document, schema
from tests.cli.test_schemas import places
from tests.made_up import fragmented_database, two_rows
from vmmsim.cli.app import run


@pytest.fixture(autouse=True)
def _saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_rows().save("one")
    two_rows().save("same")
    fragmented_database().save("other")


def test_equal_runs_end_with_0(capsys):
    assert run(["compare", "one", "same"]) == 0
    out = capsys.readouterr().out
    assert "All 3 decisions are the same." in out
    assert out.rstrip().endswith("The runs are the same.")


def test_runs_that_differ_end_with_1_and_say_where(capsys):
    assert run(["compare", "one", "other", "same"]) == 1
    out = capsys.readouterr().out
    assert "configuration, where it differs" in out
    assert "outcome, where it differs" in out
    assert "host.age" in out
    assert "Decisions are the same up to number 0, where they part:" in out
    assert "The runs are not the same: their digests differ." in out


def test_compare_in_json(capsys):
    assert run(["compare", "one", "same", "--json"]) == 0
    told = document(capsys.readouterr().out, "compare")
    assert (told["equal"], told["configuration"], told["parted_at"], told["parted"]) == (True, [], None, [])
    assert run(["compare", "one", "other", "--json"]) == 1
    told = document(capsys.readouterr().out, "compare")
    assert not told["equal"]
    assert {"path": "host.age", "values": [None, "90d"]} in told["configuration"]
    assert [one["verb"] for one in told["parted"]] == ["mode", "mode"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "one"], "compare: takes two runs or more"),
        (["compare", "one", "nowhere"], "nowhere: there is no such result"),
        (["check", "nowhere"], "nowhere: there is no such result"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments, message, capsys):
    assert run(arguments) == 2
    assert capsys.readouterr() == ("", f"vmmsim: {message}\n")


def test_a_good_result_ends_with_0(capsys):
    assert run(["check", "one"]) == 0
    assert capsys.readouterr() == ("one: whole; its digest, counters, times and sums are right\n", "")
    assert run(["check", "one", "--json"]) == 0
    assert document(capsys.readouterr().out, "check") == {
        "schema": "vmmsim/check/1", "path": "one", "ok": True, "findings": []
    }  # fmt: skip


def test_findings_are_a_line_each_and_end_with_1(tmp_path, capsys):
    path = tmp_path / "one" / "decisions.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    assert run(["check", "one"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("one: result.json: its digest is ")
    assert others == [
        "one: result.json: decisions has 2 rows, not 3",
        "one: result.json: its summary is not that of its tables",
    ]
    assert run(["check", "one", "--json"]) == 1
    assert len(document(capsys.readouterr().out, "check")["findings"]) == 3


@pytest.mark.parametrize("how", ["missing", "misspelt"])
def test_no_key_of_a_result_can_be_missing_or_misspelt(tmp_path, how):
    whole = document((tmp_path / "other" / "result.json").read_text(), "result")
    checker = jsonschema.Draft202012Validator(schema("result"))
    maps = ("scenario", "vm", "versions", "time_in_mode_ns", "overhead_by_mode", "as_if", "outcomes", "refs_per_walk")
    maps = (*maps, "stall_ns", "stall_share", "user_code")
    broken = 0
    for place in places(whole):
        if any(part in maps for part in place[:-1]) and place[-2] in (*maps, "host", "db", "build", "run"):
            continue  # names that the user chose, and modes and verbs
        other = copy.deepcopy(whole)
        held = other
        for step in place[:-1]:
            held = held[step]
        value = held.pop(place[-1])
        if how == "misspelt":
            held[f"{place[-1]}s"] = value
        assert not checker.is_valid(other), place
        broken += 1
    assert broken > 60
