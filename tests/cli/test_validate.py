"""``vmmsim validate``, ``schema``, ``new`` and ``scenarios``: what they print, write and refuse."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.cli.documents import document
from tests.test_scenario_file import GOOD, write
from vmmsim.cli.app import run
from vmmsim.cli.scenario_files import START, first_comment
from vmmsim.report.plan_text import together
from vmmsim.scenario_file import load_scenario
from vmmsim.scenario_schema import scenario_schema
from vmmsim.scenarios_folder import shipped_scenarios

Capture = pytest.CaptureFixture[str]


# --- validate ---


def test_a_good_file_is_answered_with_its_plan(capsys: Capture) -> None:
    assert run(["validate", "consolidated-day"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "consolidated-day: 1d, full detail, seed 1"
    assert lines[2] == "promised  96 GiB at one time (from 0s), 120 GiB in all, of 96 GiB"
    assert "web-0 to web-7  6 GiB   2      0s     base        web, 4 GiB" in lines
    assert "14h     balloon   db                  target=auto" in lines
    assert "periodic  khugepaged, each 10s in 10 VMs: 64,800 ticks" in lines
    assert lines[-1].startswith("estimate  at least ")
    assert lines[-1].endswith("both are guesses, without what moves or is freed and touched again")


def test_a_script_is_said_to_be_beyond_the_plan(capsys: Capture) -> None:
    assert run(["validate", "churn"]) == 0
    assert "script    churn.py:churn; what it does is not in this plan" in capsys.readouterr().out.splitlines()


def test_a_sweep_is_said_not_to_be_run(capsys: Capture) -> None:
    assert run(["validate", "hard-faults"]) == 0
    assert "sweep     run takes the scenario itself" in capsys.readouterr().out


def test_bad_files_end_with_2_and_a_line_for_each_mistake_of_each(tmp_path: Path, capsys: Capture) -> None:
    first = write(tmp_path, GOOD.replace('"8GiB"', '"8GB"'), "a.toml")
    second = write(tmp_path, GOOD.replace("count = 2", "count = 2.5"), "b.toml")
    good = write(tmp_path, GOOD, "c.toml")
    assert run(["validate", first, second, good]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("c: 2h, full detail, seed 1\n")
    assert err.splitlines() == [
        f'vmmsim: {first}: vm.db.memory: "8GB" is not a size; write e.g. "64GiB"',
        f"vmmsim: {second}: vm.web.count: 2.5 is not a whole number",
    ]


def test_bad_files_are_one_json_document_with_json(tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path, GOOD.replace('"8GiB"', '"8GB"'))
    assert run(["validate", file, "--json"]) == 2
    out, err = capsys.readouterr()
    told = document(out, "error")
    assert (told["error"][0]["path"], err) == ("vm.db.memory", "")


def test_keys_of_a_program_are_checked_too(tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path, GOOD.replace('name = "gups"', 'name = "gups", colour = 3'))
    assert run(["validate", file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'vmmsim: {file}: vm.db.workload: unknown key "colour"; ')


def test_values_are_set_for_the_check(tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path, GOOD)
    assert run(["validate", file, "--set", "run.until=3h", "--set", "vm.web.count=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("day: 3h,")
    assert "web-0 to web-2" in out
    assert run(["validate", file, "--set", "vm.db.memory=64GiB"]) == 2
    assert capsys.readouterr().err == (
        "vmmsim: --set: vm.db.memory: 64GiB is more than the host has, 16GiB (host.memory)\n"
    )


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_shipped_scenario_has_a_plan_that_keeps_to_the_schema(name: str, capsys: Capture) -> None:
    assert run(["validate", name, "--json"]) == 0
    (told,) = document(capsys.readouterr().out, "validate")["scenarios"]
    assert told["name"] == name
    assert told["events"] == sorted(told["events"], key=lambda event: event["at_ns"])
    assert told["has_sweep"] == (name == "hard-faults")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], ""),
        (["db"], "db"),
        (["web-0", "web-1"], "web-0, web-1"),
        (["db", "web-9", "web-10", "web-11", "x"], "db, web-9 to web-11, x"),
        (["a1", "a2", "a3"], "a1, a2, a3"),
    ],
)
def test_names_that_count_on_are_told_together(names: list[str], short: str) -> None:
    assert together(names) == short


# --- new ---


def test_new_writes_a_start_that_is_right_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine.toml"
    assert run(["new", str(mine)]) == 0
    assert mine.read_text(encoding="utf-8") == START
    assert load_scenario(mine).name == "mine"
    assert capsys.readouterr().err == f"wrote {mine}; change it, then: vmmsim validate {mine}\n"


def test_new_copies_a_shipped_scenario(tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine.toml"
    assert run(["new", "hard-faults", str(mine), "--json"]) == 0
    assert mine.read_bytes() == shipped_scenarios()["hard-faults"].read_bytes()
    assert document(capsys.readouterr().out, "new") == {
        "schema": "vmmsim/new/1",
        "path": str(mine),
        "copy_of": "hard-faults",
        "beside": [],
    }


def test_new_copies_a_script_too_and_lets_the_copy_name_it(tmp_path: Path, capsys: Capture) -> None:
    mine, script = tmp_path / "mine.toml", tmp_path / "mine.py"
    assert run(["new", "churn", str(mine), "--json"]) == 0
    assert document(capsys.readouterr().out, "new")["beside"] == [str(script)]
    assert load_scenario(mine).run.script == "mine.py:churn"
    shipped = shipped_scenarios()["churn"].with_name("churn.py").read_text(encoding="utf-8")
    copy = script.read_text(encoding="utf-8")
    assert "`vmmsim run mine.toml`" in copy
    assert "`python mine.py`" in copy
    assert ast.dump(without_docstring(copy)) == ast.dump(without_docstring(shipped)), "the code is the same"
    assert run(["validate", str(mine)]) == 0


def without_docstring(code: str) -> ast.Module:
    tree = ast.parse(code)
    del tree.body[0]
    return tree


def test_new_writes_neither_file_where_one_of_them_is_there_already(tmp_path: Path, capsys: Capture) -> None:
    script = tmp_path / "mine.py"
    script.write_text("mine", encoding="utf-8")
    assert run(["new", "churn", str(tmp_path / "mine.toml")]) == 2
    assert capsys.readouterr().err == f"vmmsim: {script}: exists already; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert script.read_text(encoding="utf-8") == "mine"


def test_new_overwrites_nothing_and_leaves_nothing_half_written(tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("mine", encoding="utf-8")
    assert run(["new", "io-gap", str(mine)]) == 2
    assert run(["new", str(tmp_path / "no" / "x.toml")]) == 2
    assert run(["new", "io-gapp", str(tmp_path / "x.toml")]) == 2
    assert run(["new", "io-gap"]) == 2
    assert run(["new", "a", "b", "c.toml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"vmmsim: {mine}: exists already; nothing was written"
    assert lines[2].startswith("vmmsim: io-gapp: not a shipped scenario; those are accelerated-faults, ")
    assert lines[3] == 'vmmsim: io-gap: is no name of a scenario file; write one that ends in ".toml"'
    assert len(lines) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    assert mine.read_text(encoding="utf-8") == "mine"


# --- scenarios, schema ---


def test_scenarios_lists_each_with_the_question_it_answers(capsys: Capture) -> None:
    assert run(["scenarios"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_scenarios())
    assert lines[2] == (
        "consolidated-day     A working day of one host that has promised 120 of its 96 GiB. Who pays, and when?"
    )
    assert run(["scenarios", "--json"]) == 0
    told = document(capsys.readouterr().out, "scenarios")["scenarios"]
    assert [row["name"] for row in told] == list(shipped_scenarios())
    assert all(row["question"] for row in told)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_a_shipped_scenario_begins_by_saying_whose_question_it_answers(name: str) -> None:
    text = shipped_scenarios()[name].read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line][:2]
    assert text.startswith("# ")
    assert "?" in " ".join(comments)
    assert first_comment(shipped_scenarios()[name]) == comments[0][2:]


def test_schema_prints_the_schema_of_scenario_files(capsys: Capture) -> None:
    assert run(["schema"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == scenario_schema()
    jsonschema.Draft202012Validator.check_schema(told)


def test_help_of_the_new_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vmmsim.cli.app import run\n"
        "for name in ('validate', 'schema', 'new', 'scenarios'): run([name, '--help'])\n"
        "print(sorted({'cattrs', 'numba', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
