"""Moves that are planned, under way, and done or given up: both sides are held until then."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.jit import bare, inlined, kernel
from vmmsim.memory.buddy import count_kind, free_block, kind_of
from vmmsim.memory.bulk import FREE, write
from vmmsim.memory.frames import ISOLATED, NOBODY
from vmmsim.memory.zone import MARK_SHIFT, ORDER_SHIFT, OWNER, PAGE, STATE, WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.ledger import Memory
    from vmmsim.memory.tokens import Token
    from vmmsim.memory.zone import Blocks, Words, Zone


class Result(IntEnum):
    """How compaction stands or ended (Linux: enum compact_result)."""

    NOT_SUITABLE_ZONE = 0
    """A request would fail for lack of memory rather than for fragmentation: reclaim instead."""
    SKIPPED = 1
    """Too little is free for moving anything."""
    DEFERRED = 2
    """It failed lately; not tried."""
    CONTINUE = 3
    """There is more to do."""
    COMPLETE = 4
    """The scanners met after all of the memory had been scanned."""
    PARTIAL_SKIPPED = 5
    """The scanners met, having begun in the middle."""
    CONTENDED = 6
    """Nothing could be held because others hold it."""
    SUCCESS = 7
    """A block of the order wanted is free, or the score is low enough."""


@attrs.frozen(eq=False)
class Moves:
    """Frames to be copied: ``old[i]`` to ``new[i]``, held by ``token``.

    Whoever planned them remaps the pages, invalidates, and ends with ``finish`` or ``abandon``.
    """

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    whole: NDArray[np.bool_]
    """Whether the frame moves as part of a 2 MiB allocation that stays one: 512 in a row, aligned on both sides."""
    token: Token | None
    """None if there are no moves."""
    result: Result = Result.CONTINUE
    """How the run that planned them stands."""
    next: int = -1
    """Evacuation: the frame to go on from; its end, if it is done."""

    def __len__(self) -> int:
        return len(self.old)


def hold(
    memory: Memory,
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    whole: NDArray[np.bool_],
    *,
    by: str,
    result: Result = Result.CONTINUE,
    reached: int = -1,
) -> Moves:
    """Return the moves of frames that a kernel has marked isolated already."""
    token = memory.adopt(np.concatenate((old, new)), by) if len(old) else None
    return Moves(old=old, new=new, whole=whole, token=token, result=result, next=reached)


@inlined
def finish_one(zone: Zone, words: Words, blocks: Blocks, old: int, new: int, whole: bool) -> None:
    """Let the frame ``new``, isolated, be what ``old`` was, and free that."""
    source = WORDS * old
    kind = kind_of(words, old)
    state = words[source + STATE] & ~(ISOLATED << MARK_SHIFT)
    if not whole:
        state &= ~(255 << ORDER_SHIFT)
    count_kind(zone, blocks, new, FREE, -1)
    count_kind(zone, blocks, new, kind, 1)
    write(words, new, words[source + OWNER], words[source + PAGE], state)
    count_kind(zone, blocks, old, kind, -1)
    count_kind(zone, blocks, old, FREE, 1)
    write(words, old, NOBODY, NOBODY, FREE)
    free_block(zone, words, blocks, old, 0)


@kernel
def finish_many(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    whole: NDArray[np.bool_],
) -> None:
    """Let each new frame be what the old one was, and free the old one."""
    held, tags = bare(words), bare(blocks)
    for i in range(old.size):
        finish_one(zone, held, tags, old[i], new[i], whole[i])


def finish(memory: Memory, moves: Moves) -> None:
    """The pages are copied and remapped: the new frames are what the old ones were, the old ones are free.

    Old frames in a leased range stay there, free.
    """
    if moves.token is not None:
        memory.close(moves.token)
        finish_many(memory.zone, memory.words, memory.blocks, moves.old, moves.new, moves.whole)


def abandon(memory: Memory, moves: Moves) -> None:
    """Nothing was moved: let go of both sides."""
    if moves.token is not None:
        memory.release(moves.token)
