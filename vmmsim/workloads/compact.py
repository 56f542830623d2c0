"""Runs: consecutive accesses to one cache line become one element of a chunk, exactly.

Data accesses and instruction fetches are folded separately, because they use separate L1 structures: a data
access to the line of the last data access joins its run even if fetches lie in between, and the run stands
where it began. A write that follows reads of its line starts a new run (it may have to set a dirty bit, or
be refused); a read that follows a write does not. See ``vmmsim.translation.chunk`` for the packed layout
and for why this is exact.

Folding what is folded changes nothing, so that a stream is folded block by block: the runs that the next
block may still extend are held back and folded again with it. The runs do not depend on where the blocks
end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.translation.chunk import AGAIN_MAX, AGAIN_SHIFT, FETCH, WRITE, again_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AGAIN_BITS: Final = AGAIN_MAX << AGAIN_SHIFT
_HELD_MAX: Final = 1 << 20
"""Runs held back at most. A program that goes on longer than this without a data access has its data run
closed, which is exact too: the next access then starts a run of its own."""


def fold(chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the runs of ``chunk``, int64[n], whose elements are accesses or runs already."""
    fetch = chunk & FETCH != 0
    keep = np.zeros(chunk.size, dtype=bool)
    total = np.zeros(chunk.size, dtype=np.int64)
    for which in (np.flatnonzero(~fetch), np.flatnonzero(fetch)):
        if which.size:
            part = chunk[which]
            starts = np.flatnonzero(_starts(part))
            keep[which[starts]] = True
            total[which[starts]] = np.add.reduceat(again_of(part) + 1, starts)
    return _split(chunk[keep] & ~_AGAIN_BITS, total[keep])


def _starts(part: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which accesses of one kind start a run: another line, or the first write of a stay at one."""
    line = part & ~(_AGAIN_BITS | WRITE)
    starts = np.ones(part.size, dtype=bool)
    np.not_equal(line[1:], line[:-1], out=starts[1:])
    write = part & WRITE
    if write.any():
        before = np.cumsum(write) - write
        since = np.maximum.accumulate(np.where(starts, before, 0))
        starts |= (write != 0) & (before == since)
    return starts


def _split(runs: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``runs`` with their numbers of accesses, in pieces that the ``again`` field can hold."""
    most = AGAIN_MAX + 1
    if runs.size == 0 or total.max() <= most:
        return runs | (total - 1) << AGAIN_SHIFT
    pieces = (total + AGAIN_MAX) // most
    again = np.full(int(pieces.sum()), AGAIN_MAX, dtype=np.int64)
    again[np.cumsum(pieces) - 1] = total - (pieces - 1) * most - 1
    return np.repeat(runs, pieces) | again << AGAIN_SHIFT


def folded(chunks: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Yield the runs of a stream of packed accesses, in chunks of any length but 0."""
    held = np.empty(0, dtype=np.int64)
    for chunk in chunks:
        runs = fold(np.concatenate((held, chunk)))
        cut = _first_open(runs)
        if runs.size - cut > _HELD_MAX:
            cut = runs.size
        if cut:
            yield runs[:cut]
        held = runs[cut:]
    if held.size:
        yield held


def _first_open(runs: NDArray[np.int64]) -> int:
    """Return the position of the first run that a later access may extend: the last of data or of fetches."""
    fetch = (runs[::-1] & FETCH) != 0
    if fetch.size == 0:
        return 0
    last_fetch, last_data = int(fetch.argmax()), int((~fetch).argmax())
    return runs.size - 1 - max(last_fetch, last_data)


def rechunk(chunks: Iterable[NDArray[np.int64]], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the same elements in chunks of exactly ``size``, the last one excepted."""
    parts: list[NDArray[np.int64]] = []
    ready = 0
    for chunk in chunks:
        parts.append(chunk)
        ready += chunk.size
        if ready >= size:
            whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
            for start in range(0, whole.size - size + 1, size):
                yield whole[start : start + size]
            ready = whole.size % size
            parts = [whole[whole.size - ready :]] if ready else []
    if parts:
        yield np.concatenate(parts)
