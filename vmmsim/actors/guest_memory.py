"""A guest's memory as its kernel allocates it: what boot takes, kernel pages, page tables, and what reclaim finds.

What is allocated is touched, so that the VMM must back it at once; what the balloon takes is not.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.process import Process
from vmmsim.actors.vm import BLOCK_PAGES, frames_of, memory_ranges
from vmmsim.memory.ageing import age, profile
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vmmsim.actors.guest_swap import GuestSwap
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder
    from vmmsim.protocols import Region, Workload
    from vmmsim.translation.engine import Engine

BACKED_AT_ONCE: Final = 1 << 18
"""Pages that are backed in one go, where many are."""
WORKLOAD: Final = 1
"""Owner number, and asid, of the process that runs the workload."""


class GuestOutOfMemory(Exception):
    """Raised where the guest finds no frame for its workload, not even by reclaim: the workload is killed."""


class GuestMemory:
    """Allocates a guest's memory; ``GuestOs`` is the whole kernel."""

    def __init__(self, vm: VirtualMachine, vmm: Vmm, engine: Engine, recorder: Recorder) -> None:
        self.vm = vm
        self.vmm = vmm
        self.engine = engine
        self.recorder = recorder
        self.thp = vm.description.thp == "always"
        self.deflate: Callable[[int], int] = lambda pages: 0
        """Gives pages back from the balloon when the guest is out of memory; set where the balloon driver is."""
        self.balloon_moved: Callable[[NDArray[np.int64], NDArray[np.int64]], None] = lambda old, new: None
        """Exchanges pages that the balloon holds for others; set where the balloon driver is."""
        self.swap: GuestSwap | None = None
        """The guest's swap space; None without."""
        self.swap_some: Callable[[int], int] = lambda pages: 0
        """Frees pages by swapping out; set by who plays kswapd in this guest."""
        self.touching = np.empty(0, np.int64)
        """Numbers of the pages that are being touched: nobody may swap them out meanwhile."""
        self._reclaiming = False
        self._fault_4k = int(rates.number("guest.fault_4k_ns"))
        self._fault_2m = int(rates.number("guest.fault_2m_ns"))
        self._migrate = int(rates.number("guest.migrate_4k_ns"))
        self._scan_at = 0
        self._memmaps: dict[int, NDArray[np.int64]] = {}

    # Booting

    def boot(self, random: np.random.Generator) -> None:
        """Lay out kernel memory: the image low, the map of frames at the top, as firmware and memblock leave them.

        A guest with an age has been lived in, by ``random``: its kernel's memory lies wherever there was room, and all
        of its memory was touched once, so that all of it is resident.
        """
        vm = self.vm
        pages = vm.description.memory_bytes >> 12
        ranges = memory_ranges(pages, vm.description.machine_type)
        for start, end in ranges:
            vm.note_memory(start, end, True)
        vm.boot_top = vm.memory_top
        each = int(rates.number("guest.memmap_bytes_per_page"))
        image = min(int(rates.number("guest.kernel_image_bytes")) >> 12, pages // 16)
        memmap = -(-pages * each >> 12)
        if vm.description.age_ns:
            high = self._boot_aged(ranges, image, memmap, random)
        else:
            high = self._boot_fresh(ranges, image, memmap)
        self._note_memmaps(ranges, high, each * BLOCK_PAGES >> 12)
        vm.kernel_table = self.engine.table(self.table_frames)

    def _boot_fresh(self, ranges: list[tuple[int, int]], image: int, memmap: int) -> NDArray[np.int64]:
        """Take the kernel's memory from a guest that has just begun; return the frames of the map of frames."""
        top = ranges[-1][1]
        low, high = np.arange(image, dtype=np.int64), np.arange(top - memmap, top, dtype=np.int64)
        for gfns in (low, high):
            self.vm.guest.take_range(int(gfns[0]), int(gfns[-1]) + 1, kind=Kind.KERNEL, owner=0)
            self.vmm.back(self.vm, gfns)
            if self.vm.contents is not None:
                self.vm.contents.kernel(gfns)
        return high

    def _boot_aged(
        self, ranges: list[tuple[int, int]], image: int, memmap: int, random: np.random.Generator
    ) -> NDArray[np.int64]:
        vm = self.vm
        age(vm.guest, vm.description.age_ns, random, profile("guest"))
        for start, end in ranges:
            for first in range(start, end, BACKED_AT_ONCE):
                gfns = np.arange(first, min(first + BACKED_AT_ONCE, end))
                self.vmm.back(vm, gfns)
                if vm.contents is not None:
                    vm.contents.kernel(gfns)
        return self.take_kernel(image + memmap)[image:]

    def _note_memmaps(self, ranges: list[tuple[int, int]], frames: NDArray[np.int64], each: int) -> None:
        """Remember which frames describe which memory block, so that they can be freed with it: in order of gfns."""
        at = 0
        for start, end in ranges:
            for block in range(start, end - BLOCK_PAGES + 1, BLOCK_PAGES):
                self._memmaps[block] = frames[at : at + each]
                at += each

    def run(self, workload: Workload) -> Process:
        """Start the process of a workload: its regions, nothing mapped."""
        vm = self.vm
        table = self.engine.table(self.table_frames, give_back_frames=self._give_back_tables)
        vm.process = Process(WORKLOAD, workload, table)
        return vm.process

    def take_kernel(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: gfns of kernel pages, immovable, backed; ``GuestOutOfMemory`` if there are none."""
        return self._allocate(count, kind=Kind.KERNEL, owner=0)

    def take_memmap(self, block: int) -> None:
        """Take the frames that describe the memory block at gfn ``block``, from memory that is there already."""
        pages = BLOCK_PAGES * int(rates.number("guest.memmap_bytes_per_page")) >> 12
        self._memmaps[block] = self.take_kernel(pages)

    def return_memmap(self, start: int, end: int) -> None:
        """Free the frames that described the memory blocks of [start, end)."""
        for block in range(start, end, BLOCK_PAGES):
            frames = self._memmaps.pop(block, np.empty(0, np.int64))
            self.vm.guest.give_back(frames)

    def copies_ns(self, pages: int) -> int:
        """Return how long the guest takes to migrate ``pages``."""
        return pages * self._migrate

    def charge_copies(self, pages: int) -> None:
        """Charge the migration of ``pages`` to the guest's vCPUs."""
        self.vm.stall_ns["guest copies"] += self.copies_ns(pages)

    def table_frames(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: gfns for guest page tables, backed."""
        return self._allocate(count, kind=Kind.TABLE, owner=WORKLOAD)

    def _give_back_tables(self, gfns: NDArray[np.int64]) -> None:
        self.vm.guest.give_back(gfns)

    def _allocate(
        self, count: int, *, kind: Kind, owner: int, pages: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return int64[count]: gfns of single frames, reclaiming if need be, each backed by the VMM."""
        guest = self.vm.guest
        floor = 0 if self._reclaiming else None  # who frees memory may use what is kept for emergencies
        frames = guest.take(count, kind=kind, owner=owner, pages=pages, floor=floor)
        while frames.size < count:
            try:
                self._reclaim(count - int(frames.size))
            except GuestOutOfMemory:
                guest.give_back(frames)
                raise
            rest = None if pages is None else pages[frames.size :]
            more = guest.take(count - int(frames.size), kind=kind, owner=owner, pages=rest, floor=floor)
            frames = np.concatenate([frames, more])
        self.vmm.back(self.vm, frames)
        if self.vm.contents is not None and kind != Kind.USER:
            self.vm.contents.kernel(frames)
        return frames

    def _reclaim(self, pages: int) -> None:
        """Find free frames: drop page cache, swap out, deflate the balloon; ``GuestOutOfMemory`` if there are none."""
        guest = self.vm.guest
        room = guest.watermarks.high - guest.watermarks.min
        if guest.drop_cache(pages + room) > 0 or self._swap_some(pages) > 0 or self.deflate(pages) > 0:
            return
        raise GuestOutOfMemory(f"{pages} pages short in {self.vm.name}, {guest.free_pages} free")

    def _swap_some(self, pages: int) -> int:
        if self._reclaiming:
            return 0
        with self.reclaiming():
            return self.swap_some(pages)

    @contextmanager
    def reclaiming(self) -> Iterator[None]:
        """Free memory inside: what is taken meanwhile may use what is kept for emergencies, and swaps nothing out."""
        self._reclaiming = True
        try:
            yield
        finally:
            self._reclaiming = False

    def oom_kill(self, why: str) -> None:
        """End the program for want of memory, and give its memory and swap space back."""
        self.recorder.decide("guest", "oom_kill", vm=self.vm.name, outcome="done", why=why)
        for region in self.process.regions:
            self.free_region(region)

    # Its process

    @property
    def process(self) -> Process:
        """The process that runs the workload; there is one."""
        assert self.vm.process is not None, f"{self.vm.name} runs no workload"
        return self.vm.process

    def free_region(self, region: Region) -> None:
        """Unmap a region that its process freed: frames back to the buddy, translations invalidated."""
        self.unmap(region.start, region.start + region.pages)

    def unmap(self, start: int, end: int) -> None:
        """Unmap the gvpns of [start, end) and free their frames; what a live guest segment pins stays."""
        vm, process = self.vm, self.process
        segment = vm.guest_segment
        if segment is not None and segment.base < end and start < segment.limit:
            return
        if self.swap is not None:
            first, last = process.numbers(np.array([start, end - 1])).tolist()
            self.swap.forget(np.arange(first, last + 1))
        pages, entries, sizes = process.table.leaves_between(start, end)
        if not pages.size:
            return
        frames = frames_of(entries)
        small, large = pages[sizes == 0], pages[sizes == 1]
        process.table.unmap_many(small)
        process.table.unmap_many(large, size=1)
        self._book_unmapped(pages, sizes)
        vm.guest.give_back(frames[sizes == 0])
        vm.guest.give_back(frames[sizes == 1], order=PAGEBLOCK_ORDER)
        self.invalidate(start, end)

    def _book_unmapped(self, pages: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        process = self.process
        process.mark(process.numbers(pages[sizes == 0]), False)
        large = process.numbers(pages[sizes == 1])
        process.mark((large[:, None] + np.arange(PAGEBLOCK)).ravel(), False)
        gone = np.concatenate([process.numbers(pages[sizes == 0]), (large[:, None] + np.arange(PAGEBLOCK)).ravel()])
        process.watched[gone] = 0
        if self.vm.activity is not None:
            self.vm.activity.forget(gone)

    def invalidate(self, start: int, end: int) -> None:
        """Drop the process's translations of gvpns [start, end): the guest's own flush, no exit."""
        self.engine.invalidate_range(self.vm.number, WORKLOAD, start, end, cores=self.vm.cores)
