"""``vmmsim machines``: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmmsim.cli.app import run
from vmmsim.machine_file import load_machine, machine_names, machine_path

TOY = str(Path(__file__).parents[1] / "machines" / "toy.toml")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_the_list_has_every_machine_with_its_tlbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in machine_names():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert load_machine(name).title in line
    assert any("64/4 4K, 32/4 2M, 4 1G" in line and "512/4 4K" in line for line in lines)


def test_one_machine_is_shown_number_by_number_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", "sandy-bridge-2012"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["l2_tlb[0].entries", "512", "recalled", "MICRO", "2014"] in [row[:5] for row in rows]
    assert ["cycles.l2_tlb_hit", "7", "read", "Linux", "perf,"] in [row[:5] for row in rows]
    assert ["switches.ept_accessed_dirty", "false", "recalled"] in [row[:3] for row in rows]


def test_a_file_of_ones_own_is_shown_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", TOY]) == 0
    assert "no source given" in capsys.readouterr().out


def test_json_lists_the_machines_in_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vmmsim/machines/1"
    assert [machine["name"] for machine in document["machines"]] == machine_names()
    assert document["machines"][0]["l2_tlb"] == "512/4 4K"


def test_json_of_one_machine_has_every_value_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", "zen-4", "--json"]) == 0
    (machine,) = json.loads(capsys.readouterr().out)["machines"]
    values = {row["path"]: row for row in machine["values"]}
    assert values["l2_tlb[0].entries"]["value"] == 3072
    assert values["caches.l3.size"]["value"] == "4MiB"
    assert {row["sure"] for row in machine["values"]} <= {"read", "derived", "recalled", "assumed"}
    assert all(row["source"] for row in machine["values"])


def test_a_bad_file_ends_with_2_and_a_line_for_each_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('base = "skylake"\nlevels = 4.5\ntitel = "x"\n', encoding="utf-8")
    assert run(["machines", str(file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            f"vmmsim: {file}: levels: 4.5 is not a whole number",
            f'vmmsim: {file}: unknown key "titel"; did you mean "title"?',
        ],
    )


def test_a_bad_name_is_one_json_document_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", "nowhere.toml", "--json"]) == 2
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (
        {"error": [{"file": "nowhere.toml", "path": "", "message": "no such file"}]},
        "",
    )


@pytest.mark.parametrize("arguments", [["machines", "--jsn"], ["machines", "a", "b"], ["machins"]])
def test_a_wrong_command_line_ends_with_2_and_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmmsim: ")
    assert err.count("\n") == 1


def test_new_writes_a_start_and_never_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    assert run(["machines", "skylake", "--new", str(mine)]) == 0
    assert mine.read_bytes() == machine_path("skylake").read_bytes()
    assert load_machine(str(mine)).l2_tlb == load_machine("skylake").l2_tlb
    mine.write_text("mine", encoding="utf-8")
    assert run(["machines", "zen-4", "--new", str(mine)]) == 2
    assert mine.read_text(encoding="utf-8") == "mine"
    assert capsys.readouterr().err.endswith(f"vmmsim: {mine}: exists already; nothing was written\n")


def test_new_without_a_machine_says_what_to_choose_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["machines", "--new", str(tmp_path / "mine.toml")]) == 2
    assert "sandy-bridge-2012, sapphire-rapids, skylake, zen-4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(["machines", "skylake"]) == 0
    assert "\x1b[33m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["machines", "skylake"]) == 0
    assert "\x1b[33m" not in capsys.readouterr().out


def test_help_says_that_a_file_works_too_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vmmsim.cli.app import run; run(['machines', '--help']); "
        "print(sorted({'cattrs', 'numba', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "TOML file of your own" in out
    assert out.splitlines()[-1] == "[]"
