"""``vmmsim compare``: runs side by side, and whether they are the same."""

from __future__ import annotations

from typing import Annotated

import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Saved results: their directories.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how runs differ: what was asked, what came out, and the first decision that is not the same.

    Exit 0 if all digests are equal, 1 if not.
    """
    if len(runs) < 2:
        raise BadInput("takes two runs or more", file="compare")
    from vmmsim.report import compare as study
    from vmmsim.result import load

    done = study.compare([load(run) for run in runs])
    if as_json:
        output.document("compare", study.as_dict(done, runs))
    else:
        console = output.console()
        for line in study.counts(done, runs):
            console.print(line, soft_wrap=True)
        for table in study.tables(done, runs):
            console.print()
            console.print(table)
        console.print()
        for line in study.parting(done, runs):
            console.print(line, soft_wrap=True)
        console.print("The runs are the same." if done.equal else "The runs are not the same: their digests differ.")
    if not done.equal:
        raise typer.Exit(1)
