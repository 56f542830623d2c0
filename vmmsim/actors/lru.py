"""Linux's two lists of pages, active and inactive, by which reclaim finds those that were used least lately.

A page enters at the head of the inactive list. At its tail a page that was accessed since it was looked at last is
spared for another round, and the second time made active; one that was not goes. Where the inactive list is short,
pages from the tail of the active one are added to it, and their accessed bits taken away. L: shrink_inactive_list,
shrink_active_list, inactive_is_low, folio_check_references (mm/vmscan.c).

Both lists are queues: what is freed, or is no page of its own any more, is noticed when it comes to the tail.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Look = Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]]

CLUSTER: Final = 32
"""Pages that are reclaimed in one go, between two flushes. L: SWAP_CLUSTER_MAX."""
_GIB_PAGES: Final = 1 << 18
_NOWHERE, _INACTIVE, _SPARED, _ACTIVE, _PART = range(5)


class _Queue:
    """First in, first out, many at once."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: deque[NDArray[np.int32]] = deque()

    def push(self, pages: NDArray[np.int64]) -> None:
        if pages.size:
            self._parts.append(pages.astype(np.int32))
            self.size += int(pages.size)

    def unpop(self, pages: NDArray[np.int64]) -> None:
        """Put back what was popped last."""
        if pages.size:
            self._parts.appendleft(pages.astype(np.int32))
            self.size += int(pages.size)

    def pop(self, count: int) -> NDArray[np.int64]:
        """Return up to ``count`` pages, those that came first."""
        taken, missing = [np.empty(0, np.int32)], min(count, self.size)
        self.size -= missing
        while missing:
            part = self._parts.popleft()
            if part.size > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= int(part.size)
        return np.concatenate(taken).astype(np.int64)

    def drop(self, start: int, end: int) -> None:
        """Forget the pages of [start, end)."""
        whole = np.concatenate([np.empty(0, np.int32), *self._parts])
        kept = whole[(whole < start) | (whole >= end)]
        self._parts, self.size = deque([kept] if kept.size else []), int(kept.size)


class PageLru:
    """The pages of one memory, by number; a page stands for itself, or for the whole huge page that it begins."""

    def __init__(self, pages: int) -> None:
        self._state = np.zeros(pages, np.uint8)
        self._inactive, self._active = _Queue(), _Queue()
        self._pages_each = 1.0
        self.scanned = self.activated = self.spared = self.deactivated = 0
        """Pages (huge ones once) that came to the tail of the inactive list, and what became of them."""

    @property
    def listed(self) -> int:
        """Pages that are in either list."""
        return self._inactive.size + self._active.size

    @property
    def active(self) -> int:
        """Pages in the active list."""
        return self._active.size

    def grow(self, pages: int) -> int:
        """Make room for so many pages more; return the number of the first of them."""
        first = self._state.size
        self._state = np.concatenate([self._state, np.zeros(pages, np.uint8)])
        return first

    def are_listed(self, start: int, end: int) -> NDArray[np.bool_]:
        """Return bool[end - start]: which pages are in a list, or part of a huge page that is."""
        return np.asarray(self._state[start:end] != _NOWHERE)

    def add(self, pages: NDArray[np.int64], parts: NDArray[np.int64] | None = None) -> None:
        """Put those of ``pages`` (int64[n], distinct) that are in no list at the head of the inactive one.

        parts  the other pages of huge ones: their first pages stand for them
        """
        new = pages[self._state[pages] == _NOWHERE]
        self._state[new] = _INACTIVE
        self._inactive.push(new)
        if parts is not None:
            self._state[parts[self._state[parts] == _NOWHERE]] = _PART

    def _part_with(self, pages: NDArray[np.int64]) -> None:
        """Note that ``pages`` stand for themselves only, if they stood for huge ones."""
        led = pages[pages + 1 < self._state.size]
        led = led[self._state[led + 1] == _PART]
        if led.size:
            rest = (led[:, None] + np.arange(1, PAGEBLOCK)).ravel()
            rest = rest[rest < self._state.size]
            self._state[rest[self._state[rest] == _PART]] = _NOWHERE

    def keep(self, pages: NDArray[np.int64]) -> None:
        """Make pages active that ``coldest`` named and that could not go."""
        self._state[pages] = _ACTIVE
        self._active.push(pages)

    def forget(self, start: int, end: int) -> None:
        """Drop the pages of [start, end) from both lists."""
        for queue in (self._inactive, self._active):
            queue.drop(start, end)
        self._state[start:end] = _NOWHERE

    def inactive_is_low(self) -> bool:
        """Tell whether active pages should move to the inactive list. L: inactive_is_low."""
        gib = self.listed // _GIB_PAGES
        return self._inactive.size * (math.isqrt(10 * gib) if gib else 1) < self._active.size

    def coldest(self, wanted: int, look: Look) -> NDArray[np.int64]:
        """Take pages of the least use from the lists, worth ``wanted`` pages if there are so many; return int64[n].

        look(pages) -> there, accessed, worth: whether each may go, whether it was accessed since it was looked at
        last, how many pages it stands for. All are looked at twice at most, so that the lists may be exhausted.
        """
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        most = 2 * self.listed + CLUSTER
        seen = 0
        while wanted > 0 and most > 0 and self.listed:
            # The longer nothing is found, the more is looked at together, as with Linux's priorities.
            count = max(CLUSTER, math.ceil(wanted / self._pages_each), seen)
            if self.inactive_is_low():
                self._deactivate(count, look)
            pages = self._inactive.pop(min(count, most))
            most -= max(int(pages.size), 1)
            seen += int(pages.size)
            cold, worth = self._sort_out(pages, wanted, look)
            found.append(cold)
            wanted -= worth
        return np.concatenate(found)

    def _deactivate(self, count: int, look: Look) -> None:
        pages = self._active.pop(count)
        there, _, worth = look(pages)
        self._part_with(pages[~there | (worth == 1)])
        self._state[pages] = np.where(there, _INACTIVE, _NOWHERE)
        self._inactive.push(pages[there])
        self.deactivated += int(np.count_nonzero(there))

    def _sort_out(self, pages: NDArray[np.int64], wanted: int, look: Look) -> tuple[NDArray[np.int64], int]:
        """Give each of ``pages``, popped from the inactive list, its place; return those that go, and their worth."""
        if not pages.size:
            return pages, 0
        there, accessed, worth = look(pages)
        self._pages_each = max(float(worth.mean()), 1.0)
        again = there & accessed & (self._state[pages] == _SPARED)
        once = there & accessed & ~again
        cold = np.flatnonzero(there & ~accessed)
        enough = int(np.searchsorted(np.cumsum(worth[cold]), wanted)) + 1
        going, rest = cold[:enough], cold[enough:]
        self._part_with(np.concatenate([pages[~there | (worth == 1)], pages[going]]))
        self._state[pages[~there]] = _NOWHERE
        self._state[pages[going]] = _NOWHERE
        self._state[pages[again]] = _ACTIVE
        self._state[pages[once]] = _SPARED
        self._active.push(pages[again])
        self._inactive.push(pages[once])
        self._inactive.unpop(pages[rest])
        self.scanned += int(pages.size) - int(rest.size)
        self.activated += int(np.count_nonzero(again))
        self.spared += int(np.count_nonzero(once))
        return pages[going], int(worth[going].sum())

    def check(self) -> None:
        """Recount: each page is in one list once, and its state says which."""
        whole = [np.concatenate([np.empty(0, np.int32), *queue._parts]) for queue in (self._inactive, self._active)]
        both = np.concatenate(whole)
        assert np.unique(both).size == both.size, "a page is listed twice"
        listed = (self._state != _NOWHERE) & (self._state != _PART)
        assert both.size == np.count_nonzero(listed), "pages in lists and their states differ"
        assert np.all(self._state[whole[1]] == _ACTIVE), "a page in the active list is not active"
        assert [part.size for part in whole] == [self._inactive.size, self._active.size], "a list is miscounted"
