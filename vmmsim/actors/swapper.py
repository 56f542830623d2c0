"""Who decides what is swapped out: the guest's kswapd and the host's, each over its own two lists of pages.

Both wake when less is free than the watermark low and work up to high; whoever finds no frame at all meanwhile
reclaims directly, and waits for the writes. Reclaim goes by clusters of 32 as in Linux; one step of simulated time
takes many of them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.lru import CLUSTER
from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.swap_device import SwapDevice
    from vmmsim.decisions import Recorder
    from vmmsim.memory.ledger import Memory

PINNED_VMM: Final = "PINNED_VMM"
"""Reason of a refusal: a live VMM segment maps the page, whatever the nested table says."""
PINNED_GUEST: Final = "PINNED_GUEST"
"""Reason of a refusal: a live guest segment maps the page, whatever the guest's table says."""
STEP_PAGES: Final = 8192
"""Pages that one step reclaims at most: 256 clusters, 32 MiB."""
DIRECT_PAGES: Final = 1024
"""Pages that a direct reclaim frees at least, but where the watermarks are nearer together: 32 clusters."""


class Kswapd(ABC):
    """Keeps the free memory of a host or of a guest between two watermarks."""

    def __init__(self, env: Environment, memory: Memory, device: SwapDevice, recorder: Recorder) -> None:
        self.env = env
        self.memory = memory
        self.device = device
        self.recorder = recorder
        self.pages_out = 0
        """Pages swapped out so far."""
        self.refused: Counter[str] = Counter()
        """Pages that were to go and are pinned, by VM, since this was recorded last."""
        self._asked = self._got = 0
        self._told_ns = -(1 << 62)
        self._hopeless_until = 0
        self._woken = env.event()
        self._hopeless_ns = int(rates.number("swap.hopeless_ns"))
        self._report_ns = int(rates.number("swap.report_every_ns"))
        memory.pressed = self.wake

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to watch over."""
        return False

    def wake(self) -> None:
        """Begin, unless it is at work, or found nothing a moment ago."""
        if not self._woken.triggered and self.env.now >= self._hopeless_until:
            self._woken.succeed()

    def running(self) -> Generator[Event, object, None]:
        """Live for as long as there is something to watch over."""
        while not self.is_over:
            yield self._woken
            yield Pause(self.env, 0, Turn.SWAP)
            yield from self._balancing()
            self._woken = self.env.event()
            if not self.is_over and self.env.now >= self._hopeless_until and self.memory.short_of("low") > 0:
                self.wake()

    def _balancing(self) -> Generator[Event, object, None]:
        while not self.is_over and (short := self.memory.short_of("high")) > 0:
            wanted = min(max(short, CLUSTER), STEP_PAGES)
            freed = self.reclaim(wanted)
            self._asked += wanted
            self._got += freed
            yield from self.device.writing()
            if not freed:
                self._hopeless_until = int(self.env.now) + self._hopeless_ns
                break
        if self.env.now - self._told_ns >= self._report_ns:
            self.tell()

    def tell(self) -> None:
        """Record what was done since this was told last, and what was refused."""
        self._told_ns = int(self.env.now)
        if self._asked:
            short = self._got < self._asked
            self.recorder.decide(
                "swapper", "reclaim", vm=self.name, asked=f"{self._asked} pages", got=f"{self._got} pages",
                outcome="partial" if short else "done", why=self.why_short() if short else "",
            )  # fmt: skip
        for vm, pages in self.refused.items():
            self.recorder.decide(
                "swapper", "swap_out", vm=vm, asked=f"{pages} pages", got="0 pages", outcome="refused",
                why=self.why_pinned,
            )  # fmt: skip
        self._asked = self._got = 0
        self.refused.clear()

    name = ""
    why_pinned = ""

    def why_short(self) -> str:
        """Return why less was reclaimed than asked for."""
        if not self.device.free_pages:
            return "swap space is full"
        pinned = ", ".join(f"{pages} pages of {vm} are pinned" for vm, pages in self.refused.items())
        return pinned or "what is left was used lately, or cannot be swapped out"

    @abstractmethod
    def reclaim(self, wanted: int) -> int:
        """Free up to ``wanted`` pages, at once; return how many became free."""


def heads(
    pages: NDArray[np.int64], starts: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the mapped ``pages`` that stand for themselves or a huge page, and those that are the rest of one.

    starts  bool[n]: which lie where a huge page may begin
    sizes   int64[n]: sizes of their leaves, 0 small
    """
    alone = (sizes == 0) | starts
    return pages[alone], pages[~alone]


def whole(pages: NDArray[np.int64], large: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return ``pages``, and for each ``large`` one (bool[n]) all 512."""
    huge = (pages[large][:, None] + np.arange(PAGEBLOCK)).ravel()
    return np.concatenate([pages[~large], huge])
