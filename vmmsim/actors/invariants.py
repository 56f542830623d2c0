"""What must be true after every event, recounted from scratch: ledgers, tables, segments, balloons and translations.

Slow on purpose: no count that is kept is trusted. ``AssertionError`` says what is wrong and where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.actors.vm import frames_of
from vmmsim.memory.frames import NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, SHARED, Kind
from vmmsim.translation.page_table import PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vmmsim.actors.guest import Guest
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.page_table import PageTable

IN_USE = (Kind.KERNEL, Kind.SLAB, Kind.TABLE, Kind.USER, Kind.CACHE)
"""Kinds of guest frames that were touched, and so have a host frame."""


def check_all(vmm: Vmm, engine: Engine, guests: Iterable[Guest]) -> None:
    """Check the host and every guest on it."""
    guests = list(guests)
    vmm.host.check()
    assert {guest.vm.number for guest in guests} == set(vmm.vms), "VMs of the VMM and guests differ"
    check_host(vmm)
    for part in (vmm.merging, vmm.swap):
        if part is not None:
            part.check()
    for guest in guests:
        guest.vm.guest.check()
        check_books(guest)
        check_segments(guest.vm, vmm)
        if guest.vm.dirty_log is not None:
            guest.vm.dirty_log.check()
        guest.balloon.check()
        if guest.os.swap is not None:
            guest.os.swap.check()
    engine.check([guest.vm.registers() for guest in guests if guest.vm.process is not None])


def expanded(table: PageTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every 4 KiB page that a table maps, ascending, and its frame."""
    pages, entries, sizes = table.leaves()
    assert np.all(entries & PRESENT), "a leaf that is not present"
    spans = 1 << 9 * sizes
    starts = np.cumsum(spans) - spans
    within = np.arange(int(spans.sum())) - np.repeat(starts, spans)
    return np.repeat(pages, spans) + within, np.repeat(frames_of(entries), spans) + within


def check_host(vmm: Vmm) -> None:
    """Every frame of guest memory is one VM's, by ledger and by nested table alike; so is every nested table's."""
    book = vmm.host.frames
    for kind in (Kind.USER, Kind.TABLE):
        owners = np.unique(book["owner"][book["kind"] == kind])
        gone = owners[~np.isin(owners, [*vmm.vms, NOBODY, SHARED])]
        assert not gone.size, f"{kind.name.lower()} frames belong to VM {gone[:1]}, which does not run"
    for number, vm in vmm.vms.items():
        gfns, hfns = expanded(vm.nested)
        merged = vm.merged[gfns] if vm.merged is not None else np.zeros(gfns.size, np.bool_)
        assert np.all((book["owner"][hfns] == SHARED) == merged), f"{vm.name}: merged pages and shared frames differ"
        resident, shared = gfns, hfns[merged]
        gfns, hfns = gfns[~merged], hfns[~merged]
        assert np.unique(hfns).size == hfns.size, f"{vm.name}: two gfns share a frame"
        assert np.all(book["kind"][hfns] == Kind.USER), f"{vm.name} maps frames that are not guest memory"
        assert np.all(book["owner"][hfns] == number), f"{vm.name} maps frames of others"
        assert np.array_equal(book["page"][hfns], gfns), f"{vm.name}: the reverse map is wrong"
        owned = vmm.host.owned(number)
        users = owned[book["kind"][owned] == Kind.USER]
        assert users.size == hfns.size, f"{vm.name} owns {users.size} frames and maps {hfns.size}"
        tables = owned[book["kind"][owned] == Kind.TABLE]
        assert np.array_equal(tables, np.sort(vm.nested.table_frames)), f"{vm.name}: nested tables lie elsewhere"
        assert not np.any(np.isin(shared, hfns)), f"{vm.name}: a frame is shared and private"
        booked = vm.resident_pages
        assert booked == resident.size, f"{vm.name}: {booked} booked as resident, {resident.size} are"
        backed = np.bincount(resident >> PAGEBLOCK_ORDER, minlength=vm.backed.size)
        assert np.array_equal(backed, vm.backed), f"{vm.name}: the book of backed blocks is wrong"


def check_books(guest: Guest) -> None:
    """The guest's ledger and page table agree, and what is in use has a host frame; holes have none."""
    vm = guest.vm
    gfns = np.arange(vm.guest.pages)
    kinds = vm.guest.kinds(gfns)
    resident = vm.nested.translate(gfns) >= 0
    if vm.swapped is not None:
        resident |= vm.swapped > 0
    in_use = np.isin(kinds, np.array(IN_USE))
    assert np.all(resident[in_use]), f"{vm.name}: {gfns[in_use & ~resident][:3]} are in use and have no frame"
    assert not np.any(resident[kinds == Kind.HOLE]), f"{vm.name}: holes have frames"
    whole = (kinds[: gfns.size // PAGEBLOCK * PAGEBLOCK].reshape(-1, PAGEBLOCK) != Kind.HOLE).all(axis=1)
    assert np.array_equal(whole, vm.whole_blocks[: whole.size]), f"{vm.name}: the book of whole blocks is wrong"
    present = (vm.description.memory_bytes >> 12) + vm.added_pages
    assert vm.guest.present_pages == present, f"{vm.name}: {vm.guest.present_pages} pages present, not {present}"
    process = vm.process
    if process is None:
        return
    pages, frames = expanded(process.table)
    booked = np.sort(process.gvpns(np.flatnonzero(process.mapped)))
    assert np.array_equal(pages, booked), f"{vm.name}: the guest table and the book of mapped pages differ"
    assert process.mapped_pages == pages.size
    book = vm.guest.frames
    assert np.all(book["kind"][frames] == Kind.USER), f"{vm.name}: the process maps frames that are not its"
    assert np.array_equal(book["page"][frames], process.numbers(pages)), f"{vm.name}: the guest's reverse map is wrong"
    assert vm.guest.count(kind=Kind.USER, owner=process.number) == frames.size


def check_segments(vm: VirtualMachine, vmm: Vmm) -> None:
    """Below a live segment the table is complete and says the same; what it reaches is this VM's, and pinned."""
    segment = vm.vmm_segment
    owned = vmm.host.owned(vm.number)
    pinned = owned[vmm.host.frames["mark"][owned] & PINNED != 0]
    reached = 0 if segment is None else int(np.count_nonzero(vm.under_vmm_segment(np.arange(vm.guest.pages))))
    assert pinned.size == reached, f"{vm.name}: {pinned.size} frames are pinned, its segment reaches {reached}"
    if segment is not None:
        gfns = np.arange(segment.base, segment.limit)
        members = np.array(vm.escapes.members if vm.escapes is not None else (), np.int64)
        covered = gfns[~np.isin(gfns, members)]
        hfns = vm.nested.translate(covered)
        assert np.array_equal(hfns, covered + segment.offset), f"{vm.name}: nested table and VMM segment differ"
        book = vmm.host.frames
        assert np.all(book["owner"][hfns] == vm.number), f"{vm.name}: its segment reaches frames of others"
        assert np.all(book["mark"][hfns] & PINNED), f"{vm.name}: frames under its segment are not pinned"
        inside = members[(members >= segment.base) & (members < segment.limit)]
        assert np.all(vm.nested.translate(inside) != inside + segment.offset), (
            f"{vm.name}: an escaped page did not move"
        )
        held = int(np.count_nonzero(vm.guest.kinds(covered) == Kind.BALLOON))
        assert vm.held_pages == held, f"{vm.name}: {vm.held_pages} pages booked as held, {held} are"
    guest = vm.guest_segment
    if guest is not None and vm.process is not None:
        gvpns = np.arange(guest.base, guest.limit)
        gfns = vm.process.table.translate(gvpns)
        assert np.array_equal(gfns, gvpns + guest.offset), f"{vm.name}: guest table and guest segment differ"
        assert np.all(vm.guest.frames["mark"][gfns] & PINNED), f"{vm.name}: gfns under its segment are not pinned"
