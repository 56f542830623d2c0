"""``Memory``: the book of all frames of a host or of one guest, and their buddy allocator.

    Memory(pages, *, name, holes=(), kernelcore=None)
    .pages .present_pages .managed_pages .free_pages .watermarks .frames .tokens
    .take(count, *, kind, owner=NOBODY, pages=None, order=0, floor=None) -> int64[k]
    .take_range(start, end, *, kind, owner=NOBODY, pages=None, token=None) -> int64[k]
    .give_back(frames, *, order=0)
    .assign(frames, *, owner=None, pages=None, kind=None)
    .pin(frames) / .unpin(frames) / .split(frames)
    .retire(frames)
    .find_free_run(pages, *, align=512, within=None) -> start or -1
    .add(start, end) / .remove(start, end, *, token=None)
    .isolate(frames, by) -> Token / .isolate_range(start, end, by) -> Token; Busy
    .commit(token, *, kind=None, owner=None, pages=None) / .release(token)
    .kinds(frames) -> uint8[n] / .is_free(start, end) -> bool
    .fragmentation() / .largest_free_run() / .count(kind=None, owner=None) / .survey(owner) / .owned(owner)
    .drop_cache(count) -> pages
    .copy() -> Memory
    .check()

Frame numbers are int64. A refusal is ``Busy``, or a shorter result; a call that makes no sense is a ValueError, and
nothing is changed then. Nothing here takes time: actors wait between ``isolate`` and ``commit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmmsim.jit import one_each
from vmmsim.memory import bulk, ranges
from vmmsim.memory.audit import audit
from vmmsim.memory.frames import IMMOVABLE, ISOLATED, KINDS, NOBODY, ORDERS, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, Kind
from vmmsim.memory.measures import Measures, frame_list
from vmmsim.memory.tokens import Busy, Token
from vmmsim.memory.watermarks import most_boost, watermarks
from vmmsim.memory.zone import is_written
from vmmsim.rates import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from vmmsim.memory.compaction import Compaction

NONE: NDArray[np.int64] = np.empty(0, np.int64)
USABLE = frozenset(Kind) - {Kind.FREE, Kind.HOLE, Kind.BAD}
"""Kinds that frames in use can have."""


class Memory(Measures):
    """The frames of one machine, real or virtual: what each is used for, whose it is, and which are free.

    pages       capacity in frames, memory that may be added later included; nothing is spent on frames never used
    holes       ranges [start, end) of frame numbers without memory
    kernelcore  from this frame on (rounded up to 4 MiB), only movable kinds may live; None: anything anywhere
    """

    def __init__(
        self, pages: int, *, name: str, holes: Iterable[tuple[int, int]] = (), kernelcore: int | None = None
    ) -> None:
        super().__init__(pages, name=name, kernelcore=kernelcore)
        self._next_token = 0
        self.compaction: Compaction | None = None
        """The run of ``compaction.compact`` that is not over."""
        self.freed: Callable[[], None] | None = None
        """Called after a block of a pageblock or more became free; set by free page reporting."""
        self.pressed: Callable[[], None] | None = None
        """Called after frames were taken while less is free than the watermark low; set by who plays kswapd."""
        start = 0
        for hole_start, hole_end in sorted(holes):
            self._add(start, hole_start)
            start = hole_end
        self._add(start, pages)
        self._set_watermarks()

    def copy(self) -> Memory:
        """Return a memory in the same state, open tokens included, for an experiment that leaves this one alone."""
        twin: Memory = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.zone, twin.blocks, twin.tokens = self.zone.copy(), self.blocks.copy(), dict(self.tokens)
        twin.records = np.zeros_like(self.records)
        twin.words = twin.records.view(np.int32)
        written = is_written(self.blocks)
        twin.records.reshape(-1, PAGEBLOCK)[written] = self.records.reshape(-1, PAGEBLOCK)[written]
        twin.compaction = twin.pressed = None
        return twin

    def __deepcopy__(self, memo: dict[int, object]) -> Memory:
        """A deep copy is a ``copy``: member by member, the two views of the records would part."""
        return self.copy()

    # Taking and giving back

    def take(
        self,
        count: int,
        *,
        kind: Kind,
        owner: int = NOBODY,
        pages: ArrayLike | None = None,
        order: int = 0,
        floor: int | None = None,
    ) -> NDArray[np.int64]:
        """Allocate up to ``count`` blocks of 2**order frames; return the first frame of each, as many as there were.

        pages  the owner's page that the first frame of each block holds; the others hold the following ones
        floor  pages that stay free, each part of memory keeping its share; None: the watermark min
        """
        if count < 0 or kind not in USABLE:
            raise ValueError(f"cannot take count(={count}) blocks of kind(={kind!r})")
        held = self._pages(pages, count)
        out = np.empty(count, np.int64)
        taken = bulk.take_many(
            self.zone, self.words, self.blocks, self._floors(floor, kind), order, int(kind), owner, held, out
        )
        if self.pressed is not None and self.short_of("low") > 0:
            self.pressed()
        return out[:taken]

    def take_range(
        self,
        start: int,
        end: int,
        *,
        kind: Kind,
        owner: int = NOBODY,
        pages: ArrayLike | None = None,
        token: Token | None = None,
    ) -> NDArray[np.int64]:
        """Allocate every free frame of [start, end) and return them, in order. No watermark holds it back.

        pages  int64[end - start]: the owner's page that each frame of the range holds, if it is taken
        token  the lease that the range is in, if it is leased; otherwise Busy is raised
        """
        self._check_range(start, end)
        self._check_lease(start, end, token)
        if kind not in USABLE or (kind in IMMOVABLE and end > self.zone.kernelcore):
            raise ValueError(f"frames [{start}, {end}) cannot be of kind(={kind!r})")
        held = self._pages(pages, end - start)
        out = np.empty(end - start, np.int64)
        taken = ranges.take_between(self.zone, self.words, self.blocks, start, end, int(kind), owner, held, out)
        return out[:taken]

    def give_back(self, frames: ArrayLike, *, order: int = 0) -> None:
        """Free blocks of 2**order frames, all in use. ValueError names a frame that is not; Busy, one that is held."""
        wanted = frame_list(frames)
        self._check_change(wanted, order=order)
        before = self._large()
        bulk.give_many(self.zone, self.words, self.blocks, wanted, order)
        self._tell(before)

    def assign(
        self, frames: ArrayLike, *, owner: int | None = None, pages: ArrayLike | None = None, kind: Kind | None = None
    ) -> None:
        """Rewrite what the book says of frames in use; None leaves it. A new kind clears the pin."""
        wanted = frame_list(frames)
        self._check_change(wanted)
        self._rewrite(wanted, owner, pages, kind)

    def pin(self, frames: ArrayLike) -> None:
        """Pin frames in use in place: they stay movable by kind, but are not moved."""
        wanted = frame_list(frames)
        self._check_change(wanted)
        self.records["mark"][wanted] |= PINNED

    def unpin(self, frames: ArrayLike) -> None:
        """Take the pin off frames in use."""
        wanted = frame_list(frames)
        self._check_change(wanted)
        self.records["mark"][wanted] &= ~PINNED & 0xFF

    def split(self, frames: ArrayLike) -> None:
        """Say that frames in use, taken as larger blocks, are pages of their own from now on."""
        wanted = frame_list(frames)
        self._check_change(wanted)
        self.records["order"][wanted] = 0

    def drop_cache(self, count: int) -> int:
        """Free up to ``count`` frames of page cache, scattered as those used least lately are; return how many."""
        before = self._large()
        dropped = int(bulk.drop_many(self.zone, self.words, self.blocks, count))
        self._tell(before)
        return dropped

    def retire(self, frames: ArrayLike) -> None:
        """Make frames, free or in use, BAD for good, leased or not: failures ask nobody. Busy if one is held."""
        wanted = frame_list(frames)
        for lease in [token for token in self.tokens.values() if token.range is not None]:
            first, end = lease.range or (0, 0)
            inside = wanted[(wanted >= first) & (wanted < end)]
            for frame in inside[self.records["kind"][inside] == Kind.FREE].tolist():
                self.take_range(frame, frame + 1, kind=Kind.USER, token=lease)
        self.commit(self.isolate(wanted, "retire"), kind=Kind.BAD, owner=NOBODY, pages=NOBODY)

    # Changes that take time

    def isolate(self, frames: ArrayLike, by: str) -> Token:
        """Hold frames, in use or free, for a change by ``by``; free ones leave the allocator.

        Busy names what another holds, what is a hole or retired, and what is free in a leased range.
        """
        wanted = frame_list(frames)
        wrong = bulk.first_wrong(self.zone, self.words, self.blocks, wanted, 0, False, 0)
        if wrong >= 0:
            raise Busy(wanted[wrong : wrong + 1], self.holder(int(wanted[wrong])))
        bulk.isolate_many(self.zone, self.words, self.blocks, wanted)
        return self.adopt(wanted, by)

    def isolate_range(self, start: int, end: int, by: str) -> Token:
        """Lease whole pageblocks: nothing is allocated in them, and what is free or freed there stays.

        Busy if one is leased already. Frames in use stay as they are.
        """
        self._check_range(start, end)
        if start % PAGEBLOCK or end % PAGEBLOCK:
            raise ValueError(f"[{start}, {end}) is not whole pageblocks of {PAGEBLOCK} frames")
        self._check_lease(start, end, None)
        ranges.set_leased(self.zone, self.words, self.blocks, start, end, True)
        return self.adopt(NONE, by, (start, end))

    def commit(
        self,
        token: Token,
        *,
        kind: Kind | None = None,
        owner: int | None = None,
        pages: ArrayLike | None = None,
    ) -> None:
        """End a change as intended: rewrite the frames held (None: as they were) and let go of them.

        FREE gives all of them to the allocator. A lease takes no kind: its end is ``release``.
        """
        if token.is_lease or kind == Kind.HOLE:
            raise ValueError(f"{token.by} cannot commit a lease, or frames to holes")
        unsettled = kind is None and (self.records["kind"][token.frames] == Kind.FREE).any()
        if unsettled:
            raise ValueError(f"{token.by} holds free frames: commit(kind=...) must say what they become")
        self.close(token)
        if kind == Kind.FREE:
            used = self.records["kind"][token.frames] != Kind.FREE
            bulk.release_many(self.zone, self.words, self.blocks, token.frames)
            before = self._large()
            bulk.give_many(self.zone, self.words, self.blocks, token.frames[used], 0)
            self._tell(before)
        else:
            self._rewrite(token.frames, owner, pages, kind)

    def release(self, token: Token) -> None:
        """End a change as if it had not begun: let go of what ``token`` holds."""
        self.close(token)
        if token.range is not None:
            ranges.set_leased(self.zone, self.words, self.blocks, *token.range, False)
        else:
            bulk.release_many(self.zone, self.words, self.blocks, token.frames)

    def adopt(self, frames: NDArray[np.int64], by: str, span: tuple[int, int] | None = None) -> Token:
        """Open a token for frames that a kernel has just isolated, or for the range ``span`` that it has leased."""
        token = Token(number=self._next_token, by=by, frames=frames, range=span)
        self._next_token += 1
        self.tokens[token.number] = token
        return token

    def close(self, token: Token) -> None:
        """Close an open token whose frames a kernel is about to settle."""
        if self.tokens.get(token.number) is not token:
            raise ValueError(f"the token of {token.by} is closed, or of another memory")
        del self.tokens[token.number]

    # Memory that comes and goes

    def add(self, start: int, end: int) -> None:
        """Bring [start, end), all of it holes, into use as free memory."""
        self._check_range(start, end)
        self._check_lease(start, end, None)
        if not ranges.all_are(self.words, self.blocks, start, end, True):
            raise ValueError(f"[{start}, {end}) is not all holes")
        before = self._large()
        self._add(start, end)
        self._set_watermarks()
        self._tell(before)

    def remove(self, start: int, end: int, *, token: Token | None = None) -> None:
        """Make [start, end), all of it free or retired, holes; ``token``, its lease if it has one, stays open."""
        self._check_range(start, end)
        self._check_lease(start, end, token)
        if not ranges.all_are(self.words, self.blocks, start, end, False):
            raise ValueError(f"[{start}, {end}) is not all free")
        ranges.remove_between(self.zone, self.words, self.blocks, start, end)
        self._set_watermarks()

    def check(self) -> None:
        """Recount everything from scratch; AssertionError says what is wrong."""
        audit(self)

    # Helpers

    def _large(self) -> int:
        """Return the free pages in blocks of a pageblock or more; -1 if nobody wants to know."""
        if self.freed is None:
            return -1
        counts = self.zone.blocks[:, PAGEBLOCK_ORDER:, :3].sum(axis=(0, 2))
        return int((counts << np.arange(PAGEBLOCK_ORDER, ORDERS)).sum())

    def _tell(self, before: int) -> None:
        if self.freed is not None and self._large() > before:
            self.freed()

    def _add(self, start: int, end: int) -> None:
        if end > start:
            ranges.add_between(self.zone, self.words, self.blocks, start, end)

    def _set_watermarks(self) -> None:
        total = self.present_pages
        for part in range(2):
            marks = watermarks(int(self.zone.present[part]), total)
            self.zone.watermark[:, part] = marks.min, marks.low, marks.high
            self.zone.boost_most[part] = most_boost(marks.high, int(self.zone.present[part]))

    @property
    def spare_pages(self) -> int:
        """Frames that movable kinds could still be given: above the watermark min, and what the lower part keeps."""
        return int(np.maximum(self.zone.free - self._floors(None, Kind.USER), 0).sum())

    def short_of(self, mark: str) -> int:
        """Return how many pages must become free until the watermark ``mark`` ("low", "high") is reached; < 0: over it.

        What the lower part keeps for kinds that can live nowhere else does not count as free.
        """
        marks = self.watermarks
        return int(getattr(marks, mark)) - marks.min - self.spare_pages

    def _floors(self, floor: int | None, kind: Kind) -> NDArray[np.int64]:
        """Return int64[2]: pages that stay free in each part.

        Unless the caller says how many, movable kinds leave some of the lower part to those that can live nowhere
        else. L: setup_per_zone_lowmem_reserve.
        """
        if floor is None:
            floors = np.array(self.zone.watermark[0])
            if kind not in IMMOVABLE:
                floors[0] += int(self.zone.present[1]) // int(number("buddy.lowmem_reserve_ratio"))
            return floors
        return floor * self.zone.present // max(self.present_pages, 1)

    def _pages(self, pages: ArrayLike | None, count: int) -> NDArray[np.int64]:
        if pages is None:
            return NONE
        return one_each(pages, count)

    def _check_range(self, start: int, end: int) -> None:
        if not 0 <= start < end <= self.zone.frames:
            raise ValueError(f"[{start}, {end}) is no range of the {self.pages} frames of {self.name}")

    def _check_lease(self, start: int, end: int, token: Token | None) -> None:
        mine = token is not None and token.range is not None and token.range[0] <= start and end <= token.range[1]
        if mine and token is not None and token.number in self.tokens:
            return
        if ranges.count_leased(self.blocks, start, end):
            raise Busy(np.arange(start, start + 1), self.holder(start, end))

    def _check_change(self, frames: NDArray[np.int64], *, order: int = 0) -> None:
        wrong = bulk.first_wrong(self.zone, self.words, self.blocks, frames, order, True, 0)
        if wrong < 0:
            return
        block = np.arange(frames[wrong], frames[wrong] + (1 << order))
        inside = block[0] >= 0 and block[-1] < self.zone.frames and block[0] % (1 << order) == 0
        if inside and (self.records["mark"][block] & ISOLATED).any():
            raise Busy(block, self.holder(int(block[0]), int(block[-1]) + 1))
        kinds = [Kind(kind).name for kind in sorted(set(self.kinds(block)))] if inside else "no block"
        raise ValueError(
            f"frame {block[0]} of {self.name}, order {order}, is not in use, or named twice: it is {kinds}"
        )

    def _rewrite(self, frames: NDArray[np.int64], owner: int | None, pages: Any, kind: Kind | None) -> None:
        if kind is not None and kind not in USABLE | {Kind.BAD}:
            raise ValueError(f"kind(={kind!r}) is none that frames in use can have")
        if kind in IMMOVABLE and kind != Kind.BAD and (frames >= self.zone.kernelcore).any():
            raise ValueError(f"kind(={kind!r}) may not be in the movable part, from {self.zone.kernelcore} on")
        bulk.rewrite(
            self.zone,
            self.words,
            self.blocks,
            frames,
            bulk.KEEP if owner is None else owner,
            self._pages(pages, len(frames)),
            bulk.KEEP if kind is None else int(kind),
        )


assert len(USABLE) == KINDS - 3
