"""Swap devices: how long a page takes in and out, and who waits for whom. One queue, first come, first served."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import simpy

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event


class SwapDevice:
    """One device, of a kind that ``rates.toml`` knows (``[swap.nvme]``), and the slots of a swap space on it."""

    def __init__(self, env: Environment, kind: str, pages: int) -> None:
        self.env = env
        self.kind = kind
        self.pages = pages
        self.content = np.zeros(pages, np.int32)
        """int32[slots]: what each slot holds."""
        self._free = np.arange(pages, dtype=np.int32)[::-1].copy()
        self._free_count = pages
        self.reads = self.writes = 0
        """Pages read and written so far."""
        self.read_by: Counter[str] = Counter()
        """Pages read, by VM."""
        self._queue = simpy.Resource(env, capacity=1)
        self._read_ns, self._write_ns = (int(rates.number(f"swap.{kind}.{what}_ns")) for what in ("read", "write"))
        self.page_ns = round((4096 * 10**9) / rates.number(f"swap.{kind}.bytes_per_s"))
        """Time that a page takes on the way, apart from the latency of its request."""

    @property
    def used_pages(self) -> int:
        """Slots in use."""
        return self.pages - self._free_count

    @property
    def free_pages(self) -> int:
        """Slots not in use."""
        return self._free_count

    def take(self, count: int) -> NDArray[np.int32]:
        """Return int32[k]: up to ``count`` slots, lowest first while the device is young, so that they lie in a row."""
        count = min(count, self._free_count)
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count][::-1].copy()

    def give_back(self, slots: NDArray[np.int32]) -> None:
        """Free slots."""
        self._free[self._free_count : self._free_count + slots.size] = slots[::-1]
        self._free_count += int(slots.size)

    def transferring(
        self, pages: int, *, write: bool, at_once: int, turn: Turn = Turn.SWAP
    ) -> Generator[Event, object, None]:
        """Read or write ``pages``, ``at_once`` to a request, when those before are done; the time passes."""
        if not pages:
            return
        if write:
            self.writes += pages
        else:
            self.reads += pages
        with self._queue.request() as mine:
            yield mine
            requests = -(-pages // at_once)
            latency = self._write_ns if write else self._read_ns
            yield Pause(self.env, requests * latency + pages * self.page_ns, turn)
