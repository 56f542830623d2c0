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

app.command("demo", short_help="Live a scenario for a while and tell its story.")(demo.demo)
app.command("replay", short_help="Translate a recorded program's accesses in every mode.")(replay.replay)
app.command("run", short_help="Run a scenario, tell its story, save the result.")(run_command.run)
app.command("tradeoffs", short_help="Measure what each mode permits: the trade-off table.")(tradeoffs.tradeoffs)
app.command("compare", short_help="Show how saved runs differ.")(compare.compare)
app.command("check", short_help="Verify a saved result.")(check.check)
app.command("explain", short_help="Show one page walk, reference by reference.")(explain.explain)
app.command("warm", short_help="Compile all kernels now.")(warm.warm)
app.command("scenarios", short_help="List the shipped scenarios.")(scenario_files.scenarios)
app.command("validate", short_help="Check scenario files: all mistakes, or the plan.")(validate.validate)
app.command("new", short_help="Write a scenario to start from.")(scenario_files.new)
app.command("schema", short_help="Print the JSON Schema of scenario files.")(scenario_files.schema)
app.command("machines", short_help="List the machines, or show one.")(machines.machines)
app.command("bench", short_help="Measure translations per second.")(bench.bench)


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
