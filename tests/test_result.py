"""Results: saved whole or not at all, loaded as they were, and told in notebooks."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

import vmmsim
from tests.cli.documents import document
from tests.made_up import S, Writer, fragmented_database, two_rows
from vmmsim.errors import BadInput
from vmmsim.result import TABLES, Result, load, refuse_folder


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_as_it_was(tmp_path):
    result = fragmented_database()
    assert result.save(tmp_path / "r") == tmp_path / "r"
    again = vmmsim.load(tmp_path / "r")
    assert isinstance(again, vmmsim.Result)
    assert again.as_dict() == json.loads(json.dumps(result.as_dict()))
    for name in TABLES:
        assert again[name].equals(result[name])
        assert again[name].schema.metadata[b"schema_version"] == b"1"
    assert Result.load(tmp_path / "r").digest == result.digest


def test_a_result_is_one_document_and_four_tables(tmp_path):
    folder = two_rows().save(tmp_path / "r")
    assert names(folder) == ["decisions.parquet", "host.parquet", "result.json", "vms.parquet", "walks.parquet"]
    told = document((folder / "result.json").read_text(), "result")
    assert told["tables"] == {"vms": 3, "host": 1, "decisions": 3, "walks": 2}
    assert told["again"] == "vmmsim run made-up --seed 1"
    assert pq.read_table(folder / "vms.parquet").num_rows == 3


def test_a_result_says_of_what_versions_it_is():
    result = Writer().result(0, versions=vmmsim.result.versions())
    assert result.versions["vmmsim"] == vmmsim.__version__
    assert {"python", "numpy", "simpy", "numba", "pyarrow"} <= set(result.versions)


def test_without_a_name_it_goes_to_runs_by_scenario_seed_and_digest(tmp_path):
    result = two_rows()
    folder = result.save()
    assert str(folder) == f"runs/made-up-seed1-{result.digest[:8]}"
    assert result.save() == folder  # the very same is there already
    assert names(tmp_path / "runs") == [folder.name]


def test_another_result_of_the_same_digest_gets_a_number():
    writer = Writer()
    first = writer.result(S).save()
    second = writer.result(2 * S).save()
    assert str(second) == f"{first}-2"
    assert load(second).end_ns == 2 * S
    assert load(first).end_ns == S


def test_nothing_is_replaced_without_force(tmp_path):
    two_rows().save(tmp_path / "r")
    with pytest.raises(BadInput, match="exists already; give another name, or --force to replace it"):
        fragmented_database().save(tmp_path / "r")
    assert load(tmp_path / "r").name == "made-up"
    fragmented_database().save(tmp_path / "r", force=True)
    assert load(tmp_path / "r").name == "fragmented-database"
    assert names(tmp_path) == ["r"]


def test_what_is_no_result_is_not_replaced_even_with_force(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(BadInput, match="is not a saved result, and is not replaced by one"):
            two_rows().save(tmp_path / name, force=True)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "years of work"


def test_a_folder_needs_a_folder_to_lie_in(tmp_path):
    with pytest.raises(BadInput, match="there is no directory"):
        two_rows().save(tmp_path / "a" / "b")
    assert names(tmp_path) == []


def test_a_folder_can_be_refused_before_any_work(tmp_path):
    refuse_folder(tmp_path / "new", force=False)
    (tmp_path / "empty").mkdir()
    refuse_folder(tmp_path / "empty", force=True)
    with pytest.raises(BadInput):
        refuse_folder(tmp_path / "empty", force=False)


class DiskFull(OSError):
    def __init__(self):
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("error", [DiskFull(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, at, error):
    written = []

    def write_table(table, path, **_):
        path.write_bytes(b"half of ")
        if len(written) == at:
            raise error
        written.append(path)

    monkeypatch.setattr(pq, "write_table", write_table)
    with pytest.raises(BadInput if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        two_rows().save(tmp_path / "r")
    if isinstance(error, OSError):
        assert str(caught.value) == f"{tmp_path / 'r'}: cannot be written: No space left on device"
    assert names(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_result_as_it_was(tmp_path, monkeypatch):
    two_rows().save(tmp_path / "r")
    rename = os.rename
    kept = two_rows().digest

    def failing(source, target, **_):
        if str(source).endswith(".part"):
            raise DiskFull
        return rename(source, target)

    monkeypatch.setattr("pathlib.Path.rename", failing)
    with pytest.raises(BadInput, match="No space left"):
        fragmented_database().save(tmp_path / "r", force=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["r"]
    assert load(tmp_path / "r").digest == kept


def test_a_folder_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").mkdir()
    folder = two_rows().save(tmp_path / "r")
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "host.parquet").unlink(), "host.parquet: is missing"),
        (lambda folder: (folder / "host.parquet").write_bytes(b"x" * 50), "host.parquet: cannot be read: "),
        (lambda folder: (folder / "result.json").unlink(), "is no saved result: it has no result.json"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json: is not JSON"),
        (lambda folder: (folder / "result.json").write_text("{}"), 'its schema is not "vmmsim/result/1"'),
        (
            lambda folder: (folder / "result.json").write_text('{"schema": "vmmsim/result/1", "name": ""}'),
            "lacks scenario, seed, end_ns",
        ),
        (
            lambda folder: pq.write_table(two_rows()["host"].drop(["free_bytes"]), folder / "host.parquet"),
            "host.parquet: lacks free_bytes int64",
        ),
        (
            lambda folder: pq.write_table(two_rows()["host"].replace_schema_metadata({}), folder / "host.parquet"),
            "host.parquet: its schema_version is none, not 1",
        ),
    ],
)
def test_a_damaged_result_is_said_in_one_line(tmp_path, damage, message):
    folder = two_rows().save(tmp_path / "r")
    damage(folder)
    with pytest.raises(BadInput) as caught:
        load(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_result_is_said(tmp_path):
    with pytest.raises(BadInput, match="there is no such result"):
        load(tmp_path / "nowhere")


def test_notebooks_show_a_small_table_of_the_vms():
    shown = two_rows()._repr_html_()
    assert shown.count("<tr>") == 2
    assert "<td>db</td><td>dual-direct</td><td>10 s</td><td>50.0%</td><td>23.33%</td>" in shown
    assert "not complete" in Writer().result(0, complete=False)._repr_html_()
    assert "&lt;b&gt;" in Writer().result(0, name="<b>")._repr_html_()
