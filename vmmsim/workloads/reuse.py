"""Reuse of pages: of a fully associative LRU TLB of any size, how many accesses miss. Exact, in one pass.

An access hits a TLB of n entries if fewer than n other pages were touched since its page was last
(Mattson's stack distance). With prev(i) the position of the last access to the page of access i, the
distance is the number of earlier positions j with prev(j) < prev(i), less the prev(i) + 1 positions up to
prev(i), for all of which that holds. Counting earlier smaller numbers takes a pass for each bit of the
positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.translation.chunk import accesses_in, gvpn_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES: Final = (4, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 8192, 16384, 65536)
"""TLB sizes reported, in entries of 4 KiB pages."""
_BATCH: Final = 1 << 17


@attrs.frozen(kw_only=True)
class Reuse:
    """How often an LRU TLB of each size misses."""

    accesses: int
    """Translations counted."""
    first_touches: int
    """Of these, the first to their page: no TLB of any size would hit."""
    misses: dict[int, int]
    """Misses by number of entries, first touches included, up to the first size that holds every page."""


class ReuseMeter:
    """Distances of the runs given so far; memory grows with the pages touched, not with the runs."""

    def __init__(self) -> None:
        self._accesses = 0
        self._first = 0
        self._beyond = np.zeros(len(SIZES) + 1, dtype=np.int64)
        self._stack = np.empty(0, dtype=np.int64)
        self._waiting: list[NDArray[np.int64]] = []
        self._count = 0
        self._last = -1

    def add(self, runs: NDArray[np.int64]) -> None:
        """Count packed runs, int64[n], all of which use the same TLB."""
        if runs.size == 0:
            return
        self._accesses += accesses_in(runs)
        pages = gvpn_of(runs)
        # FAST PATH: same result without it; an access to the page of the one before hits in any TLB.
        changes = np.flatnonzero(np.diff(pages, prepend=self._last))
        self._last = int(pages[-1])
        self._waiting.append(pages[changes])
        self._count += changes.size
        if self._count >= max(_BATCH, self._stack.size):
            self._measure()

    def reuse(self) -> Reuse:
        """Return the misses so far."""
        self._measure()
        beyond = np.cumsum(self._beyond[::-1])[::-1]  # at distance SIZES[k - 1] or further
        misses: dict[int, int] = {}
        for size, far in zip(SIZES, beyond[1:], strict=True):
            misses[size] = self._first + int(far)
            if size >= self._stack.size:
                break
        return Reuse(accesses=self._accesses, first_touches=self._first, misses=misses)

    def _measure(self) -> None:
        """Count the distances of what waits, behind the pages seen before in the order of their last use."""
        if not self._count:
            return
        pages = np.concatenate((self._stack, *self._waiting))
        seen = self._stack.size
        previous = _previous(pages)
        fresh = previous[seen:] < 0
        self._first += int(fresh.sum())
        distance = _distances(previous)[seen:][~fresh]
        self._beyond += np.bincount(np.searchsorted(SIZES, distance, side="right"), minlength=self._beyond.size)
        again = np.zeros(pages.size, dtype=bool)
        again[previous[previous >= 0]] = True
        self._stack = pages[~again]
        self._waiting, self._count = [], 0


def _previous(pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position at which the page of each position occurred last before it, -1 if nowhere."""
    order = np.argsort(pages, kind="stable")
    repeats = np.flatnonzero(pages[order[1:]] == pages[order[:-1]])
    previous = np.full(pages.size, -1, dtype=np.int64)
    previous[order[repeats + 1]] = order[repeats]
    return previous


def _distances(previous: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the stack distance of each position; of first touches, nothing that means anything."""
    first = previous < 0
    followed = np.zeros(previous.size, dtype=np.int64)
    followed[previous[~first]] = 1
    firsts = int(first.sum())
    # Ranks of prev: first touches below all others, in their order; no two others have the same prev.
    rank = np.where(first, np.cumsum(first) - 1, firsts + (np.cumsum(followed) - 1)[previous])
    return _earlier_smaller(rank) - previous - 1


def _earlier_smaller(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each element of a permutation of 0..n-1 how many smaller ones stand before it.

    Elements are sorted by their bits from the highest, keeping their order among equals. Where two first
    differ in a bit, the one with 0 is the smaller: so each with a 1 counts the zeros before it in its
    group. With numbers complete to a power of two, the group of those that share the bits above stands at
    exactly those positions.
    """
    bits = max(int(rank.size - 1).bit_length(), 1)
    value = np.arange(1 << bits, dtype=np.int32)
    index = value.copy()
    value[: rank.size] = rank
    origin, smaller = index.copy(), np.zeros_like(index)
    for bit in range(bits - 1, -1, -1):
        one = value >> bit & 1
        zero = 1 - one
        group = value >> (bit + 1) << (bit + 1)
        zeros = np.cumsum(zero, dtype=np.int32) - zero - (group >> 1)
        smaller += zeros * one
        target = np.where(one != 0, (1 << bit) + index - zeros, group + zeros)
        value, smaller, origin = (_moved(part, target) for part in (value, smaller, origin))
    result = np.empty(index.size, dtype=np.int64)
    result[origin] = smaller
    return result[: rank.size]


def _moved(part: NDArray[np.int32], target: NDArray[np.int32]) -> NDArray[np.int32]:
    moved = np.empty_like(part)
    moved[target] = part
    return moved
