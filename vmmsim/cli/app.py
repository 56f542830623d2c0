"""The list of commands, and how each of them ends: done, no, bad input or interrupted."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, cast

import typer

from vmmsim.cli import (
    bench,
    check,
    compare,
    demo,
    explain,
    machines,
    output,
    replay,
    scenario_files,
    tradeoffs,
    validate,
    warm,
)
from vmmsim.cli import run as run_command
from vmmsim.cli.trace import trace_app
from vmmsim.errors import BadInput

ClickError: Final = cast(type[Exception], typer.BadParameter.__mro__[2])
"""ClickException of the click that typer uses: the installed one, or, in newer typers, one of its own."""

INTERRUPTED: Final = 130
"""What a Ctrl-C ends with; newer typers return it, older ones raise."""

app = typer.Typer(
    name="vmmsim",
    help="Address translation and the life of memory on one virtualized host.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(trace_app, name="trace")

app.command("demo")(demo.demo)
app.command("replay")(replay.replay)
app.command("run")(run_command.run)
app.command("tradeoffs")(tradeoffs.tradeoffs)
app.command("compare")(compare.compare)
app.command("check")(check.check)
app.command("explain")(explain.explain)
app.command("warm")(warm.warm)
app.command("scenarios")(scenario_files.scenarios)
app.command("validate")(validate.validate)
app.command("new")(scenario_files.new)
app.command("schema")(scenario_files.schema)
app.command("machines")(machines.machines)
app.command("bench")(bench.bench)


@app.callback()
def _commands() -> None:
    """Keep the commands' names on the command line even while there is only one of them."""


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 1 the result says no, 2 bad input, 130 interrupted. No arguments are a call for help.
    """
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # what click and rich make of a broken pipe is SystemExit
        _abandon_stdout()
        return 0
    except OSError as bad:
        output.say(f"vmmsim: the output cannot be written: {bad.strerror or bad}")
        _abandon_stdout()
        return 2
    if code == INTERRUPTED:
        output.say("interrupted")
    return code


def _run(arguments: list[str]) -> int:
    """Run one command line and report what is wrong with it; ``OSError`` if stdout cannot be written."""
    try:
        return int(app(arguments or ["--help"], standalone_mode=False) or 0)
    except BadInput as bad:
        output.report(bad, as_json="--json" in arguments)
    except ClickError as bad:
        output.report(BadInput(_one_line(bad)), as_json="--json" in arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as bad:
        if bad.filename is None:
            raise
        output.report(BadInput(bad.strerror or str(bad), file=bad.filename), as_json="--json" in arguments)
    return 2


def _abandon_stdout() -> None:
    """Send what is still to be flushed nowhere: Python would complain of it at the end."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _one_line(bad: BaseException) -> str:
    """Return what click says of a wrong command line, without the full stop that a problem does not have."""
    return bad.format_message().rstrip(".")  # type: ignore[attr-defined,no-any-return]
