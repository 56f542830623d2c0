"""Swapping by the VMM: the mechanism. Which pages are to go is not decided here.

A gfn that is swapped out has a slot of the host's swap space and no frame. A page that was read in keeps its slot
until it is written to or slots run short: swapped out again unchanged, it needs no second write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.obstacles import Obstacle, first_of
from vmmsim.actors.process import WATCH_ACCESS
from vmmsim.actors.swap_device import neighbours
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, PAGEBLOCK_ORDER, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.swap_device import SwapDevice
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm


class HostSwap:
    """The swap space of the host."""

    def __init__(self, vmm: Vmm, device: SwapDevice) -> None:
        self.vmm = vmm
        self.device = device
        self._fault_ns = int(rates.number("swap.major_fault_ns"))
        self._cluster = int(rates.number("swap.cluster_pages"))
        self._ahead = int(rates.number("swap.readahead_pages"))

    def swap_out(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> tuple[int, int]:
        """Take the frames of resident ``gfns`` (int64[n]) and keep what they hold in swap space.

        Not taken: what is merged, held by a change in progress, pinned by the VMM segment, or in a lease; and what
        finds no slot. Return (pages that went, pages that must be written: the caller lets that time pass).
        """
        gfns = gfns[self.may_go(vm, gfns)]
        assert vm.swapped is not None
        contents = self.vmm.contents
        assert contents is not None
        self._find_slots(int(np.count_nonzero(vm.swapped[gfns] == 0)))
        frames = vm.nested.translate(gfns)
        slots = vm.swapped[gfns].astype(np.int64) - 1
        clean = (slots >= 0) & (self.device.content[slots] == contents.of_frame[frames])
        without = np.flatnonzero(slots < 0)
        new = self.device.take(int(without.size))
        slots[without[: new.size]] = new
        going = slots >= 0
        gfns, frames, slots, clean = gfns[going], frames[going], slots[going], clean[going]
        if not gfns.size:
            return 0, 0
        self.device.content[slots] = contents.of_frame[frames]
        self.device.write(slots[~clean])
        vm.swapped[gfns] = slots + 1  # before anything below finds that slots are short
        large = np.unique(gfns[vm.nested.mapped_sizes(gfns) == 1] & -PAGEBLOCK)
        if large.size:
            vm.nested.split_many(large)
            vm.remapped_pages += int(large.size) * PAGEBLOCK
        self.vmm.unmap_small(vm, gfns)
        self._book(vm, gfns, 1)
        vm.watch(gfns, WATCH_ACCESS)
        vm.remembered_moves += int(gfns.size)
        self.vmm.flush(vm)
        vm.flushes += -(-int(gfns.size) // self._cluster)
        return int(gfns.size), int(np.count_nonzero(~clean))

    def _find_slots(self, count: int) -> None:
        """If fewer slots are free, take those of resident pages: what they hold is in memory, too."""
        if self.device.free_pages >= count or self.device.used_pages == self._out():
            return
        for vm in self.vmm.vms.values():
            if vm.swapped is not None:
                held = np.flatnonzero(vm.swapped)
                self.forget(vm, held[vm.nested.translate(held) >= 0])

    def _out(self) -> int:
        return sum(vm.swapped_pages for vm in self.vmm.vms.values())

    def may_go(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which of ``gfns`` may be swapped out now."""
        return np.asarray(self.obstacles(vm, gfns) == Obstacle.NONE)

    def obstacles(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[n]: what keeps each of ``gfns`` from being swapped out now (``Obstacle``)."""
        frames = vm.nested.translate(gfns)
        there = frames >= 0
        held = np.zeros(gfns.size, np.bool_)
        held[there] = self.vmm.host.frames["mark"][frames[there]] & ISOLATED != 0
        return first_of(
            (Obstacle.PINNED_VMM, vm.under_vmm_segment(gfns)),
            (Obstacle.ABSENT, ~there),
            (Obstacle.MERGED, vm.merged[gfns] if vm.merged is not None else np.zeros(gfns.size, np.bool_)),
            (Obstacle.LEASED, vm.under_lease(gfns)),
            (Obstacle.BUSY, held),
            (Obstacle.IMMOVABLE, vm.guest.frames["kind"][gfns] == Kind.TABLE),  # walks keep those accessed
        )

    def bring_in(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Read swapped ``gfns`` in, each into a frame of its own, and charge it; the slots are kept."""
        if not gfns.size:
            return
        assert vm.swapped is not None
        assert self.vmm.contents is not None
        faults = int(gfns.size)
        gfns, requests = self._with_neighbours(vm, gfns)
        self.vmm.serving(vm, gfns)  # none of them may be chosen to make room for the others
        held = self.device.content[vm.swapped[gfns] - 1]
        self.vmm.back_pages(vm, gfns)
        self.vmm.contents.of_frame[vm.nested.translate(gfns)] = held
        self._book(vm, gfns, -1)
        self.device.read(vm, int(gfns.size), requests)
        vm.stall_ns["swap in"] += faults * self._fault_ns

    def _with_neighbours(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Return what is read for faults on ``gfns``, and by how many requests.

        With a page come those of its aligned eight that are out as well, if their slots lie in the same order beside
        its own: one request. L: page_cluster, swap_vma_readahead.
        """
        assert vm.swapped is not None
        near, requests = neighbours(vm.swapped, gfns, self._ahead)
        near = near[vm.nested.translate(near) < 0]
        room = max(self.vmm.host.spare_pages - int(gfns.size), 0)
        return np.concatenate([gfns, near[:room]]), requests

    def forget(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Free the slots of ``gfns``, whether the pages are out or not: nobody will read what they hold."""
        if vm.swapped is None:
            return
        gfns = gfns[vm.swapped[gfns] > 0]
        if not gfns.size:
            return
        self.device.give_back(vm.swapped[gfns] - 1)
        self._book(vm, gfns[vm.nested.translate(gfns) < 0], -1)
        vm.swapped[gfns] = 0

    def _book(self, vm: VirtualMachine, gfns: NDArray[np.int64], change: int) -> None:
        vm.swapped_pages += change * int(gfns.size)
        np.add.at(vm.swapped_of_block, gfns >> PAGEBLOCK_ORDER, np.int16(change))

    def check(self) -> None:
        """Recount slots and pages: each slot is one page's, or free."""
        used = 0
        for vm in self.vmm.vms.values():
            if vm.swapped is None:
                continue
            held = np.flatnonzero(vm.swapped)
            used += held.size
            out = held[vm.nested.translate(held) < 0]
            assert out.size == vm.swapped_pages, f"{vm.name}: {vm.swapped_pages} booked as swapped, {out.size} are"
            of_block = np.bincount(out >> PAGEBLOCK_ORDER, minlength=vm.swapped_of_block.size)
            assert np.array_equal(of_block, vm.swapped_of_block), f"{vm.name}: the book of swapped blocks is wrong"
            slots = vm.swapped[held]
            assert np.unique(slots).size == slots.size, f"{vm.name}: a slot holds two pages"
        assert used == self.device.used_pages, f"{self.device.used_pages} slots taken, {used} in use"
