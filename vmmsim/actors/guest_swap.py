"""Swapping by the guest's kernel: the mechanism. Which pages are to go is not decided here.

The guest swaps to a device of its own, which the host gives it. A page that goes is read by the guest, so that what
the VMM had swapped out comes in only to be written out again (double paging); its gfn is free in the guest then, and
stays resident on the host. What a guest segment covers is translated by it whatever the page table says: it must stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.obstacles import Obstacle, first_of
from vmmsim.actors.swap_device import neighbours
from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.swap_device import SwapDevice


class GuestSwap:
    """The swap space of one guest."""

    def __init__(self, guest_os: GuestOs, device: SwapDevice) -> None:
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.device = device
        self.refaults = 0
        """Pages that were read back so far."""
        self._fault_ns = int(rates.number("swap.major_fault_ns"))
        self._cluster = int(rates.number("swap.cluster_pages"))
        self._ahead = int(rates.number("swap.readahead_pages"))

    def may_go(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which of the program's pages may be swapped out now: mapped, outside the guest segment."""
        return np.asarray(self.obstacles(numbers) == Obstacle.NONE)

    def obstacles(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[n]: what keeps each of the program's pages from being swapped out now (``Obstacle``)."""
        process = self.guest_os.process
        return first_of(
            (Obstacle.PINNED_GUEST, self.vm.in_guest_segment(process.gvpns(numbers))),
            (Obstacle.ABSENT, ~process.mapped[numbers]),
        )

    def swap_out(self, numbers: NDArray[np.int64]) -> tuple[int, int]:
        """Take the frames of mapped pages (by number, int64[n]) and keep what they hold in the guest's swap space.

        Not taken: what the guest segment covers, and what finds no slot. Return (pages that went, pages that must be
        written: the caller lets that time pass).
        """
        vm, process = self.vm, self.guest_os.process
        assert process.swapped is not None
        assert vm.contents is not None
        numbers = numbers[self.may_go(numbers)]
        self._find_slots(int(np.count_nonzero(process.swapped[numbers] == 0)))
        gfns = process.table.translate(process.gvpns(numbers))
        self.guest_os.vmm.bring_in(vm, gfns)
        held = vm.contents.of(gfns)
        slots = process.swapped[numbers].astype(np.int64) - 1
        clean = (slots >= 0) & (self.device.content[slots] == held)
        without = np.flatnonzero(slots < 0)
        new = self.device.take(int(without.size))
        slots[without[: new.size]] = new
        going = slots >= 0
        numbers, gfns, slots, held, clean = numbers[going], gfns[going], slots[going], held[going], clean[going]
        if not numbers.size:
            return 0, 0
        self.device.content[slots] = held
        self.device.write(slots[~clean])
        process.swapped[numbers] = slots + 1
        gvpns = process.gvpns(numbers)
        large = np.unique(gvpns[process.table.mapped_sizes(gvpns) == 1] & -PAGEBLOCK)
        if large.size:
            process.table.split_many(large)
            vm.remapped_pages += int(large.size) * PAGEBLOCK
        process.table.unmap_many(gvpns)
        process.mark(numbers, False)
        process.watched[numbers] = 0
        self.guest_os.invalidate(int(gvpns.min()), int(gvpns.max()) + 1)
        vm.guest.give_back(gfns)
        vm.remapped_pages += int(numbers.size)
        vm.guest_swapped_pages += int(numbers.size)
        vm.flushes += -(-int(numbers.size) // self._cluster)
        return int(numbers.size), int(np.count_nonzero(~clean))

    def bring_in(self, numbers: NDArray[np.int64], gfns: NDArray[np.int64]) -> None:
        """Read swapped pages (by number, int64[n]) into ``gfns``, which the guest has just mapped; charge it."""
        process, vm = self.guest_os.process, self.vm
        if not numbers.size:
            return
        assert process.swapped is not None
        assert vm.contents is not None
        vm.contents.put(gfns, self.device.content[process.swapped[numbers] - 1])
        _, requests = neighbours(process.swapped, numbers, self._ahead)
        self.device.read(vm, int(numbers.size), requests)
        self.refaults += int(numbers.size)
        vm.guest_swapped_pages -= int(numbers.size)
        vm.stall_ns["guest swap in"] += int(numbers.size) * self._fault_ns

    def is_out(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which unmapped pages are in swap space. A mapped one's slot is of the past, or clean."""
        process = self.guest_os.process
        assert process.swapped is not None
        return np.asarray((process.swapped[numbers] > 0) & ~process.mapped[numbers])

    def ahead(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pages that are read ahead with swapped ``numbers``, those left out.

        They are those of each one's aligned eight that are out as well, if their slots lie in the same order beside
        its own: one request. L: page_cluster, swap_vma_readahead.
        """
        process = self.guest_os.process
        assert process.swapped is not None
        near, _ = neighbours(process.swapped, numbers, self._ahead)
        return near[~process.mapped[near]]

    def _find_slots(self, count: int) -> None:
        """If fewer slots are free, take those of mapped pages: what they hold is in memory, too."""
        process = self.guest_os.process
        if self.device.free_pages < count and self.device.used_pages > self.vm.guest_swapped_pages:
            assert process.swapped is not None
            held = np.flatnonzero((process.swapped > 0) & process.mapped)
            self.release(held)

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Free the slots of pages that are in memory."""
        process = self.guest_os.process
        assert process.swapped is not None
        self.device.give_back(process.swapped[numbers] - 1)
        process.swapped[numbers] = 0

    def forget(self, numbers: NDArray[np.int64]) -> None:
        """Free the slots of pages that the program gave back."""
        process = self.guest_os.process
        if process.swapped is None:
            return
        numbers = numbers[process.swapped[numbers] > 0]
        self.vm.guest_swapped_pages -= int(np.count_nonzero(~process.mapped[numbers]))
        self.device.give_back(process.swapped[numbers] - 1)
        process.swapped[numbers] = 0

    def check(self) -> None:
        """Recount: each slot is one page's, or free; what the guest segment covers is not out."""
        process = self.vm.process
        if process is None or process.swapped is None:
            return
        held = np.flatnonzero(process.swapped)
        slots = process.swapped[held]
        assert np.unique(slots).size == slots.size, f"{self.vm.name}: a slot holds two pages"
        assert held.size == self.device.used_pages, f"{self.vm.name}: slots taken and slots in use differ"
        booked, out = self.vm.guest_swapped_pages, held[~process.mapped[held]]
        assert out.size == booked, f"{self.vm.name}: {booked} booked as swapped by the guest, {out.size} are"
        segment = self.vm.guest_segment
        if segment is not None:
            gvpns = process.gvpns(out)
            pinned = (gvpns >= segment.base) & (gvpns < segment.limit)
            assert not np.any(pinned), f"{self.vm.name}: what its guest segment covers is swapped out"
