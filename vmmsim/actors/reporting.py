"""Free page reporting: the balloon driver tells the VMM which large blocks of guest memory are free.

As Linux does it (mm/page_reporting.c): two seconds after a block of 2 MiB or more became free, all such blocks that
were not reported yet are, 32 at a time, as long as the guest is far enough above its low watermark. Blocks that are
being reported cannot be allocated; afterwards they are free as before, and get new frames when they are touched. What
lies under a VMM segment, or in the window of one that is being built, keeps its frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.decisions import Recorder

SECOND_NS: Final = 10**9


@attrs.define
class Sweep:
    """What one sweep over free memory came to."""

    began_ns: int
    entries: int = 0
    """Blocks reported, each of 2 or 4 MiB."""
    reports: int = 0
    """Requests to the host, of at most 32 entries."""
    pages: int = 0
    """Guest memory reported."""
    freed_pages: int = 0
    """Host frames that became free."""


class Reporting:
    """Free page reporting of one guest."""

    def __init__(self, env: Environment, guest_os: GuestOs, recorder: Recorder) -> None:
        self.env = env
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.recorder = recorder
        self.sweeps: list[Sweep] = []
        """Sweeps so far that reported anything, or the last one under way."""
        self._reported = np.zeros(self.vm.backed.size, np.bool_)
        self._requested = env.event()
        self._delay_ns = int(rates.number("reporting.delay_ns"))
        self._capacity = int(rates.number("reporting.capacity"))
        self._block_ns = int(rates.number("reporting.block_ns"))
        self._resident_ns = int(rates.number("reporting.resident_block_ns"))

    def reporting(self) -> Generator[Event, object, None]:
        """Live for as long as the VM runs: a first sweep when the driver starts, then one after memory was freed."""
        self.vm.guest.freed = self._request
        self._request()
        while True:
            yield self._requested
            yield Pause(self.env, self._delay_ns, Turn.BALLOON)
            if not self.vm.running:
                return
            self._requested = self.env.event()
            yield from self._sweep()

    def _request(self) -> None:
        """Ask for a sweep: a large block became free."""
        if not self._requested.triggered:
            self._requested.succeed()

    def _sweep(self) -> Generator[Event, object, None]:
        """Report every large free block that was not, report by report."""
        sweep = Sweep(began_ns=int(self.env.now))
        self.sweeps.append(sweep)
        while self.vm.running and self._may_report() and (entries := self._next_entries()):
            blocks = np.concatenate(entries)
            pages = ((blocks << PAGEBLOCK_ORDER)[:, None] + np.arange(PAGEBLOCK)).ravel()
            token = self.vm.guest.isolate(pages, "free page reporting")
            uncovered = blocks[~self._covered(blocks)]
            taken = self.vm.backed[uncovered] > 0
            yield Pause(self.env, blocks.size * self._block_ns + int(taken.sum()) * self._more_ns, Turn.BALLOON)
            self.vm.guest.release(token)
            if not self.vm.running:
                return  # type: ignore[unreachable]  # it may have ended meanwhile
            sweep.freed_pages += self._take_back(blocks)
            self._reported[blocks] = True
            sweep.entries += len(entries)
            sweep.reports += 1
            sweep.pages += int(pages.size)
        if not sweep.reports:
            self.sweeps.pop()
            return
        self.recorder.decide(
            "reporting", "report", vm=self.vm.name, asked=f"{sweep.pages} pages", got=f"{sweep.freed_pages} pages",
            outcome="done", cost_ns=int(self.env.now) - sweep.began_ns,
        )  # fmt: skip

    @property
    def _more_ns(self) -> int:
        return self._resident_ns - self._block_ns

    def _may_report(self) -> bool:
        """Tell whether enough is free that what is held for a report is not missed."""
        guest = self.vm.guest
        return guest.free_pages >= guest.watermarks.low + self._capacity * PAGEBLOCK

    def _next_entries(self) -> list[NDArray[np.int64]]:
        """Return the free blocks of the next report, as many as it takes: each one or two pageblocks."""
        free = self.vm.guest.free_pageblocks()
        self._reported[: free.size] &= free
        backed = self.vm.backed[: free.size] > 0
        wanted = np.flatnonzero(free & ~self._reported[: free.size])
        again = np.flatnonzero(free & self._reported[: free.size] & backed)
        wanted = np.union1d(wanted, again[~self._covered(again)])
        # Two buddies that are both free are one block of the largest order.
        pairs = np.unique(wanted >> 1)
        both = 2 * pairs + 1 < free.size
        both[both] = free[2 * pairs[both]] & free[2 * pairs[both] + 1]
        return [
            np.array([2 * pair, 2 * pair + 1]) if whole else wanted[wanted >> 1 == pair]
            for pair, whole in zip(pairs[: self._capacity].tolist(), both[: self._capacity].tolist(), strict=True)
        ]

    def _covered(self, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: pageblocks that a VMM segment, or one that is being built, keeps the VMM from taking back."""
        starts, covered = blocks << PAGEBLOCK_ORDER, np.zeros(blocks.size, np.bool_)
        for span in (self.vm.vmm_segment, self.vm.lease):
            if span is not None:
                covered |= (starts < span.limit) & (span.base < starts + PAGEBLOCK)
        return covered

    def _take_back(self, blocks: NDArray[np.int64]) -> int:
        """Let the VMM free the frames behind the blocks; return how many."""
        blocks = blocks[~self._covered(blocks)]
        gfns = ((blocks << PAGEBLOCK_ORDER)[:, None] + np.arange(PAGEBLOCK)).ravel()
        if self.guest_os.vmm.is_busy(self.vm, gfns):
            self.guest_os.vmm.disrupt()
        freed = self.guest_os.vmm.unback(self.vm, gfns)
        self.vm.flushes += 1 if freed else 0
        return freed
