"""Regions of a recorded program: traces do not say what it allocated in one piece, their gaps do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.protocols import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pages = NDArray[np.int64]

REGION_GAP: Final = 4096
"""Pages (16 MiB) without an access that end a region: regions are what a program allocates in one piece."""


def primary_region(pages: Pages, code: Pages) -> tuple[int, int]:
    """Return the gvpns [base, limit) that a guest segment is made for; base = limit if there are none.

    It is the region of data with the most pages touched: no code in it, and no gap over REGION_GAP. A segment gives
    one permission to all of it, and backs all of it with memory, gaps too.

    pages   int64[n], ascending: gvpns that the program touches
    code    int64[m], ascending: gvpns that instructions are fetched from, in ``pages`` or not
    """
    data = np.setdiff1d(pages, code, assume_unique=True)
    if data.size == 0:
        return 0, 0
    starts = _starts(data, code)
    sizes = np.diff(np.append(starts, data.size))
    largest = int(np.argmax(sizes))
    first = int(starts[largest])
    return int(data[first]), int(data[first + int(sizes[largest]) - 1]) + 1


def regions_of(pages: Pages, code: Pages) -> tuple[Region, ...]:
    """Return disjoint regions that hold all of ``pages``, the one of ``primary_region`` marked; arguments as there."""
    base, limit = primary_region(pages, code)
    is_code = np.isin(pages, code, assume_unique=True)
    found = []
    for kind, part in (("data", pages[~is_code]), ("code", pages[is_code])):
        if part.size:
            others = code if kind == "data" else np.setdiff1d(pages, code, assume_unique=True)
            starts = _starts(part, others)
            ends = np.append(starts[1:], part.size)
            bounds = zip(part[starts].tolist(), part[ends - 1].tolist(), strict=True)
            found += [
                Region(f"{kind} at {first:#x}000", first, last + 1 - first, primary=kind == "data" and first == base)
                for first, last in bounds
            ]
    assert sum(region.primary for region in found) == (limit > base), "the primary region is one of them"
    return tuple(sorted(found, key=lambda region: region.start))


def _starts(pages: Pages, others: Pages) -> Pages:
    """Return the positions in ``pages`` (at least one) where a region starts: behind a gap, or one of ``others``."""
    before = np.searchsorted(others, pages)
    starts_here = (np.diff(pages) > REGION_GAP) | (np.diff(before) > 0)
    return np.concatenate([[0], np.flatnonzero(starts_here) + 1])
