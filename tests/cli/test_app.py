"""The command line as a whole: its list of commands, and how problems are said."""

from __future__ import annotations

import pytest

from vmmsim.cli.app import run
from vmmsim.cli.output import report
from vmmsim.errors import BadInput


def test_a_problem_of_several_lines_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """As exceptions that SimPy made anew are: one message with all of them."""
    report(BadInput("first\nsecond"), as_json=False)
    assert capsys.readouterr().err == "vmmsim: first\nvmmsim: second\n"


def test_the_list_of_commands_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["trace", "--help"]):
        assert run(arguments) == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2]
