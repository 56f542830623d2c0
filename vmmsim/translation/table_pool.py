"""The pool that all page tables of a host lie in, in nodes of 512 entries; and which of them one table is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.addresses import TABLE_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Frames = NDArray[np.int64]


class TablePool:
    """All page tables of a host: one int64 array that grows by doubling, and the nodes that are free in it."""

    def __init__(self) -> None:
        self.entries: NDArray[np.int64] = np.zeros(64 * TABLE_ENTRIES, np.int64)
        self._used = 0
        self._free: list[int] = []

    @property
    def nodes_in_use(self) -> int:
        """The number of tables (4 KiB each) that are taken."""
        return self._used - len(self._free)

    def take(self, count: int) -> NDArray[np.int64]:
        """Return int64[count]: nodes of empty tables, given-back ones first."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = np.arange(self._used, self._used + count - len(reused), dtype=np.int64)
        self._grow(int(fresh.size))
        nodes = np.concatenate([np.array(reused, np.int64), fresh])
        self.entries.reshape(-1, TABLE_ENTRIES)[nodes] = 0
        return nodes

    def take_run(self, count: int) -> int:
        """Return the first of ``count`` adjacent nodes, all zero."""
        first = self._used
        self._grow(count)
        return first

    def give_back(self, nodes: NDArray[np.int64]) -> None:
        """Take back nodes that nothing leads to any more."""
        self._free.extend(int(node) for node in nodes)

    def _grow(self, count: int) -> None:
        self._used += count
        wanted = self._used * TABLE_ENTRIES
        if wanted > self.entries.size:
            grown = np.zeros(max(wanted, 2 * self.entries.size), np.int64)
            grown[: self.entries.size] = self.entries
            self.entries = grown


class Tables:
    """The nodes that one radix table is made of, the frame that each lies in, and a few spare ones."""

    def __init__(
        self, pool: TablePool, take_frames: Callable[[int], Frames], give_back_frames: Callable[[Frames], None] | None
    ) -> None:
        self.frames: dict[int, int] = {}
        self._pool = pool
        self._take_frames = take_frames
        self._give_back_frames = give_back_frames
        self._spare = (np.empty(0, np.int64), np.empty(0, np.int64))

    def supply(self, count: int) -> tuple[NDArray[np.int64], Frames]:
        """Return ``count`` empty tables: their nodes, and the frames they lie in."""
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        frames = np.array(self._take_frames(count), np.int64)
        assert frames.size == count, "one frame for each table"
        return self._pool.take(count), frames

    def add(self, nodes: NDArray[np.int64], frames: Frames) -> None:
        """Note that tables are in use."""
        self.frames.update(zip(nodes.tolist(), frames.tolist(), strict=True))

    def spare_ones(self, at_least: int) -> tuple[NDArray[np.int64], Frames]:
        """Return all spare tables, ``at_least`` so many."""
        nodes, frames = self.supply(max(at_least - self._spare[0].size, 0))
        self._spare = np.append(self._spare[0], nodes), np.append(self._spare[1], frames)
        return self._spare

    def add_spare_ones(self, used: int) -> None:
        """Note that the first spare tables are in use."""
        nodes, frames = self._spare
        self.add(nodes[:used], frames[:used])
        self._spare = nodes[used:], frames[used:]

    def all_frames(self) -> Frames:
        """Return the frames of all tables, in the order in which they came into use, and of spare ones."""
        return np.concatenate([np.fromiter(self.frames.values(), np.int64, len(self.frames)), self._spare[1]])

    def move(self, node: int, frame: int) -> None:
        """Note that a table lies in another frame."""
        self.frames[node] = frame

    def move_spare(self, old_frame: int, new_frame: int) -> bool:
        """Note that a spare table lies in another frame; tell whether one lay in the old."""
        found = self._spare[1] == old_frame
        self._spare[1][found] = new_frame
        return bool(found.any())

    def drop(self, nodes: list[int]) -> None:
        """Give tables that nothing leads to any more back to the pool, and their frames to the owner."""
        frames = np.array([self.frames.pop(node) for node in nodes], np.int64)
        self._pool.give_back(np.array(nodes, np.int64))
        if self._give_back_frames is not None and frames.size:
            self._give_back_frames(frames)

    def drop_all(self) -> None:
        """Give everything back, spare tables too."""
        self.add_spare_ones(self._spare[0].size)
        self.drop(list(self.frames))
