"""Dirty logging: which pages of a VM are written to, round by round. The mechanism below live migration.

It is about permission: the first write to each page of a round must be seen. Either nested leaves are write-protected
(``wp``), and each first write is an exit; or the processor logs each leaf whose dirty bit it sets (``pml``), and an
exit comes when 512 entries are full. Both need 4 KiB leaves, and neither sees what goes through a VMM segment.

Written, in a round, is every gfn

* that the program wrote to, by the workload's exact account of its accesses up to now (``Activity``; samples have no
  part in it);
* that the guest was given to write to: first touches, kernel memory, page tables and page cache as they are allocated,
  targets of the guest's copies (all of which go through ``Vmm.back``);
* that holds a page table of the program, if it ran and nested tables have dirty bits: walks then count as writes there.

Writes of the guest's kernel to memory that it has already are not modelled, so that they are not logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.activity import LOGGED
from vmmsim.actors.backing import FLAGS, SPLITS
from vmmsim.memory.frames import PAGEBLOCK
from vmmsim.translation.page_table import DIRTY, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.scenario.events import Logging

OPENED_AT_ONCE: Final = 1 << 15
"""gfns around a page that a sample writes to which samples may write to from then on, until the round ends."""


class DirtyLog:
    """The log of one VM, while there is one (``vm.dirty_log``)."""

    def __init__(self, vmm: Vmm, vm: VirtualMachine, kind: Logging, position: Callable[[], int]) -> None:
        """position() is where the program is."""
        self.vmm = vmm
        self.vm = vm
        self.kind = kind
        self.dirty = np.zeros(vm.guest.pages, np.bool_)
        """bool[gfns]: written to since the round began, as far as was looked."""
        self.exits = 0
        """Exits since logging began: one a first write (wp), or one a full buffer, and at a round's end (pml)."""
        self._opened = np.zeros(vm.guest.pages, np.bool_)
        self._entries = 0
        self._split = np.empty(0, np.int64)
        self._position = position
        self._looked_at = -1
        self._mark = WRITABLE if kind == "wp" else DIRTY
        self._exit_ns = int(rates.number("vmm.exit_ns"))
        self._fault_ns = int(rates.number("migration.wp_fault_ns"))
        self._buffer = int(rates.number("migration.pml_entries"))
        self._entry_ns = int(rates.number("migration.pml_entry_ns"))

    def begin(self) -> None:
        """Split what is mapped by large leaves, and begin the first round; ``VmLost`` if tables find no room."""
        vm = self.vm
        assert vm.vmm_segment is None, f"{vm.name}: writes under a VMM segment are not seen"
        vm.dirty_log = self
        pages, _, sizes = vm.nested.leaves()
        self._split = pages[sizes == 1]
        for first in range(0, self._split.size, SPLITS):
            vm.nested.split_many(self._split[first : first + SPLITS])
        vm.remapped_pages += int(self._split.size) * PAGEBLOCK
        self._found()  # what was written before is no matter
        self._new_round()
        vm.changed("dirty logging")

    def look(self) -> None:
        """Find out what was written up to now, and charge the exits that it took."""
        before = self.exits
        self.written(self._found())
        if self.exits != before:
            self.vm.changed("dirty logging")  # what it cost is charged between two strata

    def _found(self) -> NDArray[np.int64]:
        """Return the gfns that the program, and walks on its behalf, wrote to since this was asked last."""
        vm, process = self.vm, self.vm.process
        if process is None or vm.activity is None:
            return np.empty(0, np.int64)
        position = self._position()
        numbers = np.flatnonzero(process.mapped)
        wrote = numbers[vm.activity.harvest(numbers, LOGGED)]
        gfns = process.table.translate(process.gvpns(wrote))
        if position != self._looked_at and self.vmm.engine.machine.switches.ept_accessed_dirty:
            gfns = np.union1d(gfns, process.table.table_frames)
        self._looked_at = position
        return gfns

    def written(self, gfns: NDArray[np.int64]) -> None:
        """Book that the guest writes to ``gfns`` (int64[n], distinct), which may have no frame yet; charge the exits.

        A page without a frame costs its fault and no exit beside it, a merged one its copy.
        """
        first = gfns[~self.dirty[gfns]]
        self.dirty[first] = True
        seen = self._private(first)
        self.vm.nested.protect_many(seen, set_flags=WRITABLE | DIRTY)
        if self.kind == "wp":
            self._charge(exits=int(seen.size), each_ns=self._fault_ns)
        else:
            full, self._entries = divmod(self._entries + int(seen.size), self._buffer)
            self._charge(exits=full, each_ns=self._buffer * self._entry_ns)

    def collect(self) -> NDArray[np.int64]:
        """End the round: return int64[n], ascending, what was written in it, and begin the next."""
        self.look()
        found = np.flatnonzero(self.dirty)
        if self._entries:
            self._charge(exits=1, each_ns=self._entries * self._entry_ns)
            self._entries = 0
        self._new_round()
        return found

    def read_in(self, gfns: NDArray[np.int64]) -> None:
        """Let ``gfns``, which have new leaves because they were read, be seen when they are written to."""
        clean = gfns[~(self.dirty[gfns] | self._opened[gfns])]
        self.vm.nested.protect_many(self._private(clean), clear_flags=self._mark)

    def open(self, gfn: int) -> None:
        """Let samples write to the pages around ``gfn``: they measure what translation costs, and log nothing."""
        first = gfn & -OPENED_AT_ONCE
        gfns = np.arange(first, min(first + OPENED_AT_ONCE, self.vm.guest.pages))
        self._opened[gfns] = True
        self.vm.nested.protect_many(self._private(gfns), set_flags=WRITABLE | DIRTY)

    def end(self) -> None:
        """Log no more: all may be written to again, and leaves that were split and are whole still are large again."""
        vm = self.vm
        vm.dirty_log = None
        vm.nested.protect_many(self._private(vm.nested.leaves()[0]), set_flags=WRITABLE | DIRTY)
        whole = self._whole()
        for gfn, frame in zip(whole.tolist(), vm.nested.translate(whole).tolist(), strict=True):
            vm.nested.collapse(gfn, frame, FLAGS)
        vm.remapped_pages += int(whole.size) * PAGEBLOCK
        self.vmm.flush(vm)
        vm.flushes += 1
        vm.changed("dirty logging")

    def _new_round(self) -> None:
        vm = self.vm
        self.dirty[:] = self._opened[:] = False
        vm.nested.protect_many(self._private(vm.nested.leaves()[0]), clear_flags=self._mark)
        self.vmm.flush(vm)
        vm.flushes += 1
        self.vmm.rendezvous(vm)

    def _private(self, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``gfns`` that have a frame of their own."""
        there = self.vm.nested.translate(gfns) >= 0
        if self.vm.merged is not None:
            there &= ~self.vm.merged[gfns]
        return gfns[there]

    def _whole(self) -> NDArray[np.int64]:
        """Return int64[n]: the first gfns of blocks that were split and lie in one large frame, all of it theirs."""
        vm, within = self.vm, np.arange(PAGEBLOCK)
        whole = np.zeros(self._split.size, np.bool_)
        for first in range(0, self._split.size, SPLITS):
            every = self._split[first : first + SPLITS, None] + within
            frames = vm.nested.translate(every.ravel()).reshape(every.shape)
            fits = (frames[:, 0] >= 0) & (frames[:, 0] % PAGEBLOCK == 0)
            fits &= np.all(frames == frames[:, :1] + within, axis=1)
            if vm.merged is not None:
                fits &= ~vm.merged[every].any(axis=1)
            whole[first : first + SPLITS] = fits
        return self._split[whole]

    def _charge(self, *, exits: int, each_ns: int) -> None:
        self.exits += exits
        if exits:
            self.vm.stall_ns["dirty logging"] += exits * (self._exit_ns + each_ns)

    def check(self) -> None:
        """No leaf is large, and none that may be written to unseen is a page that was not."""
        vm = self.vm
        pages, entries, sizes = vm.nested.leaves()
        assert not np.any(sizes), f"{vm.name}: a large leaf while writes are logged"
        assert vm.vmm_segment is None, f"{vm.name}: a VMM segment while writes are logged"
        if self.kind == "wp":
            seen = self.dirty[pages] | self._opened[pages]
            assert np.all(seen | (entries & WRITABLE == 0)), f"{vm.name}: a page may be written to unseen"
