"""Where in the host a VMM segment should lie: the OFFSET whose window is cheapest to fill, or what stands in the way.

A segment over the gfns [base, limit) needs the host frames [base + OFFSET, limit + OFFSET), its window; gfn g has the
slot g + OFFSET there. For each OFFSET

    a  pages that lie in their slot          c  pages outside the window      m  others' movable pages in the window
    b  pages in the window, in another's     n  pages that are not resident   x  pages that can have no slot: for
                                                                                 immovable, bad and pinned frames

The m are moved out, the b and c are copied into place, the n get zeroed frames, the x escape. All OFFSETs that are
0 mod 2 MiB are looked at, by sums over pageblocks, so that the most frequent hfn - gfn of today's pages and the
starts of free runs are among them; other OFFSETs (the most frequent ones) only if none of those will do. Whatever is
chosen has been counted page by page. Where others' pages may not be moved, a window that holds any will not do,
however cheap; page cache may be dropped all the same, and the VM's own pages moved, whether the segment covers them or
not. Where the segment does not begin and end with a 2 MiB block, the sums are off by
what the two blocks at its ends hold, and the choice may cost that much more than the best.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal

import attrs
import numpy as np

from vmmsim.memory import window_counts as counting
from vmmsim.memory.frames import IMMOVABLE, PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.memory.survey import Column

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vmmsim.memory.frames import Frames

_FREQUENT: Final = 16
"""How many of the offsets that are not 0 mod 2 MiB are looked at."""
_FINALS: Final = 32
"""How many candidates are counted page by page, at most."""


@attrs.frozen(kw_only=True)
class Counts:
    """What building a segment at one OFFSET meets, in pages."""

    base: int
    """First gfn of the segment."""
    limit: int
    """One past its last."""
    offset: int
    """OFFSET: hfn - gfn of every page that does not escape."""
    in_place: int
    """a: in their slots already."""
    wrong_slot: int
    """b: in the window, in slots of other pages; escaped pages that must leave it are among them."""
    outside: int
    """c: resident outside the window, and to come in."""
    absent: int
    """n: not resident (or not privately: a merged page counts here)."""
    others: int
    """m: movable pages of others, or of the VM but not of the segment, in the window."""
    free: int
    """Free frames in the window."""
    busy: int
    """Frames of the window that a change in progress holds now."""
    refuges: int
    """Frames outside the window that escaped pages will need."""
    barred: int
    """Of the m, mapped pages of other owners, where those may not be moved; 0 where they may."""
    escaped: NDArray[np.int64] = attrs.field(repr=False, eq=attrs.cmp_using(np.array_equal))
    """x: gfns that must escape, ascending."""

    @property
    def start(self) -> int:
        """First hfn of the window."""
        return self.base + self.offset

    @property
    def end(self) -> int:
        """One past the last hfn of the window."""
        return self.limit + self.offset

    @property
    def copies(self) -> int:
        """m + b + c: pages to be copied; each closed cycle among the b costs one more."""
        return self.others + self.wrong_slot + self.outside

    def shortage(self, free_pages: int) -> int:
        """Return how many free frames are missing, of ``free_pages`` in the host: 0 if it can be built.

        Evicted pages and refuges need frames outside, which the c leave behind; every absent page needs one at last.
        """
        outside = self.others + self.refuges - (free_pages - self.free) - self.outside
        return max(0, outside, self.absent - free_pages)


@attrs.frozen(kw_only=True)
class Choice(Counts):
    """An OFFSET that can be built, counted page by page."""

    cost: float
    """Copies and zeroed pages, weighted by their prices."""


@attrs.frozen(kw_only=True)
class Infeasible:
    """No OFFSET can be built: what stands in the way at the best of them."""

    what: Literal["size", "lease", "immovable", "others", "memory"]
    """The host is too small; every window is another's; frames that cannot move; pages of others that may not; too
    little free memory."""
    pages: int
    """How many pages stand in the way (size and memory: how many are missing)."""
    allowed: int = 0
    """How many would have been allowed (immovable: what the filter takes)."""
    where: int = -1
    """hfn of the first of them (lease: its first frame); -1 if it is nowhere."""
    kinds: tuple[tuple[str, int], ...] = ()
    """For immovable: how many frames of each kind, most first; "pinned" are movable by kind."""
    best: Counts | None = None
    """The counts at that OFFSET, where there was one to count."""

    def __str__(self) -> str:
        """Say it in one line."""
        if self.what == "size":
            return f"the host has no window of that size: {self.pages} frames are missing"
        if self.what == "lease":
            return f"every window overlaps one that is leased, such as the {self.pages} frames from hfn {self.where:#x}"
        if self.what == "others":
            return f"every window holds pages of others, {self.pages} at the least"
        if self.what == "memory":
            return f"{self.pages} free frames are missing to clear and fill the best window"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds)
        return (
            f"{self.pages} pages of the best window can have no slot ({kinds}; the first at hfn {self.where:#x}), "
            f"and the escape filter takes {self.allowed}"
        )


@attrs.frozen(kw_only=True)
class Prices:
    """What steps of a build cost, in any one unit (e.g. ns)."""

    copy: float = 1.0
    """Of moving a page."""
    zero: float = 1.0
    """Of a zeroed page."""


def choose(
    backing: NDArray[np.integer],
    survey: NDArray[np.int16],
    frames: Frames,
    *,
    base: int,
    budget: int,
    free_pages: int,
    within: tuple[int, int] | None = None,
    leased: Sequence[tuple[int, int]] = (),
    only_owner: int | None = None,
    prices: Prices = Prices(),
) -> Choice | Infeasible:
    """Return the cheapest OFFSET for a segment over gfns [base, base + len(backing)), or what prevents all.

    backing     int[pages]: the hfn of each gfn from ``base``, or -1; no hfn twice (pass merged pages as -1)
    survey      int16[blocks, 6]: the host's pageblocks (``Memory.survey``, of any owner)
    frames      FRAME[n]: the host's frames (``Memory.frames``)
    budget      pages that may escape
    free_pages  free frames of the host that may be used
    within      hfns [start, end) that the window may lie in; the whole host if not given
    leased      ranges of hfns that belong to other builds and segments
    only_owner  whose pages alone may be moved; anybody's if not given
    """
    start, end = within or (0, frames.size)
    if not 0 < backing.size <= end - start:
        return Infeasible(what="size", pages=max(backing.size - (end - start), 0))
    view = _View(backing, survey, frames, base, only_owner)
    aligned = view.estimate(view.aligned_offsets(start, end), leased)
    if best := _cheapest(view, aligned, budget, free_pages, prices):
        return best
    others = view.estimate(view.other_offsets(start, end), leased)
    if best := _cheapest(view, others, budget, free_pages, prices):
        return best
    return _blocker(view, (aligned, others), budget, free_pages, leased)


def _cheapest(view: _View, candidates: _Estimates, budget: int, free_pages: int, prices: Prices) -> Choice | None:
    """Count candidates page by page, cheapest first, until no other can be cheaper."""
    best: Choice | None = None
    for offset, copies in itertools.islice(candidates.in_order(budget, free_pages), _FINALS):
        # An escape saves two copies at most: of its page, and of the one in its slot.
        if best is not None and copies - candidates.slack - 2 * budget >= best.copies:
            break
        counts = view.count(offset)
        if counts.escaped.size > budget or counts.barred or counts.shortage(free_pages):
            continue
        if best is None or counts.copies < best.copies:
            cost = counts.copies * prices.copy + counts.absent * prices.zero
            best = Choice(**attrs.asdict(counts, recurse=False), cost=cost)
    return best


def _blocker(
    view: _View,
    candidates: tuple[_Estimates, ...],
    budget: int,
    free_pages: int,
    leased: Sequence[tuple[int, int]],
) -> Infeasible:
    """Return what stands in the way at the OFFSET with the fewest pages that can have no slot, or may not be moved."""
    offset = next((each.least_blocked(budget) for each in candidates if each.offset.size), None)
    if offset is None:
        first, last = min(leased)
        return Infeasible(what="lease", pages=last - first, where=first)
    counts = view.count(offset)
    if counts.escaped.size <= budget and counts.barred:
        return Infeasible(what="others", pages=counts.barred, best=counts)
    if counts.escaped.size <= budget:
        return Infeasible(what="memory", pages=counts.shortage(free_pages), best=counts)
    where, kinds = view.stuck_frames(counts)
    return Infeasible(
        what="immovable", pages=counts.escaped.size, allowed=budget, where=where, kinds=kinds, best=counts
    )


@attrs.frozen(eq=False)
class _Estimates:
    """Candidates and what the sums over pageblocks say of them: exact where window and pageblocks agree."""

    offset: NDArray[np.int64]
    in_place: NDArray[np.int64]
    copies: NDArray[np.int64]
    stuck: NDArray[np.int64]
    short: NDArray[np.int64]
    """Frames missing, were all of the host's frames taken: to be compared with what is free."""
    barred: NDArray[np.int64]
    """Pages that may not be moved: exact."""
    absent: int
    slack: int
    """How far off the sums may be."""

    def in_order(self, budget: int, free_pages: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, copies) of those that may be built, cheapest first, then by pages in place, then lowest."""
        short = np.maximum(self.short - self.slack, self.absent)
        able = np.flatnonzero((self.stuck <= budget) & (self.barred == 0) & (short <= free_pages))
        order = able[np.lexsort((self.offset[able], -self.in_place[able], self.copies[able]))]
        for i in order:
            yield int(self.offset[i]), int(self.copies[i])

    def least_blocked(self, budget: int) -> int:
        """Return the offset with the fewest immovable frames beyond ``budget``; then with the fewest pages that may not
        be moved, the fewest immovable frames, the cheapest.
        """
        order = np.lexsort((self.offset, self.copies, self.stuck, self.barred, np.maximum(self.stuck - budget, 0)))
        return int(self.offset[order[0]])


class _View:
    """One host and one VM's pages, in sums over pageblocks."""

    def __init__(
        self,
        backing: NDArray[np.integer],
        survey: NDArray[np.int16],
        frames: Frames,
        base: int,
        only_owner: int | None,
    ) -> None:
        self.backing, self.frames, self.survey, self.base = backing, frames, survey, base
        self.only_owner = only_owner
        self.pages = int(backing.size)
        self._pinned = bool(counting.any_pinned(frames))
        # Offsets hfn - gfn from -(last gfn) to the last hfn, in ranges of 512.
        self._lowest = -(base + self.pages) >> PAGEBLOCK_ORDER
        ranges = (frames.size >> PAGEBLOCK_ORDER) - self._lowest + 1
        self._near, self._aligned = np.zeros(ranges, np.int64), np.zeros(ranges, np.int64)
        own = np.zeros(survey.shape[0], np.int64)
        counting.tally(backing, base, self._lowest, self._near, self._aligned, own)
        pinned = np.zeros(survey.shape[0], np.int64)
        if self._pinned:
            counting.tally_pinned(backing, frames, pinned)
        columns = np.asarray(survey, np.int64)
        # Our own pinned pages may be where they belong: nothing is ruled out for them before it is counted.
        movable = columns[:, Column.OTHERS] + columns[:, Column.OWN] + pinned
        stuck = columns[:, Column.IMMOVABLE] + columns[:, Column.BAD] - pinned
        self._sums = {
            name: np.concatenate(([0], np.cumsum(column)))
            for name, column in (
                ("free", columns[:, Column.FREE]), ("movable", movable), ("stuck", stuck), ("own", own),
            )
        }  # fmt: skip
        self._resident = int(own.sum())
        if only_owner is not None:
            barred = np.zeros(-(-frames.size // PAGEBLOCK), np.int64)
            counting.tally_barred(frames, only_owner, barred)
            self._sums["barred"] = np.concatenate(([0], np.cumsum(barred)))
        self._exact: dict[int, int] = {}

    def aligned_offsets(self, start: int, end: int) -> NDArray[np.int64]:
        """Return all offsets that are 0 mod 2 MiB and whose window lies in [start, end)."""
        first = -(-(start - self.base) // PAGEBLOCK) * PAGEBLOCK
        return np.arange(first, end - self.base - self.pages + 1, PAGEBLOCK, dtype=np.int64)

    def other_offsets(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the most frequent offsets that are not 0 mod 2 MiB, as far as they fit, and the lowest that fits."""
        rest = self._near - self._aligned
        ranges = np.argsort(-rest, kind="stable")[:_FREQUENT]
        row = np.full(rest.size, -1, np.int64)
        row[ranges] = np.arange(ranges.size)
        exact = np.zeros((ranges.size, PAGEBLOCK), np.int64)
        counting.tally_within(self.backing, self.base, self._lowest, row, exact)
        exact[:, 0] = 0
        best = np.argsort(-exact, axis=None, kind="stable")[:_FREQUENT]
        best = best[exact.reshape(-1)[best] > 0]
        offsets = (ranges[best // PAGEBLOCK] + self._lowest) * PAGEBLOCK + best % PAGEBLOCK
        self._exact = dict(zip(offsets.tolist(), exact.reshape(-1)[best].tolist(), strict=True))
        fits = (offsets + self.base >= start) & (offsets + self.base + self.pages <= end)
        return np.union1d(offsets[fits], [start - self.base]).astype(np.int64)

    def _in_place(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        aligned: NDArray[np.int64] = self._aligned[(offsets >> PAGEBLOCK_ORDER) - self._lowest]
        odd = offsets & PAGEBLOCK - 1 != 0
        aligned[odd] = [self._exact.get(offset, 0) for offset in offsets[odd].tolist()]
        return aligned

    def _barred(self, start: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many pages that may not be moved lie in the window at each ``start``."""
        found = np.zeros(start.size, np.int64)
        if self.only_owner is not None:
            counting.count_barred(self.frames, self.only_owner, self._sums["barred"], start, self.pages, found)
        return found

    def _below(self, name: str, hfn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum over frames below ``hfn``, as if a pageblock's frames were spread evenly over it."""
        sums = self._sums[name]
        block = np.minimum(hfn >> PAGEBLOCK_ORDER, sums.size - 2)
        rest = hfn - (block << PAGEBLOCK_ORDER)
        below: NDArray[np.int64] = sums[block] + (sums[block + 1] - sums[block]) * rest // PAGEBLOCK
        return below

    def estimate(self, offsets: NDArray[np.int64], leased: Sequence[tuple[int, int]]) -> _Estimates:
        """Return what pageblocks say of those ``offsets`` whose window is nobody's."""
        start = offsets + self.base
        for begin, finish in leased:
            start = start[(start >= finish) | (start + self.pages <= begin)]
        end = start + self.pages
        free, movable, own = (self._below(name, end) - self._below(name, start) for name in ("free", "movable", "own"))
        # Only blocks wholly inside, so that nothing is ruled out for what may lie beyond an edge.
        sums = self._sums["stuck"]
        first, last = (start + PAGEBLOCK - 1) >> PAGEBLOCK_ORDER, end >> PAGEBLOCK_ORDER
        stuck = np.maximum(sums[np.maximum(last, first)] - sums[first], 0)
        in_place = self._in_place(start - self.base)
        others, outside = np.maximum(movable - own, 0), self._resident - own
        return _Estimates(
            offset=start - self.base,
            in_place=in_place,
            copies=others + outside + np.maximum(own - in_place, 0),
            stuck=stuck,
            short=others - outside + free,
            barred=self._barred(start),
            absent=self.pages - self._resident,
            slack=0 if self.base % PAGEBLOCK == self.pages % PAGEBLOCK == 0 else 2 * PAGEBLOCK,
        )

    def count(self, offset: int) -> Counts:
        """Count what building at ``offset`` meets, page by page."""
        start = self.base + offset
        escaped = np.zeros(self.pages, np.uint8)
        counting.mark_escaped(self.backing, self.frames, self.survey, start, self._pinned, escaped)
        found = np.zeros(counting.COUNTS, np.int64)
        counting.count_window(self.backing, self.frames, self.survey, start, escaped, self._pinned, found)
        return Counts(
            base=self.base,
            limit=self.base + self.pages,
            offset=offset,
            in_place=int(found[counting.IN_PLACE]),
            wrong_slot=int(found[counting.WRONG_SLOT]),
            outside=int(found[counting.OUTSIDE]),
            absent=int(found[counting.ABSENT]),
            others=int(found[counting.OTHERS]),
            free=int(found[counting.FREE]),
            busy=int(found[counting.BUSY]),
            refuges=int(found[counting.REFUGES]),
            barred=int(self._barred(np.array([start]))[0]),
            escaped=np.flatnonzero(escaped) + self.base,
        )

    def stuck_frames(self, counts: Counts) -> tuple[int, tuple[tuple[str, int], ...]]:
        """Return the hfn of the first frame that gives an escape, and how many there are of each kind."""
        slots = counts.escaped + counts.offset
        absent = self.survey[slots >> PAGEBLOCK_ORDER, Column.IMMOVABLE] == PAGEBLOCK
        kinds = np.where(absent & (self.frames["kind"][slots] == Kind.FREE), Kind.HOLE, self.frames["kind"][slots])
        met = Counter[str]()
        for kind, frames in zip(*np.unique(kinds, return_counts=True), strict=True):
            met[Kind(kind).name.lower() if Kind(kind) in IMMOVABLE else "pinned"] += int(frames)
        return int(slots[0]), tuple(met.most_common())
