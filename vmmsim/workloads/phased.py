"""Synthetic programs: first every page is written, in the order of addresses; then the program runs for ever."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.jit import kernel
from vmmsim.protocols import Churn, Region
from vmmsim.workloads.drawing import key_of
from vmmsim.workloads.touching import LINES, Piece, Scan, first_of_each, touched_among, touched_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pages = NDArray[np.int64]
    Flags = NDArray[np.bool_]

FIRST_GVPN: Final = 0x7F00_0000_0000 >> 12
"""Where regions are laid: in the upper part of user addresses, as mmap does, at a multiple of 1 GiB."""
_GUARD: Final = 1 << 18
"""Pages (1 GiB) that regions are apart at least, so that none shares a table with another."""
SHORT: Final = 1 << 20
"""Accesses of a span up to which ``touched`` looks at every one of them rather than at every page."""


def laid_out(*sizes: tuple[str, int], primary: str = "") -> tuple[Region, ...]:
    """Return regions of the names and numbers of pages given, in ascending order, each from a multiple of 1 GiB."""
    regions, start = [], FIRST_GVPN
    for name, pages in sizes:
        regions.append(Region(name, start, pages, primary=name == primary))
        start += -(-(pages + _GUARD) // _GUARD) * _GUARD
    return tuple(regions)


class Phased(ABC):
    """A program of two phases; ``protocols.Workload`` says what each attribute and method means.

    A program says how it runs (``run``), and what pages that touches (``pieces``), counting accesses from the end of
    the initial phase.
    """

    length: int | None = None
    churn: Churn = Churn()

    def __init__(self, name: str, regions: Sequence[Region], *, seed: int, vm: str, ideal_cycles: float) -> None:
        self.name = name
        self.regions = tuple(regions)
        self.ideal_cycles = ideal_cycles
        self._starts = np.array([region.start for region in regions], dtype=np.int64)
        self._ends = np.cumsum([region.pages for region in regions], dtype=np.int64)
        self.begins = int(self._ends[-1]) * LINES
        self._seed, self._vm = seed, vm
        self._keys: dict[tuple[object, ...], int] = {}

    @property
    def pages(self) -> int:
        """Pages of the footprint."""
        return int(self._ends[-1])

    @abstractmethod
    def run(self, y: int, vcpu: int, pages: Pages, writes: Flags) -> None:
        """Write the accesses from y on, counted from the end of the initial phase, to ``pages`` and ``writes``."""

    @abstractmethod
    def pieces(self, y0: int, y1: int) -> Sequence[Piece]:
        """Return what is touched in [y0, y1), positions counted as ``run`` does."""

    def key(self, *names: object) -> int:
        """Return the key of the draws called ``names``: differs from VM to VM and from seed to seed."""
        if names not in self._keys:
            self._keys[names] = key_of(self._seed, "vm", self._vm, self.name, *names)
        return self._keys[names]

    def stream(self, x: int, n: int, vcpu: int = 0) -> tuple[Pages, Flags]:
        pages, writes = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_)
        scanned = min(max(self.begins - x, 0), n)
        if scanned:
            _scan(x, self._starts, self._ends, pages[:scanned])
            writes[:scanned] = True
        if scanned < n:
            self.run(x + scanned - self.begins, vcpu, pages[scanned:], writes[scanned:])
        return pages, writes

    def touched(self, x0: int, x1: int) -> tuple[Pages, Pages]:
        if x1 <= x0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if x1 > self.begins and x1 - x0 <= SHORT:
            pages, writes = self.stream(x0, x1 - x0)
            return first_of_each(pages[~writes]), first_of_each(pages[writes])
        pieces = self._pieces(x0, x1)
        return touched_by(pieces, x0, x1, 0), touched_by(pieces, x0, x1, 1)

    def touched_among(self, pages: Pages, x0: int, x1: int) -> tuple[Flags, Flags]:
        if x1 > self.begins and x1 - x0 <= SHORT:
            read, written = self.touched(x0, x1)
            return np.isin(pages, read), np.isin(pages, written)
        pieces = self._pieces(x0, x1) if x1 > x0 else ()
        return touched_among(pieces, pages, x0, x1, 0), touched_among(pieces, pages, x0, x1, 1)

    def frees(self, x0: int, x1: int) -> list[tuple[int, int]]:
        return []

    def _pieces(self, x0: int, x1: int) -> list[Piece]:
        """Return what is touched in [x0, x1), positions counted from the start of the program."""
        found: list[Piece] = []
        if x0 < self.begins:
            begins = [0, *(int(end) * LINES for end in self._ends)]
            found += [
                Scan(region.start, region.pages, begin, LINES, region.pages, region.pages * LINES)
                for region, begin in zip(self.regions, begins, strict=False)
            ]
        if x1 > self.begins:
            y0, y1 = max(x0 - self.begins, 0), x1 - self.begins
            found += [
                piece._replace(begin=piece.begin + self.begins)
                if isinstance(piece, Scan)
                else piece._replace(begin=piece.begin + self.begins, end=piece.end + self.begins)
                for piece in self.pieces(y0, y1)
            ]
        return found


@kernel
def _scan(x: int, starts: NDArray[np.int64], ends: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the gvpns of the accesses from x on to ``out``: LINES to each page of the regions, in order.

    starts  int64[r], first gvpns of the regions
    ends    int64[r], pages of the regions up to and with each
    """
    region = 0
    for i in range(out.size):
        page = (x + i) // LINES
        while page >= ends[region]:
            region += 1
        before = ends[region - 1] if region else 0
        out[i] = starts[region] + page - before
