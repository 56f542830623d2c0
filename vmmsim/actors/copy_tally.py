"""What a build copied, and why other than planned: a VM's memory does not stand still while its segment is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.addresses import format_duration

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CopyTally:
    """Counts copies against a plan."""

    def __init__(self, planned: int, backing: NDArray[np.integer]) -> None:
        """planned: copies of the plan; backing int[n]: where each page of the segment was then, -1 for nowhere."""
        self.planned = planned
        self._absent = np.asarray(backing < 0)
        self._of_new_pages = 0

    def copied(self, pages: NDArray[np.int64]) -> None:
        """Note copies of pages of the segment, counted from its base; one that is copied twice stands there twice."""
        self._of_new_pages += int(self._absent[pages].sum())

    def why(self, made: int, dropped: int) -> str:
        """Return what became of the plan, "" if it held: ``made`` copies in all, ``dropped`` pages of page cache."""
        rest = made - self.planned - self._of_new_pages + dropped
        if made == self.planned:
            return ""
        told = [
            f"{self._of_new_pages} more for pages touched meanwhile" if self._of_new_pages else "",
            f"{dropped} fewer for page cache that was dropped instead" if dropped else "",
            f"{rest} more for pages copied twice, that changed meanwhile or were in each other's way"
            if rest > 0
            else "",
            f"{-rest} fewer for pages that were given back or moved meanwhile" if rest < 0 else "",
        ]
        return f"of {self.planned} copies planned, {', '.join(filter(None, told))}"


def built(took_ns: int, copied: int, zeroed: int) -> str:
    """Return what it took to build a segment, in words."""
    what = [f"{copied} pages moved"] if copied else []
    what += [f"{zeroed} zeroed"] if zeroed else []
    return f"host memory made contiguous in {format_duration(took_ns)}: {', '.join(what) or 'nothing to move'}"
