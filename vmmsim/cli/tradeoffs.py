"""``vmmsim tradeoffs``: the poster's table, measured on a running VM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput, Refused

if TYPE_CHECKING:
    from vmmsim.studies.tradeoff_result import Tradeoffs


def tradeoffs(
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="[SCENARIO]", help="A file, or a shipped scenario by its name.", show_default="a VM of 8 GiB"
        ),
    ] = None,
    *,
    cell: Annotated[
        str | None,
        typer.Option("--explain", metavar="MODE.SERVICE", help="Show the attempts behind one cell instead."),
    ] = None,
    pages: Annotated[int, typer.Option(metavar="N", min=1, help="About how many pages each service is tried on.")] = 64,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed.", show_default="the scenario's")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", show_default=False, help="Write the JSON document there; FILE is replaced."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure what each mode permits: walks, page sharing, ballooning and swapping, on the same VM in every mode.

    Exit 1 if the VM cannot have one of the modes, or if what came out contradicts the model.
    """
    from vmmsim.studies.tradeoff_result import cell_dict, check_cell

    if out is not None and out.suffix != ".json":
        raise BadInput(f"{out} does not end in .json", file="--out")
    if cell is not None:
        _check(cell, check_cell)
    found = _measured(scenario, pages, seed, as_json=as_json)
    document: dict[str, Any] = found.as_dict()
    if cell is not None:
        document["explained"] = cell_dict(found.cell(cell))
    if out is not None:
        whole = {"schema": "vmmsim/tradeoffs/1", **document}
        output.write_whole(out, (json.dumps(whole, indent=2) + "\n").encode())
        output.say(f"wrote {out}")
    if as_json:
        output.document("tradeoffs", document)
    else:
        _tell(found, cell)
    if found.errors:
        raise typer.Exit(1)


def _check(cell: str, check_cell: Any) -> None:
    try:
        check_cell(cell)
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, file="--explain") from None


def _measured(scenario: str | None, pages: int, seed: int | None, *, as_json: bool) -> Tradeoffs:
    """Return what was found; a VM that cannot have a mode is said in a line, with exit 1."""
    from vmmsim.studies.tradeoffs import tradeoffs as measure

    output.say_if_compiling()
    try:
        return measure(scenario, pages=pages, seed=seed)
    except Refused as no:
        output.report(BadInput(f"{no.vm} cannot have {no.asked}: {no.why}"), as_json=as_json)
        raise typer.Exit(1) from None


def _tell(found: Tradeoffs, cell: str | None) -> None:
    from vmmsim.report.tradeoffs_table import explained, table

    output.text(table(found) if cell is None else explained(found.cell(cell)))
