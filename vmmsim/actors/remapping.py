"""Sending mapped pages to other frames: large leaves that move whole stay large, others are split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER

if TYPE_CHECKING:
    from vmmsim.translation.page_table import PageTable


def remap(table: PageTable, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> int:
    """Let ``table`` send ``pages`` (int64[n], distinct, all mapped) to ``frames``; the caller invalidates.

    Return how many pages' mappings or leaf sizes changed.
    """
    pages, frames, large, whole = _sorted(table, pages, frames)
    if not large.size:
        table.remap(pages, frames)
        return int(pages.size)
    table.remap(large[whole], frames[np.searchsorted(pages, large)[whole]], size=1)
    table.split_many(large[~whole])
    rest = ~np.isin(pages >> PAGEBLOCK_ORDER, large[whole] >> PAGEBLOCK_ORDER)
    table.remap(pages[rest], frames[rest])
    return int(rest.sum()) + PAGEBLOCK * int(large.size)


def split_for(table: PageTable, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
    """Split the large leaves that ``remap`` would, so that it takes no frames for tables."""
    _, _, large, whole = _sorted(table, pages, frames)
    table.split_many(large[~whole])


Numbers = NDArray[np.int64]


def _sorted(table: PageTable, pages: Numbers, frames: Numbers) -> tuple[Numbers, Numbers, Numbers, NDArray[np.bool_]]:
    """Return pages and frames by page, the large leaves that hold any, and which of those move whole."""
    large = np.unique(pages[table.mapped_sizes(pages) == 1] >> PAGEBLOCK_ORDER) << PAGEBLOCK_ORDER
    if not large.size:
        return pages, frames, large, np.zeros(0, np.bool_)
    order = np.argsort(pages, kind="stable")
    pages, frames = pages[order], frames[order]
    at = np.searchsorted(pages, large)
    whole = [
        _moves_whole(pages[i : i + PAGEBLOCK], frames[i : i + PAGEBLOCK], page)
        for i, page in zip(at, large, strict=True)
    ]
    return pages, frames, large, np.array(whole)


def _moves_whole(pages: NDArray[np.int64], frames: NDArray[np.int64], start: int) -> bool:
    """Tell whether all 512 pages from ``start`` go to 512 frames in a row, aligned."""
    if pages.size < PAGEBLOCK or frames[0] % PAGEBLOCK:
        return False
    within = np.arange(PAGEBLOCK)
    return bool(np.all(pages == start + within) and np.all(frames == frames[0] + within))
