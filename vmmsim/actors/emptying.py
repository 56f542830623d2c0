"""Emptying a leased range of a guest: what can move is moved; what somebody holds now is waited for, with back-off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.actors.blocking import said
from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.evacuation import evacuate
from vmmsim.memory.moves import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs

TURN_PAGES: Final = 1 << 12
"""Pages that are moved between two looks at the clock."""
FIRST_WAIT_NS: Final = 1_000_000
"""How long to wait at first for frames that others hold; it doubles each time."""
WAITS: Final = 10
"""Waits before it is given up: a second, all in all."""


def emptying(
    env: Environment, guest_os: GuestOs, start: int, end: int, *, turn: Turn, copied: Callable[[int], None]
) -> Generator[Event, object, str]:
    """Move everything out of the leased range [start, end); return "" or what is in the way.

    copied  hears how many pages each turn moved
    """
    guest, at, waits, held = guest_os.vm.guest, start, 0, False
    while guest_os.vm.running:
        moves, blockers = evacuate(guest, at, end, pages=TURN_PAGES)
        if len(moves):
            guest_os.move(moves.old, moves.new)
            finish(guest, moves)
            copied(len(moves))
        if blockers.frames.size or blockers.short:
            return said(blockers)
        held |= blockers.held.size > 0
        if len(moves):
            at = moves.next
            yield Pause(env, guest_os.copies_ns(len(moves)), turn)
        elif not held:
            return ""
        elif waits < WAITS:
            yield Pause(env, FIRST_WAIT_NS << waits, turn)
            at, waits, held = start, waits + 1, False
        elif at == start:
            return said(blockers, by=guest.holder(int(blockers.held[0])))
        else:
            at, held = start, False  # once more over all of it, to see whose they are
    return "the VM is gone"
