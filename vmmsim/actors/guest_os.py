"""A guest's kernel: serves page faults, moves pages, and collapses pages into huge ones.

How it allocates memory stands in ``guest_memory``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.lru import CLUSTER
from vmmsim.actors.process import WATCH_ACCESS, WATCH_WRITE
from vmmsim.actors.remapping import remap
from vmmsim.actors.vm import frames_of
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, WRITABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray


from vmmsim.actors.guest_memory import BACKED_AT_ONCE, WORKLOAD, GuestMemory

LEAF: Final = WRITABLE | EXECUTABLE | ACCESSED


class GuestOs(GuestMemory):
    """The kernel of one guest."""

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
