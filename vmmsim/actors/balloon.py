"""The balloon driver of a guest, as virtio-balloon: requests of 256 pages, a pause when it is out of puff.

It moves towards its target a request at a time, waiting for the host each time. Self-ballooning uses the same driver:
fragmented free memory goes out, the same amount comes back as one contiguous range of hot-added gPA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.decisions import Recorder

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
        gfns = np.concatenate(given)
        self.vm.guest.give_back(gfns)
        self.vm.ballooned_pages -= int(gfns.size)
        self.vm.held_pages -= int(np.count_nonzero(self.vm.under_vmm_segment(gfns)))
        return int(gfns.size)

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
