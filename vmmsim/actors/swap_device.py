"""Swap devices: how long pages take in and out, who waits for whom, and the slots of a swap space.

A ``Storage`` is the hardware: so many requests at once (an SSD's channels; one, for the arm of a disk), each taking
its latency, over a link of so much bandwidth. Requests are served in the order in which they come; whoever has many
comes with a slice of them at a time, so that two who read at once share what there is. All swap spaces of a host on
devices of one kind lie on one ``Storage``: they slow each other down.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.clock import Pause, Turn

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine

PAGE_BYTES: Final = 4096
_SLICES: Final = 64
"""Slices that a long transfer is cut into at most,"""
_SLICE_NS: Final = 10_000_000
"""and how long the shortest takes, or one request if that is longer."""


class Storage:
    """One device, of a kind that ``rates.toml`` knows (``[swap.nvme]``)."""

    def __init__(self, env: Environment, kind: str) -> None:
        self.env = env
        self.kind = kind
        self.at_once = int(rates.number(f"swap.{kind}.at_once"))
        """Requests that it serves at the same time."""
        self.busy_ns = 0
        """Time for which requests were served, summed over all that are served at once."""
        self._read_ns, self._write_ns = (int(rates.number(f"swap.{kind}.{what}_ns")) for what in ("read", "write"))
        self._page_ns = round(PAGE_BYTES * 10**9 / rates.number(f"swap.{kind}.bytes_per_s"))
        self._free_at = np.zeros(self.at_once, np.int64)
        self._link_free_at = 0

    def serve(self, requests: int, pages: int, *, write: bool, streams: int) -> int:
        """Take ``requests`` of ``pages`` in all, ``streams`` of them at a time; return when the last will be done."""
        now, lanes = int(self.env.now), max(min(streams, self.at_once, requests), 1)
        latency = self._write_ns if write else self._read_ns
        first = np.argsort(self._free_at, kind="stable")[:lanes]
        each = np.full(lanes, requests // lanes, np.int64)
        each[: requests % lanes] += 1
        self._free_at[first] = np.maximum(self._free_at[first], now) + each * latency
        self._link_free_at = max(self._link_free_at, now) + pages * self._page_ns
        self.busy_ns += requests * latency
        return max(int(self._free_at[first].max()), self._link_free_at)

    def transferring(
        self, requests: int, pages: int, *, write: bool, streams: int, turn: Turn
    ) -> Generator[Event, object, None]:
        """Let ``requests`` of ``pages`` in all be served, and the time pass."""
        latency = self._write_ns if write else self._read_ns
        least = max(_SLICE_NS // max(latency, 1), 1) * min(max(streams, 1), self.at_once)
        step = max(least, -(-requests // _SLICES))
        done = 0
        while done < requests:
            some = min(step, requests - done)
            share = pages * (done + some) // requests - pages * done // requests
            until = self.serve(some, share, write=write, streams=streams)
            done += some
            yield Pause(self.env, until - int(self.env.now), turn)


class SwapDevice:
    """The slots of a swap space on a ``Storage``: what each holds, which are free, what was read and written."""

    def __init__(self, env: Environment, kind: str, pages: int, storage: Storage | None = None) -> None:
        """storage: what it lies on; None makes one of its own."""
        self.env = env
        self.kind = kind
        self.pages = pages
        self.storage = storage or Storage(env, kind)
        self.content = np.zeros(pages, np.int32)
        """int32[slots]: what each slot holds."""
        self._free = np.arange(pages, dtype=np.int32)[::-1].copy()
        self._free_count = pages
        self.reads = self.writes = 0
        """Pages read and written so far: they count when they are asked for, the time passes after."""
        self.read_requests = 0
        """Requests that they were read by: fewer where pages were read ahead."""
        self.read_by: Counter[str] = Counter()
        """Pages read, by VM."""
        self._owed_pages = self._owed_requests = 0

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
        """Free slots, each of which is in use."""
        assert self._free_count + slots.size <= self.pages, f"{self.kind}: more slots are given back than are in use"
        self._free[self._free_count : self._free_count + slots.size] = slots[::-1]
        self._free_count += int(slots.size)

    def read(self, vm: VirtualMachine, pages: int, requests: int) -> None:
        """Count that ``pages`` are read by ``requests``, and let the vCPUs of ``vm`` wait for it."""
        self.reads += pages
        self.read_requests += requests
        self.read_by[vm.name] += pages
        vm.reads[self] += pages
        vm.read_requests[self] += requests

    def write(self, slots: NDArray[np.int64]) -> None:
        """Count that ``slots`` are written; whoever lets that time pass calls ``writing``. Runs go in one request."""
        self.writes += int(slots.size)
        self._owed_pages += int(slots.size)
        ordered = np.sort(slots)
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        runs = np.diff(np.concatenate([[0], breaks, [ordered.size]]))
        self._owed_requests += int((-(-runs // int(rates.number("swap.cluster_pages")))).sum())

    def owed(self) -> tuple[int, int]:
        """Return (requests, pages) of writes whose time nobody has let pass, and take them on."""
        owed = self._owed_requests, self._owed_pages
        self._owed_pages = self._owed_requests = 0
        return owed

    def writing(self, turn: Turn = Turn.SWAP) -> Generator[Event, object, None]:
        """Let all pass that was written: many requests at once, as nobody waits for one before the next."""
        requests, pages = self.owed()
        yield from self.storage.transferring(requests, pages, write=True, streams=self.storage.at_once, turn=turn)

    def transferring(
        self, pages: int, *, write: bool, requests: int = 0, streams: int = 1, turn: Turn = Turn.SWAP
    ) -> Generator[Event, object, None]:
        """Let the time of ``pages`` pass, in ``requests`` (0: one a page), ``streams`` at a time; count nothing."""
        count = requests or pages
        yield from self.storage.transferring(count, pages, write=write, streams=streams, turn=turn)


def neighbours(slots: NDArray[np.int32], pages: NDArray[np.int64], ahead: int) -> tuple[NDArray[np.int64], int]:
    """Return what may be read with ``pages`` (int64[n], distinct, each with a slot), and by how many requests.

    slots  int32[all pages]: 1 + slot of each, 0 where it has none
    ahead  pages of an aligned window: others of it come along if their slots lie in the same order beside its own
    """
    window, within = np.divmod(pages, ahead)
    keys = np.sort((window << 33) + slots[pages] - pages)
    keys = keys[np.concatenate([[True], np.diff(keys) != 0])] if keys.size else keys
    windows = np.sort(window)
    windows = windows[np.concatenate([[True], np.diff(windows) != 0])] if windows.size else windows
    every = windows[:, None] * ahead + np.arange(ahead)
    held = slots[np.minimum(every, slots.size - 1)].astype(np.int64)
    asked = np.zeros(every.shape, np.bool_)
    asked[np.searchsorted(windows, window), within] = True
    wanted = (windows[:, None] << 33) + held - every
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    beside = (held > 0) & ~asked & (every < slots.size) & (keys[at] == wanted)
    return every[beside], int(keys.size)
