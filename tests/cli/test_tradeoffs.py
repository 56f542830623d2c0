"""``vmmsim tradeoffs``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vmmsim as vs
from tests.cli.documents import document
from vmmsim.cli.app import run
from vmmsim.studies.tradeoff_result import Tradeoffs

SMALL = """
[run]
until = "10m"
detail = "lifetime"

[host]
memory = "5GiB"
thp = "never"
compaction = { bandwidth = "10GiB/s", proactiveness = 0 }
sharing = {}
swap = { device = "zram", size = "64MiB" }

[vm.db]
memory = "3GiB"
machine_type = "q35"
io_gap = "reclaim"
thp = "never"
workload = { name = "gups", footprint = "320MiB", scratch_share = 0.5 }
"""
ROWS = {
    "memory accesses of most page walks": ["24", "0", "4", "4"],
    "base-bound checks of most page walks": ["0", "1", "5", "1"],
    "dimension of page walk": ["2D", "0D", "1D", "1D"],
    "guest OS modifications": ["✗", "✓", "✗", "✓"],
    "VMM modifications": ["✗", "✓", "✓", "minimal"],
    "application category": ["any", "big-memory", "any", "big-memory"],
    "page sharing": ["✓", "limited", "limited", "✓"],
    "ballooning": ["✓", "limited", "✓", "limited"],
    "guest OS swapping": ["✓", "limited", "✓", "limited"],
    "VMM swapping": ["✓", "limited", "limited", "✓"],
}
"""The poster's table (MICRO 2014 poster, section 5), as it is printed: modes in the poster's order."""


@pytest.fixture
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.jit.is_warm", lambda: True)


pytestmark = [pytest.mark.life, pytest.mark.usefixtures("_warm")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tradeoffs") / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture(scope="module")
def measured(small: str) -> Tradeoffs:
    return vs.tradeoffs(small, pages=8)


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch, measured: Tradeoffs) -> None:
    """Have the command find at once what was measured before."""
    monkeypatch.setattr("vmmsim.studies.tradeoffs.tradeoffs", lambda *args, **options: measured)


@pytest.mark.usefixtures("_measured")
def test_the_table_is_the_posters(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tradeoffs", small, "--pages", "8"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = {}
    for line in out.splitlines():
        for title in ROWS:
            if line.startswith(title + " "):
                cells = [cell for cell in line[len(title) :].split("  ") if cell.strip()]
                found[title] = [cell.split(",")[0].strip() for cell in cells]
    assert found == ROWS
    modes = ["base", "dual-direct", "vmm-direct", "guest-direct"]
    assert any(line.split() == modes for line in out.splitlines())


@pytest.mark.usefixtures("_measured")
def test_the_document_keeps_to_its_schema_and_has_the_attempts_behind_a_cell(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    more = ["--pages", "8", "--explain", "dual-direct.page_sharing", "--out", str(out), "--json"]
    assert run(["tradeoffs", small, *more]) == 0
    told = document(capsys.readouterr().out, "tradeoffs")
    assert told == json.loads(out.read_text())
    cell, behind = told["modes"]["dual-direct"]["page_sharing"], told["explained"]
    assert behind["cell"] == "dual-direct.page_sharing"
    assert len(behind["attempts"]) == cell["pages"]
    outcomes = [one["outcome"] for one in behind["attempts"]]
    assert {"DONE", "PINNED_VMM"} == set(outcomes)
    assert cell["refusals"] == {"PINNED_VMM": outcomes.count("PINNED_VMM")}
    by_stratum = sum(sum(stratum["outcomes"].values()) for stratum in behind["strata"])
    assert by_stratum == cell["pages"]


@pytest.mark.usefixtures("_measured")
def test_explaining_a_cell_shows_pages_and_reasons(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tradeoffs", small, "--pages", "8", "--explain", "guest-direct.ballooning"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("guest-direct.ballooning: limited, ")
    assert " PINNED_GUEST\n    e.g. gVA 0x7f" in out
    assert " DONE\n" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--explain", "dual-direct.page_sharin"],
            'vmmsim: --explain: "dual-direct.page_sharin" is unknown; did you mean "dual-direct.page_sharing"?\n',
        ),
        (["--explain", "sharing"], 'vmmsim: --explain: "sharing" is no cell; write e.g. "dual-direct.page_sharing"\n'),
        (["--out", "table.txt"], "vmmsim: --out: table.txt does not end in .json\n"),
        (["absent.toml"], "vmmsim: absent.toml: no such file\n"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tradeoffs", *arguments]) == 2
    assert capsys.readouterr() == ("", said)


def test_a_vm_that_cannot_have_a_mode_ends_it_with_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "web.toml"
    path.write_text(SMALL.replace('name = "gups", footprint = "320MiB", scratch_share = 0.5', 'name = "web"'))
    assert run(["tradeoffs", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("vmmsim: db cannot have dual-direct: the workload has no primary region to put under a segment\n")
    assert run(["tradeoffs", str(path), "--json"]) == 1
    document(capsys.readouterr().out, "error")
