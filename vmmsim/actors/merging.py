"""Frames that several gfns share, read-only: the mechanism below page sharing. Who is to share is not decided here.

A shared frame is the ledger's USER memory of owner SHARED, with the number of gfns that are mapped to it in ``page``.
Nobody may write to it: the nested leaves lack the right, and a write gets a frame of its own first. Since mapping
gfn to frame is what a VMM segment pins, what lies under one can be neither merged nor come apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.obstacles import Obstacle, first_of
from vmmsim.actors.process import WATCH_WRITE
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, SHARED, Kind
from vmmsim.translation.page_table import WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm


class Merging:
    """The shared frames of one host."""

    def __init__(self, vmm: Vmm) -> None:
        self.vmm = vmm
        self.gone: Callable[[NDArray[np.int64]], None] = lambda frames: None
        """Told of shared frames that are free again; set by whoever decides what is shared."""
        self.left: Callable[[NDArray[np.int64]], None] = lambda frames: None
        """Told of shared frames that lost mappings, each as often as it did, before ``gone``."""
        self.moved: Callable[[NDArray[np.int64], NDArray[np.int64]], None] = lambda old, new: None
        """Told that shared frames lie elsewhere now."""
        self.recount: Callable[[], None] = lambda: None
        """Checks the books of whoever decides what is shared."""
        self.broken_pages = 0
        """Merged pages that got a frame of their own again, since time 0."""
        self.broken_ns = 0
        """Time that this took from guests."""
        self._break_ns = int(rates.number("sharing.break_ns"))

    # Who may

    def may_share(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which of ``gfns`` may come to share a frame now: ask before ``share`` and ``merge``."""
        return np.asarray(self.obstacles(vm, gfns) == Obstacle.NONE)

    def obstacles(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[n]: what keeps each of ``gfns`` from coming to share a frame now (``Obstacle``).

        Frames that a change in progress holds are no obstacle: it lets go of them.
        """
        assert vm.merged is not None
        return first_of(
            (Obstacle.PINNED_VMM, vm.under_vmm_segment(gfns)),
            (Obstacle.ABSENT, vm.nested.translate(gfns) < 0),
            (Obstacle.MERGED, vm.merged[gfns]),
            (Obstacle.LEASED, vm.under_lease(gfns)),
            (Obstacle.IMMOVABLE, vm.guest.frames["kind"][gfns] == Kind.TABLE),  # walks write to those
        )

    # Coming together

    def share(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make the frames of resident, private ``gfns`` shared ones, each mapped once; return them, int64[n]."""
        assert np.all(self.may_share(vm, gfns)), "a page that may not be shared"
        self.make_small(vm, gfns)
        frames = vm.nested.translate(gfns)
        self._let_go(frames)
        self.vmm.host.assign(frames, owner=SHARED, pages=np.ones(frames.size, np.int64))
        vm.remembered_moves += int(gfns.size)  # the frames are no longer its own
        self._protect(vm, gfns)
        return frames

    def merge(self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        """Map resident, private ``gfns`` to shared ``frames`` that hold the same (int64[n] each); free their own."""
        assert np.all(self.may_share(vm, gfns)), "a page that may not be shared"
        self.make_small(vm, gfns)
        old = vm.nested.translate(gfns)
        self._let_go(np.append(old, frames))
        vm.nested.remap(gfns, frames)
        self._count(frames, 1)
        self.vmm.host.give_back(old)
        vm.remembered_moves += int(gfns.size)
        self._protect(vm, gfns)

    def _let_go(self, frames: NDArray[np.int64]) -> None:
        """Have whoever is copying one of ``frames`` begin anew."""
        if np.any(self.vmm.host.frames["mark"][frames] & ISOLATED):
            self.vmm.disrupt()

    def make_small(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Split the large leaves over ``gfns``: 4 KiB pages are what is shared.

        ``VmLost`` if there is no frame for a table, and this VM is the one that is killed.
        """
        large = np.unique(gfns[vm.nested.mapped_sizes(gfns) == 1] & -PAGEBLOCK)
        if large.size:
            vm.nested.split_many(large)
            vm.remapped_pages += int(large.size) * PAGEBLOCK

    def _protect(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        assert vm.merged is not None
        vm.nested.protect_many(gfns, clear_flags=WRITABLE)
        vm.merged[gfns] = True
        vm.merged_pages += int(gfns.size)
        vm.remapped_pages += int(gfns.size)
        vm.watch(gfns, WATCH_WRITE)
        self.vmm.flush(vm)
        vm.flushes += 1

    def _count(self, frames: NDArray[np.int64], change: int) -> NDArray[np.int64]:
        """Count mappings of shared frames (one frame may occur several times); return those with none left."""
        distinct, times = np.unique(frames, return_counts=True)
        left = self.vmm.host.frames["page"][distinct].astype(np.int64) + change * times
        self.vmm.host.assign(distinct[left > 0], pages=left[left > 0])
        return distinct[left <= 0]

    # Coming apart

    def unshare(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> int:
        """Give each merged one of ``gfns`` a private copy that may be written to, and charge it; return how many."""
        if vm.merged is None or not vm.merged_pages:
            return 0
        gfns = gfns[vm.merged[gfns]]
        if not gfns.size:
            return 0
        new = self.vmm.take_for(vm, gfns)
        held = vm.merged[gfns]  # finding room may have taken some apart
        if not np.all(held):
            self.vmm.host.give_back(new[~held])
            gfns, new = gfns[held], new[held]
        old = vm.nested.translate(gfns)
        self.vmm.copied(old, new)
        vm.nested.remap(gfns, new)
        vm.nested.protect_many(gfns, set_flags=WRITABLE)
        self._leave(vm, gfns, old)
        vm.remapped_pages += int(gfns.size)
        vm.stall_ns["unsharing"] += int(gfns.size) * self._break_ns
        self.broken_pages += int(gfns.size)
        self.broken_ns += int(gfns.size) * self._break_ns
        self.vmm.flush(vm)
        vm.flushes += 1
        return int(gfns.size)

    def drop(self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        """Note that merged ``gfns``, which were mapped to shared ``frames``, are mapped no longer."""
        self._leave(vm, gfns, frames)

    def _leave(self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        assert vm.merged is not None
        self._let_go(frames)
        vm.merged[gfns] = False
        vm.merged_pages -= int(gfns.size)
        free = self._count(frames, -1)
        self.left(frames)
        if free.size:
            self.gone(free)
            self.vmm.host.give_back(free)

    # Moving

    def move(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Map all that is mapped to the shared frames ``old`` (int64[n], distinct) to ``new``: copied once each.

        The ledger's books of the frames are the caller's to move, as with every frame.
        """
        order = np.argsort(old)
        self.vmm.copied(old, new)
        for vm in self.vmm.vms.values():
            if vm.merged is None or not vm.merged_pages:
                continue
            gfns = np.flatnonzero(vm.merged)
            frames = vm.nested.translate(gfns)
            at = np.minimum(np.searchsorted(old, frames, sorter=order), old.size - 1)
            hit = old[order[at]] == frames
            if np.any(hit):
                vm.nested.remap(gfns[hit], new[order[at[hit]]])
                vm.remapped_pages += int(np.count_nonzero(hit))
                self.vmm.flush(vm)
                vm.flushes += 1
        self.moved(old, new)

    # Checking

    def check(self) -> None:
        """Recount the mappings of every shared frame, and that no leaf to one may be written through."""
        book = self.vmm.host.frames
        shared = np.flatnonzero((book["owner"] == SHARED) & (book["kind"] == Kind.USER))
        mapped = [np.empty(0, np.int64)]
        for vm in self.vmm.vms.values():
            gfns = np.flatnonzero(vm.merged) if vm.merged is not None else np.empty(0, np.int64)
            assert gfns.size == vm.merged_pages, f"{vm.name}: {vm.merged_pages} booked as merged, {gfns.size} are"
            flags = vm.nested.flags(gfns)
            assert np.all((flags >= 0) & (flags & WRITABLE == 0)), f"{vm.name}: a merged page may be written to"
            assert not np.any(vm.under_vmm_segment(gfns)), f"{vm.name}: a merged page lies under its VMM segment"
            mapped.append(vm.nested.translate(gfns))
        frames, counts = np.unique(np.concatenate(mapped), return_counts=True)
        assert np.array_equal(frames, shared), "shared frames and the frames of merged pages differ"
        assert np.array_equal(counts, book["page"][shared]), "mappings of a shared frame are miscounted"
        self.recount()
