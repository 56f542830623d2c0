"""A saved result is checked: each thing that can be wrong with one is found."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_up import GIB, consolidated_day, counters, fragmented_database, hard_faults, two_rows
from vmmsim.errors import BadInput
from vmmsim.result_check import check
from vmmsim.translation.audit import check_counters


@pytest.fixture
def folder(tmp_path):
    return two_rows().save(tmp_path / "r")


def change(folder, table, row, **values):
    """Change values of one row of a saved table."""
    path = folder / f"{table}.parquet"
    held = pq.read_table(path)
    rows = held.to_pylist()
    rows[row].update(values)
    pq.write_table(pa.Table.from_pylist(rows, schema=held.schema), path)


@pytest.mark.parametrize("made", [two_rows, fragmented_database, hard_faults])
def test_nothing_is_wrong_with_a_result_as_it_is_saved(made, tmp_path):
    assert check(made().save(tmp_path / "r")) == []


@pytest.mark.parametrize(
    ("table", "row", "values", "found"),
    [
        ("vms", 1, {"t_ns": -1}, "vms[1]: t_ns is -1"),
        ("vms", 2, {"t_ns": 5}, "vms[2]: is of 5 ns, after a row of 10000000000 ns"),
        ("vms", 2, {"t_ns": 10**10}, "vms[2]: is the second of 10000000000 ns"),
        ("vms", 2, {"t_ns": 10**11}, "vms[2]: is of 100000000000 ns, outside the run of 20000000000 ns"),
        ("vms", 0, {"mode": "dual"}, 'vms[0]: mode is "dual", which is no mode'),
        ("vms", 0, {"overhead": 0.9}, "vms[0]: overhead 0.9 is outside its interval, 0.4 to 0.7"),
        ("vms", 0, {"reusable_bytes": 1}, "vms[0]: more is reusable than the balloon holds"),
        ("vms", 2, {"progress": 99}, "vms[2]: progress falls from 100 to 99"),
        ("vms", 0, {"resident_bytes": 95 * GIB}, "bytes are accounted for, but the host has 103079215104"),
        ("host", 0, {"free_blocks_0": 1}, "host[0]: free blocks: 2147487744 bytes, but 2147483648 are free"),
        ("host", 0, {"largest_free_bytes": 3 * GIB}, "host[0]: the largest free run: 3221225472 bytes, but"),
        ("host", 0, {"unusable_2m": 1.5}, "host[0]: unusable_2m is 1.5, not a share"),
        ("decisions", 0, {"outcome": "maybe"}, 'decisions[0]: outcome is "maybe"'),
        ("decisions", 1, {"cause": 1}, "decisions[1]: its cause is 1, which is not an earlier decision"),
        ("decisions", 1, {"cost_ns": -4}, "decisions[1]: cost_ns is -4"),
        ("decisions", 1, {"why": "who knows"}, "result.json: its digest is "),
        ("walks", 0, {"l1_hits": 901}, "walks[0]: accesses = l1_hits + l2_hits + segment_0d + walks does not hold"),
        ("walks", 0, {"escapes": 1}, "walks[0]: escapes <= checks_failed does not hold: 1 and 0"),
        ("walks", 0, {"references": 1}, "walks[0]: references = guest_references + nested_references does not hold"),
        ("walks", 0, {"walk_cycles": 1}, "result.json: its digest is "),
    ],
)
def test_what_is_wrong_is_found(folder, table, row, values, found):
    change(folder, table, row, **values)
    assert any(found in str(finding) for finding in check(folder))


def test_what_only_grows_does_not_fall(tmp_path):
    folder = hard_faults().save(tmp_path / "r")
    change(folder, "host", 3, bad_frames=0)
    assert any("bad_frames falls from 2 to 0" in str(finding) for finding in check(folder))


def test_a_summary_that_is_not_that_of_the_tables_is_found(folder):
    told = json.loads((folder / "result.json").read_text())
    told["summary"]["vm"]["db"]["waited_ns"] = 1
    told["tables"]["vms"] = 7
    (folder / "result.json").write_text(json.dumps(told))
    assert [str(finding) for finding in check(folder)] == [
        "result.json: vms has 3 rows, not 7",
        "result.json: its summary is not that of its tables",
    ]


def test_tables_that_cannot_be_read_are_all_told(folder):
    (folder / "host.parquet").unlink()
    (folder / "walks.parquet").write_bytes(b"")
    first, second = check(folder)
    assert str(first) == "host.parquet: is missing"
    assert str(second).startswith("walks.parquet: cannot be read: ")


def test_of_many_like_findings_a_few_are_told(tmp_path):
    folder = fragmented_database().save(tmp_path / "r")
    path = folder / "vms.parquet"
    held = pq.read_table(path)
    at = held.column_names.index("mode")
    pq.write_table(held.set_column(at, held.schema.field("mode"), pa.array(["x"] * held.num_rows)), path)
    told = [str(finding) for finding in check(folder) if "no mode" in str(finding) or "more like" in str(finding)]
    assert len(told) == 6
    assert told[-1] == f"vms: {held.num_rows - 5} more like these"


def test_memory_that_the_host_does_not_have_is_found(tmp_path):
    findings = check(consolidated_day().save(tmp_path / "r"))  # made up with more memory than there is, now and then
    assert findings
    assert all("are accounted for, but the host has" in str(one) or "more like" in str(one) for one in findings)


def test_no_result_is_bad_input(tmp_path):
    with pytest.raises(BadInput):
        check(tmp_path)


@pytest.mark.parametrize("name", ["l1_hits", "walks", "l2_misses", "dirty_walks", "false_escapes", "nested_references"])
def test_its_sums_are_those_of_the_engines_own_audit(folder, name):
    whole = {**dict.fromkeys(pq.read_table(folder / "walks.parquet").column_names, 0), **counters(references=960)}
    check_counters(whole)
    with pytest.raises(AssertionError):
        check_counters({**whole, name: whole[name] + 1})
    change(folder, "walks", 1, **{name: whole[name] + 1})
    assert any("does not hold" in str(finding) for finding in check(folder))
