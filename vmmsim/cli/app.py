"""The list of commands, and how each of them ends: done, no, bad input or interrupted."""

from __future__ import annotations

import sys
from typing import Final, cast

import typer

from vmmsim.cli import bench, demo, explain, machines, output, replay, warm
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
app.command("explain")(explain.explain)
app.command("warm")(warm.warm)
app.command("machines")(machines.machines)
app.command("bench")(bench.bench)


@app.callback()
def _commands() -> None:
    """Keep the commands' names on the command line even while there is only one of them."""


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 1 the result says no, 2 bad input, 130 interrupted. No arguments are a call for help.
    """
    code = 2
    try:
        code = int(app(arguments or ["--help"], standalone_mode=False) or 0)
    except BadInput as bad:
        output.report(bad, as_json="--json" in arguments)
    except ClickError as bad:
        output.report(BadInput(_one_line(bad)), as_json="--json" in arguments)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as bad:
        problem = BadInput(bad.strerror or str(bad), file=bad.filename or "")
        output.report(problem, as_json="--json" in arguments)
    if code == INTERRUPTED:
        output.say("interrupted")
    return code


def _one_line(bad: BaseException) -> str:
    """Return what click says of a wrong command line, without the full stop that a problem does not have."""
    return bad.format_message().rstrip(".")  # type: ignore[attr-defined,no-any-return]
