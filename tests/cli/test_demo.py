"""``vmmsim demo``: a walk explained and a trace replayed, in one page."""

from __future__ import annotations

import pytest

from tests.studies.programs import accesses, lackey
from vmmsim.cli.app import run
from vmmsim.jit import INTERPRETED
from vmmsim.report import theme


def test_a_walk_and_every_mode(tmp_path, capsys):
    trace = tmp_path / "mine.lackey"
    trace.write_text(lackey(accesses(50)))
    assert run(["demo", str(trace)]) == 0
    out = capsys.readouterr().out
    assert "24 references, 0 checks, 2D." in out
    assert "2. What that does to a recorded program, in every mode" in out
    for look in theme.MODES.values():
        assert look.label in out
    assert out.rstrip().endswith("vmmsim --help")


@pytest.mark.skipif(INTERPRETED, reason="some million accesses")
def test_the_shipped_program_is_the_default(capsys):
    assert run(["demo"]) == 0
    out = capsys.readouterr().out
    assert "SQLite joining two million rows" in out
    assert "database.parquet" in out


def test_a_wrong_name_is_one_line_and_nothing_else(capsys):
    assert run(["demo", "databse"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "vmmsim: databse: neither a file nor a shipped trace; those are compiler, database, graph500, python\n",
    )
