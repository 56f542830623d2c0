"""Memory hot-plug: blocks of 128 MiB added at the end of gPA, or taken away if all that is in them can move.

A block's map of frames (512 pages of struct page) lies in memory that the guest already has, so that ranges added one
after another are contiguous. What is added is onlined as kernel memory: it may hold page tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.emptying import emptying
from vmmsim.actors.guest_memory import GuestOutOfMemory
from vmmsim.actors.vm import ABOVE_GAP, BLOCK_PAGES
from vmmsim.addresses import format_bytes
from vmmsim.memory.frames import Kind
from vmmsim.memory.tokens import Busy
from vmmsim.scenario.vm import LOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.decisions import Recorder


class Hotplug:
    """Adds memory to one guest and takes it away."""

    def __init__(self, env: Environment, guest_os: GuestOs, recorder: Recorder) -> None:
        self.env = env
        self.guest_os = guest_os
        self.vm: VirtualMachine = guest_os.vm
        self.recorder = recorder
        self._promised = 0
        """One past the last gfn that was promised a place."""
        self._plug_ns = int(rates.number("hotplug.plug_block_ns"))
        self._unplug_ns = int(rates.number("hotplug.unplug_block_ns"))
        self._unplug_resident_ns = int(rates.number("hotplug.unplug_resident_block_ns"))

    def room(self) -> int:
        """Return how many pages can still be added in one range at the end of gPA."""
        top, last = self._top(), self.vm.guest.pages // BLOCK_PAGES * BLOCK_PAGES
        if top >= ABOVE_GAP:
            return max(last - top, 0)
        gap = _gap_start(self.vm)
        return max(min(gap, last) - top, last - ABOVE_GAP, 0) // BLOCK_PAGES * BLOCK_PAGES

    def _top(self) -> int:
        """Return where the next block may be added: after all memory, and all that was promised a place."""
        return -(-max(self.vm.memory_top, self._promised) // BLOCK_PAGES) * BLOCK_PAGES

    def place(self, pages: int) -> int:
        """Promise ``pages``, at most ``room()``, a place in one range at the end of gPA; return its first gfn.

        A range that would reach into the I/O gap begins above it.
        """
        top = self._top()
        start = ABOVE_GAP if top < ABOVE_GAP and top + pages > _gap_start(self.vm) else top
        assert start + pages <= self.vm.guest.pages, "there is no room for that"
        self._promised = start + pages
        return start

    def withdraw(self, end: int) -> None:
        """Give up what was promised a place last and is not used: up to ``end`` there is nothing to come."""
        if self._promised == end:
            self._promised = 0

    def adding(self, pages: int, *, at: int | None = None) -> Generator[Event, object, tuple[int, int]]:
        """Add ``pages``, whole blocks, at the end of gPA and online them; return their gfns [start, end).

        at  where, if they were promised a ``place``

        Fewer if the guest has no memory left for a block's map of frames, or ends.
        """
        assert pages % BLOCK_PAGES == 0, "memory is added in blocks"
        start = self.place(pages) if at is None else at
        for first in range(start, start + pages, BLOCK_PAGES):
            yield Pause(self.env, self._plug_ns, Turn.BALLOON)
            if not self.vm.running:
                return start, first
            try:
                self.guest_os.take_memmap(first)
            except GuestOutOfMemory:
                self.withdraw(start + pages)
                return start, first
            self.vm.guest.add(first, first + BLOCK_PAGES)
            self.vm.note_memory(first, first + BLOCK_PAGES, True)
            self.vm.added_pages += BLOCK_PAGES
        if at is None:
            self.withdraw(start + pages)
        return start, start + pages

    def removing(self, start: int, end: int) -> Generator[Event, object, str]:
        """Offline gfns [start, end) and give their frames back; return "" or what is in the way (EBUSY)."""
        vm, guest = self.vm, self.vm.guest
        try:
            token = guest.isolate_range(start, end, "hotplug")
        except Busy as busy:
            return f"it is held by {busy.by}"
        emptied = emptying(self.env, self.guest_os, start, end, turn=Turn.BALLOON, copied=lambda pages: None)
        why = (yield from emptied) or self._being_built(start, end)
        if why:
            guest.release(token)
            return why
        segment = vm.vmm_segment
        if segment is not None and segment.base < end and start < segment.limit:
            self._leave_segment(end - start)
        guest.remove(start, end, token=token)
        guest.release(token)
        vm.note_memory(start, end, False)
        vm.added_pages -= end - start
        self.guest_os.return_memmap(start, end)
        freed = self.guest_os.vmm.unback(vm, np.arange(start, end, dtype=np.int64))
        yield Pause(self.env, self._unplugs_ns(end - start, freed), Turn.BALLOON)
        return ""

    def _being_built(self, start: int, end: int) -> str:
        lease = self.vm.lease
        overlap = lease is not None and lease.base < end and start < lease.limit
        return "a VMM segment is being built over it" if overlap else ""

    def _leave_segment(self, pages: int) -> None:
        """Leave the VMM segment: memory under it is about to go, as its operator asked."""
        vm, mode = self.vm, self.vm.mode
        self.guest_os.vmm.leave_segment(vm, "unplug")
        why = f"{format_bytes(pages << 12)} under the segment are unplugged"
        self.recorder.decide("vmm", "mode", vm=vm.name, asked=mode, got=vm.mode, outcome="done", why=why)

    def _unplugs_ns(self, pages: int, resident: int) -> int:
        """Return how long unplugging takes: the more, the more of the pages have frames that the host takes back."""
        more = self._unplug_resident_ns - self._unplug_ns
        return (self._unplug_ns * pages + more * resident) // BLOCK_PAGES

    def last_blocks(self) -> list[tuple[int, int]]:
        """Return the memory blocks there are, highest first."""
        guest, top = self.vm.guest, self.vm.memory_top // BLOCK_PAGES
        starts = np.arange(top - 1, -1, -1) * BLOCK_PAGES
        there = starts[guest.kinds(starts) != Kind.HOLE]
        return [(int(start), int(start) + BLOCK_PAGES) for start in there]


def _gap_start(vm: VirtualMachine) -> int:
    """Return where a guest's memory would meet the I/O gap: below 4 GiB by its machine type."""
    return LOW_BYTES[vm.description.machine_type][1] >> 12
