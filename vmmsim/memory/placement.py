"""Moving the pages of a segment into their slots, a batch at a time, so that the target of every copy is free.

A vacant slot takes its page; the frame that leaves behind may be a slot too, and takes the next: chains are followed.
What remains are closed cycles: one page of each goes to a spare frame first, so that a cycle of L pages costs L + 1
copies. Aligned runs of 512 pages in aligned frames (2 MiB leaves) move whole into vacant blocks, while that is
possible. So

    copies = pages in wrong slots + pages outside + closed cycles            (others' pages are the caller's to evict)

Nothing is done here: a batch says what to copy in which order, and ``commit`` notes that it has been done. Within a
batch a later line may write to the frame that an earlier one left, so all its pages are unmapped until its end
(Linux: migration entries). Between batches every page is mapped to the one frame that holds it, and the whole may be
abandoned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vmmsim.memory import filling
from vmmsim.memory.batch import EMPTY, Batch, Spares
from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

BATCH: Final = 32
"""Pages of a batch (Linux: COMPACT_CLUSTER_MAX)."""

Waits = Literal["nothing", "eviction", "split", "spare"]


class Placement:
    """The plan of filling one window, resumable at every batch."""

    def __init__(
        self,
        backing: NDArray[np.integer],
        *,
        base: int,
        offset: int,
        free: NDArray[np.bool_],
        escaped: ArrayLike = (),
    ) -> None:
        """Begin where things are.

        backing  int[n]: hfn of each gfn of [base, base + n), or -1; no hfn twice; copied
        offset   hfn - gfn of every slot
        free     bool[n]: which frames of the window [base + offset, ...) are free, and kept for this
        escaped  gfns that are to live elsewhere: those in the window move to spare frames, their slots stay empty
        """
        pages = backing.size
        assert free.size == pages, "one frame of the window for each page"
        self.base, self.offset, self.start = base, offset, base + offset
        congruent = offset % PAGEBLOCK == 0
        self._lead = -base % PAGEBLOCK if congruent else 0
        blocks = max(pages - self._lead, 0) // PAGEBLOCK if congruent else 0
        self._backing = backing.astype(np.int32)
        self._occupant = np.empty(pages, np.int32)
        self._flags = np.zeros(pages, np.uint8)
        self._leaves, self._room = np.zeros(blocks, np.uint8), np.zeros(blocks, np.int16)
        self._escaped = np.unique(np.asarray(escaped, np.int64)) - base
        self._flags[self._escaped] = filling.ESCAPED
        self.misplaced, self.absent, self.foreign = filling.settle(
            self._backing, self._occupant, self._flags, self._room, self.start, self._lead, free
        )
        filling.find_leaves(self._backing, self._flags, self._leaves, self.start, self._lead)
        self._queue, self._leaf_queue = np.empty(64, np.int32), np.empty(64, np.int32)
        self._queued = np.zeros(2, np.int64)
        self._cursors = np.zeros(2, np.int64)
        self._cycle_cursor = self._split_cursor = self._absent_cursor = 0
        self._leaving = self._must_leave()
        self._spares = Spares()
        self._open: Batch | None = None
        self.copies = self.cycles = 0
        self.waits_for: Waits = "nothing"

    @property
    def left(self) -> int:
        """Pages that are still to be moved (each closed cycle costs one copy more)."""
        return self.misplaced + len(self._leaving)

    @property
    def is_complete(self) -> bool:
        """Every slot holds its page, or escapes: the segment can be switched on."""
        return self.left == self.absent == 0

    @property
    def backing(self) -> NDArray[np.int32]:
        """int32[n]: where each page is now; not to be written to."""
        return self._backing

    # What happens elsewhere

    def lend(self, first: int, pages: int = 1) -> None:
        """Give a free frame outside the window, or an aligned run of 512, for cycles and for escaped pages."""
        assert not self.start - pages < first < self.start + self._backing.size, "spare frames lie outside the window"
        self._spares.lend(first, pages)

    def take_back(self) -> list[tuple[int, int]]:
        """Return the spare frames that hold nothing, as (first, pages); they are no longer lent."""
        return self._spares.take_back()

    def freed(self, frames: NDArray[np.integer]) -> None:
        """Note that eviction has freed ``frames`` of the window."""
        slots = np.asarray(frames, np.int64) - self.start
        assert np.all(self._occupant[slots] == filling.FOREIGN), "only others' frames are evicted"
        self._occupant[slots] = filling.VACANT
        self.foreign -= int(np.count_nonzero(self._flags[slots] & filling.ESCAPED == 0))
        block = (slots - self._lead) // PAGEBLOCK
        whole = (slots >= self._lead) & (block < self._room.size)
        np.add.at(self._room, block[whole], 1)
        self._enqueue(slots)
        self._cycle_cursor = 0

    def changed(self, gfns: Iterable[int], frames: Iterable[int]) -> None:
        """Note that pages are at other frames now (-1: not resident), as nested faults and swapping may bring about.

        A frame of the window must be vacant; what a page leaves there is vacant from now on.
        """
        for gfn, frame in zip(gfns, frames, strict=True):
            self._change(int(gfn) - self.base, int(frame))
        self._leaving = self._must_leave()
        self._cycle_cursor = 0

    def _change(self, page: int, frame: int) -> None:
        slot, before = frame - self.start, int(self._backing[page])
        inside = frame >= 0 and 0 <= slot < self._backing.size
        assert not inside or self._occupant[slot] == filling.VACANT, "a page can only come to a vacant frame"
        if not self._flags[page] & filling.ESCAPED:
            self.absent += (frame < 0) - (before < 0)
            self.misplaced += (frame >= 0 and slot != page) - (before >= 0 and before != self.start + page)
        filling.move(self._backing, self._occupant, self._room, self.start, self._lead, page, before, frame)
        self._spend(np.array([before]), np.array([frame]), 1)
        self._recognise(page)
        self._enqueue(np.array([before - self.start, page]))

    def _recognise(self, page: int) -> None:
        """Look anew whether the block of ``page`` is a leaf that is to move whole."""
        block = (page - self._lead) // PAGEBLOCK
        if page < self._lead or block >= self._leaves.size:
            return
        first = self._lead + block * PAGEBLOCK
        if filling.is_leaf(self._backing, self._flags, self.start, first):
            self._leaves[block] |= filling.LEAF
        elif self._leaves[block] & filling.LEAF:
            self._split(block)

    def escape(self, gfns: Iterable[int]) -> None:
        """Let more pages escape: they will live outside the window, and their slots stay empty."""
        for gfn in gfns:
            page = int(gfn) - self.base
            if self._flags[page] & filling.ESCAPED:
                continue
            self._flags[page] |= filling.ESCAPED
            at = int(self._backing[page])
            self.absent -= at < 0
            self.misplaced -= at >= 0 and at != self.start + page
            self.foreign -= int(self._occupant[page]) == filling.FOREIGN
            self._recognise(page)
            self._escaped = np.append(self._escaped, page)
        self._leaving = self._must_leave()
        self._cycle_cursor = 0

    def _must_leave(self) -> list[int]:
        """Return the escaped pages that lie in the window, other than in each other's slots, where nobody else goes."""
        slots = self._backing[self._escaped] - self.start
        inside = (self._backing[self._escaped] >= 0) & (slots >= 0) & (slots < self._backing.size)
        pages, slots = self._escaped[inside], slots[inside]
        must = (slots == pages) | (self._flags[slots] & filling.ESCAPED == 0)
        return [int(page) for page in pages[must]]

    # Batches

    def batch(self, pages: int = BATCH, *, split: bool = True) -> Batch:
        """Return the next copies, at most ``pages`` (or one whole leaf); an empty batch when ``waits_for`` says why.

        Without ``split``, no leaf is taken apart: for the time in which evictions may yet free the block it waits for.
        Closed cycles come last, when nobody else's page is in the window.
        """
        self._open = self._next(pages, split)
        return self._open

    def _next(self, most: int, split: bool) -> Batch:
        self.waits_for = "nothing"
        found = self._leave(most) if self._leaving else EMPTY
        # FAST PATH: without a block to look at, no leaf can move.
        if not found and (self._queued[1] or self._cursors[1] < self._leaves.size):
            found = self._leaf_moves(most)
        found = found or self._page_moves(most)
        if found or not self.left:
            return found
        while (block := filling.find_split(self._leaves, self._room, self._split_cursor)) >= 0:
            if not split:
                self.waits_for = "split"
                return EMPTY
            self._split_cursor = block
            self._split(block)
            if found := self._page_moves(most):
                return found
        if self.foreign:
            self.waits_for = "eviction"
            return EMPTY
        return self._cycles(most)

    def _leave(self, most: int) -> Batch:
        """Plan moves of escaped pages out of the window, to frames that they will keep."""
        spares = self._spares.unused(1)
        pages = self._leaving[: min(most, len(spares))]
        lines = np.array([(page, self._backing[page], to) for page, to in zip(pages, spares, strict=False)], np.int64)
        return self._as_batch(lines.reshape(-1, 3), 1)

    def _leaf_moves(self, most: int) -> Batch:
        out = np.empty((max(most // PAGEBLOCK, 1), 3), np.int64)
        count, looked, cursor = filling.plan_leaves(
            self._backing, self._leaves, self._room, self.start, self._lead,
            self._leaf_queue, self._queued[1], self._cursors[1], out,
        )  # fmt: skip
        return self._as_batch(out[:count], PAGEBLOCK, looked=(0, looked), cursors=(int(self._cursors[0]), cursor))

    def _page_moves(self, most: int) -> Batch:
        out = np.empty((most, 3), np.int64)
        count, looked, cursor = filling.plan_pages(
            self._backing, self._occupant, self._flags, self._leaves, self.start, self._lead,
            self._queue, self._queued[0], self._cursors[0], out,
        )  # fmt: skip
        return self._as_batch(out[:count], 1, looked=(looked, 0), cursors=(cursor, int(self._cursors[1])))

    def _cycles(self, most: int) -> Batch:
        """Plan the first copies of closed cycles: of leaves by way of a spare block, else of pages."""
        blocks = self._spares.unused(PAGEBLOCK)
        spare = next(iter((*self._spares.unused(1), *blocks)), None)
        if spare is None or self._leaving:
            self.waits_for = "spare"
            return EMPTY
        if blocks and (found := self._leaf_cycle(blocks[0])):
            return found
        out = np.empty((most, 3), np.int64)
        count, cycles, self._cycle_cursor = filling.plan_cycles(
            self._backing, self._occupant, self._flags, self._leaves, self.start, self._lead,
            self._cycle_cursor, spare, out,
        )  # fmt: skip
        assert count, "all that is left is in cycles"
        return self._as_batch(out[:count], 1, cycles=cycles)

    def _leaf_cycle(self, spare: int) -> Batch:
        seen = np.zeros(self._leaves.size, np.uint8)
        block = filling.find_leaf_cycle(self._occupant, self._leaves, self._lead, seen)
        if block < 0:
            return EMPTY
        slot = self._lead + block * PAGEBLOCK
        line = np.array([(self._occupant[slot], self.start + slot, spare)], np.int64)
        return self._as_batch(line, PAGEBLOCK, cycles=PAGEBLOCK)

    def _as_batch(
        self,
        lines: NDArray[np.int64],
        each: int,
        *,
        looked: tuple[int, int] = (0, 0),
        cursors: tuple[int, int] | None = None,
        cycles: int = 0,
    ) -> Batch:
        cursors = cursors or (int(self._cursors[0]), int(self._cursors[1]))
        found = Batch(lines[:, 0] + self.base, lines[:, 1], lines[:, 2], each, cycles, looked, cursors)
        if not found:
            self._looked_at(found)
        return found

    def commit(self, batch: Batch, done: int | None = None) -> None:
        """Note that ``batch``, the last one asked for, has been carried out; or only its first ``done`` lines."""
        assert batch is self._open, "a batch is committed once, before the next one is asked for"
        self._open = None
        count = len(batch) if done is None else done
        lines = np.stack((batch.gfn - self.base, batch.source, batch.target), axis=1)[:count]
        self.misplaced -= filling.carry_out(
            self._backing, self._occupant, self._leaves, self._room, self.start, self._lead, lines, batch.pages_each
        )
        if count == len(batch):
            self._looked_at(batch)
        self.copies += count * batch.pages_each
        self.cycles += batch.pages_each * self._lifted(lines[:, 2]) if batch.cycles else 0
        self._spend(lines[:, 1], lines[:, 2], batch.pages_each)
        self._settle_escaped(lines[:, 0])
        self._enqueue((lines[:, 1, None] + (np.arange(batch.pages_each) - self.start)).reshape(-1))
        if batch.cycles and count < len(batch):
            self._cycle_cursor = 0

    def _lifted(self, targets: NDArray[np.int64]) -> int:
        """Return how many of ``targets`` lie outside the window: spare frames."""
        slots = targets - self.start
        return int(np.count_nonzero((slots < 0) | (slots >= self._backing.size)))

    def _settle_escaped(self, pages: NDArray[np.int64]) -> None:
        """Escaped pages that have come to a spare frame keep it."""
        if not self._leaving:
            return
        gone = [page for page in self._leaving if page in pages]
        if gone:
            self._spares.keep({int(self._backing[page]) for page in gone})
            self._leaving = self._must_leave()

    def _spend(self, sources: NDArray[np.int64], targets: NDArray[np.int64], each: int) -> None:
        """Count what the spare frames hold."""
        # FAST PATH: mostly, none is in use.
        if self._spares.in_use or self._lifted(targets):
            self._spares.note(sources, targets, each)

    def _looked_at(self, batch: Batch) -> None:
        """Take from the queues what planning ``batch`` looked at, and move the cursors on."""
        queues = ((self._flags, self._queue, filling.QUEUED), (self._leaves, self._leaf_queue, filling.LISTED))
        for i, (marks, queue, bit) in enumerate(queues):
            self._queued[i] = filling.dequeue(marks, queue, self._queued[i], batch._looked[i], bit)
        self._cursors[:] = batch._cursors

    def _split(self, block: int) -> None:
        """Take the leaf of ``block`` apart: its pages move one by one."""
        self._leaves[block] &= filling.LISTED
        first = self._lead + int(block) * PAGEBLOCK
        self._enqueue(np.arange(first, first + PAGEBLOCK))

    def _enqueue(self, slots: NDArray[np.int64]) -> None:
        """Remember slots that pages may move into by now and that the cursors have passed."""
        for i, name in enumerate(("_queue", "_leaf_queue")):
            queue = getattr(self, name)
            if self._queued[i] + slots.size > queue.size:
                setattr(self, name, np.resize(queue, 2 * (int(self._queued[i]) + slots.size)))
        filling.enqueue(
            self._backing, self._occupant, self._flags, self._leaves, self._room, self._lead,
            slots, self._cursors, self._queue, self._leaf_queue, self._queued,
        )  # fmt: skip

    def vacancies(self, most: int = PAGEBLOCK) -> NDArray[np.int64]:
        """Return at most ``most`` absent gfns whose slots are vacant: to be given a zeroed frame there (``changed``).

        Successive calls go through the window, and begin anew when there is no more.
        """
        out = np.empty(most, np.int64)
        count = 0
        for _ in range(2):
            count, self._absent_cursor = filling.absent_slots(
                self._backing, self._occupant, self._flags, self._absent_cursor, out
            )
            if count or not self.absent:
                break
            self._absent_cursor = 0
        return out[:count] + self.base

    def check(self) -> None:
        """Recount everything from the pages and slots; ``AssertionError`` names what does not agree."""
        n, backing, occupant = self._backing.size, self._backing.astype(np.int64), self._occupant
        escaped = self._flags & filling.ESCAPED != 0
        slots = backing - self.start
        inside = (backing >= 0) & (slots >= 0) & (slots < n)
        assert np.array_equal(occupant[slots[inside]], np.flatnonzero(inside)), "each page is in the slot it is at"
        assert np.count_nonzero(occupant >= 0) == np.count_nonzero(inside), "each occupant is at its slot"
        assert np.unique(backing[backing >= 0]).size == np.count_nonzero(backing >= 0), "no frame holds two pages"
        out_of_place = (backing >= 0) & (slots != np.arange(n)) & ~escaped
        assert self.misplaced == np.count_nonzero(out_of_place)
        assert self.absent == np.count_nonzero((backing < 0) & ~escaped)
        assert self.foreign == np.count_nonzero((occupant == filling.FOREIGN) & ~escaped)
        whole = occupant[self._lead : self._lead + self._room.size * PAGEBLOCK].reshape(-1, PAGEBLOCK)
        assert np.array_equal(self._room, np.count_nonzero(whole == filling.VACANT, axis=1)), (
            "vacant slots of each block"
        )
        assert self._leaving == self._must_leave()
        wanting = (occupant == filling.VACANT) & out_of_place
        reachable = (np.arange(n) >= self._cursors[0]) | (self._flags & filling.QUEUED != 0)
        reachable[self._lead : self._lead + whole.size] |= np.repeat(self._leaves & filling.LEAF != 0, PAGEBLOCK)
        assert np.all(reachable[wanting]), "no vacant slot whose page is elsewhere is forgotten"
