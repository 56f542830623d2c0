"""The VMM: gives and takes VMM segments, moves what lies in host frames, and lets VMs come and go.

Below a live segment the nested table is kept complete, so that leaving costs a rendezvous and a flush, and no copying.
How guest memory gets its frames stands in ``backing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.actors.backing import SPLITS, Backing
from vmmsim.actors.costs import rendezvous_ns
from vmmsim.actors.remapping import remap
from vmmsim.actors.vm import frames_of
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, Kind
from vmmsim.translation.registers import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine


class Vmm(Backing):
    """The hypervisor of the host."""

    # Segments

    def rendezvous(self, vm: VirtualMachine) -> None:
        """Charge a change of registers on all vCPUs: kick them, wait for the slowest, resume."""
        vcpus = vm.description.vcpus
        vm.stall_ns["rendezvous"] += vcpus * rendezvous_ns(vcpus)

    def enter_segment(self, vm: VirtualMachine, base: int, limit: int, offset: int) -> None:
        """Write the registers of a VMM segment over [base, limit), whose nested table is complete and says the same."""
        assert vm.escapes is not None
        if np.any(self.host.frames["mark"][base + offset : limit + offset] & ISOLATED):
            self.disrupt()  # a copy that began before would move pages out from under the segment
        vm.vmm_segment = Segment(base=base, limit=limit, offset=offset, filter=vm.escapes.filter)
        self._pin(vm, pinned=True)
        vm.held_pages = vm.held_now()
        vm.remembered_moves = 0
        self.rendezvous(vm)
        vm.changed("mode")

    def leave_segment(self, vm: VirtualMachine, why: str) -> None:
        """Take a VMM segment away: rendezvous and flush. The window is remembered, to come back to."""
        segment = vm.vmm_segment
        assert segment is not None
        self._pin(vm, pinned=False)
        vm.remembered = (segment.base, segment.limit, segment.offset)
        vm.remembered_moves = 0
        vm.vmm_segment = None
        vm.held_pages = 0
        self.flush(vm)
        self.rendezvous(vm)
        vm.flushes += 1
        self.unback(vm, vm.given_up(segment.base, segment.limit))
        vm.changed(why)
        vm.segment_lost(why)

    def _pin(self, vm: VirtualMachine, *, pinned: bool) -> None:
        """Pin what the segment maps, or let go of it: frames that escape lie elsewhere, or belong to nobody."""
        segment = vm.vmm_segment
        assert segment is not None
        marks = self.host.frames["mark"][segment.base + segment.offset : segment.limit + segment.offset]
        mine = self._mine(vm, segment)
        if pinned:
            marks[mine] |= PINNED
        else:
            marks[mine] &= 0xFF ^ PINNED

    def _mine(self, vm: VirtualMachine, segment: Segment) -> NDArray[np.bool_]:
        book = self.host.frames[segment.base + segment.offset : segment.limit + segment.offset]
        return np.asarray((book["kind"] == Kind.USER) & (book["owner"] == vm.number))

    def unpin(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Let the frames of gfns that have come to escape be replaced: what escapes is not held."""
        self.host.unpin(vm.nested.translate(gfns))
        vm.held_pages = vm.held_now()

    def reload_filter(self, vm: VirtualMachine) -> None:
        """Load the VMM segment anew with the filter as it is now."""
        segment = vm.vmm_segment
        assert segment is not None
        assert vm.escapes is not None
        vm.vmm_segment = Segment(
            base=segment.base, limit=segment.limit, offset=segment.offset, filter=vm.escapes.filter
        )
        self.rendezvous(vm)
        vm.changed("filter")

    def move(self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        """Let the nested table send ``gfns``, which are mapped, to ``frames``, and flush: one batch."""
        self.copied(vm.nested.translate(gfns), frames)
        vm.remapped_pages += remap(vm.nested, gfns, frames)
        vm.remembered_moves += int(gfns.size)
        self.flush(vm)

    def move_shared(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Let all who share frames ``old`` share ``new`` instead."""
        if old.size:
            assert self.merging is not None
            self.merging.move(old, new)

    def own(self, vm: VirtualMachine, base: int, limit: int) -> None:
        """Give every gfn of [base, limit) that is merged or swapped out a frame of its own."""
        for pages in (vm.merged, vm.swapped):
            if pages is not None:
                gfns = base + np.flatnonzero(pages[base:limit])
                for first in range(0, gfns.size, SPLITS * PAGEBLOCK):
                    self.back(vm, gfns[first : first + SPLITS * PAGEBLOCK])

    # Coming and going

    def depart(self, vm: VirtualMachine) -> None:
        """Give back all that a VM has: frames, tables, contexts."""
        self.disrupt()
        if vm.vmm_segment is not None:
            self._pin(vm, pinned=False)
            vm.vmm_segment = None
        if vm.merged is not None:
            self.unmap_small(vm, np.flatnonzero(vm.merged))
        if self.swap is not None:
            self.swap.forget(vm, np.arange(vm.guest.pages))
        pages, entries, sizes = vm.nested.leaves()
        frames = frames_of(entries)
        self.engine.forget(vm.number)
        for size, order in ((0, 0), (1, PAGEBLOCK_ORDER)):
            self.host.give_back(frames[sizes == size], order=order)
        vm.nested.free()
        for table in (vm.kernel_table, vm.process.table if vm.process is not None else None):
            if table is not None:
                table.free()
        self.host.give_back(self.host.owned(vm.number))  # taken, and not mapped yet: it ends while it is being served
        vm.resident_pages = vm.held_pages = 0
        vm.backed[:] = 0
        del self.vms[vm.number]
        assert pages.size == frames.size
