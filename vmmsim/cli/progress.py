"""Progress of one command on stderr: a line that renews itself on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

_TERMINAL_SECONDS: Final = 0.5
_ELSEWHERE_SECONDS: Final = 60.0


class Progress:
    """Says how far a command is, as often as people want to read it; to be used in a with statement."""

    def __init__(self, verb: str, unit: str) -> None:
        self._verb, self._unit = verb, unit
        self._started: float | None = None
        self._said = time.monotonic()
        self._before = 0
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rub_out()

    def __call__(self, done: int) -> None:
        """Say that ``done`` units are done, if it is time to."""
        now = time.monotonic()
        if self._started is None:
            self._started, self._before = now, done
        if now - self._said < (_TERMINAL_SECONDS if self._terminal else _ELSEWHERE_SECONDS):
            return
        self._said = now
        seconds = now - self._started
        rate = f", {(done - self._before) / seconds / 1e6:.1f} million a second" if seconds else ""
        line = f"{self._verb}: {done:,} {self._unit} in {seconds:.0f} s{rate}"
        if self._terminal:
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def then(self, verb: str) -> Callable[[int], None]:
        """Return what tells of the next stage: from its first call on the line says ``verb``, and counts anew."""

        def call(done: int) -> None:
            if self._verb != verb:
                self._verb, self._started = verb, None
            self(done)

        return call

    def _rub_out(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0


class Steps:
    """Says what a command is at, a step at a time; to be used in a with statement like ``Progress``."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)

    def __call__(self, step: str) -> None:
        """Say the step that begins: at once on a terminal, elsewhere if nothing was said for a minute."""
        if self._terminal:
            print("\r" + step.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(step)
        elif time.monotonic() - self._said >= _ELSEWHERE_SECONDS:
            self._said = time.monotonic()
            print(step, file=sys.stderr, flush=True)
