"""The turns in which a VMM segment is built: frames are held while they are copied, and anybody may make it let go.

Work goes in turns of some thousand pages; at the end of each, every page is mapped to the one frame that holds it, and
the build may be given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.copy_tally import CopyTally
from vmmsim.actors.costs import copy_ns
from vmmsim.memory.frames import ISOLATED

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import Lease, VirtualMachine
    from vmmsim.memory.ledger import Memory
    from vmmsim.memory.tokens import Token

TURN_PAGES: Final = 1 << 13
"""Pages that are moved or zeroed between two looks at the clock: 32 MiB."""
BUSY_NS: Final = (1_000_000, 128_000_000)
"""How long to wait for frames that another change holds: at first, and, having doubled, at most."""
BUSY_WAITS: Final = 4096
"""Waits in a row, some minutes, after which whoever holds them is not waited for any longer."""


class BuildTurns:
    """The clock of one build, and what it copies at the moment."""

    def __init__(self, env: Environment, host: Memory, vm: VirtualMachine, *, bandwidth: int) -> None:
        """bandwidth: bytes a second."""
        self.env = env
        self.host = host
        self.vm = vm
        self.bandwidth = bandwidth
        self.copied_pages = 0
        self.tally = CopyTally(0, np.empty(0, np.int64))
        """Copies against the plan; of the window chosen, once there is one."""
        self.given_up = ""
        """Why the build was ended from outside; "" while it was not."""
        self.waits = False
        """Whether time passes: in the middle of a step the build cannot be given up."""
        self.disturbed = False
        """Whether somebody made this turn let go of what it was doing."""
        self._waits_in_a_row = 0
        self._in_flight: Token | None = None

    @property
    def go_on(self) -> bool:
        """Whether there is still a VM to build for, and nobody has ended the build."""
        return self.vm.running and not self.given_up

    @property
    def lease(self) -> Lease:
        """The window, while it is being filled."""
        assert self.vm.lease is not None
        return self.vm.lease

    def pausing(self, ns: int) -> Generator[Event, object, None]:
        """Let time pass."""
        self.waits = True
        yield Pause(self.env, ns, Turn.COMPACTOR)
        self.waits = False

    def copying(self, old: NDArray[np.int64]) -> Generator[Event, object, bool]:
        """Hold frames while they are copied; return whether they are still what they were."""
        self._in_flight = token = self.host.isolate(old, "compactor")
        yield from self.pausing(copy_ns(int(old.size), self.bandwidth))
        held = self._in_flight is token
        self._in_flight = None
        if held:
            self.host.release(token)
            self.copied_pages += int(old.size)
            self._waits_in_a_row = 0
        return held and self.go_on

    def awaiting(self, frames: NDArray[np.int64]) -> Generator[Event, object, str]:
        """Wait for whoever holds frames; return "" or for whom it is no use to wait any longer."""
        held = frames[self.host.frames["mark"][frames] & ISOLATED != 0]
        if self._waits_in_a_row == BUSY_WAITS:
            return f"{held.size} frames are held by {self.host.holder(int(held[0]))}, and not let go of"
        first, most = BUSY_NS
        yield from self.pausing(min(first << min(self._waits_in_a_row, 16), most))
        self._waits_in_a_row += 1
        return ""

    def abandon(self) -> None:
        """Let go of what is being copied: somebody must have it now. The turn is done again."""
        if self._in_flight is not None:
            self.host.release(self._in_flight)
            self._in_flight = None
            self.disturbed = True
