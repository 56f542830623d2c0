"""Reasons come from the decisions that made a change, and from no others."""

from __future__ import annotations

from tests.made_up import S, Writer
from vmmsim.report.reasons import Reasons, amount, sentence


def reasons(*rows):
    """Rows: (seconds, changes of a usual decision of the mode controller on db)."""
    writer = Writer()
    for seconds, given in rows:
        usual = {"actor": "mode controller", "verb": "mode", "vm": "db", "outcome": "done"}
        made = {**usual, **given}
        writer.at(seconds * S).decide(made.pop("actor"), made.pop("verb"), **made)
    return Reasons(writer.recorder.tables()["decisions"].to_pylist())


def test_a_change_has_the_decision_that_got_its_mode_even_if_made_a_little_before():
    asked = reasons((1, {"got": "base", "why": "old"}), (8, {"got": "dual-direct", "why": "built"}))
    assert asked.why(asked.of_change("db", 1 * S, 9 * S, "dual-direct")) == "built"
    assert asked.of_change("db", 1 * S, 9 * S, "base") is None
    assert asked.of_change("web", 0, 9 * S, "dual-direct") is None


def test_what_merely_happened_at_the_same_time_is_no_reason():
    asked = reasons((5, {"actor": "balloon", "verb": "balloon", "got": "1GiB", "why": "asked to"}))
    assert asked.of_change("db", 0, 5 * S, "dual-direct") is None
    assert asked.why(None) == ""


def test_a_boot_is_a_reason():
    asked = reasons((5, {"actor": "vmm", "verb": "boot", "why": "the scenario says so"}))
    assert asked.why(asked.of_change("db", 0, 5 * S, "base")) == "the scenario says so"


def test_a_reason_goes_back_to_what_led_to_it():
    asked = reasons(
        (0, {"outcome": "begun"}),
        (1, {"actor": "compactor", "verb": "build", "asked": "8GiB", "got": "8GiB", "why": "moved", "cause": 0}),
        (1, {"got": "vmm-direct", "cause": 1}),
        (2, {"got": "base", "why": "a fault", "cause": 1}),
        (3, {"got": "vmm-direct", "why": "again", "cause": 0}),
    )
    assert asked.why(asked.rows[2]) == "after compactor: build of db, 8 GiB; moved"
    assert asked.why(asked.rows[3]) == "a fault; after compactor: build of db, 8 GiB"
    assert asked.why(asked.rows[4]) == "again"


def test_why_a_mode_was_not_got_or_lost():
    asked = reasons(
        (1, {"outcome": "refused", "why": "no window"}),
        (2, {"outcome": "failed", "actor": "compactor", "verb": "build"}),
        (3, {"got": "base", "why": "a bank failed"}),
    )
    assert asked.of_headline("db", {"had_from_ns": None, "lost_ns": []}) == ("compactor: build of db, failed", "")
    assert asked.of_headline("db", {"had_from_ns": 0, "lost_ns": [3 * S]}) == ("", "a bank failed")
    assert asked.of_headline("web", {"had_from_ns": None, "lost_ns": [4]}) == ("", "")


def test_sentences():
    row = {
        "actor": "self-balloon", "verb": "self_balloon", "vm": "db", "asked": "8GiB", "got": "1536MiB",
        "outcome": "partial", "why": "", "cost_ns": 2 * S,
    }  # fmt: skip
    assert sentence(row) == "self balloon of db, 8 GiB, got 1.5 GiB, partial, took 2 s"
    assert sentence({**row, "got": "0B", "outcome": "refused", "cost_ns": 0}) == "self balloon of db, 8 GiB, refused"
    assert sentence({**row, "asked": "", "vm": "", "outcome": "done"}) == "self balloon, 1.5 GiB, took 2 s"
    assert sentence(row, "3 VMs").startswith("self balloon of 3 VMs, ")


def test_amounts():
    assert [amount(text) for text in ("dual-direct", "40GiB", "xB", "", "16 frames")] == [
        "Dual Direct", "40 GiB", "xB", "", "16 frames"
    ]  # fmt: skip
