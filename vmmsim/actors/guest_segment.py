"""Guest segments: a contiguous range of gfns under a process's primary region, eagerly backed, pinned while it lives.

Linux's buddy has no block above 4 MiB, so the range comes from a run of free memory (a young guest has one), from
memory that was hot-added for it, or from moving what is in the way. Registers belong to the process; the guest writes
them without an exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.actors.guest_os import LEAF
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, Kind
from vmmsim.translation.page_table import DIRTY
from vmmsim.translation.registers import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.protocols import Region

STEP: Final = 1 << 18
"""Pages that are taken and backed in one go: no array is as long as the region is large."""


def pages_needed(region: Region) -> int:
    """Return the size of a free run that holds the region congruent modulo 2 MiB, so that OFFSET is 0 mod 2 MiB."""
    return (region.start % PAGEBLOCK) + region.pages


def pages_mapped(guest_os: GuestOs, region: Region) -> int:
    """Return how many pages of the region are mapped: to be copied, should it get its segment now."""
    process = guest_os.vm.process
    assert process is not None
    return int(process.mapped[process.region_numbers(region)].sum())


def find_run(guest_os: GuestOs, region: Region, *, within: tuple[int, int] | None = None) -> int:
    """Return the first gfn of a free range for the segment of ``region``, congruent with it; -1 if there is none."""
    start = guest_os.vm.guest.find_free_run(pages_needed(region), align=PAGEBLOCK, within=within)
    return start if start < 0 else int(start) + region.start % PAGEBLOCK


def enter(guest_os: GuestOs, region: Region, first: int) -> int:
    """Make the guest segment of ``region`` over the free gfns from ``first`` on; return how many pages were copied.

    What the region has mapped elsewhere is copied to its place; everything is backed and mapped, and the segment is
    live at once. Charges the faults and copies.
    """
    vm, process = guest_os.vm, guest_os.vm.process
    assert process is not None
    span = process.region_numbers(region)
    copies = pages_mapped(guest_os, region)
    for at in range(0, region.pages, STEP):
        numbers = np.arange(at, min(at + STEP, region.pages), dtype=np.int64)
        gfns = first + numbers
        vm.guest.take_range(
            int(gfns[0]), int(gfns[-1]) + 1, kind=Kind.USER, owner=process.number, pages=span.start + numbers
        )
        guest_os.vmm.back(vm, gfns)
        _copy(guest_os, span.start + numbers, gfns)
    guest_os.unmap(region.start, region.start + region.pages)
    _map(guest_os, region, first)
    process.mark_all(span)
    vm.guest.frames["mark"][first : first + region.pages] |= PINNED
    vm.guest_segment = Segment(base=region.start, limit=region.start + region.pages, offset=first - region.start)
    guest_os.charge_copies(copies)
    vm.changed("mode")
    return copies


def _copy(guest_os: GuestOs, numbers: NDArray[np.int64], gfns: NDArray[np.int64]) -> None:
    """Let ``gfns`` hold what the pages ``numbers`` hold now, and zeros where there is no page yet."""
    vm, process = guest_os.vm, guest_os.vm.process
    assert process is not None
    there = process.mapped[numbers]
    old = process.table.translate(process.gvpns(numbers[there]))
    guest_os.vmm.bring_in(vm, old)
    if vm.contents is not None:
        vm.contents.zeroed(gfns[~there])
        vm.contents.copied(old, gfns[there])
    if guest_os.swap is not None:
        out = guest_os.swap.is_out(numbers)
        guest_os.swap.bring_in(numbers[out], gfns[out])
        guest_os.swap.release(numbers[out])


def _map(guest_os: GuestOs, region: Region, first: int) -> None:
    """Keep the page table below the segment complete: huge leaves where the guest uses them, small ones elsewhere."""
    table, end = guest_os.vm.process.table, region.start + region.pages  # type: ignore[union-attr]
    offset = first - region.start
    low, high = -(-region.start // PAGEBLOCK), end // PAGEBLOCK
    if guest_os.thp and low < high:
        starts = np.arange(low, high, dtype=np.int64) << PAGEBLOCK_ORDER
        table.map(starts, starts + offset, size=1, flags=LEAF | DIRTY)
        edges = np.concatenate([np.arange(region.start, low << 9), np.arange(high << 9, end)])
    else:
        edges = np.arange(region.start, end)
    table.map(edges, edges + offset, flags=LEAF | DIRTY)


def leave(guest_os: GuestOs, why: str) -> None:
    """Take the guest segment away: the pages stay where they are, mapped as before, and may move again."""
    vm, segment = guest_os.vm, guest_os.vm.guest_segment
    assert segment is not None
    marks = vm.guest.frames["mark"]
    marks[segment.base + segment.offset : segment.limit + segment.offset] &= 0xFF ^ PINNED
    vm.guest_segment = None
    guest_os.invalidate(segment.base, segment.limit)
    vm.flushes += 1
    vm.changed(why)
