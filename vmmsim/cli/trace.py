"""``vmmsim trace``: record the accesses of a program, look at a trace, convert one into our own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmmsim.cli import output
from vmmsim.cli.progress import Progress

if TYPE_CHECKING:
    from vmmsim.workloads.accesses import Kinds
    from vmmsim.workloads.counts import Counts
    from vmmsim.workloads.reuse import Reuse
    from vmmsim.workloads.trace import Trace

trace_app = typer.Typer(help="Record, inspect and convert traces of memory accesses.", no_args_is_help=True)

_Out = Annotated[Path, typer.Argument(help="File to write, in vmmsim's own format (Parquet).", metavar="OUT")]
_In = Annotated[
    str, typer.Argument(help="Trace in any format that is read, or a shipped one by name.", metavar="TRACE")
]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
_DataOnly = Annotated[bool, typer.Option("--data-only", help="Leave out instruction fetches.")]
_Levels = Annotated[int, typer.Option("--levels", min=4, max=5, help="Levels of page tables of its machine.")]
_Format = Annotated[str | None, typer.Option("--format", help="Format of TRACE, if its content does not tell.")]


@trace_app.command(
    "record", short_help="Record a program, under valgrind.", context_settings={"allow_interspersed_args": True}
)
def record_command(
    out: _Out,
    command: Annotated[list[str], typer.Argument(help="Program and its arguments.", metavar="-- CMD...")],
    *,
    limit: Annotated[int | None, typer.Option("--limit", help="Stop after this many accesses.")] = None,
    skip: Annotated[int, typer.Option("--skip", help="Leave out this many accesses first.")] = 0,
    data_only: _DataOnly = False,
    force: _Force = False,
    as_json: _Json = False,
) -> int:
    """Run CMD under valgrind's lackey and write every access it makes to OUT.

    Ctrl-C stops the program and keeps what was recorded so far, as a whole trace.
    """
    from vmmsim.workloads.record import record

    kinds = _kinds(data_only)
    with Progress("recording", "accesses") as progress:
        made = record(command, out, limit=limit, skip=skip, kinds=kinds, force=force, progress=progress)
    if made.interrupted:
        output.say("interrupted: the trace holds what was recorded until then")
    elif made.exit_code:
        how = f"exit code {made.exit_code}" if made.exit_code > 0 else f"signal {-made.exit_code}"
        output.say(f"the program ended with {how}; the trace holds what it did until then")
    if as_json:
        body = {"path": str(out), "complete": made.complete, "interrupted": made.interrupted}
        output.document("trace-record", body | {"exit_code": made.exit_code, "counts": made.counts.as_dict()})
    else:
        _say_written(out, made.counts)
    return 130 if made.interrupted else 0


@trace_app.command("convert", short_help="Write a trace in vmmsim's own format.")
def convert_command(
    trace: _In,
    out: _Out,
    *,
    data_only: _DataOnly = False,
    levels: _Levels = 4,
    format: _Format = None,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """Write TRACE to OUT in vmmsim's own format, which is small and fast to read."""
    from vmmsim.scenarios_folder import trace_path
    from vmmsim.workloads.save import convert
    from vmmsim.workloads.trace import open_trace

    source = open_trace(trace_path(trace), levels=levels, format=format)
    _say_notes(source)
    with Progress("converting", "accesses") as progress:
        counts = convert(source, out, kinds=_kinds(data_only), force=force, progress=progress)
    if as_json:
        body = {"path": str(out), "converted_from": source.format, "notes": list(source.notes)}
        output.document("trace-convert", body | {"counts": counts.as_dict()})
    else:
        _say_written(out, counts)


@trace_app.command("inspect", short_help="Say what a trace holds.")
def inspect_command(trace: _In, levels: _Levels = 4, format: _Format = None, as_json: _Json = False) -> None:
    """Say what TRACE holds: format, counts, pages touched, and how soon pages are used again.

    Reads it all, and so finds any damage.
    """
    from vmmsim.scenarios_folder import trace_path
    from vmmsim.workloads.inspect import inspect
    from vmmsim.workloads.trace import open_trace

    source = open_trace(trace_path(trace), levels=levels, format=format)
    with Progress("reading", "accesses") as progress:
        found = inspect(source, progress=progress)
    if as_json:
        output.document("trace-inspect", found.as_dict())
        return
    _say_notes(source)
    _print_facts(source, found.counts)
    _print_reuse(found.reuse)


def _kinds(data_only: bool) -> Kinds:
    return "data" if data_only else "all"


def _say_notes(trace: Trace) -> None:
    for note in trace.notes:
        output.say(f"note: {note}")


def _say_written(out: Path, counts: Counts) -> None:
    from vmmsim.addresses import format_bytes

    size = out.stat().st_size
    output.say(f"{counts.accesses:,} accesses in {format_bytes(size)}, {size / counts.accesses:.2f} bytes each")
    print(out)


def _print_facts(trace: Trace, counts: Counts) -> None:
    from vmmsim.addresses import format_bytes

    recorded = getattr(trace, "about", None)
    rows: list[tuple[str, str]] = [("trace", str(trace.path)), ("format", trace.format)]
    if recorded is not None:
        rows += [("recorded as", recorded.recorded_as)]
        rows += [("command", recorded.command)] if recorded.command else []
        rows += [] if recorded.complete else [("complete", "no: recording stopped before the program ended")]
    rows += [
        ("accesses", f"{counts.accesses:,}" + (" (a sample)" if trace.weighted else "")),
        ("  reads", f"{counts.reads:,}"),
        ("  writes", f"{counts.writes:,}"),
        ("  modifies", f"{counts.modifies:,}"),
        ("  fetches", f"{counts.fetches:,}"),
        ("page crossings", f"{counts.page_crossings:,}"),
        ("runs", f"{counts.runs:,}"),
        ("pages touched", f"{counts.pages:,} ({format_bytes(counts.footprint_bytes)})"),
        ("  by data", f"{counts.data_pages:,}"),
        ("  by fetches", f"{counts.instruction_pages:,}"),
        ("addresses", f"{counts.lowest:#x} to {counts.highest:#x}"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


def _print_reuse(reuse: dict[str, Reuse]) -> None:
    """Print, for data accesses and fetches, the share that misses an LRU TLB of each size."""
    sizes = sorted({size for part in reuse.values() for size in part.misses})
    print("\nmisses of a fully associative LRU TLB of 4 KiB pages, share of translations")
    print(f"{'entries':>13}" + "".join(f"{name:>14}" for name in reuse))
    for size in sizes:
        print(f"{size:>13,}" + "".join(f"{_share(part, size):>14}" for part in reuse.values()))
    firsts = (f"{part.first_touches / part.accesses:.4%}" for part in reuse.values())
    print(f"{'first touches':>13}" + "".join(f"{share:>14}" for share in firsts))


def _share(part: Any, size: int) -> str:
    return f"{part.misses.get(size, part.first_touches) / part.accesses:.4%}"
