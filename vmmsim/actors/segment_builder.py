"""Building a VMM segment for a running VM: lease a window, clear it, put every page in its slot, switch the segment on.

The VM runs all the while. Its nested faults are served slot-first, so that what it touches meanwhile need not move.
Work goes in turns of some thousand pages; at the end of each every page is mapped to the one frame that holds it, and
the build may be given up. Copies take from the guests what ``compaction.bandwidth`` allows, and each batch of 32 pages
is one flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.attempt import Attempt
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.costs import copy_ns
from vmmsim.actors.escapes import Escapes
from vmmsim.actors.vm import Lease
from vmmsim.actors.vmm import FLAGS, VmLost, runs_of
from vmmsim.addresses import format_duration, write_bytes
from vmmsim.memory.batch import Batch, first_sources
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, SHARED, Kind
from vmmsim.memory.placement import Placement
from vmmsim.memory.window import Choice, Infeasible, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder
    from vmmsim.memory.tokens import Token

TURN_PAGES: Final = 1 << 13
"""Pages that are moved or zeroed between two looks at the clock: 32 MiB."""
WINDOW_STEP: Final = 1 << 18
"""Frames of the window that are looked at at once for pages of others."""
BUSY_NS: Final = 1_000_000
"""How long to wait for frames that another change holds."""
GONE: Final = "the VM is gone"


class SegmentBuilder:
    """One build: a VM, a range of its gfns, and the window chosen for it."""

    def __init__(
        self, env: Environment, vmm: Vmm, recorder: Recorder, vm: VirtualMachine, *, bandwidth: int, may_evict: bool
    ) -> None:
        self.env = env
        self.vmm = vmm
        self.host = vmm.host
        self.recorder = recorder
        self.vm = vm
        self.bandwidth = bandwidth
        self.may_evict = may_evict
        self.copied_pages = 0
        self.zeroed_pages = 0
        self.dropped_pages = 0
        self._span = (0, 0)
        self.in_flight: Token | None = None
        """Frames whose copy is under way; None between turns, and once somebody else has taken them away."""
        self.given_up = ""
        """Why the build was ended from outside; "" while it was not."""
        self._waits = False
        self._spares: list[int] = []
        self._batch = int(rates.number("vmm.moves_per_flush"))

    # Choosing

    def choose(self, base: int, limit: int, leased: list[tuple[int, int]]) -> Choice | Infeasible:
        """Return the cheapest window, or what prevents every one."""
        vm, host = self.vm, self.host
        return choose(
            vm.private_frames(base, limit),
            host.survey(vm.number),
            host.frames,
            base=base,
            budget=vm.escape_budget,
            free_pages=host.spare_pages + host.count(kind=Kind.CACHE),
            within=(movable_from if (movable_from := int(host.zone.kernelcore)) < host.pages else 0, host.pages),
            leased=leased,
        )

    def may_not_evict(self, choice: Choice) -> str:
        """Return why the window may not be cleared; "" if it may, or need not be."""
        self._span = (choice.base, choice.limit)
        others = 0 if self.may_evict else self._others(choice.start, choice.end)
        return f"host compaction is off, and {others} pages of others are in the best window" if others else ""

    def building(self, choice: Choice) -> Generator[Event, object, Attempt]:
        """Build the segment at the window chosen; the attempt says what it took, or why it was given up."""
        vm, started = self.vm, self.env.now
        start, end = choice.start & -PAGEBLOCK, -(-choice.end // PAGEBLOCK) * PAGEBLOCK
        token = self.host.isolate_range(start, min(end, self.host.pages), f"lease of {vm.name}")
        vm.lease = Lease(
            base=choice.base, limit=choice.limit, offset=choice.offset, escaped=choice.escaped, token=token
        )
        row = self.recorder.decide(
            "compactor", "build", vm=vm.name, asked=write_bytes((choice.limit - choice.base) << 12), outcome="begun",
            why=f"{choice.copies} pages to move, {choice.absent} to zero, {choice.escaped.size} to escape",
        )  # fmt: skip
        try:
            self.vmm.own(vm, choice.base, choice.limit)
            why = yield from self._fill(choice)
        except VmLost:
            why = GONE
        lease, vm.lease = vm.lease, None
        self._return_spares()
        if lease is not None:
            why = why or (self._commit(lease) if vm.running else GONE)
            self.host.release(token)
        self.recorder.decide(
            "compactor", "build", vm=vm.name, asked=f"{choice.copies} pages", got=f"{self.copied_pages} pages",
            outcome="aborted" if why else "done", why=why, cost_ns=int(self.env.now - started), cause=row,
        )  # fmt: skip
        return Attempt(won=not why, why=why or self._said(format_duration(int(self.env.now - started))))

    def _said(self, took: str) -> str:
        what = [f"{self.copied_pages} pages moved"] if self.copied_pages else []
        what += [f"{self.zeroed_pages} zeroed"] if self.zeroed_pages else []
        return f"host memory made contiguous in {took}: {', '.join(what) or 'nothing to move'}"

    def _fill(self, choice: Choice) -> Generator[Event, object, str]:
        """Clear the window and fill its slots; return "" or why it cannot go on.

        Where there is no room outside for all that is in the way, own pages move in first and leave their frames.
        """
        before = (-1, -1, -1)
        while self._goes_on:
            short = yield from self._evict(choice.start, choice.end)
            if not self._goes_on:
                break  # type: ignore[unreachable]  # it may have ended meanwhile
            placement = self._placement()
            now = (placement.left, placement.absent, placement.foreign)
            if placement.is_complete:
                return ""
            if now == before:
                return short or f"stuck with {placement.left} pages out of place and {placement.absent} absent"
            before = now
            why = yield from self._place(placement, split=not short)
            del placement  # it has nine bytes a page: one at a time
            if not why and not short and self._goes_on:
                yield from self._zero()
            if why or not self._goes_on:
                return self.given_up or why or GONE
        return self.given_up or GONE

    @property
    def _goes_on(self) -> bool:
        """Whether there is still a VM to build for, and nobody has ended the build."""
        return self.vm.running and not self.given_up

    def _pausing(self, ns: int) -> Generator[Event, object, None]:
        self._waits = True
        yield Pause(self.env, ns, Turn.COMPACTOR)
        self._waits = False

    def give_up(self, why: str) -> bool:
        """End the build now and let go of its window; what was moved stays. False in the middle of a step."""
        lease = self.vm.lease
        if not self._waits or lease is None:
            return False
        self.abandon_turn()
        self._return_spares()
        self.given_up, self.vm.lease = why, None
        self.host.release(lease.token)
        return True

    def _placement(self) -> Placement:
        lease = self._lease
        start, end = lease.base + lease.offset, lease.limit + lease.offset
        book = self.host.frames[start:end]
        return Placement(
            self.vm.nested.translate_range(lease.base, lease.limit),
            base=lease.base,
            offset=lease.offset,
            free=(book["kind"] == Kind.FREE) & (book["mark"] & ISOLATED == 0),
            escaped=lease.escaped,
        )

    @property
    def _lease(self) -> Lease:
        assert self.vm.lease is not None
        return self.vm.lease

    # Others' pages

    def _evict(self, start: int, end: int) -> Generator[Event, object, str]:
        """Drop others' clean page cache from the window, as Linux does before it migrates, and move the rest out."""
        for first in range(start, end, WINDOW_STEP):
            last = min(first + WINDOW_STEP, end)
            cache = first + np.flatnonzero(self._are(first, last, Kind.CACHE))
            self.host.give_back(cache)
            self.dropped_pages += int(cache.size)
            while (others := first + np.flatnonzero(self._are(first, last, Kind.USER, busy=True))).size:
                free = others[self.host.frames["mark"][others] & ISOLATED == 0]
                if not free.size:
                    yield from self._pausing(BUSY_NS)
                else:
                    why = yield from self._evict_some(free[:TURN_PAGES])
                    if why:
                        return why
                if not self._goes_on:
                    return ""
        return ""

    def _others(self, start: int, end: int) -> int:
        """Return how many pages of others, not counting page cache, are in [start, end)."""
        steps = range(start, end, WINDOW_STEP)
        return sum(int(self._are(first, min(first + WINDOW_STEP, end), Kind.USER).sum()) for first in steps)

    def _are(self, first: int, last: int, kind: Kind, *, busy: bool = False) -> NDArray[np.bool_]:
        """Tell which frames of [first, last) are movable ones of others; ``busy``: those held now, too."""
        book = self.host.frames[first:last]
        movable = (book["kind"] == kind) & (book["mark"] & (PINNED if busy else PINNED | ISOLATED) == 0)
        if kind == Kind.USER:
            base, limit = self._span
            own = (book["owner"] == self.vm.number) & (book["page"] >= base) & (book["page"] < limit)
            movable &= ~own
        return np.asarray(movable)

    def _evict_some(self, old: NDArray[np.int64]) -> Generator[Event, object, str]:
        if not (yield from self._copying(old)):
            return ""
        short = int(old.size) - self.host.spare_pages
        if short > 0:
            self.vmm.free_wanted(short)
        # Not below the marks: page tables can lie in the lower part of memory only.
        new = self.host.take(int(old.size), kind=Kind.USER)
        if new.size < old.size:
            self.host.give_back(new)
            return f"{old.size - new.size} free frames short outside the window"
        book = self.host.frames
        owners, pages = book["owner"][old].copy(), book["page"][old].astype(np.int64)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            self.host.assign(new[mine], owner=owner, pages=pages[mine])
            if owner == SHARED:
                self.vmm.move_shared(old[mine], new[mine])
            elif owner in self.vmm.vms:
                other = self.vmm.vms[owner]
                self.vmm.move(other, pages[mine], new[mine])
                other.flushes += -(-int(mine.sum()) // self._batch)
        self.host.give_back(old)
        return ""

    def _copying(self, old: NDArray[np.int64]) -> Generator[Event, object, bool]:
        """Hold frames while they are copied; return whether they are still what they were."""
        self.in_flight = token = self.host.isolate(old, "compactor")
        yield from self._pausing(copy_ns(int(old.size), self.bandwidth))
        held = self.in_flight is token
        self.in_flight = None
        if held:
            self.host.release(token)
            self.copied_pages += int(old.size)
        return held and self._goes_on

    def abandon_turn(self) -> None:
        """Let go of what is being copied: somebody must have it now. The turn is done again."""
        if self.in_flight is not None:
            self.host.release(self.in_flight)
            self.in_flight = None

    # Own pages

    def _place(self, placement: Placement, *, split: bool) -> Generator[Event, object, str]:
        """Move pages that are resident into their slots, until none can be or something changed meanwhile."""
        while True:
            batch = placement.batch(TURN_PAGES, split=split)
            if not batch:
                if placement.waits_for == "spare" and self._lend(placement):
                    continue
                return "no free frame to break a cycle with" if placement.waits_for == "spare" else ""
            _, sources = first_sources(batch)
            if np.any(self.host.frames["mark"][sources] & ISOLATED):
                yield from self._pausing(BUSY_NS)
                if not self._goes_on:
                    return ""
                continue
            if not self._as_planned(batch) or not (yield from self._copying(sources)):
                return ""
            self.copied_pages += batch.copies - int(sources.size)
            if not self._as_planned(batch):
                return ""
            self._carry_out(batch)
            placement.commit(batch)

    def _as_planned(self, batch: Batch) -> bool:
        """Tell whether pages are still where the batch takes them from, and what it takes is still free."""
        taken = batch.taken()
        spare = np.isin(taken, np.array(self._spares, np.int64))
        free = self.host.frames["kind"][taken] == Kind.FREE
        gfns, source = first_sources(batch)
        return bool(np.all(spare | free)) and bool(np.all(self.vm.nested.translate(gfns) == source))

    def _lend(self, placement: Placement) -> bool:
        frames = self.host.take(1, kind=Kind.USER, floor=0)
        if not frames.size:
            return False
        self._spares.append(int(frames[0]))
        placement.lend(int(frames[0]))
        return True

    def _return_spares(self) -> None:
        book = self.host.frames
        unused = [
            frame for frame in self._spares if book["owner"][frame] == NOBODY and book["kind"][frame] == Kind.USER
        ]
        self.host.give_back(np.array(unused, np.int64))
        self._spares.clear()

    def _carry_out(self, batch: Batch) -> None:
        """Let ledger and nested table say what the copies of ``batch`` have made true."""
        vm, host = self.vm, self.host
        gfns, frames = batch.result()
        spares = np.array(self._spares, np.int64)
        taken = np.setdiff1d(batch.taken(), spares)
        for first, end in runs_of(taken):
            host.take_range(first, end, kind=Kind.USER, owner=vm.number, token=self._lease.token)
        host.assign(frames, owner=vm.number, pages=gfns)
        released = batch.released()
        lent = np.isin(released, spares)
        host.assign(released[lent], owner=NOBODY, pages=NOBODY)
        host.give_back(released[~lent])
        self.vmm.move(vm, gfns, frames)
        vm.flushes += -(-batch.copies // self._batch)

    # Absent pages

    def _zero(self) -> Generator[Event, object, None]:
        """Give absent pages zeroed frames in their slots, whole blocks first, turn by turn."""
        vm, lease = self.vm, self._lease
        first, last = -(-lease.base // PAGEBLOCK), lease.limit // PAGEBLOCK
        step = TURN_PAGES // PAGEBLOCK
        for block in range(first, last, step):
            blocks = np.arange(block, min(block + step, last))
            blocks = blocks[(vm.backed[blocks] == 0) & (vm.swapped_of_block[blocks] == 0) & self.vmm.thp]
            yield from self._zeroed(self.vmm.fill_blocks, blocks, PAGEBLOCK)
            if not self._goes_on:
                return
        for gfn in range(lease.base, lease.limit, TURN_PAGES):
            gfns = np.arange(gfn, min(gfn + TURN_PAGES, lease.limit))
            if int(vm.backed[gfn >> PAGEBLOCK_ORDER : -(-(int(gfns[-1]) + 1) // PAGEBLOCK)].sum()) >= gfns.size:
                continue
            absent = gfns[vm.nested.translate(gfns) < 0]
            yield from self._zeroed(self.vmm.fill_slots, absent, 1)
            if not self._goes_on:
                return

    def _zeroed(
        self, fill: Callable[[VirtualMachine, NDArray[np.int64]], int], what: NDArray[np.int64], each: int
    ) -> Generator[Event, object, None]:
        """Fill some slots; the time is the VMM's own, not the guest's."""
        vm = self.vm
        before = vm.stall_ns["nested fault"]
        pages = fill(vm, what) * each
        took, vm.stall_ns["nested fault"] = vm.stall_ns["nested fault"] - before, before
        self.zeroed_pages += pages
        if pages:
            gfns = ((what * each)[:, None] + np.arange(each)).ravel()
            vm.note_zeroed(gfns[vm.nested.translate(gfns) >= 0])
            yield from self._pausing(took)

    # Switching it on

    def _commit(self, lease: Lease) -> str:
        """Switch the segment on if the nested table says what it says; pages whose slots went bad escape too."""
        vm = self.vm
        backing = vm.nested.translate_range(lease.base, lease.limit)
        slots = np.arange(lease.base + lease.offset, lease.limit + lease.offset, dtype=np.int32)
        wrong = lease.base + np.flatnonzero(backing != slots)
        bad = np.union1d(wrong[self.host.frames["kind"][wrong + lease.offset] == Kind.BAD], lease.escaped)
        if not np.all(np.isin(wrong, bad)):
            return f"{wrong.size} pages are not in their slots"
        escapes = Escapes(vm.empty_filter, base=lease.base, limit=lease.limit, members=vm.escape_budget)
        if bad.size and not escapes.fits(bad.tolist()):
            return f"{bad.size} pages would escape, the filter takes {vm.escape_budget}"
        self.vmm.back(vm, bad)
        if bad.size:
            escapes.insert(bad.tolist())
        vm.escapes = escapes
        self._collapse(lease)
        self.vmm.enter_segment(vm, lease.base, lease.limit, lease.offset)
        return ""

    def _collapse(self, lease: Lease) -> None:
        """Keep the table below the segment small: whole blocks in place become 2M leaves, without copying."""
        vm = self.vm
        if not self.vmm.thp or lease.offset % PAGEBLOCK:
            return
        blocks = np.arange(-(-lease.base // PAGEBLOCK), lease.limit // PAGEBLOCK) << PAGEBLOCK_ORDER
        small = blocks[vm.nested.mapped_sizes(blocks) == 0]
        for gfn in small.tolist():
            if not lease.escapes_between(gfn, gfn + PAGEBLOCK) and not self._bad_in(gfn, lease):
                vm.nested.collapse(gfn, gfn + lease.offset, FLAGS)
                vm.remapped_pages += PAGEBLOCK
        if small.size:
            self.vmm.flush(vm)

    def _bad_in(self, gfn: int, lease: Lease) -> bool:
        kinds = self.host.frames["kind"][gfn + lease.offset : gfn + lease.offset + PAGEBLOCK]
        return bool(np.any(kinds != Kind.USER))
