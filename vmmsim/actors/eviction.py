"""Clearing the window of a VMM segment: what lies there and is not of the segment is dropped, or moved out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import VmLost
from vmmsim.actors.build_turns import TURN_PAGES
from vmmsim.memory.frames import ISOLATED, NOBODY, PINNED, SHARED, Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Event

    from vmmsim.actors.build_turns import BuildTurns
    from vmmsim.actors.vmm import Vmm

WINDOW_STEP: Final = 1 << 18
"""Frames of the window that are looked at at once for pages of others."""


class Eviction:
    """Moves pages of others, or of the VM but not of its segment, out of the window of one build."""

    def __init__(self, vmm: Vmm, turns: BuildTurns) -> None:
        self.vmm = vmm
        self.host = vmm.host
        self.turns = turns
        self.dropped_pages = 0
        self._batch = int(rates.number("vmm.moves_per_flush"))

    def clearing(self, start: int, end: int) -> Generator[Event, object, str]:
        """Drop others' clean page cache from the window, as Linux does before it migrates, and move the rest out."""
        for first in range(start, end, WINDOW_STEP):
            last = min(first + WINDOW_STEP, end)
            cache = first + np.flatnonzero(self._are(first, last, Kind.CACHE))
            self.host.give_back(cache)
            self.dropped_pages += int(cache.size)
            while (others := first + np.flatnonzero(self._are(first, last, Kind.USER, busy=True))).size:
                free = others[self.host.frames["mark"][others] & ISOLATED == 0]
                if not free.size:
                    why = yield from self.turns.awaiting(others)
                else:
                    why = yield from self._evict_some(free[:TURN_PAGES])
                if why:
                    return why
                if not self.turns.go_on:
                    return ""
        return ""

    def _are(self, first: int, last: int, kind: Kind, *, busy: bool = False) -> NDArray[np.bool_]:
        """Tell which frames of [first, last) are movable ones of others; ``busy``: those held now, too."""
        book = self.host.frames[first:last]
        movable = (book["kind"] == kind) & (book["mark"] & (PINNED if busy else PINNED | ISOLATED) == 0)
        if kind == Kind.USER:
            lease, vm = self.turns.lease, self.turns.vm
            base, limit = lease.base, lease.limit
            own = (book["owner"] == vm.number) & (book["page"] >= base) & (book["page"] < limit)
            movable &= ~own
        return np.asarray(movable)

    def _evict_some(self, old: NDArray[np.int64]) -> Generator[Event, object, str]:
        """Move as many of these pages out as there is room for; return how much is missing if there is none."""
        short = int(old.size) - self.host.spare_pages
        if short > 0:
            self.vmm.free_wanted(short)
        # Not below the marks: page tables can lie in the lower part of memory only.
        room = min(int(old.size), self.host.spare_pages)
        if not room:
            return f"{old.size} free frames short outside the window"
        old = old[:room]
        if not (yield from self.turns.copying(old)):
            return ""
        new = self.host.take(int(old.size), kind=Kind.USER)
        self.turns.copied_pages -= int(old.size - new.size)  # those stay where they are, until their turn comes again
        old = old[: new.size]
        self._hand_over(old, new)
        return ""

    def _hand_over(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Let the pages in ``old`` be in the frames ``new``, which are nobody's yet, and free the old ones.

        Leaves that are split for that take frames for tables: it may cost a VM, one of those moved or another.
        """
        vmm, book = self.vmm, self.host.frames
        owners, pages = book["owner"][old].copy(), book["page"][old].astype(np.int64)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            if owner == SHARED:
                self.host.assign(new[mine], owner=owner, pages=pages[mine])
                vmm.move_shared(old[mine], new[mine])
                self.host.give_back(old[mine])
                continue
            if owner != NOBODY and owner not in vmm.vms:  # ended meanwhile
                self.host.give_back(new[mine])
                continue
            self.host.assign(new[mine], owner=owner, pages=pages[mine])
            if owner in vmm.vms:
                vm = vmm.vms[owner]
                try:
                    vmm.move(vm, pages[mine], new[mine])
                except VmLost:  # and with it all its frames, old and new
                    continue
                vm.flushes += -(-int(mine.sum()) // self._batch)
            self.host.give_back(old[mine])
