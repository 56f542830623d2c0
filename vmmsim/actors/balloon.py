"""The balloon driver of a guest, as virtio-balloon: requests of 256 pages, a pause when it is out of puff.

It moves towards its target a request at a time, waiting for the host each time. Self-ballooning uses the same driver:
fragmented free memory goes out, the same amount comes back as one contiguous range of hot-added gPA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import runs_of
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.obstacles import Obstacle, first_of
from vmmsim.memory.evacuation import evacuate
from vmmsim.memory.frames import IMMOVABLE, ISOLATED, PINNED, Kind
from vmmsim.memory.moves import finish
from vmmsim.memory.tokens import Busy

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.decisions import Recorder
    from vmmsim.memory.tokens import Token

TURN_PAGES = 1 << 12
"""Pages that are moved out of a block in one go."""
BATCH_REQUESTS = 16
"""Requests between two looks at the clock: the pages of 16 are taken and given together, their time passes after."""
BUSY_NS = (1_000_000, 128_000_000)
"""How long to wait for frames that the host is copying: at first, and, having doubled, at most."""


class Balloon:
    """The balloon of one guest."""

    def __init__(self, env: Environment, guest_os: GuestOs, recorder: Recorder) -> None:
        self.env = env
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.recorder = recorder
        self.requests = 0
        """Requests made to the host, of at most 256 pages each."""
        self.by_event = False
        """Whether an event or a script set the target: no policy does, until "auto" gives it back."""
        self._held: list[NDArray[np.int64]] = []
        self._exchanged: list[NDArray[np.int64]] = []
        self._per_request = int(rates.number("balloon.pages_per_request"))
        self._retry_ns = int(rates.number("balloon.retry_ns"))
        self._page_ns = rates.number("balloon.inflate_page_ns")
        self._resident_ns = rates.number("balloon.inflate_resident_page_ns")
        self._deflate_ns = rates.number("balloon.deflate_page_ns")
        self._on_oom = int(rates.number("balloon.oom_pages"))
        guest_os.deflate = self.deflate_on_oom
        guest_os.balloon_moved = self.moved

    def resizing(self, target_pages: int, *, patience_ns: int | None = None) -> Generator[Event, object, int]:
        """Move the balloon to ``target_pages``; return what it holds in the end.

        Out of puff (no free page in the guest), it waits 200 ms and tries again, for ``patience_ns`` at most (None:
        until the target is another or the VM ends).
        """
        vm = self.vm
        vm.balloon_target_pages = target_pages
        waited = 0
        while vm.running and vm.balloon_target_pages == target_pages != vm.ballooned_pages:
            missing = target_pages - vm.ballooned_pages
            if missing < 0:
                yield from self._deflating(-missing)
            elif not (yield from self._inflating(missing, self._held)):
                if patience_ns is not None and waited >= patience_ns:
                    break
                waited += self._retry_ns
                yield Pause(self.env, self._retry_ns, Turn.BALLOON)
        return vm.ballooned_pages

    def exchanging(self, pages: int) -> Generator[Event, object, int]:
        """Give up ``pages`` for good, for memory added elsewhere; return how many were, fewer if out of puff."""
        done = 0
        while done < pages and (count := (yield from self._inflating(pages - done, self._exchanged))):
            done += count
        return done

    def _inflating(self, pages: int, held: list[NDArray[np.int64]]) -> Generator[Event, object, int]:
        """Give up at most ``pages``, some requests' worth, into ``held``; return how many pages were given up."""
        gfns, (wait_ns, most_ns) = self._take(pages), BUSY_NS
        while gfns.size and self.guest_os.vmm.is_busy(self.vm, gfns):
            self.vm.guest.give_back(gfns)  # nobody else may find pages that are half given up
            yield Pause(self.env, wait_ns, Turn.BALLOON)
            wait_ns = min(2 * wait_ns, most_ns)
            gfns = self._take(pages)
        if not gfns.size:
            return 0
        count = int(gfns.size)
        self.requests += -(-count // self._per_request)
        held.append(gfns)
        if held is self._held:
            self.vm.ballooned_pages += count
        else:
            self.vm.exchanged_pages += count
        resident = int(np.count_nonzero(self.vm.nested.translate(gfns) >= 0))
        self.guest_os.vmm.release(self.vm, gfns)
        yield Pause(self.env, round(count * self._page_ns + resident * self._resident_ns), Turn.BALLOON)
        return count

    # Pages by name

    def obstacles(self, gfns: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[n]: what keeps the guest from giving up each of ``gfns`` (``Obstacle``).

        The VMM segment is none: the guest may give up what lies under it, the host only cannot use it.
        """
        kind, mark = self.vm.guest.kinds(gfns), self.vm.guest.frames["mark"][gfns]
        stays = np.isin(kind, (Kind.KERNEL, Kind.SLAB, Kind.TABLE, Kind.BAD))
        frames = self.vm.nested.translate(gfns)
        there = frames >= 0
        busy = mark & ISOLATED != 0
        busy[there] |= self.guest_os.vmm.host.frames["mark"][frames[there]] & ISOLATED != 0
        return first_of(
            (Obstacle.PINNED_GUEST, (mark & PINNED != 0) & self.vm.under_guest_segment(gfns)),
            (Obstacle.ABSENT, kind == Kind.HOLE),
            (Obstacle.GIVEN_UP, kind == Kind.BALLOON),
            (Obstacle.IMMOVABLE, stays | (mark & PINNED != 0)),
            (Obstacle.BUSY, busy),
        )

    def give_up(self, gfns: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Give up just these pages (int64[n], distinct), the balloon's target with them.

        Page cache is dropped; what programs use is migrated, or swapped out where no frame is free. Return uint8[n],
        why each page stayed (``Obstacle``; ``NONE``: it was given up), and how long it takes: the caller lets that
        time pass.
        """
        vm, guest = self.vm, self.vm.guest
        why = self.obstacles(gfns)
        going = np.flatnonzero(why == Obstacle.NONE)
        kinds = guest.frames["kind"][gfns[going]]
        guest.give_back(gfns[going[kinds == Kind.CACHE]])
        used = gfns[going[kinds == Kind.USER]]
        self._hold(gfns[going[kinds != Kind.USER]])  # first: what is migrated could land there
        vacated = self._vacate(used)
        self._hold(used[vacated])
        why[np.isin(gfns, used[~vacated])] = Obstacle.NO_ROOM
        taken = gfns[why == Obstacle.NONE]
        if not taken.size:
            return why, 0
        count = int(taken.size)
        self.requests += -(-count // self._per_request)
        self._held.append(taken)
        vm.ballooned_pages += count
        vm.balloon_target_pages = max(vm.balloon_target_pages, vm.ballooned_pages)
        resident = int(np.count_nonzero(vm.nested.translate(taken) >= 0))
        self.guest_os.vmm.release(vm, taken)
        return why, round(count * self._page_ns + resident * self._resident_ns)

    def _hold(self, gfns: NDArray[np.int64]) -> None:
        """Let free ``gfns`` be the balloon's."""
        for start, end in runs_of(np.sort(gfns)):
            self.vm.guest.take_range(start, end, kind=Kind.BALLOON)

    def _vacate(self, old: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Have what programs hold in ``old`` moved to other frames, or swapped out; return bool[n]: which are free."""
        guest, guest_os = self.vm.guest, self.guest_os
        new = guest.take(int(old.size), kind=Kind.USER)
        book = guest.frames
        moved = old[: new.size]
        if moved.size:
            guest_os.move(moved, new)
            for owner in np.unique(book["owner"][moved]).tolist():
                mine = book["owner"][moved] == owner
                guest.assign(new[mine], owner=owner, pages=book["page"][moved[mine]])
            guest.give_back(moved)
        rest = old[new.size :]
        if rest.size and guest_os.swap is not None:
            mine = book["owner"][rest] == guest_os.process.number
            guest_os.swap.swap_out(book["page"][rest[mine]].astype(np.int64))
        return np.asarray(book["kind"][old] == Kind.FREE)

    def _take(self, pages: int) -> NDArray[np.int64]:
        """Take free pages of the guest, some requests' worth; none once the VM is gone."""
        most = min(pages, BATCH_REQUESTS * self._per_request) if self.vm.running else 0
        return self.vm.guest.take(most, kind=Kind.BALLOON)

    def _deflating(self, pages: int) -> Generator[Event, object, None]:
        count = self.give_back(min(pages, BATCH_REQUESTS * self._per_request))
        self.requests += -(-count // self._per_request)
        yield Pause(self.env, round(count * self._deflate_ns), Turn.BALLOON)

    def give_back(self, pages: int) -> int:
        """Return the pages given up last to the guest's allocator; they get frames when they are touched again."""
        given: list[NDArray[np.int64]] = []
        missing = pages
        while missing and self._held:
            last = self._held.pop()
            if last.size > missing:
                self._held.append(last[: last.size - missing])
                last = last[last.size - missing :]
            given.append(last)
            missing -= int(last.size)
        if not given:
            return 0
        return self._return(np.concatenate(given))

    def _return(self, gfns: NDArray[np.int64]) -> int:
        """Give pages that are held no longer to the guest's allocator."""
        self.vm.guest.give_back(gfns)
        self.vm.ballooned_pages -= int(gfns.size)
        self.vm.held_pages -= int(np.count_nonzero(self.vm.under_vmm_segment(gfns)))
        return int(gfns.size)

    def givable(self) -> int:
        """Return how many pages more the guest can give up and stay above its watermark high: free, or page cache."""
        guest = self.vm.guest
        return max(guest.free_pages + guest.count(kind=Kind.CACHE) - guest.watermarks.high, 0)

    def gathering(self, start: int, end: int) -> Generator[Event, object, str]:
        """Hold what can be had of gfns [start, end) in place of as many pages elsewhere; return "" or what prevents it.

        What is free there is taken, what can move is moved away first; kernel memory stays. How much the balloon holds
        is the same afterwards. Elsewhere is under the VMM segment: what the host can use already is left to it.
        """
        try:
            token = self.vm.guest.isolate_range(start, end, "balloon")
        except Busy as busy:
            return str(busy)
        try:
            return (yield from self._gathering(start, end, token))
        finally:
            if token.number in self.vm.guest.tokens:
                self.vm.guest.release(token)

    def _gathering(self, start: int, end: int, token: Token) -> Generator[Event, object, str]:
        vm, guest = self.vm, self.vm.guest
        kinds = guest.frames["kind"][start:end]
        if np.any(guest.frames["mark"][start:end] & PINNED):
            return "the guest segment lies there"
        wanted = end - start - int(np.count_nonzero(np.isin(kinds, np.array(IMMOVABLE))))
        here = sum(int(np.count_nonzero((held >= start) & (held < end))) for held in self._held)
        elsewhere = sum(int(np.count_nonzero(self._elsewhere(held, start, end))) for held in self._held)
        if wanted - here > elsewhere:
            return f"the balloon holds {elsewhere} pages elsewhere, the block has {wanted - here} that it does not hold"
        self._empty(start, end)  # they stay in the lease, free
        self._give(wanted - here, start, end)
        copies = self._clear(start, end)
        taken = guest.take_range(start, end, kind=Kind.BALLOON, token=token)
        self._held.append(taken)
        vm.ballooned_pages += int(taken.size)
        self.guest_os.vmm.release(vm, taken)
        self.requests += -(-2 * int(taken.size) // self._per_request)
        took = self.guest_os.copies_ns(copies) + round(int(taken.size) * (self._deflate_ns + self._page_ns))
        yield Pause(self.env, took, Turn.BALLOON)
        return "" if taken.size or not wanted else "nothing of the block can be moved away"

    def _clear(self, start: int, end: int) -> int:
        """Move what can move out of a leased range; return how many pages were copied."""
        guest, at, copies = self.vm.guest, start, 0
        while at < end:
            moves, blockers = evacuate(guest, at, end, pages=TURN_PAGES)
            if len(moves):
                self.guest_os.move(moves.old, moves.new)
                finish(guest, moves)
                copies += len(moves)
            if blockers.short or moves.next <= at:
                break
            at = moves.next
        return copies

    def _elsewhere(self, held: NDArray[np.int64], start: int, end: int) -> NDArray[np.bool_]:
        """Return bool[n]: which pages lie under the VMM segment and outside [start, end)."""
        return self.vm.under_vmm_segment(held) & ((held < start) | (held >= end))

    def _empty(self, start: int, end: int) -> None:
        """Give back what is held of gfns [start, end)."""
        for n, held in enumerate(self._held):
            inside = (held >= start) & (held < end)
            if np.any(inside):
                self._held[n] = held[~inside]
                self._return(held[inside])

    def _give(self, pages: int, start: int, end: int) -> None:
        """Give back ``pages`` that are held elsewhere than in [start, end), which there are."""
        for n in range(len(self._held) - 1, -1, -1):
            outside = np.flatnonzero(self._elsewhere(self._held[n], start, end))[:pages]
            if outside.size:
                given = self._held[n][outside]
                self._held[n] = np.delete(self._held[n], outside)
                self._return(given)
                pages -= int(outside.size)

    def take_back(self, pages: int) -> None:
        """Give the last ``pages`` that were exchanged back to the guest: there was nothing to exchange them for."""
        taken = np.concatenate([np.empty(0, np.int64), *self._exchanged])
        self._exchanged.clear()
        kept, given = taken[: taken.size - pages], taken[taken.size - pages :]
        if kept.size:
            self._exchanged.append(kept)
        self.vm.guest.give_back(given)
        self.vm.exchanged_pages -= int(given.size)
        self.vm.held_pages -= int(np.count_nonzero(self.vm.under_vmm_segment(given)))

    def deflate_on_oom(self, pages: int) -> int:
        """Give back 256 pages because the guest is out of memory, however many are short; the target follows."""
        count = self.give_back(self._on_oom)
        if count:
            self.vm.balloon_target_pages = min(self.vm.balloon_target_pages, self.vm.ballooned_pages)
            why = f"{pages} pages short in the guest"
            self.recorder.decide(
                "balloon", "deflate_on_oom", vm=self.vm.name, got=f"{count} pages", outcome="done", why=why
            )
        return count

    def moved(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Hold the gfns ``new`` in place of ``old``: each is inflated and deflated, two requests a page."""
        vm = self.vm
        self.guest_os.vmm.release(vm, new)
        vm.held_pages -= int(np.count_nonzero(vm.under_vmm_segment(old)))
        order = np.argsort(old)
        for held in (self._held, self._exchanged):
            for pages in held:
                at = np.searchsorted(old, pages, sorter=order)
                at[at == old.size] = 0
                hit = old[order[at]] == pages
                pages[hit] = new[order[at[hit]]]
        self.requests += 2 * int(old.size)
        vm.stall_ns["balloon migration"] += round(int(old.size) * (self._page_ns + self._deflate_ns))

    def check(self) -> None:
        """Recount: what the balloon holds is what the ledger says, each page once."""
        held = np.concatenate([*self._held, *self._exchanged, np.empty(0, np.int64)])
        booked = np.flatnonzero(self.vm.guest.frames["kind"] == Kind.BALLOON)
        assert np.array_equal(np.sort(held), booked), "the balloon's pages and the ledger's differ"
        assert held.size == self.vm.ballooned_pages + self.vm.exchanged_pages
