"""Many frames at once: taken, given back, rewritten, isolated. A kernel checks its whole list before it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import bare, inlined, kernel
from vmmsim.memory.buddy import (
    MOVABLE,
    count_free,
    count_kind,
    cut,
    free_block,
    kind_of,
    link_range,
    mark_of,
    mobility,
    pop_block,
    tag_of,
)
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK_ORDER, Kind
from vmmsim.memory.zone import (
    ABSENT,
    BLOCK_WORDS,
    CACHE_FRAMES,
    LEASED,
    MARK_SHIFT,
    NIL,
    ORDER_SHIFT,
    OWNER,
    PAGE,
    READ_AHEAD,
    STATE,
    WORDS,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.memory.zone import Blocks, Words, Zone

FREE = int(Kind.FREE)
HOLE = int(Kind.HOLE)
BAD = int(Kind.BAD)
CACHE = int(Kind.CACHE)
SEEN = 128
"""Mark that a frame has while a list is checked, so that one named twice is found."""
KEEP = -2
"""An owner or kind that is to stay as it is."""


@inlined
def write(words: Words, frame: int, owner: int, page: int, state: int) -> None:
    """Write the whole record of ``frame``."""
    words[WORDS * frame + OWNER] = owner
    words[WORDS * frame + PAGE] = page
    words[WORDS * frame + STATE] = state


@kernel
def take_from_part(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    part: int,
    floor: int,
    order: int,
    kind: int,
    owner: int,
    pages: NDArray[np.int64],
    out: NDArray[np.int64],
    done: int,
) -> int:
    """Fill ``out`` from ``done`` on with blocks of one part; return how far it got. See take_many."""
    state = kind | order << ORDER_SHIFT
    while done < out.size and zone.free[part] - (1 << order) >= floor:
        frame, have = pop_block(zone, words, blocks, part, order, mobility(kind))
        if frame == NIL:
            break
        count = min(1 << (have - order), out.size - done, zone.free[part] - floor >> order)
        end = frame + (count << order)
        count_free(zone, blocks, part, frame, end, -1)
        link_range(zone, words, blocks, end, frame + (1 << have))
        for i in range(count):
            start = frame + (i << order)
            out[done + i] = start
            for offset in range(1 << order):
                page = pages[done + i] + offset if pages.size > 0 else NOBODY
                write(words, start + offset, owner, page, state)
                count_kind(zone, blocks, start + offset, FREE, -1)
                count_kind(zone, blocks, start + offset, kind, 1)
        done += count
    return done


@kernel
def take_blocks(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    floors: NDArray[np.int64],
    order: int,
    kind: int,
    owner: int,
    pages: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Do what take_many says, on arrays that are bare already."""
    done = 0
    if mobility(kind) == MOVABLE and zone.kernelcore < zone.frames:
        done = take_from_part(zone, words, blocks, 1, floors[1], order, kind, owner, pages, out, done)
    return take_from_part(zone, words, blocks, 0, floors[0], order, kind, owner, pages, out, done)


@kernel
def take_many(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    floors: NDArray[np.int64],
    order: int,
    kind: int,
    owner: int,
    pages: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Take blocks of ``order`` for ``kind``, as one by one: the result is the same.

    floors  int64[2]: pages that must stay free in each part
    pages   int64[0], or int64[out.size]: the page that the first frame of each block holds
    out     int64[n], written to: first frames

    Return how many blocks were taken. Movable kinds come from the movable part first, others never.
    """
    return take_blocks(zone, bare(words), bare(blocks), floors, order, kind, owner, pages, out)


@inlined
def is_used(words: Words, blocks: Blocks, frame: int) -> bool:
    """Tell whether ``frame`` is in use: neither free nor a hole nor retired."""
    kind = kind_of(words, frame)
    return kind != FREE and kind != HOLE and kind != BAD and not tag_of(blocks, frame) & ABSENT


@kernel
def first_wrong(
    zone: Zone, words: Words, blocks: Blocks, frames: NDArray[np.int64], order: int, want_used: bool, mark: int
) -> int:
    """Return the index of the first block of ``frames`` that may not be changed; -1 if all may.

    want_used  each frame must be in use; otherwise free ones will do, outside leased pageblocks
    mark       ISOLATED if the caller holds all of them, 0 if nobody may
    """
    held, tags = bare(words), bare(blocks)
    size = 1 << order
    wrong = -1
    checked = 0
    for i in range(frames.size):
        if frames[i] < 0 or frames[i] + size > zone.frames or frames[i] & (size - 1):
            wrong = i
            break
        for frame in range(frames[i], frames[i] + size):
            good = mark_of(held, frame) & (ISOLATED | SEEN) == mark
            if not is_used(held, tags, frame):
                free = kind_of(held, frame) == FREE and not tag_of(tags, frame) & ABSENT
                good = good and free and not want_used and (mark > 0 or not tag_of(tags, frame) & LEASED)
            if good:
                held[WORDS * frame + STATE] |= SEEN << MARK_SHIFT
                checked += 1
            else:
                wrong = i
                break
        if wrong >= 0:
            break
    for i in range(frames.size):
        for frame in range(frames[i], frames[i] + size):
            if checked == 0:
                break
            checked -= 1
            held[WORDS * frame + STATE] &= ~(SEEN << MARK_SHIFT)
    return wrong


@kernel
def give_many(zone: Zone, words: Words, blocks: Blocks, frames: NDArray[np.int64], order: int) -> None:
    """Free blocks of ``order`` that are in use."""
    held, tags = bare(words), bare(blocks)
    for i in range(frames.size):
        for frame in range(frames[i], frames[i] + (1 << order)):
            count_kind(zone, tags, frame, kind_of(held, frame), -1)
            count_kind(zone, tags, frame, FREE, 1)
            write(held, frame, NOBODY, NOBODY, FREE)
        free_block(zone, held, tags, frames[i], order)


@kernel
def rewrite(
    zone: Zone, words: Words, blocks: Blocks, frames: NDArray[np.int64], owner: int, pages: NDArray[np.int64], kind: int
) -> None:
    """Write owner, page and kind of ``frames``, which are in use or isolated; KEEP and int64[0] leave what is there.

    Marks go, except that a frame whose kind stays keeps those that are not ISOLATED; so does its order. Kinds are
    counted; FREE is what they may have been, not what they become.
    """
    held, tags = bare(words), bare(blocks)
    for i in range(frames.size):
        frame = frames[i]
        at = WORDS * frame
        if owner != KEEP:
            held[at + OWNER] = owner
        if pages.size > 0:
            held[at + PAGE] = pages[i]
        before = kind_of(held, frame)
        if kind == KEEP or kind == before:
            held[at + STATE] &= ~(ISOLATED << MARK_SHIFT)
        else:
            held[at + STATE] = kind
            count_kind(zone, tags, frame, before, -1)
            count_kind(zone, tags, frame, kind, 1)


@kernel
def isolate_many(zone: Zone, words: Words, blocks: Blocks, frames: NDArray[np.int64]) -> None:
    """Mark frames isolated that are in use or free; free ones leave the buddy allocator."""
    held, tags = bare(words), bare(blocks)
    for i in range(frames.size):
        frame = frames[i]
        if kind_of(held, frame) == FREE:
            cut(zone, held, tags, frame, frame + 1)
            write(held, frame, NOBODY, NOBODY, FREE)
        held[WORDS * frame + STATE] |= ISOLATED << MARK_SHIFT


@kernel
def release_many(zone: Zone, words: Words, blocks: Blocks, frames: NDArray[np.int64]) -> None:
    """Take the mark off isolated frames; free ones enter the buddy allocator again."""
    held, tags = bare(words), bare(blocks)
    for i in range(frames.size):
        frame = frames[i]
        held[WORDS * frame + STATE] &= ~(ISOLATED << MARK_SHIFT)
        if kind_of(held, frame) == FREE:
            free_block(zone, held, tags, frame, 0)


@inlined
def free_one(zone: Zone, words: Words, blocks: Blocks, frame: int, order: int) -> None:
    """Free a block of frames in use, all of the kind of the first."""
    kind = kind_of(words, frame)
    for at in range(frame, frame + (1 << order)):
        count_kind(zone, blocks, at, kind, -1)
        count_kind(zone, blocks, at, FREE, 1)
        write(words, at, NOBODY, NOBODY, FREE)
    free_block(zone, words, blocks, frame, order)


@kernel
def drop_many(zone: Zone, words: Words, blocks: Blocks, count: int) -> int:
    """Free up to ``count`` frames of page cache; return how many.

    Reclaim goes by last use, not by place. The book knows no last use, so that chunks as long as one read-ahead are
    visited in an order that scatters them all over memory, from where the last call ended.
    """
    held, tags = bare(words), bare(blocks)
    dropped = 0
    chunks = zone.frames // READ_AHEAD
    for _ in range(chunks):
        first = zone.cache_next * READ_AHEAD
        if dropped == count or zone.kinds[CACHE] == 0:
            break
        if tags[BLOCK_WORDS * (first >> PAGEBLOCK_ORDER) + CACHE_FRAMES] > 0:
            for frame in range(first, first + READ_AHEAD):
                if dropped < count and kind_of(held, frame) == CACHE and not mark_of(held, frame) & ISOLATED:
                    free_one(zone, held, tags, frame, 0)
                    dropped += 1
        if dropped < count:
            zone.cache_next = (zone.cache_next + zone.cache_step) % chunks
    return dropped
