"""The host's kswapd: page cache of the host first, then the pages of all VMs by how lately they were used.

What a guest does with a page the host does not see, but for the accessed bits of the nested table: pages that the
guest has freed, and its page cache, look like any that was not used lately. So they are written out, though nobody
needs what they hold (silent swap writes), and read in again only to be overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.actors.activity import HOST_READ
from vmmsim.actors.backing import VmLost
from vmmsim.actors.lru import PageLru
from vmmsim.actors.swapper import DIRECT_PAGES, PINNED_VMM, Kswapd, heads, whole
from vmmsim.memory.frames import PAGEBLOCK, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from simpy import Environment

    from vmmsim.actors.host_swap import HostSwap
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder

_NEW_SHARE = 8
"""Pages of a VM are listed when one part in so many is in no list, or when the lists run short."""


def is_among(pages: NDArray[np.int64], others: NDArray[np.int64], end: int) -> NDArray[np.bool_]:
    """Return bool[n]: which of ``pages``, all below ``end``, are among ``others``."""
    if pages.size + others.size < end >> 10:
        return np.isin(pages, others)
    there = np.zeros(end, np.bool_)
    there[others] = True
    return np.asarray(there[pages])


class HostSwapper(Kswapd):
    """Decides what the host swaps out."""

    why_pinned = f"{PINNED_VMM}: they lie under its VMM segment"

    def __init__(self, env: Environment, vmm: Vmm, swap: HostSwap, recorder: Recorder) -> None:
        super().__init__(env, vmm.host, swap.device, recorder)
        self.vmm = vmm
        self.swap = swap
        self.lru = PageLru(0)
        self._vms: list[VirtualMachine] = []
        self._bases = np.empty(0, np.int64)
        self._listed_at: dict[int, int] = {}

    def reclaim(self, wanted: int) -> int:
        """Free up to ``wanted`` host frames; return how many became free."""
        with self.vmm.reclaiming():
            freed = self.vmm.free_wanted(wanted)
            return freed if freed >= wanted else freed + self._swap_out(wanted - freed)

    def swap_out(self, pages: int) -> int:
        """Swap out so many pages because somebody says so; return how many went. The device writes them meanwhile."""
        with self.vmm.reclaiming():
            went = self._swap_out(pages)
        self.env.process(self.device.writing())
        return went

    def direct(self, pages: int) -> int:
        """Free frames for a VM that has found none: its vCPUs wait until they are written."""
        marks = self.memory.watermarks
        freed = self._swap_out(max(pages, min(marks.high - marks.min, DIRECT_PAGES)))
        vm = self.vmm.vms.get(self.vmm.needy)
        if vm is not None:
            requests, owed = self.device.owed()
            before = vm.writes.get(self.device, (0, 0))
            if owed:
                vm.writes[self.device] = (before[0] + requests, before[1] + owed)
        return freed

    def swappable(self, vm: VirtualMachine) -> int:
        """Return how many pages of ``vm`` could be swapped out if it left its VMM segment."""
        segment = vm.vmm_segment
        return 0 if segment is None else min(segment.limit - segment.base, self.device.free_pages)

    def _swap_out(self, wanted: int) -> int:
        spare = self.device.used_pages - sum(vm.swapped_pages for vm in self.vmm.vms.values())
        wanted = min(wanted, self.device.free_pages + spare)
        if wanted <= 0:
            return 0
        self._list_new(all_of_them=False)
        freed = self._evict(self.lru.coldest(wanted, self.look))
        if freed < wanted:
            self._list_new(all_of_them=True)
            freed += self._evict(self.lru.coldest(wanted - freed, self.look))
        return freed

    def _evict(self, cold: NDArray[np.int64]) -> int:
        freed = 0
        for which, vm in self._by_vm(cold):
            base = int(self._bases[self._vms.index(vm)])
            gfns = cold[which] - base
            large = vm.nested.mapped_sizes(gfns) == 1
            try:
                went, _ = self.swap.swap_out(vm, whole(gfns, large))
            except VmLost:  # it was ended for want of a page table
                continue
            freed += went
            self._listed_at[vm.number] -= went
            if vm.number in self.vmm.vms:
                self.lru.keep(base + gfns[vm.nested.translate(gfns) >= 0])
        self.pages_out += freed
        return freed

    # The lists

    def _by_vm(self, pages: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], VirtualMachine]]:
        """Return the positions of each VM's pages among ``pages``."""
        owner = np.searchsorted(self._bases, pages, side="right") - 1
        return [
            (np.flatnonzero(owner == place), self._vms[place])
            for place in np.unique(owner).tolist()
            if self._vms[place].number in self.vmm.vms
        ]

    def _list_new(self, *, all_of_them: bool) -> None:
        """List pages that became resident since: of VMs with many such pages, or of all."""
        for place, vm in enumerate(self._vms):
            if vm.number in self._listed_at and vm.number not in self.vmm.vms:
                del self._listed_at[vm.number]
                self.lru.forget(int(self._bases[place]), int(self._bases[place]) + vm.guest.pages)
        for vm in self.vmm.vms.values():
            if vm.swapped is None:
                continue
            if vm.number not in self._listed_at:
                self._bases = np.append(self._bases, self.lru.grow(vm.guest.pages))
                self._vms.append(vm)
                self._listed_at[vm.number] = 0
            new = abs(vm.resident_pages - self._listed_at[vm.number])
            if all_of_them or new * _NEW_SHARE > vm.resident_pages:
                self._list(vm, int(self._bases[self._vms.index(vm)]))

    def _list(self, vm: VirtualMachine, base: int) -> None:
        self._listed_at[vm.number] = vm.resident_pages
        blocks = vm.backed != 0
        every = np.repeat(blocks, PAGEBLOCK)[: vm.guest.pages]
        gfns = np.flatnonzero(every & ~self.lru.are_listed(base, base + vm.guest.pages))
        gfns = gfns[self.swap.may_go(vm, gfns)]
        if gfns.size:
            alone, parts = heads(gfns, gfns % PAGEBLOCK == 0, vm.nested.mapped_sizes(gfns))
            self.lru.add(base + alone, base + parts)

    def look(self, pages: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Look at pages of the lists: whether each may go, was accessed, and how many pages it stands for."""
        there, accessed = np.zeros(pages.size, np.bool_), np.zeros(pages.size, np.bool_)
        worth = np.ones(pages.size, np.int64)
        for which, vm in self._by_vm(pages):
            gfns = pages[which] - self._bases[self._vms.index(vm)]
            pinned = int(np.count_nonzero(vm.under_vmm_segment(gfns)))
            if pinned:
                self.refused[vm.name] += pinned
            large = vm.nested.mapped_sizes(gfns) == 1
            may = self.swap.may_go(vm, gfns) & (~large | (gfns % PAGEBLOCK == 0))
            used = np.zeros(gfns.size, np.bool_)
            small, huge = np.flatnonzero(may & ~large), np.flatnonzero(may & large)
            used[small] = self._accessed(vm, gfns[small])
            if huge.size:
                every = (gfns[huge][:, None] + np.arange(PAGEBLOCK)).ravel()
                used[huge] = self._accessed(vm, every).reshape(-1, PAGEBLOCK).any(axis=1)
            there[which], accessed[which], worth[which] = may, used, np.where(large, PAGEBLOCK, 1)
        return there, accessed, worth

    def _accessed(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which resident gfns were accessed since this was asked last; the bits are taken away.

        The guest's kernel has no model of its accesses: while a program runs, its pages count as used.
        """
        book, process = vm.guest.frames, vm.process
        kinds = book["kind"][gfns]
        accessed = np.zeros(gfns.size, np.bool_)
        if process is not None and vm.activity is not None:
            mine = np.flatnonzero((kinds == Kind.USER) & (book["owner"][gfns] == process.number))
            numbers = book["page"][gfns[mine]].astype(np.int64)
            mapped = process.mapped[numbers]
            accessed[mine[mapped]] = vm.activity.harvest(numbers[mapped], HOST_READ)
            accessed |= (kinds == Kind.KERNEL) | (kinds == Kind.SLAB) | (kinds == Kind.TABLE)
        served = self.vmm.served_now(vm)
        if served.size:
            accessed |= is_among(gfns, served, vm.guest.pages)
        return accessed
