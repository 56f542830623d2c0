"""The list of commands, and how each of them ends: done, no, bad input or interrupted."""

from __future__ import annotations

import sys

import click
import typer

from vmmsim.cli import output
from vmmsim.cli.trace import trace_app
from vmmsim.errors import BadInput

app = typer.Typer(
    name="vmmsim",
    help="Address translation and the life of memory on one virtualized host.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(trace_app, name="trace")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0 done, 1 the result says no, 2 bad input, 130 interrupted."""
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except BadInput as bad:
        output.report(bad, as_json="--json" in arguments)
    except click.ClickException as bad:
        output.report(BadInput(bad.format_message()), as_json="--json" in arguments)
    except (KeyboardInterrupt, click.Abort):
        output.say("interrupted")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as bad:
        output.report(BadInput(bad.strerror or str(bad), file=bad.filename or ""), as_json="--json" in arguments)
    return 2
