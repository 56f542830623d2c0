"""What ksmd keeps of each VM, and what is told of it.

Not an actor; ``sharing`` keeps these books.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.memory.content_trees import ITEM, NONE, UNSTABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Items:
    """What ksmd keeps of one VM: an rmap_item for each page that it met."""

    def __init__(self, pages: int) -> None:
        self.seen = np.full(pages, NONE, np.int32)
        """int32[gfns]: the checksum, here the content itself, at the last scan."""
        self.flags = np.zeros(pages, np.uint8)
        """uint8[gfns]: ``ITEM``, ``UNSTABLE``."""
        self.items = 0
        self.unshared = 0
        """Items in the unstable tree."""

    def drop(self, gfns: NDArray[np.int64]) -> None:
        """Forget pages that are there no longer."""
        flags = self.flags[gfns]
        self.items -= int(np.count_nonzero(flags & ITEM))
        self.unshared -= int(np.count_nonzero(flags & UNSTABLE))
        self.flags[gfns] = 0


@attrs.frozen
class Counters:
    """What Linux tells of KSM in sysfs, by its names, and what only the model knows."""

    pages_shared: int
    """Shared frames."""
    pages_sharing: int
    """Mappings of them beyond the first: frames saved."""
    pages_unshared: int
    """Pages that met no equal one, though they were looked for."""
    pages_volatile: int
    """Pages that changed too fast to be looked for, and those that were refused."""
    full_scans: int
    stable_node_chains: int
    general_profit: int
    """Bytes saved, less what the items take."""
    refused_pinned_vmm: int
    """Merges refused since time 0, because a VMM segment pins one of the two pages."""
    scanned_pages: int
    ksmd_ns: int
    """CPU time of ksmd since time 0."""
