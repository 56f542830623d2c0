"""Recording the accesses of a program: valgrind's lackey, through a pipe, straight into our own format."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from vmmsim.errors import BadInput
from vmmsim.workloads import lackey
from vmmsim.workloads.accesses import Accesses, Kinds
from vmmsim.workloads.counts import Counts, Tally
from vmmsim.workloads.parquet import About
from vmmsim.workloads.replacing import refuse_existing
from vmmsim.workloads.save import Progress, save
from vmmsim.workloads.stream import BLOCK_BYTES
from vmmsim.workloads.trace import runs_of

_LOOK_SECONDS: Final = 0.25
"""How long a silent program keeps us from seeing that we were interrupted."""
_GRACE_SECONDS: Final = 10.0
"""How long a program may take to end once asked to: valgrind looks for signals only every 100,000
blocks, which take 2 to 3 s when it logs."""


@attrs.frozen(kw_only=True)
class Recording:
    """How a recording ended; its trace is whole and valid however it did."""

    counts: Counts
    """What was recorded."""
    complete: bool
    """False if the program was stopped: at the limit, or because we were interrupted."""
    interrupted: bool
    """True if Ctrl-C (or SIGTERM) stopped it."""
    exit_code: int | None
    """The program's exit code, negative for a signal that ended it; None if it was stopped."""


def record(
    command: Sequence[str],
    out: Path,
    *,
    limit: int | None = None,
    skip: int = 0,
    kinds: Kinds = "all",
    force: bool = False,
    progress: Progress | None = None,
) -> Recording:
    """Run ``command`` under valgrind and write its accesses of ``kinds`` to ``out`` as they are made.

    Leaves out the first ``skip`` accesses and stops the program after ``limit`` more. On Ctrl-C stops it
    too and keeps what was recorded so far, a whole trace; with nothing recorded yet, and on a second
    Ctrl-C, raises ``KeyboardInterrupt`` and writes nothing. Children of the program are not recorded.
    ``BadInput`` if valgrind or the program is missing, if no access was recorded, or as ``save`` raises it.
    """
    if not command:
        raise BadInput("give the command to record after --, e.g.: vmmsim trace record ls.parquet -- ls -l")
    if limit is not None and limit < 1:
        raise BadInput("must be at least 1 access", file=f"--limit {limit}")
    if skip < 0:
        raise BadInput("must be 0 or more accesses", file=f"--skip {skip}")
    refuse_existing(out, force=force)
    valgrind = _found(command)
    tally = Tally()
    with _interruptible() as stop, _Program(valgrind, command, stop) as program:
        accesses = lackey.parse(program.texts(), file="valgrind's output", live=True)
        runs = runs_of(_wanted(accesses, kinds, skip, limit), kinds, tally, file=out)

        def about() -> About:
            program.end()
            if limit is not None and tally.accesses >= limit:
                program.stopped = True  # even if it had ended when we got there: we have not read to the end
            return About(
                recorded_as="lackey",
                command=_shown(command),
                complete=not program.stopped,
                notes=(f"its first {skip:,} accesses are left out",) if skip else (),
            )

        try:
            counts = save(runs, out, tally, about, force=force, progress=progress)
        except BadInput:
            if tally.accesses:
                raise
            program.end()
            if stop.is_set():
                raise KeyboardInterrupt from None
            raise BadInput(
                f"nothing was recorded: {_ended(program.exit_code)} before making an access of this kind",
                file=_shown(command),
            ) from None
        return Recording(
            counts=counts,
            complete=not program.stopped,
            interrupted=stop.is_set(),
            exit_code=None if program.stopped else program.exit_code,
        )


def _found(command: Sequence[str]) -> str:
    """Return valgrind's path; ``BadInput`` unless it and the program of ``command`` can be run."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        how = "apt install valgrind, dnf install valgrind, or pacman -S valgrind"
        if sys.platform == "darwin":
            how = "it runs on few versions of macOS; record on Linux instead"
        raise BadInput(f"recording needs valgrind, which is not on the PATH; install it: {how}")
    if shutil.which(command[0]) is None:
        raise BadInput("no such program, or it may not be run; give its name or path after --", file=command[0])
    return valgrind


def _shown(command: Sequence[str]) -> str:
    """Return a command as people write it, the program without its directory."""
    return shlex.join([Path(command[0]).name, *command[1:]])


def _ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"the program was ended by {signal.Signals(-exit_code).name}"
    return f"the program ended with exit code {exit_code}"


def _wanted(blocks: Iterator[Accesses], kinds: Kinds, skip: int, limit: int | None) -> Iterator[Accesses]:
    """Yield the accesses of ``kinds`` but the first ``skip``, and at most ``limit`` unless that is None."""
    for block in blocks:
        wanted = block.only(kinds)
        left_out = min(skip, wanted.address.size)
        skip -= left_out
        wanted = wanted.between(left_out, None if limit is None else left_out + limit)
        yield wanted
        if limit is not None:
            limit -= wanted.address.size
            if limit == 0:
                return


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second raises ``KeyboardInterrupt``.

    The trace could not be closed properly if the interruption fell into the writing of a row group.
    """
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Program:
    """A program that runs under lackey, whose log comes through a pipe of its own."""

    def __init__(self, valgrind: str, command: Sequence[str], stop: threading.Event) -> None:
        self._stop = stop
        self._pipe, log = os.pipe()
        try:
            _widen(log)
            # A child after fork has the log too, but addresses of its own: it must be silent.
            options = (
                "--trace-mem=yes",
                "--basic-counts=no",
                "--child-silent-after-fork=yes",
                f"--log-fd={log}",
            )
            self._process = subprocess.Popen([valgrind, "--tool=lackey", *options, *command], pass_fds=(log,))
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(log)
        self.stopped = False
        """Whether we ended it, rather than it itself."""

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stop_reading()

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def texts(self) -> Iterator[bytes]:
        """Yield the log about a megabyte at a time, until the program ends or we are told to stop."""
        parts: list[bytes] = []
        ready = 0
        while not self._stop.is_set():
            if not select.select([self._pipe], [], [], _LOOK_SECONDS)[0]:
                if self._process.poll() is not None:
                    break  # a child of the program lives on and holds the pipe open
                continue
            part = os.read(self._pipe, BLOCK_BYTES)
            if not part:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_SECONDS)
                break
            parts.append(part)
            ready += len(part)
            if ready >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, ready = [], 0
        if parts:
            yield b"".join(parts)

    def end(self) -> None:
        """See to it that the program has ended: ask it, then end it."""
        if self._process.poll() is None:
            self.stopped = True
            self._stop_reading()  # or it might wait for ever to write its log
            self._process.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._stop.is_set():
            self.stopped = True  # Ctrl-C at a terminal reaches the program as well

    def _stop_reading(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def _widen(pipe: int) -> None:
    """Let the pipe hold a megabyte where that can be asked for, so that program and reader wait less."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
