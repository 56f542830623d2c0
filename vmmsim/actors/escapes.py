"""Keeping the escape filter of one segment: who may be in it, and which other pages it sends to paging. No clock here.

Every page that the filter hits is translated by the page table, members and false positives alike, so a leaf must be
there for each: a member's leads to a healthy frame, a false positive's to page + OFFSET. The filter never fills; what
limits it is a budget, of members or of false positives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.translation import escape_filter, state
from vmmsim.translation.state import CORE, NESTED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vmmsim.translation.escape_filter import EscapeFilter

MEMBERS: Final = 16
"""Members that a filter of 256 bits may have, by default: 0.246 % of other pages hit."""


class OverBudget(Exception):
    """The filter would have more members, or hit more other pages, than its budget allows; nothing has changed."""


class Escapes:
    """The escaping pages of a segment over [base, limit), and the filter that says so to the hardware.

    Each change makes a new ``EscapeFilter``: the one that hardware holds stays as it is until the new one is loaded.
    """

    def __init__(
        self,
        held: EscapeFilter | None,
        *,
        base: int,
        limit: int,
        members: int = MEMBERS,
        false_positives: float = math.inf,
        dimension: int = NESTED,
    ) -> None:
        """Begin with ``held`` (None: a machine without a filter, so that no page may escape).

        members          most members
        false_positives  most pages of the segment that hit without being members, as expected of the bits set
        """
        self._filter = held
        self.base, self.limit = base, limit
        self.budget_members = 0 if held is None else members
        self.budget_false_positives = false_positives
        self._dimension = dimension
        self._core: Any = np.rec.array(np.zeros(1, CORE))[0]
        self._load()

    def _load(self) -> None:
        if self._filter is not None:
            self._filter.load(self._core, self._dimension)

    @property
    def filter(self) -> EscapeFilter | None:
        """What hardware is to load; None without a filter."""
        return self._filter

    @property
    def members(self) -> tuple[int, ...]:
        """Pages that escape because they must, in the order of insertion."""
        return self._filter.members if self._filter is not None else ()

    @property
    def room(self) -> int:
        """Members that may yet be added, as far as their number goes."""
        return self.budget_members - len(self.members)

    # Changes

    def would_be(self, pages: Iterable[int]) -> EscapeFilter | None:
        """Return the filter with ``pages`` inserted too, or None if that is over budget."""
        if self._filter is None:
            return None
        new = dict.fromkeys((*self.members, *map(int, pages)))
        if len(new) > min(self.budget_members, state.MEMBERS):
            return None
        wider = self._filter.with_members(*new)
        over = self._expected(wider) > self.budget_false_positives
        return None if over else wider

    def fits(self, pages: Iterable[int]) -> bool:
        """Tell whether ``pages`` can be inserted, all of them."""
        return self.would_be(pages) is not None

    def insert(self, pages: Iterable[int]) -> EscapeFilter:
        """Insert ``pages``, all or none (``OverBudget``), and return the new filter."""
        pages = tuple(map(int, pages))
        wider = self.would_be(pages)
        if wider is None:
            raise OverBudget(f"{len(pages)} pages more than {len(self.members)} are over the budget of the filter")
        self._filter = wider
        self._load()
        return wider

    def remove(self, pages: Iterable[int]) -> EscapeFilter | None:
        """Take ``pages`` out and return the new filter, rebuilt from the rest: a Bloom filter cannot forget."""
        if self._filter is None:
            return None
        gone = set(map(int, pages))
        rest = [page for page in self.members if page not in gone]
        self._filter = escape_filter.EscapeFilter(
            bits=self._filter.bits, hashes=self._filter.hashes, rows=self._filter.rows, members=tuple(rest)
        )
        self._load()
        return self._filter

    # Which pages escape

    def hits(self, page: int) -> bool:
        """Tell whether ``page`` escapes: a member, or hit by accident."""
        return bool(self.members) and bool(escape_filter.filter_hits(self._core, self._dimension, page))

    def is_false(self, page: int) -> bool:
        """Tell whether ``page`` escapes without being a member."""
        return self.hits(page) and page not in self.members

    def hits_between(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the pages of the segment in [first, end) that escape, ascending; only these are looked at."""
        first, end = max(first, self.base), min(end, self.limit)
        if not self.members or first >= end:
            return np.empty(0, np.int64)
        # Room for three times what is expected, so that once is enough for all but small ranges.
        out = np.empty(64 + int(3 * self.density() * (end - first)), np.int64)
        count = int(escape_filter.hits_between(self._core, self._dimension, first, end, out))
        if count > out.size:
            out = np.empty(count, np.int64)
            escape_filter.hits_between(self._core, self._dimension, first, end, out)
        return out[:count]

    def false_between(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the pages of the segment in [first, end) that escape without being members, ascending."""
        hits = self.hits_between(first, end)
        return hits[~np.isin(hits, np.array(self.members, np.int64))]

    def count_hits(self) -> int:
        """Return how many pages of the segment escape: looks at every page, about 10 ns each."""
        if not self.members:
            return 0
        nothing = np.empty(0, np.int64)
        return int(escape_filter.hits_between(self._core, self._dimension, self.base, self.limit, nothing))

    # What to expect

    def expected_rate(self) -> float:
        """Return the share of other pages that random members would make hit (Bloom, partitioned)."""
        if self._filter is None:
            return 0.0
        return escape_filter.false_positive_rate(len(self.members), bits=self._filter.bits, hashes=self._filter.hashes)

    def density(self) -> float:
        """Return the share of all page numbers that hit, from the bits that are set in each bank.

        It differs from ``expected_rate`` from set to set. The 16 pages of a DRAM row lie in an affine space, which
        sets 1, 2, 4, 8 or 16 bits of a bank: 0.244 % of pages hit on average, 0.391 % at most, in rows of 16.
        """
        return _density(self._filter)

    def expected_false_positives(self) -> float:
        """Return how many pages of the segment may be expected to hit without being members."""
        return self._expected(self._filter)

    def _expected(self, held: EscapeFilter | None) -> float:
        if held is None:
            return 0.0
        return _density(held) * max(self.limit - self.base - len(held.members), 0)


def _density(held: EscapeFilter | None) -> float:
    """Return the product of the shares of bits set in the banks, which full joint rank makes exact over all keys."""
    if held is None or not held.members:
        return 0.0
    bank = held.bits // held.hashes
    pages = np.array(held.members, np.int64)
    share = 1.0
    for rows in held.rows:
        places = np.zeros(pages.size, np.int64)
        for bit, mask in enumerate(rows):
            places |= (np.bitwise_count(pages & mask).astype(np.int64) & 1) << bit
        share *= np.unique(places).size / bank
    return share
