"""A recorded program laid out in a guest on a host, for one mode: page tables, segments, and pages gone bad.

Everything the trace touches is mapped beforehand, and every leaf is accessed, dirty, writable and executable: the
program is replayed as one that has been running, so that nothing faults. Below a segment the page table of that
level says what the segment says, except for bad pages, which it maps to healthy frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.addresses import PAGE_BYTES, SIZE_NAMES, format_bytes, size_pages
from vmmsim.errors import BadInput
from vmmsim.randomness import stream
from vmmsim.studies.placement import Frames, Placement
from vmmsim.translation.escape_filter import random_filter
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, FRAME_MASK, WRITABLE
from vmmsim.translation.registers import Registers, Segment
from vmmsim.workloads.regions import primary_region

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.config import Mode
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.page_table import PageTable

FLAGS: Final = WRITABLE | EXECUTABLE | ACCESSED | DIRTY
SPARE_TABLES: Final = 8
"""Frames for tables beyond those counted: a page table keeps a few empty ones at hand."""
SMALLEST_GUEST: Final = 1 << 15
"""Pages (128 MiB, Linux's memory block) that guest memory is a multiple of, unless the user says otherwise."""
LARGEST_GUEST: Final = 1 << 30
"""Pages (4 TiB): half of what a page-table entry can name, so that the host has as much again beside a segment."""
HOST_ROOM: Final = 3
"""Host memory is this many times the guest's, so that placement on the host has room to scatter."""
LARGEST_HOST: Final = FRAME_MASK + 1
"""Pages (8 TiB) that a page-table entry can name."""


@attrs.frozen(kw_only=True)
class Program:
    """What a trace touches."""

    pages: NDArray[np.int64] = attrs.field(eq=False)
    """int64[n], ascending: gvpns that the replayed accesses touch."""
    code: NDArray[np.int64] = attrs.field(eq=False)
    """int64[m], ascending: gvpns that instructions are fetched from, replayed or not."""

    def primary_region(self) -> tuple[int, int]:
        """Return the gvpns [base, limit) that a guest segment is made for; base = limit if there are none."""
        return primary_region(self.pages, self.code)


@attrs.frozen(kw_only=True)
class Plan:
    """How to lay a program out; sizes are size numbers (0: 4K, 1: 2M, 2: 1G)."""

    guest_page: int
    host_page: int
    guest_frames: int | None
    """Guest memory in pages; None for twice what the program needs."""
    placement: Placement
    bad_pages: int
    seed: int


@attrs.frozen(kw_only=True)
class Layout:
    """A program in its place: what a vCPU loads to run it."""

    registers: Registers
    guest_frames: int
    """Guest memory (natively: the machine's), in pages."""
    bad_pages: tuple[int, ...] = ()
    """Pages that escape the segment over the bad frames, as the segment's level numbers them."""


def tables_needed(pages: NDArray[np.int64], size: int, levels: int) -> int:
    """Return how many tables map ``pages`` by leaves of ``size``, the root among them."""
    return 1 + sum(int(np.unique(pages >> 9 * (level - 1)).size) for level in range(size + 2, levels + 1))


def lay_out(engine: Engine, mode: Mode, program: Program, plan: Plan) -> Layout:
    """Build the page tables and segments of ``mode`` in ``engine``; ``BadInput`` if guest memory is too small."""
    guest = _Guest(engine, mode, program, plan)
    vmm_segment: Segment | None = None
    nested: PageTable | None = None
    bad = guest.bad
    if mode.nested != "identity":
        nested, vmm_segment, bad = _nest(engine, mode, guest, plan)
    registers = Registers(
        mode=mode,
        guest_table=guest.table,
        nested_table=nested,
        guest_segment=guest.segment,
        vmm_segment=vmm_segment,
    )
    return Layout(registers=registers, guest_frames=guest.frames, bad_pages=bad)


class _Guest:
    """The guest level: gvpn to gfn (natively: vpn to hfn)."""

    def __init__(self, engine: Engine, mode: Mode, program: Program, plan: Plan) -> None:
        pages, size = program.pages, plan.guest_page
        base, limit = program.primary_region() if mode.guest == "segment" else (0, 0)
        in_region = (pages >= base) & (pages < limit)
        units = np.unique(pages[~in_region] >> 9 * size) << 9 * size
        straddles = (units < limit) & (units + size_pages(size) > base)
        large = units[~straddles]
        small = pages[~in_region & np.isin(pages & -size_pages(size), units[straddles])] if size else units[:0]
        # Congruent to the region modulo 2 MiB, so that OFFSET is 0 mod 2 MiB and large TLB entries can be filled.
        start = base & 511 if limit else 0
        end = start + limit - base
        levels = engine.machine.levels
        tables = tables_needed(large, size, levels) + tables_needed(np.union1d(small, pages[in_region]), 0, levels)
        room_for_small = small.size + tables + SPARE_TABLES
        unit = size_pages(size)
        need = -(-end // unit) * unit + large.size * unit + -(-room_for_small // unit) * unit
        self.frames = _guest_frames(plan, need)
        random = stream(plan.seed, "replay.guest")
        frames = Frames(end, self.frames, size=size, placement=plan.placement, random=random, tables=room_for_small)
        self.table = engine.table(frames.take_tables)
        self.table.map(large, frames.take(large.size), size=size, flags=FLAGS)
        self.table.map(small, frames.take_tables(small.size), flags=FLAGS)
        inside = pages[in_region]
        offset = start - base
        bad_in_guest = plan.bad_pages if mode.nested == "identity" else 0
        self.segment: Segment | None = None
        self.bad: tuple[int, ...] = ()
        backing = inside + offset
        if limit:
            self.segment, self.bad = _segment(base, limit, offset, bad_in_guest, plan, "replay.guest")
            # A bad page natively: the table maps it to a healthy frame.
            touched_bad = np.isin(inside, np.array(self.bad, np.int64))
            backing[touched_bad] = self.frames + np.arange(int(touched_bad.sum()))
            self.table.map(inside, backing, flags=FLAGS)
        self.used = np.unique(np.concatenate([self.table.translate(pages), self.table.table_frames]))


def _guest_frames(plan: Plan, need: int) -> int:
    if need > LARGEST_GUEST:
        raise BadInput(
            f"the program in {SIZE_NAMES[plan.guest_page]} pages needs {format_bytes(need * PAGE_BYTES)}, and a guest "
            f"has at most {format_bytes(LARGEST_GUEST * PAGE_BYTES)}"
            + ("; smaller pages need less" if plan.guest_page else "; its accesses lie too far apart"),
            file="--guest-page",
        )
    if plan.guest_frames is None:
        return min(-(-2 * need // SMALLEST_GUEST) * SMALLEST_GUEST, LARGEST_GUEST)
    if plan.guest_frames < need:
        raise BadInput(
            f"guest memory of {format_bytes(plan.guest_frames * PAGE_BYTES)} is too small: the program in "
            f"{SIZE_NAMES[plan.guest_page]} pages, with its page tables, needs {format_bytes(need * PAGE_BYTES)}",
            file="--guest-memory",
        )
    return plan.guest_frames


def _segment(
    base: int, limit: int, offset: int, bad_pages: int, plan: Plan, name: str
) -> tuple[Segment, tuple[int, ...]]:
    """Return a segment, with a filter of ``bad_pages`` pages drawn from all of it."""
    if not bad_pages:
        return Segment(base=base, limit=limit, offset=offset), ()
    if bad_pages > limit - base:
        raise BadInput(f"{bad_pages} bad pages do not fit a segment of {limit - base} pages", file="--bad-pages")
    random = stream(plan.seed, f"{name}.bad")
    chosen = base + random.choice(limit - base, bad_pages, replace=False)
    bad = tuple(sorted(int(page) for page in chosen))
    held = random_filter(random).with_members(*bad)
    return Segment(base=base, limit=limit, offset=offset, filter=held), bad


def _nest(engine: Engine, mode: Mode, guest: _Guest, plan: Plan) -> tuple[PageTable, Segment | None, tuple[int, ...]]:
    """Build the nested level under a guest: gfn to hfn."""
    size, unit = plan.host_page, size_pages(plan.host_page)
    levels = engine.machine.levels
    segment: Segment | None = None
    bad: tuple[int, ...] = ()
    # OFFSET is 0 mod 1 GiB: the VMM chose where the window lies.
    offset = 1 << 18
    reserved = 0
    if mode.nested == "segment":
        segment, bad = _segment(0, guest.frames, offset, plan.bad_pages, plan, "replay.vmm")
        reserved = offset + guest.frames
    members = np.array(bad, np.int64)
    used = np.union1d(guest.used, members)
    blocks = np.unique(used >> 9 * size) << 9 * size
    split = np.unique(members >> 9 * size) << 9 * size if size else blocks[:0]
    whole = np.setdiff1d(blocks, split)
    small = used[np.isin(used & -unit, split)]
    tables = tables_needed(whole, size, levels) + tables_needed(small, 0, levels) + SPARE_TABLES
    room = max(HOST_ROOM * guest.frames, whole.size * unit) + (-(-(tables + members.size) // unit) + 1) * unit
    host_end = min(reserved + room, LARGEST_HOST)
    frames = Frames(
        reserved,
        host_end,
        size=size,
        placement=plan.placement,
        random=stream(plan.seed, "replay.host"),
        tables=tables + members.size,
    )
    nested = engine.table(frames.take_tables)
    if segment is None:
        nested.map(whole, frames.take(whole.size), size=size, flags=FLAGS)
        return nested, None, ()
    healthy = _healthy(frames.take_tables, members)
    for pages, leaf in ((whole, size), (small, 0)):
        nested.map(pages, healthy(pages + offset, pages), size=leaf, flags=FLAGS)
    return nested, segment, bad


def _healthy(
    take: Callable[[int], NDArray[np.int64]], members: NDArray[np.int64]
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Return a function that puts frames of its own under the pages that are members."""
    spare = take(members.size)

    def mend(frames: NDArray[np.int64], pages: NDArray[np.int64]) -> NDArray[np.int64]:
        is_bad = np.isin(pages, members)
        mended = frames.copy()
        mended[is_bad] = spare[np.searchsorted(members, pages[is_bad])]
        return mended

    return mend
