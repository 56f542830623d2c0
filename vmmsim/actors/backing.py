"""Backing guest memory with host frames: nested faults are served here, and frames taken back.

Absent gfns get frames, 2 MiB at a time where the host has such blocks (transparent huge pages), slot-first while a
segment is being built; what was swapped out is read in, and what is merged gets a copy. When the host is short, room is
made, or a VM is ended.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim import rates
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray
    from simpy import Event

    from vmmsim.actors.contents import Contents
    from vmmsim.actors.host_swap import HostSwap
    from vmmsim.actors.merging import Merging
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.decisions import Recorder
    from vmmsim.memory.ledger import Memory
    from vmmsim.translation.engine import Engine

FLAGS: Final = WRITABLE | EXECUTABLE | ACCESSED | DIRTY
"""A nested leaf is made at a fault that zeroes the page: it is accessed and dirty from birth."""
SPLITS: Final = 256
"""2 MiB leaves that are split in one go where pages of them are taken back."""
_NONE: Final = np.empty(0, np.int64)
_SERVED: Final = 64
"""Requests for frames that are remembered while their pages are in use: more than any one turn of an actor makes."""


class VmLost(Exception):
    """Raised where a VM that is being served is killed: whoever runs it stops."""


def while_it_lives(doing: Generator[Event, object, Any]) -> Generator[Event, object, None]:
    """Do what an actor of a VM does, and stop quietly if the VM is ended in the middle of it."""
    try:
        yield from doing
    except VmLost:
        return


class Backing:
    """Gives host frames to gfns, and takes them back; ``Vmm`` is the whole hypervisor."""

    def __init__(self, host: Memory, engine: Engine, recorder: Recorder, *, thp: bool) -> None:
        self.host = host
        self.engine = engine
        self.recorder = recorder
        self.thp = thp
        self.vms: dict[int, VirtualMachine] = {}
        self.kill: Callable[[VirtualMachine, str], None] = lambda vm, why: None
        """Ends a VM when the host is out of memory; set by whoever starts and ends VMs."""
        self.disrupt: Callable[[], None] = lambda: None
        """Makes whoever is copying frames let go of them; set by the compactor."""
        self.struck: Callable[[NDArray[np.int64]], None] = lambda frames: None
        """Tells whoever is changing frames that these have failed, before anything is done about it; set likewise."""
        self.free_wanted: Callable[[int], int] = self._drop_cache
        """Drops page cache: given how many frames are short, returns how many it freed."""
        self.survive: Callable[[int], int] = self._drop_cache
        """Finds free host frames before a VM is ended for want of them; set by whoever builds the host."""
        self.contents: Contents | None = None
        """What host frames hold; None where nobody asks."""
        self.merging: Merging | None = None
        """Frames that several gfns share; None where page sharing is off."""
        self.swap: HostSwap | None = None
        """Swap space of the host; None without."""
        self.needy = 0
        """Number of the VM that frames were short for last."""
        self._reclaiming = False
        self._served: deque[tuple[int, NDArray[np.int64]]] = deque(maxlen=_SERVED)
        self._served_ns = -1
        self._fault_4k = int(rates.number("vmm.fault_4k_ns"))
        self._fault_2m = int(rates.number("vmm.fault_2m_ns"))
        self._batch = int(rates.number("balloon.pages_per_request"))

    # Frames for a VM

    def table_frames(self, owner: int, count: int) -> NDArray[np.int64]:
        """Return int64[count]: host frames for nested tables of VM ``owner``."""
        floor = 0 if self._reclaiming else None  # as in Linux, who frees memory may use what is kept for emergencies
        frames = self.host.take(count, kind=Kind.TABLE, owner=owner, floor=floor)
        while frames.size < count:
            self._make_room(count - int(frames.size), owner)
            more = self.host.take(count - int(frames.size), kind=Kind.TABLE, owner=owner, floor=floor)
            frames = np.concatenate([frames, more])
        return frames

    def back(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Give every gfn of ``gfns`` (int64[n], distinct) a frame that it may write to; charge the faults to the VM.

        What was swapped out is read in, what is merged gets a copy, what has no frame a zeroed one.
        ``VmLost`` if the host is out of memory and this VM is the one that is killed.
        """
        if vm.zeroed is not None:
            vm.zeroed[gfns] = False
        self.serving(vm, gfns)
        if vm.dirty_log is not None:
            vm.dirty_log.written(gfns)
        if self.merging is not None:
            self.merging.unshare(vm, gfns)
        self.bring_in(vm, gfns)
        absent = gfns[vm.nested.translate(gfns) < 0]
        if not absent.size:
            return
        if vm.lease is not None:
            absent = self._back_slots(vm, absent)
        if self.thp and absent.size and vm.dirty_log is None:
            absent = self._back_blocks(vm, absent)
        self.back_pages(vm, absent)

    def bring_in(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Read in what of ``gfns`` was swapped out."""
        self.serving(vm, gfns)
        if self.swap is not None and vm.swapped is not None and vm.swapped_pages:
            out = gfns[(vm.swapped[gfns] > 0) & (vm.nested.translate(gfns) < 0)]
            self.swap.bring_in(vm, out)
            if vm.dirty_log is not None:
                vm.dirty_log.read_in(out)

    def serving(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Note that somebody is about to use ``gfns``: nothing may take them away at this instant."""
        if self.swap is None:
            return
        now = self.recorder.now_ns()
        if now != self._served_ns:
            self._served.clear()
            self._served_ns = now
        self._served.append((vm.number, gfns))

    def served_now(self, vm: VirtualMachine) -> NDArray[np.int64]:
        """Return the gfns of ``vm`` that are in use at this instant."""
        if self.recorder.now_ns() != self._served_ns:
            return _NONE
        return np.concatenate([_NONE, *(gfns for number, gfns in self._served if number == vm.number)])

    @contextmanager
    def reclaiming(self) -> Iterator[None]:
        """Free memory inside: what is taken meanwhile may use what is kept for emergencies, and reclaims nothing."""
        before, self._reclaiming = self._reclaiming, True
        try:
            yield
        finally:
            self._reclaiming = before

    def zeroed(self, frames: NDArray[np.int64], *, each: int = 1) -> None:
        """Note that frames, each the first of ``each``, were zeroed for a guest."""
        if self.contents is not None:
            self.contents.zero(frames, each=each)

    def copied(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Note that frames ``old`` were copied to ``new``."""
        if self.contents is not None:
            self.contents.copy(old, new)

    def _back_blocks(self, vm: VirtualMachine, absent: NDArray[np.int64]) -> NDArray[np.int64]:
        """Back whole 2 MiB blocks of which nothing is backed yet, where there are free ones; return what is left."""
        wanted = np.zeros(vm.backed.size, np.bool_)
        wanted[absent >> PAGEBLOCK_ORDER] = True
        starts = np.flatnonzero(wanted & vm.empty_blocks()) << PAGEBLOCK_ORDER
        frames = self.host.take(int(starts.size), kind=Kind.USER, owner=vm.number, pages=starts, order=PAGEBLOCK_ORDER)
        if not frames.size:
            return absent
        starts = starts[: frames.size]
        vm.nested.map(starts, frames, size=1, flags=FLAGS)
        vm.note_backing(starts, 1, size_pages=PAGEBLOCK)
        self.zeroed(frames, each=PAGEBLOCK)
        vm.stall_ns["nested fault"] += int(frames.size) * self._fault_2m
        return np.asarray(absent[vm.backed[absent >> PAGEBLOCK_ORDER] < PAGEBLOCK])

    def back_pages(self, vm: VirtualMachine, absent: NDArray[np.int64]) -> None:
        """Give single gfns, none of which has a frame, zeroed ones."""
        while absent.size:
            frames = self.host.take(int(absent.size), kind=Kind.USER, owner=vm.number, pages=absent)
            done = absent[: frames.size]
            if frames.size:
                vm.nested.map(done, frames, flags=FLAGS)
                vm.note_backing(done, 1)
                self.zeroed(frames)
                vm.stall_ns["nested fault"] += int(frames.size) * self._fault_4k
            absent = absent[frames.size :]
            if absent.size and not frames.size:  # tables for what was mapped may have cost a VM: there may be room now
                self._make_room(int(absent.size), vm.number)

    def _back_slots(self, vm: VirtualMachine, absent: NDArray[np.int64]) -> NDArray[np.int64]:
        """Back gfns under a lease by the very frames that the segment will give them, where those are free."""
        lease = vm.lease
        assert lease is not None
        inside = absent[(absent >= lease.base) & (absent < lease.limit)]
        if self.thp:
            blocks = np.unique(inside >> PAGEBLOCK_ORDER)
            self.fill_blocks(vm, blocks[vm.empty_blocks()[blocks]])
            inside = inside[vm.nested.translate(inside) < 0]
        if vm.lease is not None:  # it may have been given up meanwhile, for want of memory
            self.fill_slots(vm, inside)
        return absent[vm.nested.translate(absent) < 0]

    def fill_blocks(self, vm: VirtualMachine, blocks: NDArray[np.int64]) -> int:
        """Back 2 MiB blocks of gfns, nothing of which is backed, by their slots under the lease, if those are free.

        Return how many blocks were.
        """
        lease = vm.lease
        assert lease is not None
        starts = blocks << PAGEBLOCK_ORDER
        fits = (starts >= lease.base) & (starts + PAGEBLOCK <= lease.limit) & (lease.offset % PAGEBLOCK == 0)
        done = [gfn for gfn in starts[fits].tolist() if self._fill_block(vm, gfn, gfn + lease.offset)]
        if done:
            gfns = np.array(done, np.int64)
            vm.nested.map(gfns, gfns + lease.offset, size=1, flags=FLAGS)
            vm.note_backing(gfns, 1, size_pages=PAGEBLOCK)
            self.zeroed(gfns + lease.offset, each=PAGEBLOCK)
            vm.stall_ns["nested fault"] += len(done) * self._fault_2m
        return len(done)

    def _fill_block(self, vm: VirtualMachine, gfn: int, frame: int) -> bool:
        lease = vm.lease
        assert lease is not None
        end = frame + PAGEBLOCK
        if not self.host.is_free(frame, end) or lease.escapes_between(gfn, gfn + PAGEBLOCK):
            return False
        pages = np.arange(gfn, gfn + PAGEBLOCK)
        self.host.take_range(frame, end, kind=Kind.USER, owner=vm.number, pages=pages, token=lease.token)
        return True

    def fill_slots(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> int:
        """Back single gfns, none of them backed, by their slots under the lease, if those are free; return how many."""
        lease = vm.lease
        assert lease is not None
        slots = gfns + lease.offset
        book = self.host.frames
        free = (self.host.kinds(slots) == Kind.FREE) & (book["mark"][slots] & ISOLATED == 0)
        free &= ~np.isin(gfns, lease.escaped)
        gfns = np.sort(gfns[free])
        for first, end in runs_of(gfns):
            pages = np.arange(first, end)
            self.host.take_range(
                first + lease.offset,
                end + lease.offset,
                kind=Kind.USER,
                owner=vm.number,
                pages=pages,
                token=lease.token,
            )
        if gfns.size:
            vm.nested.map(gfns, gfns + lease.offset, flags=FLAGS)
            vm.note_backing(gfns, 1)
            self.zeroed(gfns + lease.offset)
            vm.stall_ns["nested fault"] += int(gfns.size) * self._fault_4k
        return int(gfns.size)

    def release(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> int:
        """Take back the frames of gfns that the guest gave up (int64[n], distinct); return how many became free.

        Under a live VMM segment a given-up gPA still translates, so its frame must not be lent: it is *held*.
        """
        pinned = vm.under_vmm_segment(gfns)
        vm.held_pages += int(pinned.sum())
        freed = self.unback(vm, gfns[~pinned])
        vm.flushes += -(-freed // self._batch)
        return freed

    def unback(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> int:
        """Unmap gfns and free their frames, whole 2 MiB leaves as such; return how many pages that were.

        What was swapped out is forgotten, without being read; what is merged leaves those it shares with.
        """
        if self.swap is not None:
            self.swap.forget(vm, gfns)
        if self.is_busy(vm, gfns):
            self.disrupt()
        sizes = vm.nested.mapped_sizes(gfns)
        gfns, sizes = gfns[sizes >= 0], sizes[sizes >= 0]
        large = gfns[sizes == 1] >> PAGEBLOCK_ORDER
        blocks, counts = np.unique(large, return_counts=True)
        whole = blocks[counts == PAGEBLOCK] << PAGEBLOCK_ORDER
        partial = blocks[counts < PAGEBLOCK]
        if whole.size:
            frames = vm.nested.unmap_many(whole, size=1)
            self.host.give_back(frames, order=PAGEBLOCK_ORDER)
            vm.note_backing(whole, -1, size_pages=PAGEBLOCK)
        small = gfns[~np.isin(gfns >> PAGEBLOCK_ORDER, np.append(whole >> PAGEBLOCK_ORDER, partial))]
        self.unmap_small(vm, small)
        # A split takes a frame for a table; each is paid back before many more are taken.
        for first in range(0, partial.size, SPLITS):
            some = partial[first : first + SPLITS]
            vm.nested.split_many(some << PAGEBLOCK_ORDER)
            vm.remapped_pages += int(some.size) * PAGEBLOCK
            self.unmap_small(vm, gfns[np.isin(gfns >> PAGEBLOCK_ORDER, some)])
        if gfns.size:
            vm.remembered_moves += int(gfns.size)
            self.flush(vm)
        return int(gfns.size)

    def unmap_small(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Unmap single gfns, all mapped by small leaves, and free their frames; the caller flushes."""
        if not gfns.size:
            return
        frames = vm.nested.unmap_many(gfns)
        vm.note_backing(gfns, -1)
        if self.merging is not None and vm.merged is not None and vm.merged_pages:
            merged = vm.merged[gfns]
            self.merging.drop(vm, gfns[merged], frames[merged])
            frames = frames[~merged]
        self.host.give_back(frames)

    def is_busy(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> bool:
        """Tell whether a frame behind ``gfns`` is held by a change in progress: whoever wants it waits."""
        frames = vm.nested.translate(gfns)
        return bool(np.any(self.host.frames["mark"][frames[frames >= 0]] & ISOLATED))

    # Room

    def _drop_cache(self, pages: int) -> int:
        return self.host.drop_cache(pages)

    def _make_room(self, pages: int, owner: int) -> None:
        """Free host frames, or end a VM: the one with the most frames, as the host's OOM killer chooses."""
        if not self._reclaiming:
            self.needy = owner
            with self.reclaiming():
                freed = self.survive(pages)
            if freed:
                return
        victim = max(self.vms.values(), key=lambda vm: (vm.resident_pages, -vm.number), default=None)
        if victim is None:
            raise VmLost("the host has no free memory left, and no VM to end")
        why = f"the host is out of memory: {pages} pages short, {self.host.free_pages} free"
        self.recorder.decide("vmm", "oom_kill", vm=victim.name, outcome="done", why=why)
        self.kill(victim, why)
        if victim.number == owner:
            raise VmLost(why)

    def take_for(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: new frames that the ledger books for ``gfns``, which are mapped elsewhere still."""
        frames = self.host.take(int(gfns.size), kind=Kind.USER, owner=vm.number, pages=gfns)
        while frames.size < gfns.size:
            self._make_room(int(gfns.size - frames.size), vm.number)
            rest = gfns[frames.size :]
            more = self.host.take(int(rest.size), kind=Kind.USER, owner=vm.number, pages=rest)
            frames = np.concatenate([frames, more])
        return frames

    def take_unmapped(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: new frames of guest memory whose owner is still to be booked."""
        frames = self.host.take(count, kind=Kind.USER)
        while frames.size < count:
            self._make_room(count - int(frames.size), NOBODY)
            frames = np.concatenate([frames, self.host.take(count - int(frames.size), kind=Kind.USER)])
        return frames

    def flush(self, vm: VirtualMachine) -> None:
        """Drop what hardware remembers of a VM's nested translations: one batch."""
        self.engine.invalidate_eptp(vm.number, cores=vm.cores)


def runs_of(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the runs [first, end) of consecutive numbers that ascending ``numbers`` consist of."""
    if not numbers.size:
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts = numbers[np.concatenate([[0], breaks])]
    lasts = numbers[np.concatenate([breaks - 1, [numbers.size - 1]])]
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))
