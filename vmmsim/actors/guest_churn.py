"""What goes on in a guest beside its workload: page cache that grows and is dropped, kernel pages that come and stay.

Unmovable pages are the ratchet of fragmentation: each may keep a 2 MiB block from ever being contiguous again.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.guest_memory import GuestOutOfMemory
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs

_SECOND_NS = 10**9


class GuestChurn:
    """The kernel's own demand for memory in one guest, and its khugepaged."""

    def __init__(self, env: Environment, guest_os: GuestOs, random: np.random.Generator) -> None:
        self.env = env
        self.guest_os = guest_os
        self.random = random
        self.every_ns = int(rates.number("guest.churn_every_ns"))
        self.collapses = 0
        """Huge pages that khugepaged made."""
        self.scans = 0
        """Passes of khugepaged."""
        self._live: list[tuple[int, int, NDArray[np.int64]]] = []
        self._number = 0
        self._owed = 0.0
        self._files: int | None = None

    def churning(self) -> Generator[Event, object, None]:
        """Live for as long as the VM runs."""
        while True:
            yield Pause(self.env, self.every_ns, Turn.VCPU)
            if not self.guest_os.vm.running:
                return
            self.tick(self.every_ns)

    def tick(self, elapsed_ns: int) -> None:
        """Do what ``elapsed_ns`` of kernel life does."""
        process = self.guest_os.vm.process
        self._free_expired()
        if process is None:
            return
        churn = process.workload.churn
        self._files = churn.files_pages
        self._grow_cache(round(churn.cache_pages_per_s * elapsed_ns / _SECOND_NS))
        self._owed += churn.unmovable_pages_per_s * elapsed_ns / _SECOND_NS
        count, self._owed = int(self._owed), self._owed % 1.0
        self._take_unmovable(count, churn.unmovable_life_ns, churn.unmovable_kept)

    def _grow_cache(self, pages: int) -> None:
        """Read files: as many pages enter the cache, and old ones leave it where memory would run short."""
        guest = self.guest_os.vm.guest
        if self._files is not None:
            pages = min(pages, max(self._files - guest.count(kind=Kind.CACHE), 0))
        short = pages + guest.watermarks.high - guest.free_pages
        if short > 0:
            guest.drop_cache(short)
        taken = guest.take(pages, kind=Kind.CACHE, floor=guest.watermarks.high)
        self.guest_os.vmm.back(self.guest_os.vm, taken)
        if self.guest_os.vm.contents is not None:
            self.guest_os.vm.contents.kernel(taken)

    def _take_unmovable(self, pages: int, life_ns: int, kept: float) -> None:
        """Take kernel pages in bursts of one order-0 page each; most are given back after a while, some never."""
        if not pages:
            return
        try:
            frames = self.guest_os.take_kernel(pages)
        except GuestOutOfMemory:
            return
        leaves = self.random.random(frames.size) >= kept
        going = frames[leaves]
        if not going.size:
            return
        # Lives are exponential; pages that end in the same tick are freed together.
        ticks = (self.random.exponential(life_ns, going.size) // self.every_ns).astype(np.int64)
        order = np.argsort(ticks, kind="stable")
        ends, firsts = np.unique(ticks[order], return_index=True)
        for tick, together in zip(ends.tolist(), np.split(going[order], firsts[1:]), strict=True):
            self._number += 1
            heapq.heappush(self._live, (int(self.env.now) + (tick + 1) * self.every_ns, self._number, together))

    def _free_expired(self) -> None:
        while self._live and self._live[0][0] <= self.env.now:
            _, _, frames = heapq.heappop(self._live)
            self.guest_os.vm.guest.give_back(frames)

    def collapsing(self) -> Generator[Event, object, None]:
        """Be khugepaged: scan 4096 pages every 10 s."""
        sleep_ns = int(rates.number("khugepaged.scan_sleep_ns"))
        while True:
            yield Pause(self.env, sleep_ns, Turn.COMPACTOR)
            if not self.guest_os.vm.running:
                return
            self.scans += 1
            self.collapses += self.guest_os.collapse_some()
