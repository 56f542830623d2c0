"""Placing a VM's own pages in the window of its VMM segment: each is copied into its slot, by chains and cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import runs_of
from vmmsim.actors.build_turns import TURN_PAGES
from vmmsim.memory.batch import Batch, first_sources
from vmmsim.memory.frames import ISOLATED, NOBODY, Kind
from vmmsim.memory.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Event

    from vmmsim.actors.build_turns import BuildTurns
    from vmmsim.actors.vmm import Vmm


class Placing:
    """Brings the pages of one build into their slots."""

    def __init__(self, vmm: Vmm, turns: BuildTurns) -> None:
        self.vmm = vmm
        self.host = vmm.host
        self.vm = turns.vm
        self.turns = turns
        self._spares: list[int] = []
        self._batch = int(rates.number("vmm.moves_per_flush"))

    def plan(self) -> Placement:
        """Return how things are: which pages are where, and which slots are free."""
        lease = self.turns.lease
        start, end = lease.base + lease.offset, lease.limit + lease.offset
        book = self.host.frames[start:end]
        return Placement(
            self.vm.nested.translate_range(lease.base, lease.limit),
            base=lease.base,
            offset=lease.offset,
            free=(book["kind"] == Kind.FREE) & (book["mark"] & ISOLATED == 0),
            escaped=lease.escaped,
        )

    def placing(self, placement: Placement, *, split: bool) -> Generator[Event, object, str]:
        """Move pages that are resident into their slots, until none can be or something changed meanwhile."""
        while True:
            batch = placement.batch(TURN_PAGES, split=split)
            if not batch:
                if placement.waits_for == "spare" and self._lend(placement):
                    continue
                return "no free frame to break a cycle with" if placement.waits_for == "spare" else ""
            _, sources = first_sources(batch)
            if np.any(self.host.frames["mark"][sources] & ISOLATED):
                why = yield from self.turns.awaiting(sources)
                if why or not self.turns.go_on or self.turns.disturbed:
                    return why
                continue
            if not self._as_planned(batch) or not (yield from self.turns.copying(sources)):
                return ""
            self.turns.copied_pages += batch.copies - int(sources.size)
            if not self._as_planned(batch):
                return ""
            self._carry_out(batch)
            placement.commit(batch)

    def _as_planned(self, batch: Batch) -> bool:
        """Tell whether pages are still where the batch takes them from, and what it takes is still free."""
        taken = batch.taken()
        spare = np.isin(taken, np.array(self._spares, np.int64))
        free = self.host.frames["kind"][taken] == Kind.FREE
        gfns, source = first_sources(batch)
        return bool(np.all(spare | free)) and bool(np.all(self.vm.nested.translate(gfns) == source))

    def _lend(self, placement: Placement) -> bool:
        frames = self.host.take(1, kind=Kind.USER, floor=0)
        if not frames.size:
            return False
        self._spares.append(int(frames[0]))
        placement.lend(int(frames[0]))
        return True

    def lends(self, frames: NDArray[np.int64]) -> bool:
        """Tell whether one of ``frames`` is lent to break cycles with."""
        return any(frame in frames for frame in self._spares)

    def return_spares(self) -> None:
        """Give back the frames that cycles were broken with, as far as no page lives in them."""
        book = self.host.frames
        unused = [
            frame for frame in self._spares if book["owner"][frame] == NOBODY and book["kind"][frame] == Kind.USER
        ]
        self.host.give_back(np.array(unused, np.int64))
        self._spares.clear()

    def _carry_out(self, batch: Batch) -> None:
        """Let ledger and nested table say what the copies of ``batch`` have made true."""
        vm, host = self.vm, self.host
        gfns, frames = batch.result()
        pages = (batch.gfn[:, None] + np.arange(batch.pages_each)).ravel()
        self.turns.tally.copied(pages - self.turns.lease.base)
        spares = np.array(self._spares, np.int64)
        taken = np.setdiff1d(batch.taken(), spares)
        for first, end in runs_of(taken):
            host.take_range(first, end, kind=Kind.USER, owner=vm.number, token=self.turns.lease.token)
        host.assign(frames, owner=vm.number, pages=gfns)
        released = batch.released()
        lent = np.isin(released, spares)
        host.assign(released[lent], owner=NOBODY, pages=NOBODY)
        host.give_back(released[~lent])
        self.vmm.move(vm, gfns, frames)
        vm.flushes += -(-batch.copies // self._batch)
