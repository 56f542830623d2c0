"""``vmmsim explain``: one cold walk, reference by reference, as text, picture, JSON or quiz."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from vmmsim.studies.explanation import Check, Explanation, Reference

PICTURES: Final = (".svg", ".png")


def explain(
    gva: Annotated[
        str,
        typer.Argument(metavar="GVA", help="Guest virtual address that is read, as 0x... or decimal."),
    ] = "0x7f5a12345678",
    mode: Annotated[
        str,
        typer.Option(metavar="MODE", help="native, native-direct, base, dual-direct, vmm-direct or guest-direct."),
    ] = "base",
    guest_page: Annotated[str, typer.Option(metavar="SIZE", help="Guest page: 4K, 2M or 1G.")] = "4K",
    host_page: Annotated[str, typer.Option(metavar="SIZE", help="Page of the nested table: 4K, 2M or 1G.")] = "4K",
    levels: Annotated[int, typer.Option(metavar="4|5", help="Levels of both tables.")] = 4,
    escaped: Annotated[
        bool, typer.Option("--escaped", help="The data page escapes the segment that leads to host memory.")
    ] = False,
    tables_outside: Annotated[
        int, typer.Option(metavar="K", help="K guest tables, from the root down, lie outside the VMM segment.")
    ] = 0,
    steps: Annotated[
        bool, typer.Option("--steps/--no-steps", help="List every reference and check with its addresses.")
    ] = True,
    quiz: Annotated[bool, typer.Option("--quiz", help="Hide the numbers and ask.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", show_default=False, help="Draw the walk; FILE is replaced."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show one page walk with all caches empty: what it reads, in what order, and what a segment spares it."""
    _check_outputs(picture, quiz=quiz, as_json=as_json)
    arguments = {
        "mode": mode,
        "guest_page": guest_page,
        "host_page": host_page,
        "levels": levels,
        "escaped": escaped,
        "tables_outside": tables_outside,
    }
    walk = _explained(parse_address(gva), arguments)
    if picture is not None:
        _draw(walk, picture)
    if quiz:
        _ask(walk)
    elif as_json:
        output.document("explain", described(walk))
    else:
        _tell(walk, steps=steps)


def parse_address(words: str) -> int:
    """Return the address that "0x7f5a12345678" or "140025" means; ``BadInput`` for anything else."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]+(_[0-9a-fA-F]+)*|[0-9]+", words):
        raise BadInput(f'"{words}" is not an address; write e.g. 0x7f5a12345678', file="GVA")
    return int(words, 16 if words[:2] in ("0x", "0X") else 10)


def _check_outputs(picture: Path | None, *, quiz: bool, as_json: bool) -> None:
    """Refuse, before any work, what cannot be put out."""
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise BadInput(f"{picture} is neither .svg nor .png", file="--picture")
    if quiz and (picture is not None or as_json):
        raise BadInput(f"hides the numbers; leave out {'--json' if as_json else '--picture'}", file="--quiz")


def _explained(gva: int, arguments: dict[str, Any]) -> Explanation:
    """Return the walk; what is wrong is said of the option that the user wrote."""
    from vmmsim.studies import explain as study

    try:
        plan = study.plan(gva, **arguments)
    except BadInput as bad:
        raise BadInput.of([attrs.evolve(it, file=_option(it.path), path="") for it in bad.problems]) from None
    output.say_if_compiling()
    return study.walk(plan)


def _option(parameter: str) -> str:
    return "GVA" if parameter == "gva" else f"--{parameter.replace('_', '-')}"


def _draw(walk: Explanation, picture: Path) -> None:
    from vmmsim.report.walk_picture import render

    output.write_whole(picture, render(walk, picture.suffix.lower().removeprefix(".")))
    output.say(f"wrote {picture}")


def _tell(walk: Explanation, *, steps: bool) -> None:
    from vmmsim.report import walk_text

    parts = [walk_text.drawing(walk), walk_text.legend(walk), "\n".join(f"Note: {note}." for note in walk.notes)]
    if steps:
        parts.append(walk_text.steps(walk))
    output.text("\n\n".join(part for part in parts if part))


def _ask(walk: Explanation) -> None:
    """Ask, answer by answer; the end of the input or Ctrl-C ends it with the score so far."""
    from vmmsim.report.walk_quiz import questions
    from vmmsim.report.walk_text import drawing

    output.text(f"{drawing(walk, hidden=True)}\n")
    asked = questions(walk)
    right = answered = 0
    try:
        for number, question in enumerate(asked, start=1):
            said = input(f"{number}. {question.ask} ")
            if not sys.stdin.isatty():
                output.text(said)
            answered += 1
            is_right = question.accepts(said)
            right += is_right
            output.text(f"   {'Right' if is_right else 'No'}: {question.answer}; {question.why}.")
    except EOFError:
        output.text("")
    except KeyboardInterrupt:
        output.text(f"\n{_score(right, answered, len(asked))}")
        raise
    output.text(f"\n{_score(right, answered, len(asked))}")
    if answered == len(asked):
        output.text(f"\n{drawing(walk)}")


def _score(right: int, answered: int, asked: int) -> str:
    left = f"; {asked - answered} of {asked} not answered" if answered < asked else ""
    return f"{right} of {answered} right{left}."


def described(walk: Explanation) -> dict[str, Any]:
    """Return the JSON of a walk; addresses are hexadecimal strings, so that no reader rounds them."""
    return {
        "gva": f"{walk.gva:#x}",
        "mode": walk.mode,
        "guest_page": walk.guest_page,
        "host_page": walk.host_page,
        "levels": walk.levels,
        "escaped": walk.escaped,
        "tables_outside": walk.tables_outside,
        "dimension": walk.dimension,
        "references": [_reference(it) for it in walk.references],
        "total_references": walk.total_references,
        "checks": [_check(it) for it in walk.checks],
        "base_bound_checks": walk.base_bound_checks,
        "hpa": f"{walk.hpa:#x}",
        "segments": [
            {"segment": it.segment, "base": f"{it.base:#x}", "limit": f"{it.limit:#x}", "offset": f"{it.offset:#x}"}
            for it in walk.segments
        ],
        "leaves": [
            {"mode": it.mode, "references": list(it.numbers), "of": it.of, "base_bound_checks": it.checks}
            for it in walk.kept
        ],
        "notes": list(walk.notes),
    }


def _reference(step: Reference) -> dict[str, Any]:
    return {
        "number": step.number,
        "dimension": step.dimension,
        "level": step.level,
        "of": step.of,
        "address": f"{step.address:#x}",
        "yields": f"{step.yields:#x}",
        "to": step.to,
    }


def _check(step: Check) -> dict[str, Any]:
    return {
        "segment": step.segment,
        "of": step.of,
        "after": step.after,
        "address": f"{step.address:#x}",
        "outcome": step.outcome,
        "yields": None if step.yields is None else f"{step.yields:#x}",
        "counted": step.counted,
    }
