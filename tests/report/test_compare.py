"""Runs side by side: what differs, and where they part."""

from __future__ import annotations

import io

from rich.console import Console

from tests.made_up import S, Writer, counters, two_rows
from vmmsim.report.compare import compare, counts, parting, tables


def small(*, seed=1, verbs=("a", "b"), walks=0, memory="1GiB"):
    writer = Writer()
    for number, verb in enumerate(verbs):
        writer.at(number * S).decide("vmm", verb, vm="db", asked="8GiB", outcome="done")
    writer.recorder.vm_row("db", mode="base", mode_wanted="base", overhead=0.1 * len(verbs))
    writer.recorder.walks("db", "base", "vm", counters(cold_fills=walks))
    scenario = {"host": {"memory": memory}, "vm": {"db": {"vcpus": 2}}}
    return writer.result(10 * S, seed=seed, scenario=scenario)


def test_equal_runs_are_equal():
    done = compare([two_rows(), two_rows()])
    assert done.equal
    assert (done.configuration, done.summary, done.parted_at) == ({}, {}, None)
    assert parting(done, ["a", "b"]) == ["All 3 decisions are the same."]
    assert tables(done, ["a", "b"]) == []


def test_what_was_asked_and_what_came_out_are_told_where_they_differ():
    done = compare([small(), small(seed=2, memory="2GiB", verbs=("a", "b", "c"))])
    assert done.configuration == {"host.memory": ("1GiB", "2GiB"), "seed": (1, 2)}
    assert done.summary["decisions.count"] == (2, 3)
    assert done.summary["vm.db.booted_ns"] == (S, 2 * S)
    assert "vm.db.mode_wanted" not in done.summary


def test_a_key_that_only_one_has_differs():
    one, other = small(), small()
    other.scenario["host"]["swap"] = "8GiB"
    assert compare([one, other]).configuration == {"host.swap": (None, "8GiB")}


def test_decisions_part_at_the_first_that_is_not_the_same():
    done = compare([small(), small(verbs=("a", "c")), small()])
    assert not done.equal
    assert done.parted_at == 1
    assert [one.verb for one in done.parted if one] == ["b", "c", "b"]
    first, *rest = parting(done, ["x", "long", "y"])
    assert first == "Decisions are the same up to number 1, where they part:"
    assert rest[1] == "  long  1 s  vmm: c of db, 8 GiB"


def test_a_run_that_has_ended_parts_there():
    done = compare([small(), small(verbs=("a",))])
    assert done.parted_at == 1
    assert done.parted[1] is None
    assert parting(done, ["x", "y"])[2] == "  y  has ended"


def test_counters_alone_make_runs_differ():
    done = compare([small(), small(walks=1)])
    assert done.parted_at is None
    assert not done.equal


def test_values_are_shown_as_people_read_them():
    file = io.StringIO()
    names = ["one", "other"]
    done = compare([small(), small(verbs=("a", "b", "c"))])
    for table in tables(done, names):
        Console(file=file, width=100).print(table)
    text = file.getvalue()
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    assert rows["vm.db.overhead.mean"][-4:] == ["20", "%", "30", "%"]
    assert rows["vm.db.booted_ns"][-4:] == ["1", "s", "2", "s"]
    assert counts(done, names)[0].endswith("2 decisions (2 done)")
