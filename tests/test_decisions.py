"""The recorder: what it keeps, what it drops, and a digest of exactly what happened."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_up import GIB, S, Writer, counters, two_rows
from vmmsim.decisions import CRASH_DECISIONS, NullRecorder, Recorder, SimulationFailed
from vmmsim.run_tables import COUNTERS, DECISIONS, OUTCOMES, WALKS, digest, digest_of, wrong_columns
from vmmsim.translation.state import Count

VMS_COLUMNS = [
    "t_ns", "vm", "mode", "mode_wanted", "overhead", "overhead_low", "overhead_high", "progress", "resident_bytes",
    "balloon_bytes", "balloon_target_bytes", "reusable_bytes", "shared_bytes", "swapped_bytes",
    "guest_swapped_bytes", "escaped_pages", "segment_bytes", "refs_per_walk",
]  # fmt: skip
HOST_COLUMNS = [
    "t_ns", "free_bytes", "largest_free_bytes", *(f"free_blocks_{order}" for order in range(11)), "unusable_2m",
    "page_table_bytes", "bad_frames", "moved_bytes", "pages_shared", "pages_sharing", "pages_unshared",
    "pages_volatile", "full_scans", "stable_node_chains", "general_profit", "refused_pinned_vmm", "unshared_writes",
    "unsharing_ns", "ksmd_ns",
]  # fmt: skip


# Decisions


def test_a_decision_is_kept_as_it_was_made_at_the_time_of_the_clock():
    recorder = Recorder(lambda: 7)
    first = recorder.decide("scenario", "balloon", vm="db", asked="8GiB", outcome="begun")
    second = recorder.decide(
        "balloon",
        "inflate",
        vm="db",
        asked="8GiB",
        got="1GiB",
        outcome="partial",
        why="no more",
        cost_ns=3,
        cause=first,
    )
    assert (first, second, len(recorder)) == (0, 1, 2)
    kept = recorder.decision(second)
    assert (kept.row, kept.t_ns, kept.actor, kept.vm, kept.verb) == (1, 7, "balloon", "db", "inflate")
    assert (kept.asked, kept.got, kept.outcome, kept.why) == ("8GiB", "1GiB", "partial", "no more")
    assert (kept.cost_ns, kept.cause) == (3, 0)
    assert str(kept) == "7 ns balloon: inflate of db 8GiB: partial, got 1GiB: no more"
    assert recorder.last(1) == [kept]
    assert recorder.decision(-1) == kept


def test_a_cause_is_an_earlier_decision():
    with pytest.raises(AssertionError):
        Recorder().decide("a", "b", outcome="done", cause=0)


def test_an_outcome_is_one_of_six():
    assert set(OUTCOMES) == {"done", "refused", "failed", "begun", "aborted", "partial"}
    with pytest.raises(AssertionError):
        Recorder().decide("a", "b", outcome="declined")  # type: ignore[arg-type]


def test_a_cost_is_whole():
    with pytest.raises(TypeError):
        Recorder().decide("a", "b", outcome="done", cost_ns=1.5)  # type: ignore[arg-type]


def test_what_failed_carries_the_last_decisions():
    recorder = Recorder(lambda: 9)
    for number in range(CRASH_DECISIONS + 5):
        recorder.decide("a", str(number), outcome="done")
    failed = SimulationFailed(recorder)
    assert failed.t_ns == 9
    assert [one.verb for one in failed.decisions] == [str(number) for number in range(5, CRASH_DECISIONS + 5)]


# Time series


def test_the_tables_have_exactly_the_columns_of_the_interface():
    tables = Recorder(as_if=("base", "guest-direct")).tables()
    assert list(tables) == ["vms", "host", "decisions", "walks"]
    assert tables["vms"].column_names == [*VMS_COLUMNS, "overhead_as_if_base", "overhead_as_if_guest_direct"]
    assert tables["host"].column_names == HOST_COLUMNS
    columns = ["t_ns", "actor", "vm", "verb", "asked", "got", "outcome", "why", "cost_ns", "cause"]
    assert tables["decisions"].column_names == columns
    names = [count.name.lower() for count in Count]
    assert tables["walks"].column_names == ["vm", "mode", "level", *names, "references"]


def test_every_table_says_its_version_and_what_its_columns_mean():
    for name, table in two_rows().tables.items():
        assert table.schema.metadata[b"schema_version"] == b"1"
        assert wrong_columns(name, table.schema) == ""
        for field in table.schema:
            assert field.type in (pa.int64(), pa.float64(), pa.string())
            assert field.metadata[b"means"]


def test_a_value_holds_until_it_is_given_anew():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="base", resident_bytes=GIB)
    writer.at(5).vm_row("db", overhead=0.5)
    rows = writer.recorder.tables()["vms"].to_pylist()
    assert [row["t_ns"] for row in rows] == [0, 5]
    assert [row["overhead"] for row in rows] == [None, 0.5]
    assert [row["resident_bytes"] for row in rows] == [GIB, GIB]
    assert [row["mode"] for row in rows] == ["base", "base"]


def test_a_row_that_repeats_the_one_before_is_dropped():
    writer = Writer()
    for now in range(4):
        writer.at(now).vm_row("db", mode="base", progress=now // 2)
        writer.recorder.host_row(free_bytes=7)
    tables = writer.recorder.tables()
    assert tables["vms"].column("t_ns").to_pylist() == [0, 2]
    assert tables["host"].column("t_ns").to_pylist() == [0]


def test_of_two_rows_of_one_instant_the_second_holds():
    writer = Writer()
    writer.at(1).vm_row("db", mode="base")
    writer.at(1).vm_row("web", mode="base")
    writer.at(1).vm_row("db", mode="dual-direct")
    rows = writer.recorder.tables()["vms"].to_pylist()
    assert [(row["vm"], row["mode"]) for row in rows] == [("db", "dual-direct"), ("web", "base")]


def test_vms_do_not_share_values():
    writer = Writer()
    writer.at(0).vm_row("a", progress=5)
    writer.at(0).vm_row("b", mode="base")
    assert writer.recorder.tables()["vms"].column("progress").to_pylist() == [5, 0]


def test_time_does_not_run_backwards():
    writer = Writer()
    writer.at(5).host_row(free_bytes=1)
    with pytest.raises(AssertionError):
        writer.at(4).host_row(free_bytes=2)


@pytest.mark.parametrize("columns", [{"colour": 1}, {"t_ns": 1}, {"as_if": {"base": 0.1}}])
def test_an_unknown_column_is_an_error(columns):
    with pytest.raises(ValueError, match="is not a column"):
        Recorder().vm_row("db", **columns)


def test_a_count_is_whole():
    with pytest.raises(TypeError):
        Recorder().vm_row("db", progress=1.0)


def test_what_is_unknown_is_null():
    recorder = Recorder()
    recorder.vm_row("db", overhead=float("nan"))
    assert recorder.tables()["vms"].column("overhead").to_pylist() == [None]


def test_blocks_of_all_orders_are_given_at_once():
    recorder = Recorder()
    recorder.host_row(free_blocks=range(11))
    (row,) = recorder.tables()["host"].to_pylist()
    assert [row[f"free_blocks_{order}"] for order in range(11)] == list(range(11))


def test_counters_add_up_by_vm_mode_and_level():
    recorder = Recorder()
    recorder.walks("db", "base", "vm", {"walks": 2, "guest_references": 3, "nested_references": 4})
    recorder.walks("db", "base", "vm", {"walks": 1, "guest_references": 1})
    recorder.walks("db", "base", "native twin", {"walks": 5})
    rows = recorder.tables()["walks"].to_pylist()
    assert [(row["level"], row["walks"], row["references"]) for row in rows] == [("native twin", 5, 0), ("vm", 3, 8)]
    with pytest.raises(ValueError, match="is not a counter"):
        recorder.walks("db", "base", "vm", {"walk": 1})


def test_the_null_recorder_keeps_nothing():
    recorder = NullRecorder()
    assert recorder.decide("a", "b", outcome="done") == -1
    recorder.vm_row("db", mode="base")
    recorder.host_row(free_bytes=1)
    recorder.walks("db", "base", "vm", {"walks": 1})
    assert all(table.num_rows == 0 for table in recorder.tables().values())
    assert recorder.digest() == Recorder().digest()


# Digest


def test_the_digest_is_sha_256_of_an_encoding_that_can_be_written_by_hand():
    recorder = Recorder(lambda: 5)
    recorder.decide("a", "né", outcome="done", cost_ns=7)
    recorder.walks("db", "base", "vm", {"accesses": 3})
    names = [column.name for column in (*DECISIONS, *WALKS)]
    text = "".join(f"t{len(name)}:{name}" for name in names) + "\n"
    text += "i5;t1:at0:t3:nét0:t0:t4:donet0:i7;i-1;\n"
    text += "t2:dbt4:baset2:vmi3;" + "i0;" * (len(COUNTERS) - 1) + "\n"
    assert recorder.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_of_tables_is_that_of_the_recorder():
    writer = Writer()
    writer.at(3).decide("a", "b", vm="db", outcome="refused", why="no")
    writer.recorder.walks("db", "base", "vm", counters())
    assert digest_of(writer.recorder.tables()) == writer.recorder.digest()


def test_neither_time_series_nor_shadows_nor_the_order_of_counting_change_the_digest():
    plain, other = Writer(), Writer(as_if=("base",))
    for writer in (plain, other):
        writer.at(S).decide("a", "b", outcome="done")
    plain.recorder.walks("db", "base", "vm", counters())
    plain.recorder.walks("db", "base", "native twin", counters())
    other.recorder.walks("db", "base", "native twin", counters())
    other.recorder.walks("db", "base", "as if base", counters())
    other.recorder.walks("db", "base", "vm", counters())
    other.recorder.vm_row("db", mode="base", as_if={"base": 0.3})
    other.recorder.host_row(free_bytes=9)
    assert plain.recorder.digest() == other.recorder.digest()


DECISION = st.tuples(
    st.integers(0, 9), st.sampled_from(["", "a", "ab"]), st.sampled_from(["", "db", "b"]), st.just("v"),
    st.sampled_from(["", "8GiB", "i1;"]), st.just(""), st.sampled_from(OUTCOMES), st.sampled_from(["", "no", "0:"]),
    st.integers(0, 3), st.just(-1),
)  # fmt: skip
WALK = st.tuples(
    st.sampled_from(["db", "web"]), st.just("base"), st.sampled_from(["vm", "native twin"]),
    *[st.integers(0, 2)] * 2, *[st.just(0)] * (len(COUNTERS) - 2),
)  # fmt: skip
CONTENT = st.tuples(st.lists(DECISION, max_size=3), st.lists(WALK, max_size=2, unique_by=lambda row: row[:3]))


@given(CONTENT, CONTENT)
def test_digests_are_equal_exactly_for_equal_contents(one, other):
    same = one[0] == other[0] and sorted(one[1]) == sorted(other[1])
    assert (digest(*one) == digest(*other)) == same


@given(st.lists(DECISION, min_size=1, max_size=3), st.data())
def test_any_integer_and_any_text_that_changes_changes_the_digest(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(DECISIONS) - 1))
    value = rows[at][column]
    changed = list(rows[at])
    changed[column] = value + 1 if isinstance(value, int) else value + "x"
    assert digest(rows, []) != digest([*rows[:at], changed, *rows[at + 1 :]], [])


def test_any_counter_that_changes_changes_the_digest():
    row = ("db", "base", "vm", *range(len(COUNTERS)))
    seen = {digest([], [row])}
    for column in range(len(row)):
        changed = list(row)
        changed[column] = changed[column] + 1 if column >= 3 else changed[column] + "x"
        seen.add(digest([], [changed]))
    assert len(seen) == len(row) + 1
