"""What a VM is: its guest-physical memory, its tables and segments, and the books that actors keep of it.

Not an actor. Guest OS, VMM, balloon driver and the others change what is here, each its own part; translation state
is the engine's, ownership of frames the ledgers'.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.config import MODES, Mode
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.scenario.vm import LOW_BYTES
from vmmsim.translation.page_table import FRAME_MASK, FRAME_SHIFT
from vmmsim.translation.registers import Registers, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from simpy import Event

    from vmmsim import scenario
    from vmmsim.actors.activity import Activity
    from vmmsim.actors.contents import GuestContents
    from vmmsim.actors.dirty_log import DirtyLog
    from vmmsim.actors.escapes import Escapes
    from vmmsim.actors.process import Process
    from vmmsim.actors.swap_device import SwapDevice
    from vmmsim.actors.worth import Sampled
    from vmmsim.memory.ledger import Memory
    from vmmsim.memory.tokens import Token
    from vmmsim.translation.escape_filter import EscapeFilter
    from vmmsim.translation.page_table import PageTable

GIB_PAGES: Final = 1 << 18
ABOVE_GAP: Final = 4 * GIB_PAGES
"""gfn at which memory goes on above the I/O gap: 4 GiB."""
BLOCK_PAGES: Final = 1 << 15
"""Linux's memory block on x86-64, the grain of hot-plug: 128 MiB."""


def memory_ranges(pages: int, machine_type: str) -> list[tuple[int, int]]:
    """Return the gfn ranges [start, end) that ``pages`` of guest memory have: one, or one on each side of the gap.

    QEMU's machine types put the I/O gap below 4 GiB and split memory that reaches it (hw/i386/pc_piix.c, pc_q35.c).
    """
    split_from, low = (size >> 12 for size in LOW_BYTES[machine_type])
    if pages < split_from:
        return [(0, pages)]
    return [(0, low), (ABOVE_GAP, ABOVE_GAP + pages - low)] if pages > low else [(0, low)]


@attrs.frozen(kw_only=True)
class Lease:
    """A window of host memory, kept for the VMM segment that is being built over gfns [base, limit)."""

    base: int
    limit: int
    offset: int
    """hfn - gfn of every page in its slot."""
    escaped: NDArray[np.int64]
    """Ascending gfns whose slots cannot be used: they will escape."""
    token: Token

    def escapes_between(self, start: int, end: int) -> bool:
        """Tell whether a gfn of [start, end) escapes."""
        return bool(np.searchsorted(self.escaped, end) > np.searchsorted(self.escaped, start))


def frames_of(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[n]: the frames that page-table entries name."""
    return np.asarray(entries >> FRAME_SHIFT & FRAME_MASK)


class VirtualMachine:
    """One VM. ``number`` is its owner number in the host's ledger, its vpid and its eptp."""

    def __init__(  # noqa: PLR0915  a book has many pages
        self, number: int, name: str, description: scenario.VM, guest: Memory, nested: PageTable
    ) -> None:
        self.number = number
        self.name = name
        self.description = description
        self.guest = guest
        """Guest-physical memory: ledger and buddy of gfns."""
        self.nested = nested
        """Nested table: gfn to hfn."""
        self.kernel_table: PageTable | None = None
        self.process: Process | None = None
        """The guest process that runs the workload."""
        self.guest_segment: Segment | None = None
        self.vmm_segment: Segment | None = None
        self.empty_filter: EscapeFilter | None = None
        """The escape filter of its VMM segment with nothing in it; None on hardware without filters."""
        self.escape_budget = description.escape_filter.members
        """Pages that may escape before the segment is given up."""
        self.escapes: Escapes | None = None
        """Pages that escape the VMM segment that is live, or was live last."""
        self.lease: Lease | None = None
        """The window of the VMM segment that is being built for this VM: faults are served slot-first."""
        self.mode_wanted = description.mode
        self.running = True
        self.backed = np.zeros((guest.pages + PAGEBLOCK - 1) >> PAGEBLOCK_ORDER, np.int16)
        """int16[blocks]: how many gfns of each 2 MiB block have a frame."""
        self.resident_pages = 0
        self.held_pages = 0
        """Frames under the VMM segment whose gfns the guest has given up: the host cannot use them (yet)."""
        self.ballooned_pages = 0
        """Given up to the balloon, to come back when its target falls."""
        self.balloon_target_pages = 0
        self.exchanged_pages = 0
        """Given up for good, in exchange for memory that was added elsewhere (self-ballooning)."""
        self.added_pages = 0
        """Pages hot-added, less those removed."""
        self.boot_top = 0
        """One past the last gfn that was memory at boot."""
        self.memory_top = 0
        """One past the last gfn that is memory: where the next block is added."""
        self.stall_ns: Counter[str] = Counter()
        """Time that vCPUs lose to faults and services and have not been charged yet, by cause."""
        self.reads: Counter[SwapDevice] = Counter()
        """Pages that its vCPUs wait to be read from swap devices, and have not waited for yet,"""
        self.read_requests: Counter[SwapDevice] = Counter()
        """by so many requests;"""
        self.writes: dict[SwapDevice, tuple[int, int]] = {}
        """and (requests, pages) that they wait to be written, since there was no free frame for them."""
        self.flushes = 0
        """Flushes of this VM's translations that have not been charged yet."""
        self.remapped_pages = 0
        """Pages whose mapping or leaf size changed since the last sample."""
        self.epoch: Event | None = None
        """Happens when the span of constant translation ends (semantics of sampling: an epoch)."""
        self.changed: Callable[[str], None] = lambda reason: None
        """Called with the reason when an epoch must end; set by whoever runs the vCPUs."""
        self.segment_lost: Callable[[str], None] = lambda reason: None
        """Called with the reason when the VMM segment is taken away; set by the mode controller."""
        self.overhead: float | None = None
        """Walk cycles over ideal cycles by the last sample; None before the first."""
        self.sampled: Sampled | None = None
        """What the last sample past the program's initial phase says about modes; None before the first."""
        self.progress = 0
        """Accesses done by the workload."""
        self.cores: tuple[int, ...] = ()
        """The engine's cores that run its accesses: the only ones that hold its translations."""
        self.remembered: tuple[int, int, int] | None = None
        """(base, limit, offset) of the VMM segment that was left last."""
        self.remembered_moves = 0
        """Frames of the VM that moved or went since then: at 0 the segment can be entered again at once."""
        self.whole_blocks = np.zeros(self.backed.size, np.bool_)
        """bool[blocks]: which 2 MiB blocks of gPA are memory throughout."""
        self.zeroed: NDArray[np.bool_] | None = None
        """bool[gfns]: what was backed for a VMM segment's sake and the guest has not used since; None: nothing."""
        self.saved_cycles_per_s = 0.0
        """Walk cycles that its VMM segment saves each second at full load, by the last sample; 0: none, or unknown."""
        self.merged: NDArray[np.bool_] | None = None
        """bool[gfns]: which are mapped, read-only, to a frame that others share; None: nothing is ever merged."""
        self.merged_pages = 0
        self.swapped: NDArray[np.int32] | None = None
        """int32[gfns]: 1 + slot of the host's swap space that holds the page, 0 where none does; None: no swap space.

        A resident page keeps its slot while that holds the same."""
        self.swapped_pages = 0
        """Pages that are in swap space and have no frame,"""
        self.swapped_of_block = np.zeros(self.backed.size, np.int16)
        """int16[blocks]: and how many of each 2 MiB block are."""
        self.guest_swapped_pages = 0
        """Pages of the program that its guest has swapped out."""
        self.contents: GuestContents | None = None
        """What its pages hold; None where nobody asks."""
        self.activity: Activity | None = None
        """When its program accessed which page; None while none runs, or where nobody asks."""
        self.dirty_log: DirtyLog | None = None
        """Which pages are written to, round by round; None while nobody logs."""
        self.lost = ""
        """Why the VM or its workload is gone before its time; "" while it is not."""

    @property
    def mode(self) -> str:
        """The mode had: which segments are live."""
        guest = self.guest_segment is not None and self.guest_segment.base < self.guest_segment.limit
        vmm = self.vmm_segment is not None and self.vmm_segment.base < self.vmm_segment.limit
        return mode_name(guest=guest, vmm=vmm)

    @property
    def memory_pages(self) -> int:
        """Guest memory present, in pages, the balloon's included."""
        return self.guest.present_pages

    def registers(self) -> Registers:
        """Return what each of its vCPUs has loaded."""
        table = self.process.table if self.process is not None else self.kernel_table
        assert table is not None, f"{self.name} is not booted"
        return Registers(
            mode=MODES[self.mode],
            guest_table=table,
            nested_table=self.nested,
            guest_segment=self.guest_segment,
            vmm_segment=self.vmm_segment,
            vpid=self.number,
            asid=1,
            eptp=self.number,
        )

    def under_vmm_segment(self, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which gfns the live VMM segment pins: in range, and not true members of the filter."""
        segment = self.vmm_segment
        if segment is None:
            return np.zeros(gfns.shape, np.bool_)
        inside: NDArray[np.bool_] = (gfns >= segment.base) & (gfns < segment.limit)
        if self.escapes is not None and self.escapes.members:
            inside &= ~np.isin(gfns, np.array(self.escapes.members, np.int64))
        return inside

    def under_lease(self, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: over which gfns a VMM segment is being built."""
        if self.lease is None:
            return np.zeros(gfns.shape, np.bool_)
        return np.asarray((gfns >= self.lease.base) & (gfns < self.lease.limit))

    def in_guest_segment(self, gvpns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which gvpns the live guest segment translates."""
        segment = self.guest_segment
        if segment is None:
            return np.zeros(gvpns.shape, np.bool_)
        return np.asarray((gvpns >= segment.base) & (gvpns < segment.limit))

    def under_guest_segment(self, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which gfns the live guest segment leads to, and so pins."""
        segment = self.guest_segment
        return self.in_guest_segment(gfns - segment.offset) if segment is not None else np.zeros(gfns.shape, np.bool_)

    def note_memory(self, start: int, end: int, present: bool) -> None:
        """Book that gfns [start, end) became memory, or ceased to be."""
        first, last = -(-start // PAGEBLOCK), end // PAGEBLOCK
        self.whole_blocks[first:last] = present
        if present:
            self.memory_top = max(self.memory_top, end)
        elif end == self.memory_top:
            there = np.flatnonzero(self.whole_blocks)
            self.memory_top = (int(there[-1]) + 1) << PAGEBLOCK_ORDER if there.size else 0

    def memory_runs(self) -> list[tuple[int, int]]:
        """Return the ranges of gfns [base, limit) that are all memory, above the I/O gap if anything is there.

        Holes are the gap, and blocks that were taken away.
        """
        start = ABOVE_GAP if self.memory_top > ABOVE_GAP else 0
        blocks = self.whole_blocks[start >> PAGEBLOCK_ORDER : -(-self.memory_top // PAGEBLOCK)]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], blocks, [0]])))
        bounds = (start + (edges << PAGEBLOCK_ORDER)).tolist()
        return list(zip(bounds[::2], bounds[1::2], strict=True)) or [(start, start)]

    def longest_memory(self) -> tuple[int, int]:
        """Return the longest of the ranges of gfns [base, limit) that are all memory: the first of equals."""
        return max(self.memory_runs(), key=lambda run: run[1] - run[0])

    def given_up(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the gfns of [start, end) that the balloon holds."""
        return start + np.flatnonzero(self.guest.frames["kind"][start:end] == Kind.BALLOON)

    def private_frames(self, base: int, limit: int) -> NDArray[np.int32]:
        """Return int32[limit - base]: the frames of gfns that are this VM's own, -1 where there is none."""
        frames = self.nested.translate_range(base, limit)
        if self.merged is not None:
            frames[self.merged[base:limit]] = -1
        return frames

    def nested_to(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the merged gfns that are mapped to one of the shared ``frames``."""
        gfns = np.flatnonzero(self.merged) if self.merged is not None else np.empty(0, np.int64)
        return np.asarray(gfns[np.isin(self.nested.translate(gfns), frames)])

    def empty_blocks(self) -> NDArray[np.bool_]:
        """Return bool[blocks]: the 2 MiB blocks that one large frame may back: memory throughout, and empty."""
        return np.asarray((self.backed == 0) & (self.swapped_of_block == 0) & self.whole_blocks)

    def watch(self, gfns: NDArray[np.int64], mark: int) -> None:
        """Have the next access, or write, to what the program has in ``gfns`` handled before it is made."""
        process, book = self.process, self.guest.frames
        if process is None:
            return
        mine = gfns[(book["kind"][gfns] == Kind.USER) & (book["owner"][gfns] == process.number)]
        process.watched[book["page"][mine]] |= mark

    def note_zeroed(self, gfns: NDArray[np.int64]) -> None:
        """Book that ``gfns`` got zeroed frames that the guest did not ask for."""
        if self.zeroed is None:
            self.zeroed = np.zeros(self.guest.pages, np.bool_)
        self.zeroed[gfns] = True

    def untouched(self) -> NDArray[np.int64]:
        """Return the gfns with frames that were zeroed and never used since, those given up left out."""
        if self.zeroed is None:
            return np.empty(0, np.int64)
        gfns = np.flatnonzero(self.zeroed)
        kept = (self.guest.frames["kind"][gfns] != Kind.BALLOON) & (self.nested.translate(gfns) >= 0)
        return np.asarray(gfns[kept])

    def note_backing(self, gfns: NDArray[np.int64], change: int, *, size_pages: int = 1) -> None:
        """Book that leaves of ``size_pages`` at ``gfns`` were mapped (change 1) or unmapped (-1)."""
        np.add.at(self.backed, gfns >> PAGEBLOCK_ORDER, np.int16(change * min(size_pages, PAGEBLOCK)))
        self.resident_pages += change * size_pages * int(gfns.size)

    def held_now(self) -> int:
        """Return how many pages that the balloon holds are pinned by the live VMM segment."""
        segment = self.vmm_segment
        if segment is None:
            return 0
        return int(np.count_nonzero(self.under_vmm_segment(self.given_up(segment.base, segment.limit))))

    def used_pages(self) -> int:
        """Return the guest's pages in use: present, not free, not given up."""
        return self.guest.present_pages - self.guest.free_pages - self.guest.count(kind=Kind.BALLOON)


def mode_name(*, guest: bool, vmm: bool) -> str:
    """Return the mode that has these segments."""
    wanted = ("segment" if guest else "walk", "segment" if vmm else "walk")
    return next(mode.name for mode in MODES.values() if (mode.guest, mode.nested) == wanted)


def wants(mode: str) -> tuple[bool, bool]:
    """Return which segments a mode has: (guest, vmm)."""
    described: Mode = MODES[mode]
    return described.guest == "segment", described.nested == "segment"
