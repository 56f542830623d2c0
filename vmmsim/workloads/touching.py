"""Which pages a span of accesses touches, and in which order: scans exactly, independent accesses by drawing.

A page that is met with probability p by each of n independent accesses is first met after a time that is
exponential with mean 1 / p: drawn for each page from a key and the span's first position, it says both whether the
page is touched within the span and when. A shorter span from the same position touches the first of these pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from vmmsim.jit import kernel
from vmmsim.workloads.drawing import UNIT, bits, exponential

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pages = NDArray[np.int64]

LINES: Final = 64
"""Accesses that touch one page for the first time: a write to each of its cache lines."""
_GVPN_BITS: Final = 36
_TIME_BITS: Final = 62 - _GVPN_BITS
_SURE: Final = 45
"""Accesses to expect of a page from which on it is touched for certain: no draw from ``exponential`` is as large."""


class Scan(NamedTuple):
    """Pages [start, start + pages) that are written in ascending order, in one go or in groups."""

    start: int
    """First gvpn."""
    pages: int
    """How many, at least 1."""
    begin: int
    """Position at which the first is touched; may lie before the span that is asked about."""
    step: int
    """Positions from one page to the next, all of which touch the page."""
    group: int
    """Pages that are touched in a row, before other accesses come between."""
    stride: int
    """Positions from the first page of a group to the first of the next; at least group * step."""

    def touched(self, x0: int, x1: int) -> tuple[int, int]:
        """Return the pages [first, end) that are touched in [x0, x1)."""
        first, end = self._before(x0, 0), self._before(x1, self.step - 1)
        return self.start + first, self.start + max(first, end)

    def _before(self, x: int, rounding: int) -> int:
        """Return how many pages are done with before x, those that are begun among them if ``rounding`` is step - 1."""
        groups, within = divmod(x - self.begin, self.stride)
        count = groups * self.group + min((within + rounding) // self.step, self.group)
        return min(max(count, 0), self.pages)

    def when(self, pages: Pages) -> Pages:
        """Return the position at which each of ``pages`` is first touched."""
        groups, within = np.divmod(pages - self.start, self.group)
        positions: Pages = self.begin + groups * self.stride + within * self.step
        return positions


class Mix(NamedTuple):
    """Pages [start, start + pages) that independent accesses meet, each with its probability."""

    start: int
    """First gvpn."""
    reads: NDArray[np.float32]
    """float32[pages] or, if all are equal, float32[1]: probability that an access of the VM reads the page."""
    writes: NDArray[np.float32]
    """The same for writes."""
    pages: int
    """How many."""
    key: int
    """What draws are keyed by."""
    begin: int
    """Position at which these accesses begin; may lie before the span."""
    end: int
    """Position before which they end; may lie beyond the span."""


Piece = Scan | Mix
"""Part of what a program does in a span."""


def touched_by(pieces: Sequence[Piece], x0: int, x1: int, kind: int) -> Pages:
    """Return the pages that the pieces read (``kind`` 0) or write (1) in [x0, x1), in first-touch order."""
    base = min((piece.start for piece in pieces), default=0)
    parts = [_timed(piece, x0, x1, kind, base) for piece in pieces]
    whole = np.concatenate([part for part in parts if part.size] or [np.empty(0, np.int64)])
    _sort_by_time(whole, np.empty_like(whole))
    pages = (whole & ((1 << _GVPN_BITS) - 1)) + base
    return first_of_each(pages) if _overlap(pieces) else pages


def touched_among(pieces: Sequence[Piece], pages: Pages, x0: int, x1: int, kind: int) -> NDArray[np.bool_]:
    """Tell which of ``pages`` ``touched_by`` returns."""
    touched = np.zeros(pages.size, dtype=np.bool_)
    for piece in pieces:
        which = np.flatnonzero((pages >= piece.start) & (pages < piece.start + piece.pages))
        if which.size == 0:
            continue
        if isinstance(piece, Scan):
            first, end = piece.touched(x0, x1)
            touched[which] |= (kind == 1) & (pages[which] >= first) & (pages[which] < end)
        else:
            rates, key, _, n = _drawing(piece, x0, x1, kind)
            met = np.zeros(which.size, dtype=np.bool_)
            _meet_some(key, pages[which], piece.start, rates, n, met)
            touched[which] |= met
    return touched


def first_of_each(pages: Pages) -> Pages:
    """Return the distinct of ``pages``, int64[n], in the order of their first occurrence."""
    if pages.size > 1 << _TIME_BITS:
        _, index = np.unique(pages, return_index=True)
        return pages[np.sort(index)]
    # FAST PATH: same result without it; sorting numbers is many times faster than sorting by them.
    index_bits = max(int(pages.size - 1).bit_length(), 1)
    packed = (pages << index_bits) | np.arange(pages.size)
    packed.sort()
    page = packed >> index_bits
    new = np.ones(pages.size, dtype=np.bool_)
    np.not_equal(page[1:], page[:-1], out=new[1:])
    index = packed[new] & ((1 << index_bits) - 1)
    index.sort()
    found: Pages = pages[index]
    return found


def _overlap(pieces: Sequence[Piece]) -> bool:
    spans = sorted((piece.start, piece.start + piece.pages) for piece in pieces)
    return any(spans[n][1] > spans[n + 1][0] for n in range(len(spans) - 1))


def _timed(piece: Piece, x0: int, x1: int, kind: int, base: int) -> Pages:
    """Return the pages of ``piece`` that are touched, each with its time in [x0, x1) in the bits above the page's."""
    scale = (1 << _TIME_BITS) / (x1 - x0)
    if isinstance(piece, Scan):
        pages = np.arange(*piece.touched(x0, x1)) if kind else np.empty(0, np.int64)
        when = np.maximum(piece.when(pages) - x0, 0)
        return ((when * scale).astype(np.int64) << _GVPN_BITS) | (pages - base)
    rates, key, begin, n = _drawing(piece, x0, x1, kind)
    least = float(rates.min()) * n
    if least >= _SURE:  # all are met within a small part of the span: drawing would tell the order only
        return np.arange(piece.start - base, piece.start - base + piece.pages) | (
            int((begin - x0) * scale) << _GVPN_BITS
        )
    if n == 0 or not rates.any():
        return np.empty(0, np.int64)
    times = np.empty(piece.pages, dtype=np.int64)
    count = _meet_all(key, piece.start, piece.pages, rates, n, base, begin - x0, scale, times)
    return times[:count]


def _drawing(mix: Mix, x0: int, x1: int, kind: int) -> tuple[NDArray[np.float32], int, int, int]:
    """Return rates, key, first position and length of what ``mix`` does within [x0, x1)."""
    begin, end = max(mix.begin, x0), min(mix.end, x1)
    key, _ = _bits(mix.key, 2 * begin + kind)
    return (mix.writes if kind else mix.reads), key, begin, max(end - begin, 0)


@kernel
def _bits(key: int, position: int) -> tuple[int, int]:
    return bits(key, position)


@kernel
def _sort_by_time(timed: Pages, other: Pages) -> None:
    """Sort pages with times by time, equal ones as they were; ``other``, int64 of the same size, is used for it."""
    digit = _TIME_BITS // 2
    for turn in range(2):
        shift = _GVPN_BITS + turn * digit
        place = np.zeros((1 << digit) + 1, np.int64)
        for i in range(timed.size):
            place[((timed[i] >> shift) & ((1 << digit) - 1)) + 1] += 1
        for i in range(1, place.size):
            place[i] += place[i - 1]
        for i in range(timed.size):
            here = (timed[i] >> shift) & ((1 << digit) - 1)
            other[place[here]] = timed[i]
            place[here] += 1
        timed, other = other, timed


@kernel
def _meet_all(
    key: int,
    start: int,
    pages: int,
    rates: NDArray[np.float32],
    n: int,
    base: int,
    delay: int,
    scale: float,
    out: NDArray[np.int64],
) -> int:
    """Write which of the pages are met within n accesses to ``out``, int64[pages], as ``_timed`` returns them.

    Return how many. ``delay`` is where the n accesses begin within the span that ``scale`` is for.
    """
    count = 0
    for i in range(pages):
        rate = np.float64(rates[i if rates.size > 1 else 0])
        if rate > 0.0:
            after = exponential(key, start + i)
            if after < rate * n * UNIT:
                when = np.int64((delay + after / (rate * UNIT)) * scale)
                out[count] = (when << _GVPN_BITS) | (start + i - base)
                count += 1
    return count


@kernel
def _meet_some(key: int, pages: Pages, start: int, rates: NDArray[np.float32], n: int, out: NDArray[np.bool_]) -> None:
    """Tell in ``out``, bool[k], which of ``pages``, gvpns int64[k], ``_meet_all`` finds."""
    for i in range(pages.size):
        page = pages[i]
        rate = np.float64(rates[page - start if rates.size > 1 else 0])
        out[i] = rate > 0.0 and exponential(key, page) < rate * n * UNIT
