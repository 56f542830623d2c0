"""Progress of a run on stderr: simulated time, share, time left, and the mode of each VM."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from types import TracebackType

from vmmsim.addresses import format_duration
from vmmsim.cli.progress import ELSEWHERE_SECONDS, TERMINAL_SECONDS, Line

_SECOND = 10**9


class RunProgress:
    """Says how far a run is, as often as people want to read it; to be used in a with statement."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._line = Line()
        self._started: float | None = None
        self._from_ns = 0
        self._said = time.monotonic()

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.rub_out()

    def __call__(self, now_ns: int, until_ns: int, modes: Mapping[str, str]) -> None:
        """Say where the run is, if it is time to; ``modes``: the mode had by each VM that runs."""
        now = time.monotonic()
        if self._started is None:
            self._started, self._from_ns = now, now_ns
        if self._quiet or now - self._said < (TERMINAL_SECONDS if self._line.terminal else ELSEWHERE_SECONDS):
            return
        self._said = now
        told = where(now_ns, until_ns, modes, self._left(now, now_ns, until_ns))
        if self._line.terminal:
            told = told[: shutil.get_terminal_size().columns - 1]
        self._line.say(told)

    def _left(self, now: float, now_ns: int, until_ns: int) -> float | None:
        """Return the seconds that are left if it goes on as it went; None while nobody can tell."""
        done = now_ns - self._from_ns
        seconds = now - (self._started or now)
        return seconds / done * (until_ns - now_ns) if done > 0 and seconds > 0 else None


def where(now_ns: int, until_ns: int, modes: Mapping[str, str], left_seconds: float | None) -> str:
    """Return the line: "2 h 10 min of 4 h, 54 %, 12 s left; db dual-direct; 8 VMs base"."""
    share = f", {100 * now_ns // until_ns} %" if until_ns > 0 else ""
    left = "" if left_seconds is None else f", {format_duration(max(1, round(left_seconds)) * _SECOND)} left"
    groups: dict[str, list[str]] = {}
    for vm, mode in modes.items():
        groups.setdefault(mode or "off", []).append(vm)
    told = [f"{', '.join(vms) if len(vms) <= 2 else f'{len(vms)} VMs'} {mode}" for mode, vms in groups.items()]
    return "; ".join([f"{_short(now_ns)} of {format_duration(until_ns)}{share}{left}", *told])


def _short(now_ns: int) -> str:
    return format_duration(now_ns - now_ns % _SECOND if now_ns >= _SECOND else now_ns)
