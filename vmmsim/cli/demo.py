"""``vmmsim demo``: what the project does, in one page of terminal output."""

from __future__ import annotations

from typing import Annotated

import typer

from vmmsim.cli import output
from vmmsim.cli.progress import Progress

DEMO_TRACE = "database"


def demo(
    trace: Annotated[
        str, typer.Argument(metavar="[TRACE]", help="A shipped trace by its name, or a file.")
    ] = DEMO_TRACE,
) -> None:
    """Explain one page walk, then replay a real program's recorded accesses in every mode."""
    from vmmsim.cli.replay import tell
    from vmmsim.report.walk_text import drawing
    from vmmsim.scenarios_folder import trace_path
    from vmmsim.studies.explain import explain
    from vmmsim.studies.replay import replay

    output.say_if_compiling()
    output.text("1. What a TLB miss costs: one page walk, reference by reference\n")
    output.text(drawing(explain()) + "\n")
    output.text("2. What that does to a program: SQLite joining two million rows, recorded, in every mode\n")
    with Progress("replaying", "accesses") as progress:
        tell(replay(trace_path(trace), progress=progress))
    output.text("\nNext: vmmsim explain --mode vmm-direct    vmmsim replay compiler --plot modes.png    vmmsim --help")
