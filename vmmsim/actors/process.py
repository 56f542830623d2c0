"""A guest process: its regions, which of their pages are mapped, and the page table that says where.

Not an actor; the guest OS changes it. Pages are numbered from 0 through all regions in order: that number is what the
guest's ledger keeps as the reverse map, since a gvpn may need more bits than a frame's record has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.protocols import Region, Workload
    from vmmsim.translation.page_table import PageTable

WATCH_ACCESS: Final = 1
"""Mark: the next access finds no host frame."""
WATCH_WRITE: Final = 2
"""Mark: the next write finds a page that it may not write to: merged, or logged."""


class Process:
    """The process that runs a VM's workload. ``number`` is its owner number in the guest's ledger."""

    def __init__(self, number: int, workload: Workload, table: PageTable) -> None:
        self.number = number
        self.workload = workload
        self.table = table
        self.regions: tuple[Region, ...] = tuple(sorted(workload.regions, key=lambda region: region.start))
        sizes = np.array([region.pages for region in self.regions], np.int64)
        self.starts = np.array([region.start for region in self.regions], np.int64)
        self.bases = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.pages = int(sizes.sum())
        self.mapped = np.zeros(self.pages, np.bool_)
        """bool[pages]: whether each page, by its number, has a leaf in the table."""
        self.mapped_pages = 0
        self.watched = np.zeros(self.pages, np.uint8)
        """uint8[pages]: what each page's next access or write must do first (``WATCH_ACCESS``, ``WATCH_WRITE``)."""
        self.swapped: NDArray[np.int32] | None = None
        """int32[pages]: 1 + slot of the guest's swap device that holds the page, 0 where none does; None: no device."""

    @property
    def primary(self) -> Region | None:
        """The region a guest segment is made for; None if the workload has none."""
        return next((region for region in self.regions if region.primary), None)

    def numbers(self, gvpns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: the numbers of pages by their gvpns, all of which lie in regions."""
        region = np.searchsorted(self.starts, gvpns, side="right") - 1
        return np.asarray(self.bases[region] + gvpns - self.starts[region])

    def gvpns(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: the gvpns of pages by their numbers: the inverse of ``numbers``."""
        region = np.searchsorted(self.bases, numbers, side="right") - 1
        return np.asarray(self.starts[region] + numbers - self.bases[region])

    def region_numbers(self, region: Region) -> slice:
        """Return the numbers of a region's pages."""
        base = int(self.bases[self.regions.index(region)])
        return slice(base, base + region.pages)

    def mark(self, numbers: NDArray[np.int64], mapped: bool) -> None:
        """Book that pages, each of which changes, are mapped now or no longer."""
        self.mapped[numbers] = mapped
        self.mapped_pages += int(numbers.size) if mapped else -int(numbers.size)

    def mark_all(self, numbers: slice) -> None:
        """Book that all of ``numbers``, none of which is mapped, are mapped now."""
        self.mapped[numbers] = True
        self.mapped_pages += numbers.stop - numbers.start
