"""The book of frames: one record a frame, of the host or of one guest, and what each field means.

A frame is 4 KiB. Its record has 12 bytes, whatever it is used for. While a frame is free and heads a block of the
buddy allocator, ``owner`` and ``page`` are the links of its free list; otherwise they say whose it is and which of
the owner's pages it holds (the reverse map).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """What a frame is used for."""

    FREE = 0
    """In the buddy allocator (or on its way out of it, while isolated)."""
    HOLE = 1
    """No memory here: the I/O gap, memory that is unplugged or not yet added."""
    KERNEL = 2
    """Kernel memory that cannot move."""
    SLAB = 3
    """Kernel memory that can be reclaimed, but not moved."""
    TABLE = 4
    """A page table. Cannot move. On the host ``owner`` is the VM whose nested table it is."""
    USER = 5
    """Movable, mapped memory. Host: ``owner`` is a VM, ``page`` its gfn. Guest: a process, and its page's number."""
    CACHE = 6
    """Page cache: movable, and dropped when memory is short."""
    BALLOON = 7
    """Guests only: given up to the balloon; movable at the price of two requests to the host."""
    BAD = 8
    """Retired after a permanent fault: an immovable hole."""


KINDS: Final = len(Kind)
IMMOVABLE: Final = (Kind.HOLE, Kind.KERNEL, Kind.SLAB, Kind.TABLE, Kind.BAD)
"""Kinds that compaction and evacuation cannot move."""

ISOLATED: Final = 1
"""Mark: held by a token of a change in progress; nobody else may touch the frame."""
PINNED: Final = 2
"""Mark: movable by kind, but pinned in place (DMA, get_user_pages)."""
HEAD: Final = 4
"""Mark: first frame of a free block; ``order`` is the block's."""

FRAME: Final = np.dtype(
    [
        ("owner", np.int32),
        ("page", np.int32),
        ("kind", np.uint8),
        ("order", np.uint8),
        ("mark", np.uint8),
        ("age", np.uint8),
    ]
)
"""The record of one frame."""

NOBODY: Final = -1
"""Owner and page of frames that have none."""

SHARED: Final = (1 << 31) - 1
"""Owner, on the host, of a USER frame that several gfns are mapped to, read-only; ``page`` says how many."""

Frames: TypeAlias = NDArray[Any]
"""FRAME[n]: all frames of a host or guest, by number."""

MAX_ORDER: Final = 10
"""Largest block of the buddy allocator: 2**10 pages, 4 MiB (Linux MAX_PAGE_ORDER)."""
ORDERS: Final = MAX_ORDER + 1
PAGEBLOCK_ORDER: Final = 9
"""A pageblock has 512 frames, 2 MiB: the grain of migrate types."""
PAGEBLOCK: Final = 1 << PAGEBLOCK_ORDER


class MigrateType(IntEnum):
    """What a pageblock is meant for (Linux: MIGRATE_*)."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    ISOLATE = 3
    """Taken out of use while its range is evacuated or unplugged."""


TYPES: Final = len(MigrateType)
