"""``vmmsim trace``: exit codes, one clear line each, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vmmsim.cli.app import run
from vmmsim.workloads import record as recording
from vmmsim.workloads.trace import open_trace

LACKEY = b"I  1000,4\n L 5000,8\n S 6000,8\n"
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "t.lackey"
    path.write_bytes(LACKEY)
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with exit 2 and one line; return the line."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_convert_writes_a_trace_and_says_where(text, tmp_path, capsys):
    out = tmp_path / "o.parquet"
    assert run(["trace", "convert", str(text), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_trace(out).counts().accesses == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.parquet", "t.lackey"]


def test_convert_as_json(text, tmp_path, capsys):
    assert run(["trace", "convert", str(text), str(tmp_path / "o"), "--data-only", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vmmsim/trace-convert/1"
    assert document["converted_from"] == "lackey"
    assert (document["counts"]["fetches"], document["counts"]["reads"]) == (0, 1)


def test_inspect_for_people_and_as_json(text, capsys):
    assert run(["trace", "inspect", str(text)]) == 0
    shown = capsys.readouterr().out
    assert "format          lackey" in shown
    assert "misses of a fully associative LRU TLB" in shown
    assert run(["trace", "inspect", str(text), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vmmsim/trace-inspect/1"
    assert document["counts"]["pages"] == 3
    assert document["reuse"]["data"]["first_touches"] == 2


def test_an_existing_output_is_not_overwritten_without_force(text, tmp_path, capsys):
    out = tmp_path / "o"
    out.write_bytes(b"precious")
    line = refused(["trace", "convert", str(text), str(out)], capsys)
    assert line == f"vmmsim: {out}: exists already; give another name, or --force to overwrite it"
    assert out.read_bytes() == b"precious"
    assert run(["trace", "convert", str(text), str(out), "--force"]) == 0
    assert open_trace(out).format == "vmmsim"


@pytest.mark.parametrize("content", [b"", b" L 1000,4\n L 10", b"==1== Lackey, an example Valgrind tool\n"])
def test_a_bad_trace_is_one_line_and_nothing_is_written(tmp_path, capsys, content):
    (tmp_path / "t").write_bytes(content)
    for command in (["inspect", str(tmp_path / "t")], ["convert", str(tmp_path / "t"), str(tmp_path / "o")]):
        assert refused(["trace", *command], capsys).startswith(f"vmmsim: {tmp_path / 't'}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_bad_trace_leaves_an_output_that_was_to_be_replaced(tmp_path, capsys):
    (tmp_path / "t").write_bytes(b" L 1000,4\n" * 10 + b"broken\n")
    (tmp_path / "o").write_bytes(b"precious")
    refused(["trace", "convert", "--force", str(tmp_path / "t"), str(tmp_path / "o")], capsys)
    assert (tmp_path / "o").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o", "t"]


def test_missing_input_and_unwritable_outputs_are_one_line(text, tmp_path, capsys):
    assert refused(["trace", "inspect", str(tmp_path / "none")], capsys).endswith("none: no such file")
    assert refused(["trace", "inspect", str(tmp_path)], capsys).endswith("is not a file; a trace is one")
    line = refused(["trace", "convert", str(text), str(tmp_path / "no" / "o")], capsys)
    assert line.endswith(f"there is no directory {tmp_path / 'no'}; make it first")
    line = refused(["trace", "convert", "--force", str(text), "/dev/null"], capsys)
    assert line.endswith("is not a regular file, and is not replaced by one; give another name")


def test_a_full_disk_is_one_line_and_nothing_is_left(text, tmp_path, capsys, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    line = refused(["trace", "convert", str(text), str(tmp_path / "o")], capsys)
    assert line.endswith("o: cannot be written: No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["t.lackey"]


def test_errors_as_json(tmp_path, capsys):
    assert run(["trace", "inspect", str(tmp_path / "none"), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document == {"error": [{"file": str(tmp_path / "none"), "path": "", "message": "no such file"}]}


def test_recording_without_valgrind_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recording.shutil, "which", lambda name: None)
    line = refused(["trace", "record", str(tmp_path / "o"), "--", "ls"], capsys)
    assert line.startswith("vmmsim: recording needs valgrind, which is not on the PATH; install it: ")
    assert list(tmp_path.iterdir()) == []


@needs_valgrind
@pytest.mark.valgrind
def test_recording_takes_every_access_and_keeps_the_programs_output_apart(tmp_path, capfd):
    out = tmp_path / "o"
    assert (
        run(
            [
                "trace",
                "record",
                str(out),
                "--json",
                "--",
                "/bin/sh",
                "-c",
                "echo hello; echo oops >&2; exit 3",
            ]
        )
        == 0
    )
    shown = capfd.readouterr()
    assert shown.out.startswith("hello\n")
    assert "oops" in shown.err
    assert "the program ended with exit code 3" in shown.err
    assert "==" not in shown.err
    document = json.loads(shown.out.removeprefix("hello\n"))
    assert document["complete"]
    assert document["exit_code"] == 3
    trace = open_trace(out)
    assert trace.has_instructions
    assert trace.counts().accesses == document["counts"]["accesses"] > 50_000
    assert sum(chunk.size for chunk in trace.chunks("all")) == trace.counts().runs


@needs_valgrind
@pytest.mark.valgrind
def test_recording_stops_at_the_limit(tmp_path, capfd):
    out = tmp_path / "o"
    endless = "while :; do :; done"
    assert run(["trace", "record", str(out), "--limit", "20000", "--skip", "10", "--", "/bin/sh", "-c", endless]) == 0
    capfd.readouterr()
    assert open_trace(out).counts().accesses == 20000
    about = open_trace(out).about
    assert not about.complete
    assert about.command == "sh -c 'while :; do :; done'"
    assert about.notes == ("its first 10 accesses are left out",)


@needs_valgrind
@pytest.mark.valgrind
def test_recording_what_does_not_exist_or_records_nothing_is_one_line(tmp_path, capfd):
    line = refused(["trace", "record", str(tmp_path / "o"), "--", "no-such-program"], capfd)
    assert line == "vmmsim: no-such-program: no such program, or it may not be run; give its name or path after --"
    line = refused(["trace", "record", str(tmp_path / "o"), "--skip", "999999999", "--", "/bin/true"], capfd)
    assert line.startswith("vmmsim: true: nothing was recorded: the program ended with exit code 0 before ")
    assert list(tmp_path.iterdir()) == []


@needs_valgrind
@pytest.mark.valgrind
def test_ctrl_c_keeps_a_whole_trace_of_what_was_recorded_so_far(tmp_path):
    out = tmp_path / "o"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vmmsim",
            "trace",
            "record",
            str(out),
            "--",
            "/bin/sh",
            "-c",
            "while :; do :; done",
        ],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    try:
        while not list(tmp_path.glob(".o.*")):  # the temporary appears when the program begins to run
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted: the trace holds what was recorded until then" in err
    assert [p.name for p in tmp_path.iterdir()] == ["o"]
    trace = open_trace(out)
    assert np.concatenate(list(trace.chunks("all"))).size == trace.counts().runs > 0
    assert not trace.about.complete
