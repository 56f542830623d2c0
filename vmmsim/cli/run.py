"""``vmmsim run``: a scenario's life, told at its end and saved."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from types import FrameType

    from vmmsim.result import Result
    from vmmsim.scenario import Scenario

MAX_EVENTS: Final = 10**9
INTERRUPTED: Final = 130


def run(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A file, or a shipped scenario by its name.")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help='Change the scenario, e.g. "vm.db.memory=32GiB".'),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed.", show_default="the scenario's")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the result goes.", show_default="runs/SCENARIO-seedN-DIGEST"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a result that is there; run whatever it takes.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Recount everything after every event: slow.")] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="T", help='Simulated time to end at, e.g. "2h".', show_default="the scenario's"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the story.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no story: only where the result lies.")
    ] = False,
    max_events: Annotated[int, typer.Option(metavar="N", help="Refuse to run longer.")] = MAX_EVENTS,
) -> None:
    """Run a scenario, tell its story and save the result: configuration, summary and four tables.

    Ctrl-C ends it at the next event, and saves what there is; a second one quits at once.
    Exit 1 if no VM made progress any more, 130 if it was interrupted.
    """
    until_ns = _duration(until)
    command = _command(scenario, changes or [], seed, until, check)
    if out is not None:
        from vmmsim.result import refuse_folder

        refuse_folder(out, force=force)
    from vmmsim.scenario_file import load_scenario

    loaded = load_scenario(scenario, changes or [])
    if not force:
        _refuse_too_much(loaded, max_events)
    stop = threading.Event()
    options = {"seed": seed, "until": until_ns, "check": check, "max_events": None if force else max_events}
    with _heeding(stop):
        result = _simulated(loaded, options, stop, command, quiet=quiet, as_json=as_json)
        result = attrs.evolve(result, again=result.again or command)
        place = _saved(result, out, force=force, tell=not (as_json or quiet))
    if as_json:
        output.document("run", {"path": str(place), **result.as_dict()})
    elif not quiet:
        _tell(result)
    if not as_json:
        output.text(str(place))
    if stop.is_set():
        raise typer.Exit(INTERRUPTED)
    if result.stalled:
        raise typer.Exit(1)


def _refuse_too_much(scenario: Scenario, max_events: int) -> None:
    """Refuse what would take longer than anybody waits, or more memory than there is; say what is to blame."""
    from vmmsim.cli.room import free_bytes
    from vmmsim.studies.plan import plan, refuse_too_much
    from vmmsim.workloads.ahead import check_programs

    check_programs(scenario)
    refuse_too_much(plan(scenario), most_steps=max_events, free_bytes=free_bytes())


def _duration(until: str | None) -> int | None:
    from vmmsim.addresses import parse_duration

    try:
        return None if until is None else parse_duration(until)
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, file="--until") from None


def _command(scenario: str, changes: list[str], seed: int | None, until: str | None, check: bool) -> str:
    """Return the command that does the same again."""
    words = ["vmmsim", "run", scenario, *(word for change in changes for word in ("--set", change))]
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--until", until] if until is not None else []
    return shlex.join([*words, *(["--check"] if check else [])])


def _simulated(
    scenario: Any, options: dict[str, Any], stop: threading.Event, command: str, *, quiet: bool, as_json: bool
) -> Result:
    """Return the result of the simulation; an error that is ours leaves ``crash/`` and ends with exit 1."""
    from vmmsim.cli.run_progress import RunProgress
    from vmmsim.runs import simulate

    output.say_if_compiling()
    try:
        with RunProgress(quiet=quiet) as progress:
            result: Result = simulate(scenario, progress=progress, stop=stop, **options)
    except BadInput:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file that the user named
            raise
        output.report(BadInput(_crashed(error, scenario, options, command)), as_json=as_json)
        raise typer.Exit(1) from error
    return result


def _crashed(error: Exception, scenario: Any, options: dict[str, Any], command: str) -> str:
    """Write ``crash/``, and return what to say of the error."""
    from vmmsim.cli.crash import write_crash

    first = error.__cause__ or error
    said = f"the run failed: {type(first).__name__}: {first}"
    try:
        place = write_crash(error, scenario, options, command)
    except BadInput as bad:
        return f"{said}; this repeats it: {command} ({bad})"
    return f"{said}; {place} has all about it, and this repeats it: {command}"


@contextlib.contextmanager
def _heeding(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set ``stop``; the second is a ``KeyboardInterrupt`` as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def heed(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()
        print("\nstopping at the next event, and saving what there is; Ctrl-C again quits", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _saved(result: Result, out: Path | None, *, force: bool, tell: bool) -> Path:
    """Save the result; if that fails, tell at least the story, which may have taken hours to happen."""
    try:
        return result.save(out, force=force)
    except BadInput:
        if tell:
            _tell(result)
        raise


def _tell(result: Result) -> None:
    from rich.console import Console

    from vmmsim.report.story import WIDEST, tell

    wide = None if sys.stdout.isatty() else WIDEST
    tell(result, Console(width=wide, markup=False, highlight=False, emoji=False))
    output.text("")
