"""What the benchmark translates: uniform, Zipf and sequential streams over 4 GiB, and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.translation.chunk import GVPN_SHIFT, gvpn_of, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

FOOTPRINT_PAGES: Final = 1 << 20
"""4 GiB."""
_WRITES: Final = 0.25
_FIRST_PAGE: Final = 0x7F0000000


@attrs.frozen(kw_only=True, eq=False)
class Stream:
    """A chunk of accesses, and the pages it needs mapped."""

    name: str
    """Name in the table."""
    chunk: NDArray[np.int64]
    """Packed accesses."""
    pages: NDArray[np.int64]
    """int64[n], ascending: every page that any chunk names."""
    advance_pages: int = 0
    """How far each turn's chunk lies beyond the one before, round the footprint."""

    def turns(self) -> Iterator[NDArray[np.int64]]:
        """Yield the chunk of one turn after the other, without end."""
        chunk, offset = self.chunk, 0
        while True:
            yield chunk
            if self.advance_pages:
                offset = (offset + self.advance_pages) % self.pages.size
                chunk = self.chunk + (offset << GVPN_SHIFT)


def streams(random: np.random.Generator, accesses: int) -> list[Stream]:
    """Return uniform, Zipf (exponent 1) and sequential (64-byte steps) streams over 4 GiB; a quarter are writes."""
    pages = np.arange(_FIRST_PAGE, _FIRST_PAGE + FOOTPRINT_PAGES)
    writes = random.random(accesses) < _WRITES
    lines = random.integers(0, 64, accesses)
    uniform = random.integers(0, FOOTPRINT_PAGES, accesses)
    total = np.cumsum(1.0 / np.arange(1, FOOTPRINT_PAGES + 1))
    ranks = np.searchsorted(total, random.random(accesses) * total[-1])
    zipf = random.permutation(FOOTPRINT_PAGES)[np.minimum(ranks, FOOTPRINT_PAGES - 1)]
    # Whole pages, in a power of two, so that the turns go round the footprint and fit it.
    steps = np.arange(64 << max(accesses // 16, 1).bit_length() - 1)
    sequential = pack(_FIRST_PAGE + (steps >> 6), random.random(steps.size) < _WRITES, line=steps & 63)
    return [
        Stream(name="uniform", chunk=pack(pages[uniform], writes, line=lines), pages=pages),
        Stream(name="zipf", chunk=pack(pages[zipf], writes, line=lines), pages=pages),
        Stream(name="sequential", chunk=sequential, pages=pages, advance_pages=steps.size >> 6),
    ]


def stream_of(name: str, chunks: Iterable[NDArray[np.int64]], runs: int) -> Stream:
    """Return the first ``runs`` runs of packed chunks, such as a trace's, as a stream."""
    taken: list[NDArray[np.int64]] = []
    for chunk in chunks:
        taken.append(chunk[: runs - sum(each.size for each in taken)])
        if sum(each.size for each in taken) >= runs:
            break
    whole = np.concatenate(taken)
    return Stream(name=name, chunk=whole, pages=np.unique(gvpn_of(whole)))
