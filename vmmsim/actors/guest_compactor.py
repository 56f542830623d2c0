"""Compaction inside a guest: two scanners when a block is wanted, evacuation when a contiguous range is.

It copies pages and stops at the first one that cannot move, where self-ballooning does neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.compaction import best_window, evacuate, finish
from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.decisions import Recorder

TURN_PAGES = 1 << 12


class GuestCompactor:
    """Moves pages of one guest."""

    def __init__(self, env: Environment, guest_os: GuestOs, recorder: Recorder) -> None:
        self.env = env
        self.guest_os = guest_os
        self.recorder = recorder
        self.copied_pages = 0

    def clearing(self, pages: int) -> Generator[Event, object, str]:
        """Make a free run of ``pages`` by moving what is in the cheapest window; return "" or what is in the way."""
        guest = self.guest_os.vm.guest
        window = best_window(guest, -(-pages // PAGEBLOCK) * PAGEBLOCK)
        if window.blockers:
            return window.said()
        row = self.recorder.decide(
            "guest", "compact", vm=self.guest_os.vm.name, asked=f"{window.movable} pages", outcome="begun"
        )
        token = guest.isolate_range(window.start, window.end, "guest compaction")
        copied, why = 0, ""
        try:
            while not why:
                moves, blockers = evacuate(guest, window.start, window.end, pages=TURN_PAGES)
                if not moves.old.size:
                    why = blockers.said() if blockers.count else ""
                    break
                self.guest_os.move(moves)
                finish(guest, moves)
                copied += int(moves.old.size)
                yield Pause(self.env, self.guest_os.copies_ns(int(moves.old.size)), Turn.COMPACTOR)
                if not self.guest_os.vm.running:
                    why = "the VM is gone"
        finally:
            guest.release(token)
        self.copied_pages += copied
        self.recorder.decide(
            "guest",
            "compact",
            vm=self.guest_os.vm.name,
            asked=f"{window.movable} pages",
            got=f"{copied} pages",
            outcome="failed" if why else "done",
            why=why,
            cause=row,
        )
        return why
