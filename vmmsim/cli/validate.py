"""``vmmsim validate``: what is wrong with scenario files; or, if nothing is, what will happen and what it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput, Problem

if TYPE_CHECKING:
    from vmmsim.studies.plan import Plan


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Scenario files, or names of shipped ones.")],
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Put VALUE in place of what each file says at PATH."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check scenario files without running them: every mistake, one line each, or else the plan.

    The plan lists memory, VMs, events, periodic actors and samples, and guesses what a run takes.
    """
    plans, problems = _planned(files, set_ or [])
    if as_json and not problems:
        from vmmsim.report.plan_text import plan_document

        output.document("validate", {"scenarios": [plan_document(plan) for plan in plans]})
    elif not as_json:
        _tell(plans)
    if problems:
        raise BadInput.of(problems)


def _planned(files: list[str], overrides: list[str]) -> tuple[list[Plan], list[Problem]]:
    """Return the plans of the files that are right, and everything that is wrong with the others."""
    from vmmsim.scenario_file import load_scenario
    from vmmsim.studies.plan import plan
    from vmmsim.workloads.ahead import check_programs

    plans: list[Plan] = []
    problems: list[Problem] = []
    for file in files:
        try:
            scenario = load_scenario(file, overrides)
            check_programs(scenario, file)
            plans.append(plan(scenario))
        except BadInput as bad:
            problems += [problem for problem in bad.problems if problem not in problems]
    return plans, problems


def _tell(plans: list[Plan]) -> None:
    from vmmsim.report.plan_text import plan_lines

    for n, plan in enumerate(plans):
        output.text(("\n" if n else "") + "\n".join(plan_lines(plan)))
