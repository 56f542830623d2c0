"""Compaction inside a guest: two scanners over all of it, evacuation when one contiguous range is wanted.

It copies pages and stops at the first one that cannot move, where self-ballooning does neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.emptying import TURN_PAGES, emptying
from vmmsim.memory.compaction import Compaction, Mode
from vmmsim.memory.frames import PAGEBLOCK
from vmmsim.memory.moves import finish
from vmmsim.memory.survey import Column
from vmmsim.memory.tokens import Busy

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.decisions import Recorder
    from vmmsim.memory.ledger import Memory


@attrs.frozen(kw_only=True)
class Window:
    """A range of whole pageblocks that could be emptied."""

    start: int
    end: int
    movable: int
    """Pages in it that would have to move."""
    stuck: int
    """Pages in it that cannot."""


def best_window(memory: Memory, pages: int) -> Window | None:
    """Return the window of ``pages``, whole pageblocks, with the fewest frames that cannot move, then that must.

    None if the memory is smaller than that.
    """
    blocks = -(-pages // PAGEBLOCK)
    columns = memory.survey().astype(np.int64)
    if columns.shape[0] < blocks:
        return None
    stuck = columns[:, [Column.IMMOVABLE, Column.BAD, Column.ISOLATED]].sum(axis=1)
    movable = columns[:, [Column.OTHERS, Column.OWN]].sum(axis=1)
    sums = [np.concatenate([[0], np.cumsum(one)]) for one in (stuck, movable)]
    stuck, movable = (one[blocks:] - one[:-blocks] for one in sums)
    at = int(np.lexsort((movable, stuck))[0])
    return Window(start=at * PAGEBLOCK, end=(at + blocks) * PAGEBLOCK, movable=int(movable[at]), stuck=int(stuck[at]))


class GuestCompactor:
    """Moves pages of one guest."""

    def __init__(self, env: Environment, guest_os: GuestOs, recorder: Recorder) -> None:
        self.env = env
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.recorder = recorder
        self.copied_pages = 0

    def clearing(self, pages: int) -> Generator[Event, object, str]:
        """Make a free run of ``pages`` by moving what is in the cheapest window; return "" or what is in the way."""
        guest = self.vm.guest
        window = best_window(guest, pages)
        if window is None:
            return "the guest has less memory than that"
        if window.stuck:
            return f"{window.stuck} pages of the best window cannot move, nor can they in any other"
        try:
            token = guest.isolate_range(window.start, window.end, "guest compaction")
        except Busy as busy:
            return f"the best window is held by {busy.by}"
        row = self.recorder.decide(
            "guest", "compact", vm=self.vm.name, asked=f"{window.movable} pages", outcome="begun"
        )
        before = self.copied_pages
        why = yield from emptying(
            self.env, self.guest_os, window.start, window.end, turn=Turn.COMPACTOR, copied=self._count
        )
        guest.release(token)
        gone = window.movable - (self.copied_pages - before)
        self.recorder.decide(
            "guest", "compact", vm=self.vm.name, asked=f"{window.movable} pages",
            got=f"{self.copied_pages - before} pages", outcome="failed" if why else "done",
            why=why or (f"{gone} pages were freed before their turn" if gone else ""), cause=row,
        )  # fmt: skip
        return why

    def _count(self, pages: int) -> None:
        self.copied_pages += pages

    def compacting(self) -> Generator[Event, object, int]:
        """Let the two scanners go over all of the guest's memory once; return pages moved."""
        guest, before = self.vm.guest, self.copied_pages
        run = Compaction(guest, mode=Mode.ALL)
        while self.vm.running and len(moves := run.plan(TURN_PAGES)):
            self.guest_os.move(moves.old, moves.new)
            finish(guest, moves)
            self.copied_pages += len(moves)
            yield Pause(self.env, self.guest_os.copies_ns(len(moves)), Turn.COMPACTOR)
        return self.copied_pages - before
