"""``vmmsim check``: whether a saved result is whole, and true to its tables."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from vmmsim.cli import output


def check(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A saved result.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Verify a saved result: files, columns, digest, times, modes, and the sums that hold between its numbers.

    Exit 0 if nothing is wrong, 1 with a line for each finding.
    """
    from vmmsim.result_check import check as findings_of

    findings = findings_of(folder)
    if as_json:
        told = [attrs.asdict(finding) for finding in findings]
        output.document("check", {"path": folder, "ok": not findings, "findings": told})
    else:
        for finding in findings:
            output.text(f"{folder}: {finding}")
        if not findings:
            output.text(f"{folder}: whole; its digest, counters, times and sums are right")
    if findings:
        raise typer.Exit(1)
