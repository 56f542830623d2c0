"""Time drawn in characters: one column of a terminal for each part of a run; strips of modes, lines of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.addresses import format_duration
from vmmsim.report import theme
from vmmsim.run_tables import OFF

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]
    Whole = NDArray[np.int64]

LEVELS: Final = "▁▂▃▄▅▆▇█"
ASCII_LEVELS: Final = "_.:-=+*#"
CLIPPED: Final = "▲"
ASCII_CLIPPED: Final = "^"
USUAL: Final = 0.95
"""Share of a strip's columns that its scale is made for, if the others are spikes;"""
SPIKE: Final = 2.0
"""and how often as high as those a column is that counts as one."""
_SLACK: Final = 1e-6
"""Lets a value on the border of two levels take the upper one, whatever the last bit of its mean."""
_SECOND: Final = 10**9
_DAY: Final = 86400 * _SECOND
_STEPS: Final = (
    *(n * unit for unit in (1, 1000, 10**6) for n in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(n * _SECOND for n in (1, 2, 5, 15, 30, 60, 120, 300, 900, 1800, 3600, 7200, 10800, 21600, 43200)),
    *(n * _DAY for n in (1, 2, 5, 10, 30, 100, 365, 730, 1825, 3650)),
)
"""Distances that labels of a time axis may have."""


@attrs.frozen
class Grid:
    """Where things stand on a page: a label, a strip of columns that share one time axis, and a note."""

    end_ns: int
    width: int
    """Columns of the page."""
    label: int = 13
    note: int = 22
    unicode: bool = True
    """Whether the terminal has more than ASCII."""

    @property
    def tick(self) -> str:
        """What stands under a strip where the VM has the mode it wants."""
        return "▔" if self.unicode else "^"

    @property
    def columns(self) -> int:
        """Columns of the strip."""
        return self.width - self.label - self.note - 1

    @property
    def edges(self) -> Reals:
        """Where columns begin and end, in ns; one more than there are columns."""
        return np.linspace(0, max(self.end_ns, 1), self.columns + 1)

    def axis(self) -> str:
        """Return labels of the time axis, as many as fit well."""
        step = next((step for step in _STEPS if self._fits(step)), max(self.end_ns, 1))
        line = ""
        for at in range(0, self.end_ns + 1, step):
            column = round(at / max(self.end_ns, 1) * self.columns)
            text = format_duration(at) if at else "0"
            if column <= self.columns and (not line or column > len(line)):
                line = line.ljust(column) + text
        return line

    def _fits(self, step: int) -> bool:
        return step * self.columns >= 11 * max(self.end_ns, 1)

    def seconds(self, start: Whole, end: Whole, which: NDArray[np.bool_]) -> Reals:
        """Return for how long, in each column, rows hold that are among ``which``; in ns."""
        return self._integral(start, end, which.astype(float))

    def means(self, start: Whole, end: Whole, values: NDArray[np.generic]) -> Reals:
        """Return the mean of values over time in each column; NaN where nothing is known."""
        given = values.astype(float)
        known = ~np.isnan(given)
        time = self._integral(start, end, known.astype(float))
        total = self._integral(start, end, np.where(known, given, 0.0))
        return np.asarray(np.divide(total, time, out=np.full(time.size, np.nan), where=time > 0))

    def _integral(self, start: Whole, end: Whole, values: Reals) -> Reals:
        """Return the integral of a step function over each column; rows follow one another without gaps."""
        if not start.size:
            return np.zeros(self.columns)
        times = np.append(start, end[-1]).astype(float)
        total = np.concatenate(([0.0], np.cumsum(values * (end - start))))
        return np.diff(np.interp(self.edges, times, total))


def scale(values: Reals) -> float:
    """Return the top of a strip's scale: the largest value, unless a few spikes would flatten all the others."""
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return 0.0
    usual = float(known[math.ceil(USUAL * known.size) - 1])
    most = float(known[-1])
    return usual if 0 < SPIKE * usual < most else most


def levels(values: Reals, most: float, *, unicode: bool = True) -> str:
    """Return a line of characters, the higher the larger; blank where a value is NaN or ``most`` is 0 or less.

    What is beyond ``most`` has a mark of its own.
    """
    marks, clipped = (LEVELS, CLIPPED) if unicode else (ASCII_LEVELS, ASCII_CLIPPED)
    line = ""
    for value in values:
        if not most > 0 or np.isnan(value):
            line += " "
        elif value > most * (1 + _SLACK):
            line += clipped
        else:
            line += marks[min(len(marks) - 1, max(0, int(value / most * len(marks) + _SLACK)))]
    return line


def mark(mode: str, *, unicode: bool = True) -> str:
    """Return the character that stands for a mode; a blank for a VM that is off."""
    if mode == OFF:
        return " "
    look = theme.MODES.get(mode)
    if look is None:
        return mode[0]
    return look.mark if unicode else look.letter


def colour(mode: str) -> str:
    """Return the style of a mode, "" for one that the theme does not know."""
    look = theme.MODES.get(mode)
    return look.colour if look else ""


def label(mode: str) -> str:
    """Return what a mode is called in sentences."""
    look = theme.MODES.get(mode)
    return look.label if look else mode


def share(value: float) -> str:
    """Return a share as people read it, in three figures: "16.1 %"; nothing finer than 0.001 %."""
    percent = 100 * value
    if 0 < abs(percent) < 0.001:
        return "under 0.001 %"
    return f"{float(f'{percent:.3g}'):,g} %"


def prevailing(grid: Grid, start: Whole, end: Whole, names: NDArray[np.str_]) -> list[str]:
    """Return, for each column, the name that holds longest in it; OFF where no row holds."""
    known = list(dict.fromkeys(names.tolist()))
    time = np.array([grid.seconds(start, end, names == name) for name in known])
    longest = time.argmax(axis=0)
    return [known[row] if time[row, column] > 0 else OFF for column, row in enumerate(longest)]


def runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return names with how often each follows itself."""
    found: list[tuple[str, int]] = []
    for name in names:
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + 1)
        else:
            found.append((name, 1))
    return found
