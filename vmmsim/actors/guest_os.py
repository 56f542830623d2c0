"""A guest's kernel: boots, serves page faults, keeps page cache and unmovable pages, collapses pages into huge ones.

What it allocates is touched, so that the VMM must back it at once; what the balloon takes is not.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.lru import CLUSTER
from vmmsim.actors.process import WATCH_ACCESS, WATCH_WRITE, Process
from vmmsim.actors.remapping import remap
from vmmsim.actors.vm import BLOCK_PAGES, frames_of, memory_ranges
from vmmsim.memory.ageing import age, profile
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vmmsim.actors.guest_swap import GuestSwap
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder
    from vmmsim.protocols import Region, Workload
    from vmmsim.translation.engine import Engine

LEAF: Final = WRITABLE | EXECUTABLE | ACCESSED
BACKED_AT_ONCE: Final = 1 << 18
"""Pages that are backed in one go, where many are."""
WORKLOAD: Final = 1
"""Owner number, and asid, of the process that runs the workload."""


class GuestOutOfMemory(Exception):
    """Raised where the guest finds no frame for its workload, not even by reclaim: the workload is killed."""


class GuestOs:
    """The kernel of one guest."""

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

    # Page faults

    def touch(self, gvpns: NDArray[np.int64], written: NDArray[np.bool_], until: int | None = None) -> int:
        """Handle the first touch of every absent page of ``gvpns`` (int64[n], distinct); return how many were absent.

        until  the position up to which ``written`` tells all that the program does to them; None: where it is now
        A guest that swaps takes few at a time, so that those before can go to make room for those after.
        ``GuestOutOfMemory``, ``VmLost``: the pages before those that found no memory are mapped.
        """
        marks, count = self.vm.guest.watermarks, 0
        step = max(int(gvpns.size), 1) if self.swap is None else max(marks.high - marks.min, CLUSTER)
        try:
            for first in range(0, gvpns.size, step):
                some = slice(first, first + step)
                self.touching = self.process.numbers(gvpns[some])
                count += self._touch(gvpns[some], written[some], until)
        finally:
            self.touching = self.touching[:0]
        return count

    def _touch(self, gvpns: NDArray[np.int64], written: NDArray[np.bool_], until: int | None) -> int:
        vm, process = self.vm, self.process
        numbers = process.numbers(gvpns)
        absent = ~process.mapped[numbers]
        gvpns, numbers, written = gvpns[absent], numbers[absent], written[absent]
        count = int(gvpns.size)
        touched, wrote = numbers, written
        if count and self.thp:
            rest = self._touch_blocks(gvpns)
            gvpns, numbers, written = gvpns[rest], numbers[rest], written[rest]
        if gvpns.size:
            out = np.zeros(numbers.size, np.bool_)
            if self.swap is not None:
                out = self.swap.is_out(numbers)
                ahead = self._read_ahead(numbers[out], gvpns.size)
                numbers, gvpns = np.append(numbers, ahead), np.append(gvpns, process.gvpns(ahead))
                out = np.append(out, np.ones(ahead.size, np.bool_))
                written = np.append(written, np.zeros(ahead.size, np.bool_))
            frames = self._allocate(int(gvpns.size), kind=Kind.USER, owner=process.number, pages=numbers)
            flags = np.where(written, LEAF | DIRTY, LEAF)
            process.table.map(gvpns, frames, flags=flags)
            process.mark(numbers, True)
            if vm.contents is not None:
                vm.contents.zeroed(frames)
            if self.swap is not None:
                self.swap.bring_in(numbers[out], frames[out])
            vm.stall_ns["guest fault"] += int(np.count_nonzero(~out)) * self._fault_4k
        self._note_touched(touched, wrote, until)
        return count

    def _read_ahead(self, numbers: NDArray[np.int64], others: int) -> NDArray[np.int64]:
        """Return the pages that are read with swapped ``numbers``, if there is room for them beside the ``others``."""
        if self.swap is None or not numbers.size:
            return numbers
        return self.swap.ahead(numbers)[: max(self.vm.guest.spare_pages - others, 0)]

    def _note_touched(self, numbers: NDArray[np.int64], written: NDArray[np.bool_], until: int | None) -> None:
        """Book what the program did to pages that were zeroed for it just now."""
        vm, process = self.vm, self.process
        if vm.contents is not None and np.any(written):
            wrote = numbers[written]
            again = process.swapped[wrote] > 0 if process.swapped is not None else np.zeros(wrote.size, np.bool_)
            self.page_written(wrote[again])
            wrote = wrote[~again]
            vm.contents.first_written(process.table.translate(process.gvpns(wrote)), wrote)
        if vm.activity is not None and numbers.size:
            vm.activity.note(numbers, written, until)

    def serve_watched(self, until: int) -> int:
        """Do what must come before the program's next accesses to watched pages, up to position ``until``.

        What has no host frame gets one, and what it may not write to and writes gets a copy. Return how many pages.
        """
        vm, process = self.vm, self.process
        if vm.activity is None:
            return 0
        numbers = np.flatnonzero((process.watched != 0) & process.mapped)
        if not numbers.size:
            return 0
        accessed, written = vm.activity.look(numbers, until)
        marks = process.watched[numbers]
        met = (accessed & (marks & WATCH_ACCESS != 0)) | (written & (marks & WATCH_WRITE != 0))
        for first in range(0, int(np.count_nonzero(met)), BACKED_AT_ONCE):
            some = np.flatnonzero(met)[first : first + BACKED_AT_ONCE]
            self._serve(numbers[some], written[some])
        return int(np.count_nonzero(met))

    def _serve(self, numbers: NDArray[np.int64], written: NDArray[np.bool_]) -> None:
        vm, process = self.vm, self.process
        gfns = process.table.translate(process.gvpns(numbers))
        self.vmm.bring_in(vm, gfns)
        self.vmm.back(vm, gfns[written])
        process.watched[numbers[written]] = 0
        process.watched[numbers] &= 0xFF ^ WATCH_ACCESS
        self.page_written(numbers[written])

    def page_written(self, numbers: NDArray[np.int64]) -> None:
        """Give pages that the program wrote to again what they hold now; those that are watched are served first."""
        vm, process = self.vm, self.process
        if vm.contents is None or not numbers.size:
            return
        gfns = process.table.translate(process.gvpns(numbers[process.watched[numbers] == 0]))
        vm.contents.written(gfns[vm.nested.translate(gfns) >= 0])

    def _touch_blocks(self, gvpns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Map huge pages where whole 2 MiB blocks of a region are untouched and free blocks are there.

        Return bool[n]: the pages that are still absent.
        """
        vm, process = self.vm, self.process
        blocks = np.unique(gvpns >> PAGEBLOCK_ORDER)
        starts = blocks << PAGEBLOCK_ORDER
        region = np.searchsorted(process.starts, starts, side="right") - 1
        ends = process.starts + np.array([one.pages for one in process.regions], np.int64)
        inside = (region >= 0) & (starts + PAGEBLOCK <= ends[region])
        starts = starts[inside]
        numbers = process.numbers(starts)
        every = numbers[:, None] + np.arange(PAGEBLOCK)
        untouched = ~process.mapped[every].any(axis=1)
        if process.swapped is not None:
            untouched &= ~(process.swapped[every] > 0).any(axis=1)
        starts, numbers = starts[untouched], numbers[untouched]
        frames = vm.guest.take(
            int(starts.size), kind=Kind.USER, owner=process.number, pages=numbers, order=PAGEBLOCK_ORDER
        )
        starts, numbers = starts[: frames.size], numbers[: frames.size]
        if not frames.size:
            return np.ones(gvpns.size, np.bool_)
        self.vmm.back(vm, (frames[:, None] + np.arange(PAGEBLOCK)).ravel())
        process.table.map(starts, frames, size=1, flags=LEAF | DIRTY)
        process.mark((numbers[:, None] + np.arange(PAGEBLOCK)).ravel(), True)
        if vm.contents is not None:
            vm.contents.zeroed((frames[:, None] + np.arange(PAGEBLOCK)).ravel())
        vm.stall_ns["guest fault"] += int(frames.size) * self._fault_2m
        return ~np.isin(gvpns >> PAGEBLOCK_ORDER, starts >> PAGEBLOCK_ORDER)

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

    # Moving what is movable

    def move(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Let whoever uses the frames ``old`` (int64[n]) use ``new`` instead: copied, mapped, invalidated.

        To be called before the ledger moves their books. Page cache and other processes' pages are copied only; a page
        of the balloon is exchanged, at the price of two requests. Charges what it takes.
        """
        vm, book = self.vm, self.vm.guest.frames
        given = book["kind"][old] == Kind.BALLOON
        self.vmm.bring_in(vm, old[~given])
        self.vmm.back(vm, new[~given])
        if vm.contents is not None:
            vm.contents.copied(old[~given], new[~given])
        if np.any(given):
            self.balloon_moved(old[given], new[given])
        user = (book["kind"][old] == Kind.USER) & (book["owner"][old] == WORKLOAD)
        if np.any(user):
            self._move_mapped(book["page"][old[user]].astype(np.int64), new[user])
        self.charge_copies(int(np.count_nonzero(~given)))

    def _move_mapped(self, numbers: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        vm, process = self.vm, self.process
        gvpns = process.gvpns(numbers)
        vm.remapped_pages += remap(process.table, gvpns, frames)
        self.invalidate(int(gvpns.min()), int(gvpns.max()) + 1)
        vm.flushes += -(-int(gvpns.size) // int(rates.number("vmm.moves_per_flush")))

    # Huge pages after the fact

    def collapse_some(self) -> int:
        """Scan as much as khugepaged does in one pass and collapse what can be; return how many it collapsed."""
        process = self.vm.process
        if process is None or not self.thp or not process.table.leaf_counts[0]:
            return 0
        blocks = self._blocks()
        if not blocks.size:
            return 0
        to_scan = int(rates.number("khugepaged.pages_to_scan")) // PAGEBLOCK
        taken = [int(blocks[(self._scan_at + i) % blocks.size]) for i in range(min(to_scan, blocks.size))]
        self._scan_at = (self._scan_at + len(taken)) % int(blocks.size)
        return sum(self._collapse(block) for block in taken)

    def _blocks(self) -> NDArray[np.int64]:
        """Return the gvpns at which whole 2 MiB blocks of regions begin."""
        spans = [
            np.arange(-(-region.start // PAGEBLOCK), (region.start + region.pages) // PAGEBLOCK, dtype=np.int64)
            for region in self.process.regions
        ]
        return np.concatenate(spans) << PAGEBLOCK_ORDER

    def _collapse(self, gvpn: int) -> int:
        """Put the pages of a 2 MiB block of gVA that has any, and no huge page, into one free block of frames."""
        vm, process = self.vm, self.process
        segment = vm.guest_segment
        if segment is not None and segment.base < gvpn + PAGEBLOCK and gvpn < segment.limit:
            return 0
        pages, entries, sizes = process.table.leaves_between(gvpn, gvpn + PAGEBLOCK)
        if not pages.size or np.any(sizes != 0):
            return 0
        number = process.numbers(np.array([gvpn]))
        out = np.empty(0, np.int64)
        if self.swap is not None:
            every = int(number[0]) + np.arange(PAGEBLOCK)
            out = every[self.swap.is_out(every)]
            if out.size > int(rates.number("khugepaged.max_ptes_swap")):
                return 0
        block = vm.guest.take(1, kind=Kind.USER, owner=process.number, pages=number, order=PAGEBLOCK_ORDER)
        if not block.size:
            return 0
        self.vmm.bring_in(vm, frames_of(entries))
        self.vmm.back(vm, int(block[0]) + np.arange(PAGEBLOCK))
        if vm.contents is not None:
            vm.contents.zeroed(int(block[0]) + np.arange(PAGEBLOCK))
            vm.contents.copied(frames_of(entries), int(block[0]) + pages - gvpn)
        if self.swap is not None:
            self.swap.bring_in(out, int(block[0]) + out - int(number[0]))
        process.table.unmap_many(pages)
        self.invalidate(gvpn, gvpn + PAGEBLOCK)
        process.table.map(gvpn, block, size=1, flags=LEAF | DIRTY)
        process.mark(process.numbers(pages), False)
        process.mark(int(number[0]) + np.arange(PAGEBLOCK), True)
        vm.guest.give_back(frames_of(entries))
        vm.remapped_pages += PAGEBLOCK
        self.charge_copies(int(pages.size))
        return 1
