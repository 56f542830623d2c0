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
    """The numbers [start, end), each once, in the order of a placement, worked out as they are needed.

    Memory grows with what is taken, not with what there is: a small program may lie scattered over terabytes.
    """

    def __init__(self, start: int, end: int, placement: Placement, random: np.random.Generator) -> None:
        self._start, self._length, self._taken = start, end - start, 0
        self._placement = placement
        self._scatter = _Scatter(self._length, random)
        self._starts_key = random.integers(1 << 63, dtype=np.uint64)
        self._looked_at = 0
        self._begun = np.empty(0, np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        if self._taken + count > self._length:
            raise BadInput(f"only {self._length} frames are free here, {self._taken + count} are needed")
        ranks = np.arange(self._taken, self._taken + count, dtype=np.int64)
        self._taken += count
        if self._placement == "random":
            ranks = self._scatter.places(ranks)
        elif self._placement == "fragmented":
            ranks = self._in_runs(count)
        return self._start + ranks

    def _in_runs(self, count: int) -> NDArray[np.int64]:
        """Return the next ``count`` numbers, run after run, the runs in random order."""
        parts = [self._begun]
        have = self._begun.size
        while have < count:
            end = min(self._looked_at + max(2 * (count - have), 64 * MEAN_RUN), self._length)
            places = self._scatter.places(np.arange(self._looked_at, end, dtype=np.int64))
            self._looked_at = end
            parts.append(self._whole_runs(places[self._begins_run(places)]))
            have += parts[-1].size
        runs = np.concatenate(parts)
        self._begun = runs[count:].copy()
        return runs[:count]

    def _begins_run(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell where runs begin: each number by itself, one in MEAN_RUN, so that their lengths are geometric."""
        drawn = _mixed(places.astype(np.uint64) + self._starts_key) % np.uint64(MEAN_RUN)
        begins: NDArray[np.bool_] = (drawn == 0) | (places == 0)
        return begins

    def _whole_runs(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the runs that begin at ``starts``, run after run."""
        lengths = np.ones(starts.size, np.int64)
        going = np.arange(starts.size)
        while going.size:
            following = starts[going] + lengths[going]
            goes_on = following < self._length
            goes_on[goes_on] = ~self._begins_run(following[goes_on])
            going = going[goes_on]
            lengths[going] += 1
        before = np.cumsum(lengths) - lengths
        return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


class _Scatter:
    """A random permutation of [0, length) that is computed, not stored: a Feistel network of four rounds.

    The network permutes a power of four; whoever lands beyond ``length`` goes through it again, which ends because
    every permutation's cycles close.
    """

    def __init__(self, length: int, random: np.random.Generator) -> None:
        self._length = length
        self._half_bits = max((max(length - 1, 0).bit_length() + 1) // 2, 1)
        self._keys = random.integers(1 << 63, size=4, dtype=np.uint64)

    def places(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: where the permutation puts each of ``ranks``."""
        placed = self._network(ranks)
        beyond = np.flatnonzero(placed >= self._length)
        while beyond.size:
            placed[beyond] = self._network(placed[beyond])
            beyond = beyond[placed[beyond] >= self._length]
        return placed

    def _network(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = numbers.astype(np.uint64) >> bits, numbers.astype(np.uint64) & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << bits | right).astype(np.int64)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each word's bits mixed so that every one of them depends on all (the finaliser of SplitMix64)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
