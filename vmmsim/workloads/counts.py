"""What a trace holds, counted in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from vmmsim.addresses import LINE_BITS, PAGE_BITS, PAGE_BYTES, virtual_address
from vmmsim.translation.chunk import FETCH as FETCH_FLAG
from vmmsim.translation.chunk import LINE_SHIFT, accesses_in, gvpn_of
from vmmsim.workloads.accesses import FETCH, Accesses, Kinds

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE_BYTES = 1 << LINE_BITS


@attrs.frozen(kw_only=True)
class Counts:
    """Totals of a trace. Accesses are as recorded; translations are what the hardware makes of them."""

    reads: int
    """Loads; a modify is not among them."""
    writes: int
    """Stores; a modify is not among them."""
    modifies: int
    """Loads and stores of one instruction: one translation each, a write."""
    fetches: int
    """Instruction fetches."""
    data_crossings: int
    """Further translations of data accesses that cross into the next page."""
    fetch_crossings: int
    """Further translations of instruction fetches that cross into the next page."""
    runs: int
    """Elements of the chunks of all kinds: translations after folding repeats of a line."""
    data_pages: int
    """Distinct 4 KiB pages that data accesses touch."""
    instruction_pages: int
    """Distinct 4 KiB pages that instruction fetches touch."""
    pages: int
    """Distinct 4 KiB pages touched at all; a page of code that is also read counts once."""
    lowest: int
    """First byte of the lowest cache line touched, 0 to 2**64 - 1."""
    highest: int
    """Last byte of the highest cache line touched, 0 to 2**64 - 1."""

    @property
    def accesses(self) -> int:
        """Accesses as recorded."""
        return self.reads + self.writes + self.modifies + self.fetches

    @property
    def page_crossings(self) -> int:
        """Further translations of accesses that cross into the next page."""
        return self.data_crossings + self.fetch_crossings

    @property
    def translations(self) -> int:
        """Translations the accesses need: one each, and one more for each page boundary they cross."""
        return self.accesses + self.page_crossings

    @property
    def footprint_bytes(self) -> int:
        """Memory touched, in whole pages."""
        return self.pages * PAGE_BYTES

    def as_dict(self) -> dict[str, Any]:
        """Return the totals and what follows from them, for JSON."""
        return attrs.asdict(self) | {
            "accesses": self.accesses,
            "page_crossings": self.page_crossings,
            "translations": self.translations,
            "footprint_bytes": self.footprint_bytes,
        }


class PageSet:
    """Distinct page numbers; adding is cheap because new pages are merged in only when there are many."""

    def __init__(self) -> None:
        self._pages = np.empty(0, dtype=np.int64)
        self._new: list[NDArray[np.int64]] = []
        self._waiting = 0

    def add(self, pages: NDArray[np.int64]) -> None:
        """Add the page numbers of an int64[n]."""
        if pages.size == 0:
            return
        changes = np.ones(pages.size, dtype=bool)
        np.not_equal(pages[1:], pages[:-1], out=changes[1:])
        distinct = _distinct(pages[changes])
        self._new.append(distinct)
        self._waiting += distinct.size
        if self._waiting > max(self._pages.size, 1 << 16):
            self.pages()

    def pages(self) -> NDArray[np.int64]:
        """Return the distinct page numbers, ascending."""
        if self._new:
            self._pages = _distinct(np.concatenate([self._pages, *self._new]))
            self._new, self._waiting = [], 0
        return self._pages


def _distinct(pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct numbers, ascending; sorts ``pages`` in place, which takes a thirtieth of NumPy's hashing."""
    pages.sort()
    first = np.ones(pages.size, dtype=bool)
    np.not_equal(pages[1:], pages[:-1], out=first[1:])
    return pages[first]


class Tally:
    """Totals while a pass is under way."""

    def __init__(self, levels: int = 4) -> None:
        self._levels = levels
        self._by_kind = np.zeros(4, dtype=np.int64)
        self._crossings = np.zeros(2, dtype=np.int64)
        self._runs = 0
        self._run_accesses = 0
        self._lowest: int = np.iinfo(np.int64).max
        self._highest = 0
        self._data = PageSet()
        self._code = PageSet()

    @property
    def accesses(self) -> int:
        """Accesses added so far, as recorded."""
        return int(self._by_kind.sum())

    @property
    def data_pages(self) -> NDArray[np.int64]:
        """The gvpns that data accesses touched so far, int64[n], ascending."""
        return self._data.pages()

    @property
    def instruction_pages(self) -> NDArray[np.int64]:
        """The gvpns that fetches touched so far, int64[n], ascending."""
        return self._code.pages()

    def add_accesses(self, block: Accesses, crossings: tuple[int, int]) -> None:
        """Count accesses as recorded, with page crossings of data accesses and of fetches among them."""
        self._by_kind += np.bincount(block.kind, minlength=4)
        self._crossings += crossings

    def add_recorded(self, counts: Counts, kinds: Kinds) -> None:
        """Count the accesses of ``kinds`` that a trace of our own says it holds."""
        if kinds != "instructions":
            self._by_kind[:FETCH] += (counts.reads, counts.writes, counts.modifies)
            self._crossings[0] += counts.data_crossings
        if kinds != "data":
            self._by_kind[FETCH] += counts.fetches
            self._crossings[1] += counts.fetch_crossings

    def add_runs(self, runs: NDArray[np.int64]) -> None:
        """Count the runs they became, at least one."""
        self._runs += runs.size
        self._run_accesses += accesses_in(runs)
        self._lowest = min(self._lowest, int(runs.min()) >> LINE_SHIFT)
        self._highest = max(self._highest, int(runs.max()) >> LINE_SHIFT)
        fetch = (runs & FETCH_FLAG) != 0
        pages = gvpn_of(runs)
        self._data.add(pages[~fetch])
        self._code.add(pages[fetch])

    def counts(self) -> Counts:
        """Return the totals; every translation must be in a run by now."""
        assert self._run_accesses == self.accesses + self._crossings.sum(), "folding loses no access"
        data, code = self.data_pages, self.instruction_pages
        reads, writes, modifies, fetches = (int(count) for count in self._by_kind)
        return Counts(
            reads=reads,
            writes=writes,
            modifies=modifies,
            fetches=fetches,
            data_crossings=int(self._crossings[0]),
            fetch_crossings=int(self._crossings[1]),
            runs=self._runs,
            data_pages=data.size,
            instruction_pages=code.size,
            pages=data.size + code.size - np.intersect1d(data, code, assume_unique=True).size,
            lowest=self._address(self._lowest),
            highest=self._address(self._highest) + LINE_BYTES - 1,
        )

    def _address(self, line: int) -> int:
        """Return the canonical address of the first byte of a line, counted from address 0."""
        in_page = PAGE_BITS - LINE_BITS
        return virtual_address(line >> in_page, self._levels) + (line % (1 << in_page) << LINE_BITS)
