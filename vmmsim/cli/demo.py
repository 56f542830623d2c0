"""``vmmsim demo``: what the project does, in one page of terminal output."""

from __future__ import annotations

from typing import Annotated

import typer

from vmmsim.cli import output

DEMO = "fragmented-guest"


def demo(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A shipped scenario by its name, or a file.")
    ] = DEMO,
) -> None:
    """Live a scenario's life and tell its story: who got its mode, what that took, and what the wait cost."""
    from vmmsim.cli.run_progress import RunProgress
    from vmmsim.report.story import tell
    from vmmsim.scenario_file import load_scenario

    loaded = load_scenario(scenario)  # a wrong name is said before anything else is
    output.say_if_compiling()
    from vmmsim.runs import simulate

    with RunProgress(quiet=False) as progress:
        result = simulate(loaded, progress=progress)
    tell(result, output.console())
    output.text(f"\nNext: vmmsim run {scenario} --seed 2    vmmsim scenarios    vmmsim explain    vmmsim --help")
