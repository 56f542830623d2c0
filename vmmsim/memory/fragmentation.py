"""Linux's measures of how splintered free memory is. L: mm/vmstat.c; fragmentation_score_node, mm/compaction.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.memory.frames import ORDERS, PAGEBLOCK_ORDER

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def fragmentation_index(nr_free: ArrayLike, order: int) -> int:
    """Return why a request of ``order`` would fail: towards 0 for lack of memory, towards 1000 for fragmentation.

    nr_free  free blocks by order. -1000: it would not fail. 0 also where nothing is free.
    """
    free, total, suitable = _sums(nr_free, order)
    if total == 0:
        return 0
    if suitable:
        return -1000
    return 1000 - (1000 + 1000 * free // (1 << order)) // total


def extfrag(nr_free: ArrayLike, order: int) -> int:
    """Return the per cent of free memory in blocks too small for ``order``; 0 where nothing is free."""
    free, _, suitable = _sums(nr_free, order)
    return (free - (suitable << order)) * 100 // free if free else 0


def unusable_index(nr_free: ArrayLike, order: int) -> int:
    """Return the same in thousandths (Linux's file: extfrag/unusable_index)."""
    free, _, suitable = _sums(nr_free, order)
    return (free - (suitable << order)) * 1000 // free if free else 0


def _sums(nr_free: ArrayLike, order: int) -> tuple[int, int, int]:
    """Return (free pages, free blocks, blocks of ``order`` that could be had)."""
    blocks = [int(count) for count in np.asarray(nr_free)]
    free = sum(count << size for size, count in enumerate(blocks))
    return free, sum(blocks), sum(count << size - order for size, count in enumerate(blocks) if size >= order)


@attrs.frozen(eq=False)
class Fragmentation:
    """The free memory of one allocator at one moment."""

    nr_free: NDArray[np.int64]
    """int64[ORDERS]: free blocks by order, of all types and parts."""
    score: int
    """What proactive compaction goes by: extfrag of order 9, each part weighted with its present pages."""

    @classmethod
    def of(cls, nr_free: NDArray[np.int64], present: NDArray[np.int64]) -> Fragmentation:
        """Return the measures of parts with ``nr_free`` int64[parts, ORDERS] blocks, ``present`` int64[parts] pages."""
        node = int(present.sum()) + 1
        score = sum(
            extfrag(blocks, PAGEBLOCK_ORDER) * int(pages) // node
            for blocks, pages in zip(nr_free, present, strict=True)
        )
        return cls(nr_free=nr_free.sum(axis=0), score=score)

    @property
    def free_pages(self) -> int:
        """Pages in all of the blocks."""
        return int((self.nr_free << np.arange(ORDERS)).sum())

    def fragmentation_index(self, order: int) -> int:
        """Return ``fragmentation_index`` of this memory."""
        return fragmentation_index(self.nr_free, order)

    def extfrag(self, order: int) -> int:
        """Return ``extfrag`` of this memory."""
        return extfrag(self.nr_free, order)

    def unusable_index(self, order: int) -> int:
        """Return ``unusable_index`` of this memory."""
        return unusable_index(self.nr_free, order)
