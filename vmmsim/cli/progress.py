"""Progress of one command on stderr: a line that renews itself on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

TERMINAL_SECONDS: Final = 0.5
ELSEWHERE_SECONDS: Final = 60.0


class Line:
    """One line on stderr: on a terminal it renews itself, elsewhere each text is a line of its own."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._width = 0

    def say(self, text: str) -> None:
        """Say ``text`` in place of what was said before."""
        if self.terminal:
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def rub_out(self) -> None:
        """Leave an empty line on a terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0


class Progress:
    """Says how far a command is, as often as people want to read it; to be used in a with statement."""

    def __init__(self, verb: str, unit: str) -> None:
        self._verb, self._unit = verb, unit
        self._started: float | None = None
        self._said = time.monotonic()
        self._before = 0
        self._line = Line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.rub_out()

    def __call__(self, done: int) -> None:
        """Say that ``done`` units are done, if it is time to."""
        now = time.monotonic()
        if self._started is None:
            self._started, self._before = now, done
        if now - self._said < (TERMINAL_SECONDS if self._line.terminal else ELSEWHERE_SECONDS):
            return
        self._said = now
        seconds = now - self._started
        rate = f", {(done - self._before) / seconds / 1e6:.1f} million a second" if seconds else ""
        self._line.say(f"{self._verb}: {done:,} {self._unit} in {seconds:.0f} s{rate}")

    def then(self, verb: str) -> Callable[[int], None]:
        """Return what tells of the next stage: from its first call on the line says ``verb``, and counts anew."""

        def call(done: int) -> None:
            if self._verb != verb:
                self._verb, self._started = verb, None
            self(done)

        return call


class Steps:
    """Says what a command is at, a step at a time; to be used in a with statement like ``Progress``."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._line = Line()

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.rub_out()

    def __call__(self, step: str) -> None:
        """Say the step that begins: at once on a terminal, elsewhere if nothing was said for a minute."""
        if self._line.terminal or time.monotonic() - self._said >= ELSEWHERE_SECONDS:
            self._said = time.monotonic()
            self._line.say(step)
