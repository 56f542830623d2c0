"""Ranges of frames: leased, taken, added and removed, and searched for free memory."""

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
    link,
    mark_of,
    part_of,
    tag_of,
    thaw,
    type_of,
    unlink,
)
from vmmsim.memory.bulk import BAD, FREE, HOLE, write
from vmmsim.memory.frames import HEAD, ISOLATED, MAX_ORDER, NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER
from vmmsim.memory.zone import (
    ABSENT,
    BLOCK_WORDS,
    FREE_FRAMES,
    FRESH,
    LEASED,
    MARK_SHIFT,
    ORDER_SHIFT,
    STATE,
    TAG,
    TOP,
    WORDS,
    WRITTEN,
    part_bounds,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.memory.zone import Blocks, Words, Zone


@inlined
def is_free(words: Words, blocks: Blocks, frame: int) -> bool:
    """Tell whether ``frame`` is in the buddy allocator."""
    return kind_of(words, frame) == FREE and not mark_of(words, frame) & ISOLATED and not tag_of(blocks, frame) & ABSENT


@kernel
def set_leased(zone: Zone, words: Words, blocks: Blocks, start: int, end: int, leased: bool) -> None:
    """Lease or unlease the pageblocks [start, end), all of which change: their free blocks change lists."""
    held, tags = bare(words), bare(blocks)
    for block in range(start, end, PAGEBLOCK):
        if tag_of(tags, block) & FRESH:
            thaw(zone, held, tags, block)
        head = block & -TOP
        kind = type_of(tags, block)
        if held[WORDS * head + STATE] == HEAD << MARK_SHIFT | MAX_ORDER << ORDER_SHIFT:
            unlink(zone, held, part_of(zone, head), head, MAX_ORDER, kind)
            link(zone, held, part_of(zone, head), head, PAGEBLOCK_ORDER, kind, False)
            link(zone, held, part_of(zone, head), head + PAGEBLOCK, PAGEBLOCK_ORDER, kind, False)
        move_blocks(zone, held, tags, block, kind, leased)


@inlined
def move_blocks(zone: Zone, words: Words, blocks: Blocks, block: int, kind: int, leased: bool) -> None:
    """Set or clear the flag LEASED of the pageblock at frame ``block``, and free its free blocks anew."""
    at = BLOCK_WORDS * (block >> PAGEBLOCK_ORDER) + TAG
    part = part_of(zone, block)
    here = block
    while here < block + PAGEBLOCK:
        state = words[WORDS * here + STATE]
        if state >> MARK_SHIFT & HEAD:
            order = state >> ORDER_SHIFT & 255
            unlink(zone, words, part, here, order, kind)
            count_free(zone, blocks, part, here, here + (1 << order), -1)
            blocks[at] = (blocks[at] & ~LEASED) | (LEASED if leased else 0)
            free_block(zone, words, blocks, here, order)
            blocks[at] = (blocks[at] & ~LEASED) | (0 if leased else LEASED)
            here += 1 << order
        else:
            here += 1
    blocks[at] = (blocks[at] & ~LEASED) | (LEASED if leased else 0)


@kernel
def count_leased(blocks: Blocks, start: int, end: int) -> int:
    """Return how many of the pageblocks that [start, end) touches are leased."""
    tags = bare(blocks)
    leased = 0
    for block in range(start >> PAGEBLOCK_ORDER, (end - 1 >> PAGEBLOCK_ORDER) + 1):
        if tags[BLOCK_WORDS * block + TAG] & LEASED:
            leased += 1
    return leased


@kernel
def take_between(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    start: int,
    end: int,
    kind: int,
    owner: int,
    pages: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Take every free frame of [start, end) for ``kind``; ``pages[i]`` is held by frame start + i.

    Return how many were written to ``out``, in order.
    """
    held, tags = bare(words), bare(blocks)
    taken = 0
    frame = start
    while frame < end:
        if tag_of(tags, frame) & ABSENT:
            frame = (frame >> PAGEBLOCK_ORDER) + 1 << PAGEBLOCK_ORDER
        elif not is_free(held, tags, frame):
            frame += 1
        else:
            stop = cut(zone, held, tags, frame, end)
            for at in range(frame, stop):
                write(held, at, owner, pages[at - start] if pages.size > 0 else NOBODY, kind)
                count_kind(zone, tags, at, FREE, -1)
                count_kind(zone, tags, at, kind, 1)
                out[taken] = at
                taken += 1
            frame = stop
    return taken


@kernel
def all_are(words: Words, blocks: Blocks, start: int, end: int, hole: bool) -> bool:
    """Tell whether all frames of [start, end) are holes, or (``hole`` false) all are free or retired."""
    held, tags = bare(words), bare(blocks)
    for frame in range(start, end):
        kind = kind_of(held, frame)
        absent = tag_of(tags, frame) & ABSENT > 0 or kind == HOLE
        if absent != hole or not (hole or kind == BAD or is_free(held, tags, frame)):
            return False
    return True


@inlined
def write_holes(words: Words, start: int, end: int) -> None:
    """Write the records of [start, end) as holes."""
    for frame in range(start, end):
        write(words, frame, NOBODY, NOBODY, HOLE)


@inlined
def is_unwritten(blocks: Blocks, frame: int) -> bool:
    """Tell whether the pageblock of ``frame`` is absent and always was, its records all zero."""
    return tag_of(blocks, frame) & (ABSENT | WRITTEN) == ABSENT


@kernel
def add_between(zone: Zone, words: Words, blocks: Blocks, start: int, end: int) -> None:
    """Make [start, end), all of it holes, free memory; whole blocks of the largest order are fresh."""
    held, tags = bare(words), bare(blocks)
    frame = start
    while frame < end:
        part = part_of(zone, frame)
        at = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER)
        whole = frame % TOP == 0 and frame + TOP <= end
        if whole and is_unwritten(tags, frame) and is_unwritten(tags, frame + PAGEBLOCK):
            tags[at + TAG] = tags[at + BLOCK_WORDS + TAG] = MOVABLE | FRESH
            tags[at + FREE_FRAMES] = tags[at + BLOCK_WORDS + FREE_FRAMES] = PAGEBLOCK
            zone.fresh[part] += 1
            zone.blocks[part, MAX_ORDER, MOVABLE] += 1
            zone.fresh_next[part] = min(zone.fresh_next[part], frame // TOP)
            zone.free[part] += TOP
            step = TOP
        else:
            step = add_some(zone, held, tags, frame, end)
        zone.kinds[FREE] += step
        zone.kinds[HOLE] -= step
        zone.present[part] += step
        frame += step


@inlined
def add_some(zone: Zone, words: Words, blocks: Blocks, frame: int, end: int) -> int:
    """Make the longest aligned block at ``frame`` inside a pageblock, holes so far, free; return its frames."""
    block = frame & -PAGEBLOCK
    tag = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER) + TAG
    if blocks[tag] & ABSENT:
        write_holes(words, block, block + PAGEBLOCK)
        blocks[tag] = MOVABLE
    order = 0
    while order < PAGEBLOCK_ORDER and frame & (1 << order) == 0 and frame + (2 << order) <= end:
        order += 1
    for at in range(frame, frame + (1 << order)):
        write(words, at, NOBODY, NOBODY, FREE)
    free_block(zone, words, blocks, frame, order)
    return 1 << order


@kernel
def remove_between(zone: Zone, words: Words, blocks: Blocks, start: int, end: int) -> None:
    """Make [start, end), free or retired, holes; whole pageblocks are absent from then on."""
    held, tags = bare(words), bare(blocks)
    frame = start
    while frame < end:
        stop = frame + 1 if kind_of(held, frame) == BAD else cut(zone, held, tags, frame, end)
        for at in range(frame, stop):
            count_kind(zone, tags, at, kind_of(held, at), -1)
            count_kind(zone, tags, at, HOLE, 1)
        write_holes(held, frame, stop)
        zone.present[part_of(zone, frame)] -= stop - frame
        frame = stop
    for block in range(-(-start // PAGEBLOCK), end // PAGEBLOCK):
        tags[BLOCK_WORDS * block + TAG] = MOVABLE | ABSENT | WRITTEN | (tags[BLOCK_WORDS * block + TAG] & LEASED)


@kernel
def free_run(words: Words, blocks: Blocks, start: int, end: int, pages: int, align: int) -> tuple[int, int]:
    """Find the first run of free frames outside leases, in [start, end), of at least ``pages`` from a multiple of
    ``align`` on; return (its first frame, its length), or the longest with ``pages`` beyond reach, or (-1, 0).
    """
    held, tags = bare(words), bare(blocks)
    best, longest = -1, 0
    begin = -1
    frame = start
    while frame <= end:
        step = 1
        free = False
        if frame < end:
            at = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER)
            rest = min(PAGEBLOCK - (frame & (PAGEBLOCK - 1)), end - frame)
            if tags[at + TAG] & (LEASED | ABSENT) or tags[at + FREE_FRAMES] == 0:
                step = rest
            elif tags[at + FREE_FRAMES] == PAGEBLOCK:
                free, step = True, rest
            else:
                free = is_free(held, tags, frame)
        if free:
            if begin < 0:
                begin = -(-frame // align) * align
        elif begin >= 0:
            if frame - begin > longest:
                best, longest = begin, frame - begin
            begin = -1
        if free and begin >= 0 and frame + step - begin >= pages:
            return begin, frame + step - begin
        frame += step
    return best, longest


def first_free_run(
    zone: Zone, words: Words, blocks: Blocks, pages: int, align: int, within: tuple[int, int] | None
) -> int:
    """Return the start of the first free run, or -1: the Python face of ``free_run``."""
    start, end = within or (0, int(zone.frames))
    found, length = free_run(words, blocks, max(start, 0), min(end, int(zone.frames)), pages, align)
    return int(found) if length >= pages else -1


def longest_free_run(zone: Zone, words: Words, blocks: Blocks) -> int:
    """Return the length in pages of the longest run of free frames outside leases."""
    _, end = part_bounds(zone, 1)
    return int(free_run(words, blocks, 0, end, end + 1, 1)[1])
