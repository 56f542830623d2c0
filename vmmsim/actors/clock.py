"""Waiting on the simulation's clock: whole nanoseconds, and an order among those who act at the same instant."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from simpy import Event

if TYPE_CHECKING:
    from simpy import Environment


class Turn(IntEnum):
    """Who goes first at one instant; SimPy's own starts and interrupts (0) go before all of them."""

    FAULTS = 1
    VCPU = 2
    BALLOON = 3
    SWAP = 4
    COMPACTOR = 5
    SHARING = 6
    MEASURE = 7


class Pause(Event):
    """An event that happens ``delay_ns`` from now, in the turn of whoever waits for it."""

    def __init__(self, env: Environment, delay_ns: int, turn: Turn) -> None:
        assert type(delay_ns) is int, "a float would make the clock one"
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(
            self,
            priority=turn,  # type: ignore[arg-type]  # SimPy types its own two only
            delay=max(delay_ns, 0),
        )
