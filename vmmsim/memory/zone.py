"""The state of one buddy allocator: a record of its free lists and counts, and four small numbers a pageblock.

A kernel takes the record ``zone``, the frames as ``words`` (int32[3 * frames]: owner, page, state) and the pageblocks
as ``blocks`` (int16[4 * pageblocks]: type and flags, free, movable, cache). What is never used is never written: at
boot, memory is *fresh*, whole blocks of the largest order that are free but linked nowhere; they enter the free lists
lowest first, when everything else of their order and type is taken. So a record costs memory only once it is used.

A memory has one range of frames, or two: [0, kernelcore), where anything may live, and above it what Linux calls
ZONE_MOVABLE. Free lists, counts and watermarks are kept for each range: index ``part``.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmmsim.memory.frames import FRAME, KINDS, MAX_ORDER, ORDERS, PAGEBLOCK, TYPES, Kind, MigrateType

Zone: TypeAlias = Any
"""A scalar record of dtype ZONE; its fields are attributes, compiled and interpreted alike."""
Words: TypeAlias = NDArray[np.int32]
"""int32[3 * frames]: the records of all frames, as WORDS words each."""
Blocks: TypeAlias = NDArray[np.int16]
"""int16[4 * pageblocks]: BLOCK_WORDS numbers for each pageblock."""

WORDS: Final = 3
OWNER: Final = 0
PAGE: Final = 1
STATE: Final = 2
"""Words of a frame. A state is kind | order << 8 | mark << 16 | age << 24, as FRAME lays them out (little-endian)."""
ORDER_SHIFT: Final = 8
MARK_SHIFT: Final = 16

BLOCK_WORDS: Final = 4
TAG: Final = 0
FREE_FRAMES: Final = 1
"""Free frames of the pageblock, those of a leased range included."""
MOVABLE_FRAMES: Final = 2
"""Frames of movable kinds, pinned ones included."""
CACHE_FRAMES: Final = 3

TYPE_MASK: Final = 3
"""Bits of a tag: the migrate type, which a leased pageblock keeps for later."""
LEASED: Final = 4
"""The pageblock is of type ISOLATE for now."""
FRESH: Final = 8
"""Free, never used, and linked nowhere: half of a block of the largest order."""
ABSENT: Final = 16
"""All of it is a hole; its records are not written."""
WRITTEN: Final = 64
"""Set on absent pageblocks only: memory was here before, the records say HOLE."""
SKIP: Final = 32
"""Compaction found nothing to isolate here the last time it looked."""

TOP: Final = 1 << MAX_ORDER
"""Frames of the largest block."""
PARTS: Final = 2
READ_AHEAD: Final = 32
"""Frames that page cache comes and goes by: Linux reads 128 KiB ahead by default (VM_READAHEAD_PAGES)."""
NIL: Final = -1
"""End of a free list."""

ZONE: Final = np.dtype(
    [
        ("frames", np.int64),
        ("kernelcore", np.int64),
        # free lists: head, tail and length by (part, order, type); fresh blocks count in the length of theirs
        ("head", np.int64, (PARTS, ORDERS, TYPES)),
        ("tail", np.int64, (PARTS, ORDERS, TYPES)),
        ("blocks", np.int64, (PARTS, ORDERS, TYPES)),
        ("fresh", np.int64, (PARTS,)),
        ("fresh_next", np.int64, (PARTS,)),
        # pages: free and allocatable; free in leased pageblocks; there at all
        ("free", np.int64, (PARTS,)),
        ("leased_free", np.int64, (PARTS,)),
        ("present", np.int64, (PARTS,)),
        # min, low, high of each part
        ("watermark", np.int64, (3, PARTS)),
        ("kinds", np.int64, (KINDS,)),
        # chunks of READ_AHEAD frames are visited for dropping page cache: the next one, and the step after it
        ("cache_next", np.int64),
        ("cache_step", np.int64),
        # how often: pageblocks claimed whole, pages stolen from another type's pageblock
        ("claims", np.int64),
        ("steals", np.int64),
        # pages to be reclaimed beyond the mark high, since pageblocks may get mixed; and the most it can be
        ("boost", np.int64, (PARTS,)),
        ("boost_most", np.int64, (PARTS,)),
        # compaction: cached places of the migration scanner (asynchronous, synchronous) and of the free scanner
        ("migrate_next", np.int64, (PARTS, 2)),
        ("free_next", np.int64, (PARTS,)),
        ("defer_shift", np.int64, (PARTS,)),
        ("considered", np.int64, (PARTS,)),
        ("order_failed", np.int64, (PARTS,)),
        # whether the next run forgets skip bits and places: the last one ended because the scanners met
        ("flush_skip", np.int64, (PARTS,)),
    ],
    align=True,
)
"""The record of one allocator."""


def part_bounds(zone: Zone, part: int) -> tuple[int, int]:
    """Return [start, end) of the frames of ``part``."""
    return (0, int(zone.kernelcore)) if part == 0 else (int(zone.kernelcore), int(zone.frames))


def is_written(blocks: Blocks) -> NDArray[np.bool_]:
    """Tell for each pageblock whether its records were ever written."""
    tags = blocks[TAG::BLOCK_WORDS]
    never: NDArray[np.bool_] = (tags & FRESH != 0) | (tags & (ABSENT | WRITTEN) == ABSENT)
    return ~never


def allocate(pages: int, kernelcore: int | None) -> tuple[Zone, NDArray[Any], Blocks]:
    """Return ``(zone, records, blocks)`` of a memory of ``pages`` frames, all of them holes.

    records     FRAME[n], n the next multiple of TOP, so that no buddy lies outside
    kernelcore  where the movable part begins, rounded up to a multiple of TOP; None: there is none
    """
    frames = -(-pages // TOP) * TOP
    zone: Any = np.rec.array(np.zeros(1, ZONE))[0]
    zone.frames = frames
    zone.kernelcore = frames if kernelcore is None else min(-(-kernelcore // TOP) * TOP, frames)
    zone.head[:] = zone.tail[:] = NIL
    for part in range(PARTS):
        start, end = part_bounds(zone, part)
        zone.fresh_next[part] = start // TOP
        zone.migrate_next[part] = start
        zone.free_next[part] = end
    zone.order_failed[:] = MAX_ORDER + 1
    chunks = frames // READ_AHEAD
    step = int(chunks * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, chunks) > 1:
        step += 1
    zone.cache_step = step
    blocks = np.zeros(frames // PAGEBLOCK * BLOCK_WORDS, np.int16)
    zone.kinds[Kind.HOLE] = frames
    blocks[TAG::BLOCK_WORDS] = int(MigrateType.MOVABLE) | ABSENT
    return zone, np.zeros(frames, FRAME), blocks
