"""Scans of the whole book. Pageblocks that are free or absent are told by their counts, and not read."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from vmmsim.jit import bare, kernel
from vmmsim.memory.buddy import is_movable, kind_of, mark_of, tag_of
from vmmsim.memory.bulk import BAD, FREE, is_used
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK, PINNED
from vmmsim.memory.ranges import is_free
from vmmsim.memory.zone import ABSENT, BLOCK_WORDS, FREE_FRAMES, OWNER, WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.zone import Blocks, Words


class Column(IntEnum):
    """What a frame is to one owner; each frame counts in one column."""

    FREE = 0
    OTHERS = 1
    """Movable, of others."""
    OWN = 2
    """Movable, the owner's; nothing is NOBODY's own."""
    IMMOVABLE = 3
    """Kernel memory, tables, holes, and what is pinned."""
    BAD = 4
    ISOLATED = 5
    """Held by somebody for a change, whatever its kind."""


_FREE = int(Column.FREE)
_OTHERS = int(Column.OTHERS)
_OWN = int(Column.OWN)
_IMMOVABLE = int(Column.IMMOVABLE)
_BAD = int(Column.BAD)
_ISOLATED = int(Column.ISOLATED)


@kernel
def column_of(words: Words, blocks: Blocks, frame: int, owner: int) -> int:
    """Return the Column of ``frame`` as ``owner`` sees it."""
    kind, mark = kind_of(words, frame), mark_of(words, frame)
    if tag_of(blocks, frame) & ABSENT:
        return _IMMOVABLE
    if mark & ISOLATED:
        return _ISOLATED
    if kind == FREE:
        return _FREE
    if kind == BAD:
        return _BAD
    if not is_movable(kind) or mark & PINNED:
        return _IMMOVABLE
    return _OWN if owner != NOBODY and words[WORDS * frame + OWNER] == owner else _OTHERS


@kernel
def fill_survey(words: Words, blocks: Blocks, owner: int, table: NDArray[np.int16]) -> None:
    """Count into ``table``, int16[pageblocks, columns], zero before."""
    held, tags = bare(words), bare(blocks)
    for block in range(table.shape[0]):
        start = block * PAGEBLOCK
        if tags[BLOCK_WORDS * block + FREE_FRAMES] == PAGEBLOCK or tag_of(tags, start) & ABSENT:
            table[block, column_of(held, tags, start, owner)] = PAGEBLOCK
        else:
            for frame in range(start, start + PAGEBLOCK):
                table[block, column_of(held, tags, frame, owner)] += 1


def survey(words: Words, blocks: Blocks, owner: int) -> NDArray[np.int16]:
    """Return int16[pageblocks, columns]: how many frames of each pageblock are of each Column."""
    table = np.zeros((len(blocks) // BLOCK_WORDS, len(Column)), np.int16)
    fill_survey(words, blocks, owner, table)
    return table


@kernel
def find_owned(words: Words, blocks: Blocks, owner: int, out: NDArray[np.int64]) -> int:
    """Count the frames in use that belong to ``owner``; write as many as fit to ``out``."""
    held, tags = bare(words), bare(blocks)
    found = 0
    for block in range(blocks.size // BLOCK_WORDS):
        start = block * PAGEBLOCK
        if tags[BLOCK_WORDS * block + FREE_FRAMES] == PAGEBLOCK or tag_of(tags, start) & ABSENT:
            continue
        for frame in range(start, start + PAGEBLOCK):
            if held[WORDS * frame + OWNER] == owner and is_used(held, tags, frame):
                if found < out.size:
                    out[found] = frame
                found += 1
    return found


def owned(words: Words, blocks: Blocks, owner: int) -> NDArray[np.int64]:
    """Return the frames in use that belong to ``owner``, in order."""
    out = np.empty(1 << 16, np.int64)
    found = find_owned(words, blocks, owner, out)
    if found > len(out):
        out = np.empty(found, np.int64)
        find_owned(words, blocks, owner, out)
    return out[:found]


@kernel
def free_between(words: Words, blocks: Blocks, start: int, end: int) -> int:
    """Return how many frames of [start, end) are free."""
    held, tags = bare(words), bare(blocks)
    found = 0
    for frame in range(start, end):
        if is_free(held, tags, frame):
            found += 1
    return found
