"""``vmmsim replay``: a recorded program through every mode, as a table, a figure or JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmmsim.cli import output
from vmmsim.cli.progress import Progress
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from vmmsim.studies.replay import Replay

PLOTS: Final = (".png", ".svg", ".pdf")


def replay(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="Trace in any format that is read, or a shipped one by its name.")
    ],
    more_modes: Annotated[list[str] | None, typer.Argument(metavar="MODE", hidden=True)] = None,
    *,
    machine: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Machine: a shipped one (vmmsim machines) or a file.")
    ] = "sandy-bridge-2012",
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="M ...|all",
            help="native, native-direct, base, dual-direct, vmm-direct, guest-direct, or all; several after one "
            "another, with commas, or by repeating the option.",
            show_default="all",
        ),
    ] = None,
    guest_page: Annotated[str, typer.Option(metavar="4K|2M|1G", help="Page size of the guest's table.")] = "4K",
    host_page: Annotated[str, typer.Option(metavar="4K|2M|1G", help="Page size of the nested table.")] = "4K",
    accesses: Annotated[
        str, typer.Option(metavar="data|instructions|all", help="Which of the trace's accesses to translate.")
    ] = "data",
    guest_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help='Guest memory, e.g. "2GiB".', show_default="twice what the program needs"),
    ] = None,
    placement: Annotated[
        str,
        typer.Option(
            metavar="contiguous|random|fragmented",
            help="How scattered frames are at both levels; under a segment they are contiguous.",
        ),
    ] = "fragmented",
    bad_pages: Annotated[
        int, typer.Option(metavar="N", help="Frames under the segment with permanent faults, which escape it.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of placement, bad pages and filters.")] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|svg|pdf", show_default=False, help="Draw the result; FILE is replaced."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Translate a program's recorded accesses natively, under base virtualization and with direct segments.

    The program is laid out in a guest on a host, everything mapped beforehand; each mode has its own caches and TLBs.
    """
    kind = _plot_kind(plot)
    trace, modes = _trace_and_modes([trace, *(more_modes or [])], mode)
    done = replayed(
        trace,
        {
            "machine": machine,
            "modes": modes,
            "guest_page": _page(guest_page, "--guest-page"),
            "host_page": _page(host_page, "--host-page"),
            "accesses": accesses,
            "guest_memory": _memory(guest_memory),
            "placement": placement,
            "bad_pages": bad_pages,
            "seed": seed,
        },
    )
    if plot is not None:
        from vmmsim.report.replay_figure import render

        output.write_whole(plot, render(done, kind))
    if as_json:
        output.document("replay", done.as_dict())
    else:
        tell(done)
    if plot is not None:
        output.say(f"wrote {plot}")


def _plot_kind(plot: Path | None) -> str:
    """Refuse, before any work, a figure that cannot be written; return its kind."""
    if plot is None:
        return ""
    if plot.suffix.lower() not in PLOTS:
        raise BadInput(f"{plot} is neither .png nor .svg nor .pdf", file="--plot")
    if not plot.parent.is_dir():
        raise BadInput(f"there is no directory {plot.parent}; make it first", file="--plot")
    if plot.exists() and not plot.is_file():
        raise BadInput(f"{plot} is not a regular file, and is not replaced by one; give another name", file="--plot")
    if not os.access(plot.parent, os.W_OK):
        raise BadInput(f"nothing can be written to the directory {plot.parent}", file="--plot")
    return plot.suffix.lower().removeprefix(".")


def _trace_and_modes(words: list[str], mode: list[str] | None) -> tuple[str, list[str]]:
    """Tell the trace from the modes that follow --mode without commas: --mode base native TRACE is well said too.

    --mode base native, --mode base,native and --mode base --mode native are the same.
    """
    from vmmsim.config import MODES

    known = {"all", *MODES}
    others = [at for at, word in enumerate(words) if not set(word.split(",")) <= known] if mode else []
    at = others[0] if len(others) == 1 else 0
    trace, more = words[at], words[:at] + words[at + 1 :]
    extra = next((word for word in more if not mode or Path(word).exists()), None)
    if extra is not None:
        raise BadInput(f'"{extra}" is one file too many; replay takes one trace', file="TRACE")
    return trace, [name for given in (*(mode or ["all"]), *more) for name in given.split(",")]


def _page(name: str, option: str) -> str:
    from vmmsim.addresses import SIZE_NAMES, size_number

    try:
        return SIZE_NAMES[size_number(name)]
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, file=option) from None


def _memory(text: str | None) -> int | None:
    from vmmsim.addresses import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, file="--guest-memory") from None


def replayed(trace: str, options: dict[str, object]) -> Replay:
    """Return the replay of a trace that the user named, with progress on stderr."""
    from vmmsim.scenarios_folder import trace_path
    from vmmsim.studies.replay import replay as study

    trace_path(trace)  # a name that there is not is told at once
    output.say_if_compiling()
    with Progress("reading", "accesses") as progress:
        again = progress.then("replaying")
        return study(trace, surveying=progress, progress=again, **options)  # type: ignore[arg-type]


def tell(done: Replay) -> None:
    """Print the replay for people: what was replayed, the table, and how to read it."""
    from vmmsim.report.replay_table import footnotes, heading, tables

    console = output.console()
    for line in heading(done):
        console.print(line, highlight=False, soft_wrap=True)
    for table in tables(done, console):
        console.print(table)
    for line in footnotes(done):
        console.print(line, highlight=False, style="dim")
