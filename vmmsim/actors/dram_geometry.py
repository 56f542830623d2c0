"""Which frames share a DRAM row, column or bank: how pages are spread over channels, ranks, banks and rows.

Consecutive small pieces of memory (64 to 256 bytes) go to the channels in turn, so that each page lies in all of them,
and the rows of the same number in all channels hold one stretch of pages: 8 channels with rows of 8 KiB, 64 KiB, 16
pages. Consecutive stretches go to the banks in turn, then to the next row; ranks follow each other in large pieces:

    hfn = ((rank * rows + row) * banks + bank) * stretch + page           0 <= page < stretch

A fault of one device breaks some line in

    bit, word    one page                            bank        every stretch of the bank
    row          one stretch                         multi-bank  all of the rank
    column       the same page of every stretch      multi-rank  all of the module
                 of the bank
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from vmmsim.addresses import PAGE_BYTES
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FaultMode = Literal["bit", "word", "column", "row", "bank", "multi-bank", "multi-rank"]


@attrs.frozen
class Frames:
    """Frames at regular distances: ``count`` runs of ``run`` frames, the first ones ``stride`` apart."""

    first: int
    """The first hfn."""
    run: int = 1
    """Adjacent frames of a run."""
    stride: int = 1
    """From the first frame of a run to that of the next; at least ``run`` if there is more than one."""
    count: int = 1
    """Runs."""

    def __len__(self) -> int:
        """How many frames there are."""
        return self.run * self.count

    def __contains__(self, hfn: object) -> bool:
        """Tell whether ``hfn`` is one of them."""
        if not isinstance(hfn, (int, np.integer)):
            return False
        run, place = divmod(int(hfn) - self.first, self.stride)
        return 0 <= run < self.count and place < self.run

    @property
    def end(self) -> int:
        """One past the last hfn."""
        return self.first + (self.count - 1) * self.stride + self.run

    def between(self, start: int, end: int) -> NDArray[np.int64]:
        """Return those in [start, end), ascending; the others are not made."""
        low = max((start - self.first) // self.stride, 0)
        high = min(-(-(end - self.first) // self.stride), self.count)
        firsts = self.first + np.arange(low, max(high, low), dtype=np.int64) * self.stride
        hfns = (firsts[:, None] + np.arange(self.run)).reshape(-1)
        return hfns[(hfns >= start) & (hfns < end)]

    def all(self) -> NDArray[np.int64]:
        """Return all of them, ascending."""
        return self.between(self.first, self.end)

    def pieces(self, most: int = 4096) -> Iterator[NDArray[np.int64]]:
        """Yield all of them, ascending, about ``most`` at a time."""
        span = max(most // self.run, 1) * self.stride if self.count > 1 else max(most, 1)
        for start in range(self.first, self.end, span):
            piece = self.between(start, min(start + span, self.end))
            if piece.size:
                yield piece

    def next_from(self, place: float) -> int | None:
        """Return the first hfn >= ``place``, or None if all are below."""
        hfn = max(math.ceil(place), self.first)
        run, rest = divmod(hfn - self.first, self.stride)
        if rest >= self.run:
            run, rest = run + 1, 0
        return self.first + run * self.stride + rest if run < self.count else None


@attrs.frozen(kw_only=True)
class Geometry:
    """How the pages of one host lie in its modules. What is left over at the top of an odd size never fails."""

    host_pages: int
    """Frames of the host."""
    channels: int
    """Channels that each page is spread over."""
    modules: int
    """Modules of a channel."""
    ranks: int
    """Ranks of a module."""
    banks: int
    """Banks of a rank."""
    row_bytes: int
    """A row across the data devices of a rank."""

    def __attrs_post_init__(self) -> None:
        if self.host_pages < self.stretch * self.banks * self.modules * self.ranks:
            raise BadInput(
                f"{self.host_pages} pages are less than one row in each bank of {self.modules * self.channels} modules"
            )

    @property
    def stretch(self) -> int:
        """Adjacent pages that one row holds parts of."""
        return max(self.channels * self.row_bytes // PAGE_BYTES, 1)

    @property
    def rows(self) -> int:
        """Rows of all banks of that number in a channel, rank after rank."""
        return self.host_pages // (self.stretch * self.banks)

    @property
    def pages(self) -> int:
        """Frames that can fail."""
        return self.rows * self.banks * self.stretch

    def _rows_of(self, first: int, last: int) -> tuple[int, int]:
        """Return the rows [start, end) of ranks [first, last) of a channel."""
        ranks = self.modules * self.ranks
        return first * self.rows // ranks, last * self.rows // ranks

    def rank_of(self, hfn: int) -> int:
        """Return the rank, in its channels, that ``hfn`` lies in."""
        row, ranks = hfn // (self.stretch * self.banks), self.modules * self.ranks
        # The last rank whose first row, rank * rows // ranks, is not beyond this one.
        return ((row + 1) * ranks - 1) // self.rows

    def frames(self, mode: FaultMode, hfn: int) -> Frames:
        """Return the frames that a fault of ``mode`` breaks if it breaks ``hfn``."""
        if not 0 <= hfn < self.pages:
            raise BadInput(f"hfn {hfn} is none of the {self.pages} frames that can fail")
        if mode in ("bit", "word"):
            return Frames(hfn)
        if mode == "row":
            return Frames(hfn // self.stretch * self.stretch, self.stretch, self.stretch)
        across = self.stretch * self.banks
        rank = self.rank_of(hfn)
        if mode == "multi-rank":
            rank -= rank % self.ranks
        start, end = self._rows_of(rank, rank + (self.ranks if mode == "multi-rank" else 1))
        if mode in ("multi-bank", "multi-rank"):
            return Frames(start * across, (end - start) * across, (end - start) * across)
        place = hfn % across
        if mode == "column":
            return Frames(start * across + place, 1, across, end - start)
        return Frames(start * across + place // self.stretch * self.stretch, self.stretch, across, end - start)
