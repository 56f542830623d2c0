"""Emptying a leased range: its movable frames are moved elsewhere, and what cannot move is named.

L: alloc_contig_range, offline_pages: targets come from the ordinary allocator. A frame that was allocated as one of
a whole 2 MiB block moves with its block while a whole free one can be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.jit import bare, inlined, kernel
from vmmsim.memory.buddy import (
    MOVABLE,
    count_free,
    free_block,
    is_movable,
    kind_of,
    link_range,
    mark_of,
    pop_block,
    tag_of,
)
from vmmsim.memory.bulk import FREE, HOLE, write
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED
from vmmsim.memory.moves import Moves, hold
from vmmsim.memory.ranges import count_leased
from vmmsim.memory.zone import ABSENT, BLOCK_WORDS, FREE_FRAMES, MARK_SHIFT, NIL, ORDER_SHIFT, STATE, WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.ledger import Memory
    from vmmsim.memory.zone import Blocks, Words, Zone

ASIDE = 1 << 16
"""Free frames that may be passed over for lying in the range to avoid, in one plan."""


@attrs.frozen(eq=False)
class Blockers:
    """What keeps a range from being emptied, as far as it was scanned."""

    frames: NDArray[np.int64]
    """Frames that cannot move: kernel memory, tables, pinned and retired frames, holes."""
    kinds: NDArray[np.uint8]
    """Their kinds; a movable kind is a pinned frame."""
    held: NDArray[np.int64]
    """Frames that others hold now: they may move later."""
    short: bool
    """Whether there was no free frame left to move to."""

    def __bool__(self) -> bool:
        return bool(len(self.frames) or len(self.held) or self.short)


@inlined
def is_whole(words: Words, frame: int, end: int) -> bool:
    """Tell whether a 2 MiB allocation begins at ``frame``, all of it before ``end`` and movable."""
    if frame % PAGEBLOCK or frame + PAGEBLOCK > end:
        return False
    for at in range(frame, frame + PAGEBLOCK):
        order = words[WORDS * at + STATE] >> ORDER_SHIFT & 255
        if order < PAGEBLOCK_ORDER or not is_movable(kind_of(words, at)) or mark_of(words, at) & (ISOLATED | PINNED):
            return False
    return True


@kernel
def find_movable(
    words: Words,
    blocks: Blocks,
    start: int,
    end: int,
    old: NDArray[np.int64],
    whole: NDArray[np.bool_],
    stuck: NDArray[np.int64],
    held: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Scan [start, end) until one of the lists is full.

    old    int64[n], written to: frames that can move; ``whole`` says which as part of a 2 MiB block
    stuck  int64[n], written to: frames that cannot
    held   int64[n], written to: frames that somebody holds

    Return (the frame reached, how many old, stuck, held).
    """
    book, tags = bare(words), bare(blocks)
    olds, stucks, helds = 0, 0, 0
    frame = start
    while frame < end and olds < old.size and stucks < stuck.size and helds < held.size:
        if tags[BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER) + FREE_FRAMES] == PAGEBLOCK:
            frame = (frame & -PAGEBLOCK) + PAGEBLOCK
            continue
        kind, mark = kind_of(book, frame), mark_of(book, frame)
        if tag_of(tags, frame) & ABSENT:
            kind = HOLE
        if mark & ISOLATED:
            held[helds] = frame
            helds += 1
        elif is_movable(kind) and not mark & PINNED:
            if not is_whole(book, frame, end):
                old[olds] = frame
                whole[olds] = False
                olds += 1
            elif olds > 0 and olds + PAGEBLOCK > old.size:
                break
            else:
                for at in range(PAGEBLOCK):
                    old[olds + at] = frame + at
                    whole[olds + at] = True
                olds += PAGEBLOCK
                frame += PAGEBLOCK - 1
        elif kind != FREE:
            stuck[stucks] = frame
            stucks += 1
        frame += 1
    return frame, olds, stucks, helds


@inlined
def reserve(zone: Zone, words: Words, blocks: Blocks, order: int) -> int:
    """Isolate a free block of ``order`` as a movable request would get it; return its first frame, or NIL."""
    for part in (1, 0):
        if zone.free[part] - (1 << order) >= zone.watermark[0, part]:
            frame, have = pop_block(zone, words, blocks, part, order, MOVABLE)
            if frame != NIL:
                end = frame + (1 << order)
                count_free(zone, blocks, part, frame, end, -1)
                link_range(zone, words, blocks, end, frame + (1 << have))
                for at in range(frame, end):
                    write(words, at, NOBODY, NOBODY, FREE | ISOLATED << MARK_SHIFT)
                return frame
    return NIL


@inlined
def give_up(zone: Zone, words: Words, blocks: Blocks, frame: int, order: int) -> None:
    """Free again a block that was reserved."""
    for at in range(frame, frame + (1 << order)):
        write(words, at, NOBODY, NOBODY, FREE)
    free_block(zone, words, blocks, frame, order)


@kernel
def reserve_outside(
    zone: Zone, words: Words, blocks: Blocks, order: int, avoid: tuple[int, int], aside: NDArray[np.int64], count: int
) -> tuple[int, int]:
    """Reserve a block of ``order`` outside ``avoid``; what lies inside is put ``aside``, from ``count`` on.

    Return (its first frame or NIL, how many blocks are aside, each as frame << 4 | order).
    """
    while count < aside.size:
        frame = reserve(zone, words, blocks, order)
        if frame == NIL or frame + (1 << order) <= avoid[0] or frame >= avoid[1]:
            return frame, count
        aside[count] = frame << 4 | order
        count += 1
    return NIL, count


@kernel
def find_targets(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    old: NDArray[np.int64],
    whole: NDArray[np.bool_],
    avoid_start: int,
    avoid_end: int,
    aside: NDArray[np.int64],
    new: NDArray[np.int64],
) -> int:
    """Isolate a frame outside [avoid_start, avoid_end) for each of ``old``, and those; return for how many.

    A 2 MiB block for which there is no whole one is no longer ``whole``.
    """
    held, tags = bare(words), bare(blocks)
    asides, done = 0, 0
    while done < old.size:
        frame, span = NIL, 1
        if whole[done]:
            frame, asides = reserve_outside(zone, held, tags, PAGEBLOCK_ORDER, (avoid_start, avoid_end), aside, asides)
            span = PAGEBLOCK
        if frame == NIL:
            if whole[done]:
                whole[done : done + PAGEBLOCK] = False
            frame, asides = reserve_outside(zone, held, tags, 0, (avoid_start, avoid_end), aside, asides)
            span = 1
        if frame == NIL:
            break
        for at in range(span):
            new[done + at] = frame + at
            held[WORDS * old[done + at] + STATE] |= ISOLATED << MARK_SHIFT
        done += span
    for i in range(asides):
        give_up(zone, held, tags, aside[i] >> 4, aside[i] & 15)
    return done


def evacuate(
    memory: Memory, start: int, end: int, *, pages: int, avoid: tuple[int, int] | None = None, by: str = "evacuation"
) -> tuple[Moves, Blockers]:
    """Plan up to ``pages`` moves out of the leased range [start, end), and name what cannot move.

    pages  at most so many; but a 2 MiB block moves whole, even if it is all that is planned
    avoid  [start, end) where no target may lie, leased or not

    ``moves.next`` is where to go on; the blockers are those of [start, moves.next). With neither moves nor a blocker
    that is ``held`` or ``short``, the range is as empty as it can be.
    """
    if count_leased(memory.blocks, start, end) != -(-end // PAGEBLOCK) - start // PAGEBLOCK:
        raise ValueError(f"[{start}, {end}) is not leased: what is freed there would be taken by others")
    room = max(pages, PAGEBLOCK)
    old, whole, new = np.empty(room, np.int64), np.empty(room, np.bool_), np.empty(room, np.int64)
    stuck, held = np.empty(1 << 12, np.int64), np.empty(1 << 12, np.int64)
    reached, olds, stucks, helds = find_movable(memory.words, memory.blocks, start, end, old, whole, stuck, held)
    if olds > pages and not whole[0]:
        # The room for a 2 MiB block has been filled with singles.
        olds, reached = pages, int(old[pages])
    lower, upper = avoid or (0, 0)
    aside = np.empty(ASIDE if avoid else 1, np.int64)
    done = find_targets(memory.zone, memory.words, memory.blocks, old[:olds], whole[:olds], lower, upper, aside, new)
    if done < olds:
        reached = int(old[done])
    frames, waiting = stuck[:stucks], held[:helds]
    frames = frames[frames < reached]
    blockers = Blockers(
        frames=frames, kinds=memory.kinds(frames), held=waiting[waiting < reached], short=bool(done < olds)
    )
    moves = hold(memory, old[:done].copy(), new[:done].copy(), whole[:done].copy(), by=by, reached=int(reached))
    return moves, blockers
