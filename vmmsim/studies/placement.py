"""Where an operating system or a VMM puts pages: in one piece, anywhere, or in the short runs of lived-in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vmmsim.addresses import size_pages
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

Placement = Literal["contiguous", "random", "fragmented"]
PLACEMENTS: Final = ("contiguous", "random", "fragmented")
MEAN_RUN: Final = 8
"""Frames in a run of fragmented memory, on average: run lengths are geometric."""


class Frames:
    """Free frames [start, end) of one level, handed out in an order that the placement decides.

    Units of ``size`` are for data and never split; 4K frames for page tables come from the other end, in the same
    order of placement. Each frame is handed out once.
    """

    def __init__(
        self, start: int, end: int, *, size: int, placement: Placement, random: np.random.Generator, tables: int
    ) -> None:
        """Lay out [start, end); the last ``tables`` frames, rounded up to a unit, are kept for page tables."""
        unit = size_pages(size)
        kept = -(-tables // unit) * unit
        first, last = -(-start // unit), (end - kept) // unit
        self.free_units = max(last - first, 0)
        self._units = _Order(first, first + self.free_units, placement, random)
        self._unit = unit
        table_start = max(last, first) * unit
        self._tables = _Order(table_start, max(end, table_start), placement, random)

    def take(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: first frames of the next units."""
        return self._units.take(count) * self._unit

    def take_tables(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: frames for page tables."""
        return self._tables.take(count)


class _Order:
    """The numbers [start, end), each once, in the order of a placement, drawn as they are needed."""

    def __init__(self, start: int, end: int, placement: Placement, random: np.random.Generator) -> None:
        self._start, self._length, self._taken = start, end - start, 0
        self._placement, self._random = placement, random
        self._ranks: NDArray[np.int64] | None = None

    def take(self, count: int) -> NDArray[np.int64]:
        if self._taken + count > self._length:
            raise BadInput(f"only {self._length} frames are free here, {self._taken + count} are needed")
        chosen = np.arange(self._taken, self._taken + count, dtype=np.int64)
        self._taken += count
        if self._placement != "contiguous":
            if self._ranks is None:
                self._ranks = self._shuffle()
            chosen = self._ranks[chosen]
        return self._start + chosen

    def _shuffle(self) -> NDArray[np.int64]:
        if self._placement == "random":
            return self._random.permutation(self._length)
        cuts = np.cumsum(self._random.geometric(1 / MEAN_RUN, self._length // MEAN_RUN + 1))
        starts = np.concatenate([[0], cuts[cuts < self._length]])
        ends = np.append(starts[1:], self._length)
        order = self._random.permutation(starts.size)
        lengths = (ends - starts)[order]
        # The runs one after another: where each begins, and its place in it.
        offsets = np.repeat(starts[order] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return np.asarray(offsets + np.arange(self._length), np.int64)
