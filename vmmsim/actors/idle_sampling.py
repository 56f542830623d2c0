"""How much of a guest's memory is active, as VMware's ESX finds out: a few random pages are watched for a minute.

No guest is asked. Of the pages of its memory that it has not given up, some are drawn; at the end of the period those
that were touched are counted. Waldspurger (OSDI 2002): a slow average for steadiness, a fast one so that a program that
begins to use its memory has it at once; the larger counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim import rates
from vmmsim.actors.activity import SAMPLED
from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine

_TRIES = 8
"""Draws for each page that is wanted, most of which may be holes or given up."""
_ALWAYS = (Kind.KERNEL, Kind.SLAB, Kind.TABLE)
"""Kinds of guest memory that count as active."""


class IdleSampler:
    """Estimates the active memory of one VM."""

    def __init__(self, env: Environment, vm: VirtualMachine, random: np.random.Generator) -> None:
        self.env = env
        self.vm = vm
        self.random = random
        self.active_share: float | None = None
        """Share of the memory it has that it touches in a period; None before the first has passed."""
        self._fast = self._slow = 0.0
        self._pages = int(rates.number("manager.sample_pages"))
        self._period_ns = int(rates.number("manager.sample_period_ns"))
        self._gains = rates.number("manager.fast_gain"), rates.number("manager.slow_gain")

    def active_bytes(self) -> int | None:
        """Return the estimate in bytes; None before there is one."""
        vm = self.vm
        kept = vm.memory_pages - vm.exchanged_pages - vm.ballooned_pages
        return None if self.active_share is None else round(self.active_share * kept) << 12

    def sampling(self) -> Generator[Event, object, None]:
        """Watch pages, a period after the other, for as long as the VM runs."""
        while self.vm.running:
            gfns = self.draw()
            numbers = self.begin(gfns)
            yield Pause(self.env, self._period_ns, Turn.MEASURE)
            if self.vm.running and gfns.size:
                self.note(self.touched(gfns, numbers) / int(gfns.size))

    def draw(self) -> NDArray[np.int64]:
        """Return int64[n]: gfns to watch, at random among memory that is not given up."""
        guest = self.vm.guest
        gfns = np.unique(self.random.integers(0, guest.pages, self._pages * _TRIES))
        kinds = guest.frames["kind"][gfns]
        there = gfns[(kinds != Kind.HOLE) & (kinds != Kind.BALLOON) & (kinds != Kind.BAD)]
        return np.asarray(np.sort(self.random.permutation(there)[: self._pages]))

    def begin(self, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Forget what was done to the pages so far; return int64[n]: which of the program's each is, -1 for none."""
        numbers = self._numbers(gfns)
        if self.vm.activity is not None and np.any(numbers >= 0):
            self.vm.activity.harvest(numbers[numbers >= 0], SAMPLED)
        return numbers

    def touched(self, gfns: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
        """Return how many of the pages were touched since: the program's by its accesses, the kernel's always.

        What was free and is the program's now was touched.
        """
        now, kinds = self._numbers(gfns), self.vm.guest.frames["kind"][gfns]
        count = int(np.count_nonzero(np.isin(kinds, np.array(_ALWAYS))))
        count += int(np.count_nonzero((now >= 0) & (numbers != now)))
        same = now[(now >= 0) & (numbers == now)]
        if self.vm.activity is not None and same.size:
            count += int(np.count_nonzero(self.vm.activity.harvest(same, SAMPLED)))
        return count

    def note(self, share: float) -> None:
        """Take a period's share into the averages."""
        if self.active_share is None:
            self._fast = self._slow = share
        fast, slow = self._gains
        self._fast += fast * (share - self._fast)
        self._slow += slow * (share - self._slow)
        self.active_share = max(self._fast, self._slow)

    def _numbers(self, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        process, book = self.vm.process, self.vm.guest.frames
        if process is None:
            return np.full(gfns.size, -1, np.int64)
        mine = (book["kind"][gfns] == Kind.USER) & (book["owner"][gfns] == process.number)
        return np.where(mine, book["page"][gfns].astype(np.int64), -1)
