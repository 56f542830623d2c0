"""``vmmsim run``: the story, the saved result, progress, interruptions and crashes; the simulation itself is a stub."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.cli.documents import document, schema
from tests.made_up import HOUR, S, Writer, fragmented_database, two_rows
from vmmsim.cli import run_progress
from vmmsim.cli.app import run
from vmmsim.decisions import SimulationFailed
from vmmsim.errors import BadInput
from vmmsim.result import load


@attrs.frozen
class FakeRun:
    seed: int = 5


@attrs.frozen
class FakeScenario:
    name: str
    changes: list[str]
    run: FakeRun = FakeRun()


class Simulation:
    """Stands in for the simulation: keeps what it was given, does what the test says, returns a made-up result."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.acts: Any = lambda **_: None
        self.result = two_rows()

    def __call__(self, scenario: Any, *, stop: Any, progress: Any, **options: Any) -> Any:
        self.given = {"scenario": scenario, **options}
        self.acts(stop=stop, progress=progress)
        return attrs.evolve(self.result, again="", complete=not stop.is_set())


@pytest.fixture
def simulation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Simulation()
    monkeypatch.setitem(sys.modules, "vmmsim.runs", types.SimpleNamespace(simulate=made))
    files = types.SimpleNamespace(load_scenario=FakeScenario)
    monkeypatch.setitem(sys.modules, "vmmsim.scenario_file", files)
    monkeypatch.setattr("vmmsim.cli.run._refuse_too_much", lambda *_: None)
    return made


def test_it_tells_the_story_saves_the_result_and_ends_with_its_path(simulation, capsys):
    assert run(["run", "day"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    *story, path = out.splitlines()
    assert path == f"runs/made-up-seed1-{simulation.result.digest[:8]}"
    assert any(line.startswith("db waited 10 s for Dual Direct") for line in story)
    assert max(map(len, story)) <= 100
    assert load(path).again == "vmmsim run day"


def test_its_options_reach_the_simulation(simulation, capsys):
    arguments = ["--set", "vm.db.memory=32GiB", "--set", "run.scale=16", "--seed", "7", "--until", "2h", "--check"]
    assert run(["run", "a day.toml", *arguments, "--out", "mine", "--max-events", "100"]) == 0
    given = simulation.given
    assert (given["scenario"].name, given["scenario"].changes) == ("a day.toml", ["vm.db.memory=32GiB", "run.scale=16"])
    assert (given["seed"], given["until"], given["check"], given["max_events"]) == (7, 2 * HOUR, True, 100)
    assert capsys.readouterr().out.splitlines()[-1] == "mine"
    assert load("mine").again == (
        "vmmsim run 'a day.toml' --set vm.db.memory=32GiB --set run.scale=16 --seed 7 --until 2h --check"
    )


def test_defaults_are_the_scenarios(simulation, capsys):
    assert run(["run", "day"]) == 0
    given = simulation.given
    assert (given["seed"], given["until"], given["check"], given["max_events"]) == (None, None, False, 10**9)
    assert run(["run", "day", "--force"]) == 0
    assert simulation.given["max_events"] is None


def test_json_is_one_document(simulation, capsys):
    assert run(["run", "day", "--json"]) == 0
    told = document(capsys.readouterr().out, "run")
    assert load(told["path"]).digest == told["digest"] == simulation.result.digest


def test_a_document_of_a_run_is_its_result_and_its_path():
    one, other = schema("run"), schema("result")
    assert one["$defs"] == other["$defs"]
    assert {**one["properties"], "schema": 0} == {
        **other["properties"], "path": one["properties"]["path"], "schema": 0
    }  # fmt: skip


def test_quiet_prints_the_path_only(simulation, capsys):
    assert run(["run", "day", "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--until", "2 hours"], 'vmmsim: --until: "2 hours" is not a duration; write e.g. "1d2h30m" or "10ms"'),
        (["--out", "taken"], "vmmsim: taken: exists already; give another name, or --force to replace it"),
        (["--out", "a/b"], "vmmsim: a/b: there is no directory a; make it first"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(simulation, capsys, tmp_path, arguments, message):
    (tmp_path / "taken").mkdir()
    assert run(["run", "day", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", message + "\n")
    assert simulation.given == {}


def test_bad_input_of_the_scenario_is_exit_2_and_leaves_nothing(simulation, capsys, tmp_path):
    def acts(**_):
        raise BadInput("too small for its VMs", file="day.toml", path="host.memory")

    simulation.acts = acts
    assert run(["run", "day"]) == 2
    assert capsys.readouterr() == ("", "vmmsim: day.toml: host.memory: too small for its VMs\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_nobody_makes_progress_ends_with_1(simulation, capsys):
    simulation.result = attrs.evolve(two_rows(), stalled="db waits for web")
    assert run(["run", "day"]) == 1
    assert "Stopped because no VM makes progress: db waits for web" in capsys.readouterr().out


def test_ctrl_c_stops_at_the_next_event_and_saves_what_there_is(simulation, capsys):
    def acts(stop, **_):
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()

    simulation.acts = acts
    before = signal.getsignal(signal.SIGINT)
    assert run(["run", "day"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    out, err = capsys.readouterr()
    assert "stopping at the next event, and saving what there is; Ctrl-C again quits" in err
    assert err.endswith("interrupted\n")
    assert "Not complete" in out
    assert not load(out.splitlines()[-1]).complete


def test_a_second_ctrl_c_quits(simulation, capsys, tmp_path):
    def acts(**_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    simulation.acts = acts
    assert run(["run", "day"]) == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_after_the_story_and_leaves_nothing(simulation, capsys, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def write_table(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", write_table)
    assert run(["run", "day", "--out", "mine"]) == 2
    out, err = capsys.readouterr()
    assert "db waited 10 s for Dual Direct" in out
    assert err == "vmmsim: mine: cannot be written: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


# Crashes


def crash(**_):
    writer = Writer()
    writer.at(3 * S).decide("vmm", "boot", vm="db", outcome="done")
    raise SimulationFailed(writer.recorder) from ZeroDivisionError("a frame owned twice")


def test_an_error_of_ours_leaves_what_it_takes_to_find_it(simulation, capsys, tmp_path):
    simulation.acts = crash
    for _ in range(2):  # an older crash is replaced
        assert run(["run", "day", "--set", "vm.db.vcpus=2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == 2 * [
        "vmmsim: the run failed: ZeroDivisionError: a frame owned twice; crash has all about it, and this repeats it: "
        "vmmsim run day --set vm.db.vcpus=2"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crash"]
    assert sorted(path.name for path in (tmp_path / "crash").iterdir()) == ["crash.json", "traceback.txt"]
    told = json.loads((tmp_path / "crash" / "crash.json").read_text())
    assert (told["seed"], told["t_ns"]) == (5, 3 * S)
    assert told["scenario"] == {"name": "day", "changes": ["vm.db.vcpus=2"], "run": {"seed": 5}}
    assert [one["verb"] for one in told["decisions"]] == ["boot"]
    assert "ZeroDivisionError: a frame owned twice" in (tmp_path / "crash" / "traceback.txt").read_text()


def test_a_folder_of_that_name_that_is_no_crash_is_left_alone(simulation, tmp_path):
    simulation.acts = crash
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "reports.txt").write_text("mine")
    assert run(["run", "day"]) == 1
    assert [path.name for path in (tmp_path / "crash").iterdir()] == ["reports.txt"]
    assert (tmp_path / "crash-2" / "crash.json").is_file()


def test_an_error_that_cannot_be_written_down_is_said_all_the_same(simulation, capsys, monkeypatch):
    def mkdtemp(**_):
        raise OSError(28, "No space left on device")

    simulation.acts = crash
    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    assert run(["run", "day"]) == 1
    assert capsys.readouterr().err == (
        "vmmsim: the run failed: ZeroDivisionError: a frame owned twice; this repeats it: vmmsim run day "
        "(crash: cannot be written: No space left on device)\n"
    )


def test_any_error_is_told_in_json_too(simulation, capsys):
    def acts(**_):
        raise AssertionError("no")

    simulation.acts = acts
    assert run(["run", "day", "--seed", "9", "--json"]) == 1
    (problem,) = document(capsys.readouterr().out, "error")["error"]
    assert problem["message"].startswith("the run failed: AssertionError: no; crash has all about it")
    assert json.loads(Path("crash/crash.json").read_text())["seed"] == 9


# Progress


def test_progress_says_where_the_run_is():
    modes = {"db": "dual-direct", "a": "base", "b": "base", "c": "base", "off": ""}
    assert run_progress.where(2 * HOUR + 5, 4 * HOUR, modes, 75.2) == (
        "2 h of 4 h, 50 %, 1 min 15 s left; db dual-direct; 3 VMs base; off off"
    )
    assert run_progress.where(0, 4 * HOUR, {}, None) == "0 ns of 4 h, 0 %"


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 40 s each time it is read."""
    now = [1000.0]

    def read():
        now[0] += 40
        return now[0]

    monkeypatch.setattr(run_progress.time, "monotonic", read)


def test_off_a_terminal_there_is_a_line_a_minute(simulation, capsys, clock):
    def acts(progress, **_):
        for tick in range(1, 7):
            progress(tick * HOUR, 10 * HOUR, {"db": "base"})

    simulation.acts = acts
    assert run(["run", "day"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["2 h of 10 h", "4 h of 10 h", "6 h of 10 h"]
    assert lines[0] == "2 h of 10 h, 20 %, 5 min 20 s left; db base"


def test_on_a_terminal_one_line_renews_itself_and_is_gone_at_the_end(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    with run_progress.RunProgress() as progress:
        for tick in range(1, 4):
            progress(tick * HOUR, 10 * HOUR, {"db": "base"})
    err = capsys.readouterr().err
    assert "\n" not in err
    assert err.split("\r")[1].startswith("1 h of 10 h")
    assert all(len(part) < 30 for part in err.split("\r"))
    assert err.split("\r")[-2].strip() == ""


def test_quiet_has_no_progress(simulation, capsys, clock):
    simulation.acts = lambda progress, **_: progress(HOUR, HOUR, {})
    assert run(["run", "day", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_long_story_fits(simulation, capsys):
    simulation.result = fragmented_database()
    assert run(["run", "day"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 60


TOY = """
[run]
until = "2s"
[host]
memory = "64MiB"
kernelcore = "16MiB"
[vm.db]
memory = "16MiB"
workload = { name = "gups", footprint = "1MiB" }
"""


def test_a_run_that_is_too_long_or_too_large_is_refused_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(TOY)
    assert run(["run", "toy.toml", "--max-events", "1"]) == 2
    assert "--max-events is 1" in capsys.readouterr().err
    monkeypatch.setattr("vmmsim.cli.room.free_bytes", lambda: 1 << 20)
    assert run(["run", "toy.toml"]) == 2
    assert "1 MiB are free here" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.life
def test_a_toy_lives_is_told_saved_checked_and_compared_with_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(TOY)
    assert run(["run", "toy.toml", "--check"]) == 0
    *_, place = capsys.readouterr().out.split()
    assert run(["check", place]) == 0
    assert run(["run", "toy.toml", "--set", 'measure.as_if=["base", "dual-direct"]', "--out", "again"]) == 0
    capsys.readouterr()
    assert run(["compare", place, "again"]) == 0, "neither checks nor shadows change what happens"
    assert run(["run", "toy.toml", "--seed", "2", "--out", "other"]) == 0
    assert run(["compare", place, "other"]) == 1


@pytest.mark.life
def test_a_scaled_run_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(TOY)
    assert run(["run", "toy.toml", "--set", "run.scale=2"]) == 0
    assert "scaled 1:2" in capsys.readouterr().out
