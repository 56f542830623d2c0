"""``vmmsim bench``: how fast the engine is here, beside a C program doing the same work if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmmsim.cli import output
from vmmsim.cli.progress import Steps

if TYPE_CHECKING:
    from vmmsim.config import Machine
    from vmmsim.studies.bench import Rate
    from vmmsim.studies.bench_streams import Stream
    from vmmsim.studies.c_program import CProgram
    from vmmsim.studies.start_time import StartTimes

_ACCESSES: Final = 1 << 18
_QUICK_ACCESSES: Final = 1 << 16
_TRACE_RUNS: Final = 1 << 20
_SHIPPED: Final = "database"


def bench(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the work, and no compiling from nothing.")
    ] = False,
    hierarchy: Annotated[
        bool, typer.Option("--hierarchy", help="Measure with the model of the caches on too: twice the time.")
    ] = False,
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACE", show_default=_SHIPPED, help="A trace, by file or name: its first million runs."),
    ] = None,
    machine: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Machine: a shipped one (vmmsim machines) or a file.")
    ] = "sandy-bridge-2012",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure translations per second in every mode, start time, compile time and memory.

    Streams: uniform, Zipf and sequential over 4 GiB of 4 KiB pages, frames random at both levels, a quarter writes; and
    a recorded trace.
    In a source checkout with a C compiler, benchmarks/translate.c does the same work on the same page tables, and the
    ratios are what to look at: they depend little on the computer and on what else it does.
    """
    from vmmsim.machine_file import load_machine
    from vmmsim.studies.start_time import measure_start

    chosen = load_machine(machine)
    output.say_if_compiling()
    streams = _streams(quick, trace or [], chosen)
    rival = _rival()
    with Steps() as steps:
        tables = [
            _measured(chosen, streams, rival, with_caches, quick, steps)
            for with_caches in ((False, True) if hierarchy else (False,))
        ]
        steps("start and compile time")
        start = measure_start(cold=not quick, times=2 if quick else 5)
    if as_json:
        output.document("bench", _document(chosen, rival, tables, start))
    else:
        _tell(rival, tables, start)


def _streams(quick: bool, traces: list[str], machine: Machine) -> list[Stream]:
    import numpy as np

    from vmmsim.scenarios_folder import trace_path
    from vmmsim.studies.bench_streams import stream_of, streams
    from vmmsim.workloads.trace import open_trace

    made = streams(np.random.default_rng(1), _QUICK_ACCESSES if quick else _ACCESSES)
    for name in traces or [_SHIPPED]:
        path = trace_path(name)
        opened = open_trace(path, levels=machine.levels)
        made.append(stream_of(path.stem, opened.chunks("data"), _TRACE_RUNS))
    return made


def _rival() -> CProgram | None:
    from vmmsim.studies.c_program import CProgram, find_compiler, find_source

    source, compiler = find_source(), find_compiler()
    return CProgram(source, compiler) if source and compiler else None


def _measured(
    machine: Machine,
    streams: list[Stream],
    rival: CProgram | None,
    hierarchy: bool,
    quick: bool,
    steps: Steps,
) -> list[Rate]:
    from vmmsim.studies.bench import measure_all

    return list(measure_all(machine, streams, rival, hierarchy=hierarchy, turns=6 if quick else 12, say=steps))


def _tell(rival: CProgram | None, tables: list[list[Rate]], start: StartTimes) -> None:
    from vmmsim.report.bench_table import rates_table, start_lines, verdict
    from vmmsim.studies.bench import geometric_mean, smallest

    console = output.console()
    for rates in tables:
        console.print(rates_table(rates))
        console.print(
            verdict(geometric_mean(rates), smallest(rates), rival.compiler if rival else None), soft_wrap=True
        )
    console.print()
    for line in start_lines(start):
        console.print(line, soft_wrap=True)


def _document(machine: Machine, rival: CProgram | None, tables: list[list[Rate]], start: StartTimes) -> dict[str, Any]:
    import attrs

    from vmmsim.studies.bench import geometric_mean, smallest

    return {
        "machine": machine.name,
        "compiler": rival.compiler if rival else None,
        "rates": [{**attrs.asdict(rate), "ratio": rate.ratio} for rates in tables for rate in rates],
        "summary": [
            {
                "hierarchy": rates[0].hierarchy,
                "geometric_mean_ratio": geometric_mean(rates),
                "smallest_ratio": smallest(rates),
            }
            for rates in tables
        ],
        "start": attrs.asdict(start),
    }
