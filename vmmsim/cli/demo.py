"""``vmmsim demo``: what the project does, in one page of terminal output."""

from __future__ import annotations

from typing import Annotated

import typer

from vmmsim.cli import output

DEMO_TRACE = "database"
PROGRAM = "a program: SQLite joining two million rows, recorded"


def demo(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace by its name, or a file.")] = DEMO_TRACE,
) -> None:
    """Explain one page walk, then replay a real program's recorded accesses in every mode."""
    from vmmsim.cli.replay import replayed, tell
    from vmmsim.report.walk_text import drawing
    from vmmsim.scenarios_folder import trace_path
    from vmmsim.studies.explain import explain
    from vmmsim.workloads.trace import open_trace

    open_trace(trace_path(trace))  # a wrong name is said before anything else is
    program = PROGRAM if trace == DEMO_TRACE else "a recorded program"
    output.say_if_compiling()
    output.text("1. What a TLB miss costs: one page walk, reference by reference\n")
    output.text(drawing(explain()) + "\n")
    output.text(f"2. What that does to {program}, in every mode\n")
    tell(replayed(trace, {}))
    output.text("\nNext: vmmsim explain --mode vmm-direct    vmmsim replay compiler --plot modes.png    vmmsim --help")
