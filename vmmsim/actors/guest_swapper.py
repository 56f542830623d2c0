"""The guest's kswapd: page cache against the program's pages by swappiness, and those by how lately they were used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.activity import GUEST_READ
from vmmsim.actors.lru import PageLru
from vmmsim.actors.swapper import DIRECT_PAGES, PINNED_GUEST, Kswapd, heads, whole
from vmmsim.memory.frames import PAGEBLOCK, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from simpy import Environment

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.guest_swap import GuestSwap
    from vmmsim.decisions import Recorder


class GuestSwapper(Kswapd):
    """Decides what one guest swaps out."""

    why_pinned = f"{PINNED_GUEST}: they lie under its guest segment"

    def __init__(self, env: Environment, guest_os: GuestOs, swap: GuestSwap, recorder: Recorder) -> None:
        super().__init__(env, guest_os.vm.guest, swap.device, recorder)
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.name = self.vm.name
        self.swap = swap
        self.process = guest_os.process
        self.lru = PageLru(self.process.pages)
        self._anon_cost = self._file_cost = 0
        self._refaults = self._spared = 0
        self._swappiness = int(rates.number("swap.swappiness"))
        self._most = int(rates.number("swap.swappiness_most"))
        guest_os.swap_some = self.direct

    @property
    def is_over(self) -> bool:
        return not self.vm.running

    def reclaim(self, wanted: int) -> int:
        """Free up to ``wanted`` pages, of page cache and of the program; return how many became free."""
        with self.guest_os.reclaiming():
            share = self.anonymous_share()
            freed = self.memory.drop_cache(min(round(wanted * (1 - share)), self.memory.count(kind=Kind.CACHE)))
            freed += self._swap_out(wanted - freed)
            if freed < wanted:
                freed += self.memory.drop_cache(wanted - freed)
            return freed

    def direct(self, pages: int) -> int:
        """Free pages for one who has found none: its vCPUs wait until they are written."""
        marks = self.memory.watermarks
        freed = self._swap_out(max(pages, min(marks.high - marks.min, DIRECT_PAGES)))
        requests, owed = self.device.owed()
        before = self.vm.writes.get(self.device, (0, 0))
        if owed:
            self.vm.writes[self.device] = (before[0] + requests, before[1] + owed)
        return freed

    def anonymous_share(self) -> float:
        """Return the share of reclaim that goes to the program's pages. L: get_scan_count, lru_note_cost."""
        anonymous = self.lru.spared + self.lru.activated - self._spared + self.swap.refaults - self._refaults
        self._anon_cost += anonymous
        self._spared, self._refaults = self.lru.spared + self.lru.activated, self.swap.refaults
        if self._anon_cost > self.process.mapped_pages // 4:
            self._anon_cost //= 2
        total = self._anon_cost + self._file_cost
        anon = self._swappiness * (total + 1) / (total + self._anon_cost + 1)
        file = (self._most - self._swappiness) * (total + 1) / (total + self._file_cost + 1)
        return anon / (anon + file)

    def _swap_out(self, wanted: int) -> int:
        """Swap out the program's coldest pages; return how many frames became free."""
        spare = self.device.used_pages - self.vm.guest_swapped_pages
        wanted = min(wanted, self.device.free_pages + spare)
        if wanted <= 0:
            return 0
        self._list_new()
        cold = self.lru.coldest(wanted, self.look)
        if not cold.size:
            return 0
        large = self.process.table.mapped_sizes(self.process.gvpns(cold)) == 1
        went, _ = self.swap.swap_out(whole(cold, large))
        self.pages_out += went
        left = cold[self.process.mapped[cold]]
        self.lru.keep(left)
        return went

    def _list_new(self) -> None:
        """Put what was mapped since into the lists, in order of addresses: nobody knows in which it was."""
        process, segment = self.process, self.vm.guest_segment
        new = np.flatnonzero(process.mapped & ~self.lru.are_listed(0, process.pages))
        if not new.size:
            return
        gvpns = process.gvpns(new)
        if segment is not None:
            outside = (gvpns < segment.base) | (gvpns >= segment.limit)
            new, gvpns = new[outside], gvpns[outside]
        self.lru.add(*heads(new, gvpns % PAGEBLOCK == 0, process.table.mapped_sizes(gvpns)))

    def look(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Look at pages by number: whether each may go, was accessed, and how many pages it stands for."""
        process, activity = self.process, self.vm.activity
        assert activity is not None
        gvpns = process.gvpns(numbers)
        large = process.table.mapped_sizes(gvpns) == 1
        may = self.swap.may_go(numbers)
        pinned = int(np.count_nonzero(process.mapped[numbers] & ~may))
        if pinned:
            self.refused[self.name] += pinned
        there = may & (~large | (gvpns % PAGEBLOCK == 0))
        small = there & ~large
        accessed = np.zeros(numbers.size, np.bool_)
        accessed[small] = activity.harvest(numbers[small], GUEST_READ)
        huge = np.flatnonzero(there & large)
        if huge.size:
            every = (numbers[huge][:, None] + np.arange(PAGEBLOCK)).ravel()
            accessed[huge] = activity.harvest(every, GUEST_READ).reshape(-1, PAGEBLOCK).any(axis=1)
        touched = np.sort(self.guest_os.touching)
        ends = numbers + np.where(large, PAGEBLOCK, 1)
        accessed |= np.searchsorted(touched, ends) > np.searchsorted(touched, numbers)
        return there, accessed, np.where(large, PAGEBLOCK, 1)
