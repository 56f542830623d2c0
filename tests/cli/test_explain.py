"""``vmmsim explain``: what it prints, asks and draws, and how it ends."""

from __future__ import annotations

import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vmmsim.cli import output
from vmmsim.cli.app import run

BASE = """\
gVA 0x7f5a12345678, base virtualized, 4K pages in guest and host, all caches empty
                  nested walk        guest entry
guest L4     1    2    3    4             5
guest L3     6    7    8    9            10
guest L2    11   12   13   14            15
guest L1    16   17   18   19            20
data page   21   22   23   24
24 references, 0 checks, 2D.     VMM Direct leaves 5 10 15 20 (4, and 5 checks); \
Guest Direct leaves 21-24 (4, and 1 check).
"""


@pytest.fixture
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.jit.is_warm", lambda: True)


pytestmark = pytest.mark.usefixtures("_warm")


def test_the_drawing_comes_first_and_every_reference_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(BASE + "\n")
    assert [int(line.split()[0]) for line in out.splitlines() if "  reads hPA " in line] == list(range(1, 25))
    assert "\x1b" not in out


@pytest.mark.parametrize("gva", ["0x7f5a12345678", "0x7F5A_1234_5678", "140024829204088"])
def test_without_steps_it_is_the_drawing_alone(gva: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", gva, "--no-steps"]) == 0
    assert capsys.readouterr().out == BASE


def test_segment_modes_come_with_a_legend_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--mode", "vmm-direct", "--host-page", "2M", "--no-steps"]) == 0
    out = capsys.readouterr().out
    assert "\nVMM segment: BASE_V 0x100000000, " in out
    assert out.endswith("\nNote: host pages of 2M make no difference: no nested table is read.\n")


def test_a_terminal_without_the_dot_gets_a_full_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert run(["explain", "--mode", "vmm-direct"]) == 0
    assert b"guest L4     .    .    .    .    V        1\n" in raw.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--mode", "native"],
        ["--mode", "native-direct", "--escaped"],
        ["--mode", "dual-direct", "--levels", "5"],
        ["--mode", "guest-direct", "--guest-page", "2M", "--host-page", "1G"],
        ["--mode", "vmm-direct", "--escaped", "--tables-outside", "4"],
        ["0xffffffff81000000"],
    ],
)
def test_json_keeps_to_its_schema(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema(), cls=jsonschema.Draft202012Validator)
    assert len(document["references"]) == document["total_references"]
    assert sum(check["counted"] for check in document["checks"]) == document["base_bound_checks"]


def schema() -> dict[str, Any]:
    text = resources.files("vmmsim.data").joinpath("schemas/explain.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(loaded)
    return loaded


def test_json_tells_each_reference_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["mode"], document["dimension"]) == ("vmmsim/explain/1", "base", "2D")
    assert document["references"][4] == {
        "number": 5,
        "dimension": "guest",
        "level": 4,
        "of": "gVA",
        "address": "0x88b3fe7f0",
        "yields": "0x11c7a1000",
        "to": "guest L3 table",
    }
    assert document["references"][23]["of"] == "data page"
    assert document["hpa"] == "0x8d2345678"


BAD = [
    (
        ["0x800000000000"],
        "GVA: 0x800000000000 is not a canonical address of 4-level tables; bits 63 to 47 must be equal",
    ),
    (["zz"], 'GVA: "zz" is not an address; write e.g. 0x7f5a12345678'),
    (["0x1g"], 'GVA: "0x1g" is not an address; write e.g. 0x7f5a12345678'),
    (["1.5"], 'GVA: "1.5" is not an address; write e.g. 0x7f5a12345678'),
    ([""], 'GVA: "" is not an address; write e.g. 0x7f5a12345678'),
    (["--mode", "dual-drect"], '--mode: "dual-drect" is unknown; did you mean "dual-direct"?'),
    (
        ["--mode", "x"],
        '--mode: "x" is unknown; known: "native", "native-direct", "base", "dual-direct", "vmm-direct", "guest-direct"',
    ),
    (["--guest-page", "8K"], '--guest-page: "8K" is not a page size; write 4K, 2M or 1G'),
    (["--host-page", "2MB"], '--host-page: "2MB" is not a page size; write 4K, 2M or 1G'),
    (["--levels", "3"], "--levels: must be 4 or 5, not 3"),
    (
        ["--tables-outside", "6", "--mode", "vmm-direct", "--levels", "5"],
        "--tables-outside: 6 is not 0 to 5: that many guest tables translate a 4K page",
    ),
    (
        ["--tables-outside", "1"],
        "--tables-outside: base has no VMM segment to be outside of; use vmm-direct",
    ),
    (["--escaped", "--mode", "native"], "--escaped: native has no segment to escape from; use native-direct"),
    (["--quiz", "--json"], "--quiz: hides the numbers; leave out --json"),
    (["--picture", "walk.pdf"], "--picture: walk.pdf is neither .svg nor .png"),
    (["--picture", "walk"], "--picture: walk is neither .svg nor .png"),
    (["--picture", "no/such/walk.svg"], "no/such/walk.svg: there is no directory no/such; make it first"),
    (["--picture", "folder.svg"], "folder.svg: is not a regular file, and is not replaced by one; give another name"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_ends_with_2_one_line_and_nothing_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    picture = [] if {"--picture", "--quiz"} & set(arguments) else ["--picture", "walk.svg"]
    assert run(["explain", *arguments, *picture]) == 2
    out, err = capsys.readouterr()
    if "--json" in arguments:
        assert [error["message"] for error in json.loads(out)["error"]] == [message.partition(": ")[2]]
    else:
        assert (out, err) == ("", f"vmmsim: {message}\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.svg"]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_is_written_whole_and_replaces_an_older_one(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmmsim.report.walk_picture import render
    from vmmsim.studies.explain import explain

    file = tmp_path / f"walk.{kind}"
    file.write_text("an older one", encoding="utf-8")
    assert run(["explain", "--mode", "guest-direct", "--picture", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["total_references"] == 4
    assert err == f"wrote {file}\n"
    assert file.read_bytes() == render(explain(mode="guest-direct"), kind)
    assert list(tmp_path.iterdir()) == [file]


def answer(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_quiz_says_right_or_wrong_and_why_and_the_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "24", "5", "2d", "15", "5,10,15,20", "21-24")
    assert run(["explain", "--quiz"]) == 0
    out = capsys.readouterr().out
    asked, _, revealed = out.partition("5 of 6 right.\n\n")
    assert revealed == BASE
    assert "guest L4     ?    ?    ?    ?             ?\n" in asked
    assert "   Right: 24; row by row, 5 + 5 + 5 + 5 + 4 = 24.\n" in asked
    assert "   No: 0; there is no segment to compare with.\n" in asked
    assert asked.count("   Right: ") == 5


def test_the_end_of_the_input_ends_the_quiz_with_the_score_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "0", "1")
    assert run(["explain", "--quiz", "--mode", "dual-direct"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n2 of 2 right; 2 of 4 not answered.\n")


def test_ctrl_c_ends_the_quiz_with_the_score_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert run(["explain", "--quiz"]) == 130
    out, err = capsys.readouterr()
    assert out.endswith("\n0 of 0 right; 6 of 6 not answered.\n")
    assert err.splitlines()[-1] == "interrupted"


def test_a_cold_engine_is_announced_but_not_before_the_input_is_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vmmsim.jit.is_warm", lambda: False)
    assert run(["explain", "--no-steps"]) == 0
    assert capsys.readouterr().err == "compiling the translation engine (once; about half a minute)\n"
    assert run(["explain", "--mode", "bas"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kept.svg"
    file.write_bytes(b"old")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ValueError, match=r"kept\.svg: cannot be written: Permission denied"):
        output.write_whole(file, b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
