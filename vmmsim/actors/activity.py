"""When the pages of a program were read and written last, found out when somebody asks.

A workload is a function of position, so that nobody has to keep books of accesses as they happen: whoever wants to
know (KSM, the reclaimers of guest and host, migration) asks about some pages, and each page is looked at from where
it was looked at last up to now. Every access is found once, in one chain of spans; what is found is marked for all who
will ask. Samples have no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.actors.process import Process
    from vmmsim.protocols import Workload

GUEST_READ: Final = 1
"""Mark: accessed since the guest's reclaim harvested it."""
HOST_READ: Final = 2
"""Mark: accessed since the host's reclaim harvested it."""
LOGGED: Final = 4
"""Mark: written since dirty logging harvested it."""
SAMPLED: Final = 8
"""Mark: accessed since the sampler of idle memory harvested it."""
_ANY: Final = GUEST_READ | HOST_READ | SAMPLED
_GRID: Final = 1 << 21
"""Accesses between positions up to which reclaim looks: programs are asked about spans, not single accesses, then."""
_ASKS: Final = 1 << 16
"""Positions that are remembered before they are numbered anew."""


class Activity:
    """The accesses of one process, by its pages' numbers."""

    def __init__(
        self,
        process: Process,
        workload: Workload,
        position: Callable[[], int],
        written: Callable[[NDArray[np.int64]], None],
        *,
        since: int = 0,
    ) -> None:
        """position() is where the program is; written(numbers) is told of pages that are mapped and were written.

        since  the position before which nobody asks what was accessed
        """
        self.process = process
        self.workload = workload
        self._position = position
        self._written = written
        self.marks = np.zeros(process.pages, np.uint8)
        """uint8[pages]: what was found and has not been harvested yet."""
        self._seen = np.zeros(process.pages, np.int32)
        self._asked: list[int] = [since]

    def note(self, numbers: NDArray[np.int64], written: NDArray[np.bool_], until: int | None) -> None:
        """Book touches that somebody else handled: all there was of these pages up to ``until`` (None: now)."""
        until = self._position() if until is None else until
        self.marks[numbers] |= _ANY
        self.marks[numbers[written]] |= LOGGED
        self._seen[numbers] = self._number_of(until)

    def forget(self, numbers: NDArray[np.int64] | slice) -> None:
        """Forget pages that were freed."""
        self.marks[numbers] = 0

    def look(self, numbers: NDArray[np.int64], until: int | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Look at mapped pages (int64[n], distinct) up to now, or to position ``until``.

        Return bool[n] each: accessed, and written, since they were looked at last.
        """
        until = self._position() if until is None else until
        accessed, wrote = np.zeros(numbers.size, np.bool_), np.zeros(numbers.size, np.bool_)
        last, ahead = self._seen[numbers], np.zeros(numbers.size, np.bool_)
        for number in np.flatnonzero(np.bincount(last)).tolist():  # few, and small: counting is faster than sorting
            begin = self._asked[number]
            some = np.flatnonzero(last == number)
            if begin >= until:
                ahead[some] = True
                continue
            read, written = self.workload.touched_among(self.process.gvpns(numbers[some]), begin, until)
            accessed[some], wrote[some] = read | written, written
        self.marks[numbers[accessed]] |= _ANY
        self.marks[numbers[wrote]] |= LOGGED
        self._seen[numbers[~ahead]] = self._number_of(until)
        if np.any(wrote):
            self._written(numbers[wrote])
        return accessed, wrote

    def harvest(self, numbers: NDArray[np.int64], mark: int) -> NDArray[np.bool_]:
        """Return bool[n]: which mapped pages have ``mark`` now, looking at them first; the mark is taken away."""
        until = None if mark == LOGGED else self._grid_position()
        self.look(numbers[self.process.watched[numbers] == 0], until)  # what is watched is served when it is met
        found: NDArray[np.bool_] = self.marks[numbers] & mark != 0
        self.marks[numbers] &= np.uint8(0xFF ^ mark)
        return found

    def _grid_position(self) -> int:
        """Return a position a little before where the program is: few are in use, so that pages share what is asked.

        What was accessed since then is found by whoever asks next, as if it happened after this look.
        """
        now = self._position()
        grid = min(1 << max((now >> 6).bit_length() - 1, 0), _GRID)
        return now // grid * grid

    def _number_of(self, position: int) -> int:
        """Return the number by which a position is remembered."""
        if self._asked[-1] != position:
            if len(self._asked) >= _ASKS:
                used, inverse = np.unique(self._seen, return_inverse=True)
                self._asked = [self._asked[number] for number in used.tolist()]
                self._seen = inverse.astype(np.int32)
            self._asked.append(position)
        return len(self._asked) - 1
