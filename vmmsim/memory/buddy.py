"""Linux's buddy allocator: free lists, splitting, merging with the buddy, falling back to other types' pageblocks.

L: mm/page_alloc.c (6.12): __free_one_page, expand, find_suitable_fallback, should_try_claim_block,
try_to_claim_block, boost_watermark, __rmqueue_claim,
__rmqueue_steal. Left out: per-CPU lists and high-atomic reserves.

A free block is always in the list of its pageblock's type; so only pageblocks are ever retagged. Lists are LIFO, with
links in the first frame's ``owner`` (the one before) and ``page`` (the one after); a block whose buddy's parent could
merge soon goes to the tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import apart, inlined, kernel
from vmmsim.memory.frames import HEAD, MAX_ORDER, PAGEBLOCK, PAGEBLOCK_ORDER, Kind, MigrateType
from vmmsim.memory.zone import (
    BLOCK_WORDS,
    CACHE_FRAMES,
    FREE_FRAMES,
    FRESH,
    LEASED,
    MARK_SHIFT,
    MOVABLE_FRAMES,
    NIL,
    ORDER_SHIFT,
    OWNER,
    PAGE,
    STATE,
    TAG,
    TOP,
    TYPE_MASK,
    WORDS,
)

if TYPE_CHECKING:
    from vmmsim.memory.zone import Blocks, Words, Zone

UNMOVABLE = int(MigrateType.UNMOVABLE)
MOVABLE = int(MigrateType.MOVABLE)
RECLAIMABLE = int(MigrateType.RECLAIMABLE)
ISOLATE = int(MigrateType.ISOLATE)
KERNEL = int(Kind.KERNEL)
SLAB = int(Kind.SLAB)
TABLE = int(Kind.TABLE)
CACHE = int(Kind.CACHE)
USER = int(Kind.USER)
BALLOON = int(Kind.BALLOON)


@inlined
def kind_of(words: Words, frame: int) -> int:
    """Return the kind of ``frame``; of a wholly absent pageblock's, FREE (see zone.ABSENT)."""
    return words[WORDS * frame + STATE] & 255


@inlined
def mark_of(words: Words, frame: int) -> int:
    """Return the marks of ``frame``."""
    return words[WORDS * frame + STATE] >> MARK_SHIFT & 255


@inlined
def tag_of(blocks: Blocks, frame: int) -> int:
    """Return the tag of the pageblock of ``frame``."""
    return blocks[BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER) + TAG]


@inlined
def type_of(blocks: Blocks, frame: int) -> int:
    """Return the migrate type of the pageblock of ``frame``."""
    tag = tag_of(blocks, frame)
    return ISOLATE if tag & LEASED else tag & TYPE_MASK


@inlined
def set_type(blocks: Blocks, frame: int, kind: int) -> None:
    """Make ``kind`` the type of the pageblock of ``frame``; its flags stay."""
    at = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER) + TAG
    blocks[at] = (blocks[at] & ~TYPE_MASK) | kind


@inlined
def part_of(zone: Zone, frame: int) -> int:
    """Return which range ``frame`` is in."""
    return 1 if frame >= zone.kernelcore else 0


@inlined
def free_head(order: int) -> int:
    """Return the state of the first frame of a free block of ``order``."""
    return HEAD << MARK_SHIFT | order << ORDER_SHIFT


@inlined
def is_movable(kind: int) -> bool:
    """Tell whether frames of ``kind`` may be moved."""
    return kind == USER or kind == CACHE or kind == BALLOON


@inlined
def mobility(kind: int) -> int:
    """Return the migrate type that frames of ``kind`` ask for."""
    if kind == KERNEL or kind == TABLE:
        return UNMOVABLE
    return RECLAIMABLE if kind == SLAB else MOVABLE


@kernel
def link(zone: Zone, words: Words, part: int, frame: int, order: int, kind: int, to_tail: bool) -> None:
    """Put the block at ``frame`` into the list of ``order`` and type ``kind``. Counts no pages."""
    apart()
    at = WORDS * frame
    words[at + STATE] = free_head(order)
    if to_tail:
        last = zone.tail[part, order, kind]
        words[at + OWNER], words[at + PAGE] = last, NIL
        if last == NIL:
            zone.head[part, order, kind] = frame
        else:
            words[WORDS * last + PAGE] = frame
        zone.tail[part, order, kind] = frame
    else:
        first = zone.head[part, order, kind]
        words[at + OWNER], words[at + PAGE] = NIL, first
        if first == NIL:
            zone.tail[part, order, kind] = frame
        else:
            words[WORDS * first + OWNER] = frame
        zone.head[part, order, kind] = frame
    zone.blocks[part, order, kind] += 1


@kernel
def unlink(zone: Zone, words: Words, part: int, frame: int, order: int, kind: int) -> None:
    """Take the block at ``frame`` out of the list of ``order`` and type ``kind``. Counts no pages."""
    apart()
    at = WORDS * frame
    before, after = words[at + OWNER], words[at + PAGE]
    if before == NIL:
        zone.head[part, order, kind] = after
    else:
        words[WORDS * before + PAGE] = after
    if after == NIL:
        zone.tail[part, order, kind] = before
    else:
        words[WORDS * after + OWNER] = before
    words[at + STATE] = 0
    zone.blocks[part, order, kind] -= 1


@inlined
def count_free(zone: Zone, blocks: Blocks, part: int, start: int, end: int, sign: int) -> None:
    """Count the frames [start, end), of one order-10 block, as free (``sign`` 1) or no longer (-1)."""
    if tag_of(blocks, start) & LEASED:
        zone.leased_free[part] += sign * (end - start)
    else:
        zone.free[part] += sign * (end - start)
    at = start
    while at < end:
        stop = min((at >> PAGEBLOCK_ORDER) + 1 << PAGEBLOCK_ORDER, end)
        blocks[BLOCK_WORDS * (at >> PAGEBLOCK_ORDER) + FREE_FRAMES] += sign * (stop - at)
        at = stop


@inlined
def count_kind(zone: Zone, blocks: Blocks, frame: int, kind: int, sign: int) -> None:
    """Count ``frame`` as one of ``kind`` (``sign`` 1) or no longer (-1)."""
    zone.kinds[kind] += sign
    at = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER)
    if is_movable(kind):
        blocks[at + MOVABLE_FRAMES] += sign
    if kind == CACHE:
        blocks[at + CACHE_FRAMES] += sign


@kernel
def thaw(zone: Zone, words: Words, blocks: Blocks, frame: int) -> None:
    """Link the fresh block that holds ``frame``."""
    apart()
    head = frame & -TOP
    part = part_of(zone, head)
    at = BLOCK_WORDS * (head >> PAGEBLOCK_ORDER) + TAG
    blocks[at] &= ~FRESH
    blocks[at + BLOCK_WORDS] &= ~FRESH
    zone.fresh[part] -= 1
    zone.blocks[part, MAX_ORDER, MOVABLE] -= 1
    link(zone, words, part, head, MAX_ORDER, MOVABLE, True)


@kernel
def free_block(zone: Zone, words: Words, blocks: Blocks, frame: int, order: int) -> None:
    """Make the block at ``frame``, its states 0, free; merge it with its buddies. Counts pages, but not kinds.

    Two pageblocks merge unless only one of them is leased; the type of the one freed last is then both's.
    """
    apart()
    part, kind = part_of(zone, frame), type_of(blocks, frame)
    count_free(zone, blocks, part, frame, frame + (1 << order), 1)
    while order < MAX_ORDER:
        buddy = frame ^ (1 << order)
        if words[WORDS * buddy + STATE] != free_head(order):
            break
        other = type_of(blocks, buddy)
        if (kind == ISOLATE) != (other == ISOLATE):
            break
        unlink(zone, words, part, buddy, order, other)
        if other != kind:
            set_type(blocks, buddy, kind)
        frame &= buddy
        order += 1
    to_tail = False
    if order < MAX_ORDER - 1:
        parent = frame & ~(1 << order)
        to_tail = words[WORDS * (parent ^ (2 << order)) + STATE] == free_head(order + 1)
    link(zone, words, part, frame, order, kind, to_tail)


@kernel
def link_range(zone: Zone, words: Words, blocks: Blocks, start: int, end: int) -> None:
    """Link [start, end), whose states are 0 and which was part of one block, as the fewest blocks. Counts no pages."""
    apart()
    while start < end:
        part, kind = part_of(zone, start), type_of(blocks, start)
        order = 0
        while order < MAX_ORDER and start & (1 << order) == 0 and start + (2 << order) <= end:
            order += 1
        link(zone, words, part, start, order, kind, False)
        start += 1 << order


@kernel
def pop(zone: Zone, words: Words, blocks: Blocks, part: int, order: int, kind: int) -> int:
    """Take the first block out of a list that is not empty, and return its frame. Counts no pages."""
    apart()
    if zone.head[part, order, kind] == NIL:
        at = zone.fresh_next[part]
        while not tag_of(blocks, at * TOP) & FRESH:
            at += 1
        zone.fresh_next[part] = at
        thaw(zone, words, blocks, at * TOP)
    frame = zone.head[part, order, kind]
    unlink(zone, words, part, frame, order, kind)
    return frame


@inlined
def fallback(zone: Zone, part: int, order: int, kind: int) -> int:
    """Return the type to which allocations of ``kind`` turn that has a free block of ``order``; -1: none has."""
    first = UNMOVABLE if kind == RECLAIMABLE else RECLAIMABLE
    second = UNMOVABLE if kind == MOVABLE else MOVABLE
    if zone.blocks[part, order, first] > 0:
        return first
    return second if zone.blocks[part, order, second] > 0 else -1


@inlined
def may_claim(order: int, kind: int) -> bool:
    """Tell whether a free block of ``order`` is reason to claim its whole pageblock for ``kind``.

    Unmovable pages in a movable pageblock spoil it for good, so they always ask for all of it; movable ones only where
    much is to be had.
    """
    return order >= PAGEBLOCK_ORDER // 2 or kind != MOVABLE


@kernel
def claim_pageblock(zone: Zone, words: Words, blocks: Blocks, frame: int, kind: int) -> bool:
    """Retag the pageblock of ``frame`` as ``kind`` if at least half of it is free or compatible; tell whether it was.

    Compatible, to movable allocations, is what can move; to others, in a pageblock that was movable, what cannot.
    """
    apart()
    at = BLOCK_WORDS * (frame >> PAGEBLOCK_ORDER)
    part, other = part_of(zone, frame), blocks[at + TAG] & TYPE_MASK
    free, movable = blocks[at + FREE_FRAMES], blocks[at + MOVABLE_FRAMES]
    alike = 0
    if kind == MOVABLE:
        alike = movable
    elif other == MOVABLE:
        alike = PAGEBLOCK - free - movable
    if free + alike < PAGEBLOCK // 2:
        return False
    here = frame & -PAGEBLOCK
    end = here + PAGEBLOCK
    while here < end:
        state = words[WORDS * here + STATE]
        if state >> MARK_SHIFT & HEAD:
            order = state >> ORDER_SHIFT & 255
            unlink(zone, words, part, here, order, other)
            link(zone, words, part, here, order, kind, False)
            here += 1 << order
        else:
            here += 1
    set_type(blocks, frame, kind)
    zone.claims += 1
    return True


@kernel
def pop_own(zone: Zone, words: Words, blocks: Blocks, part: int, order: int, kind: int) -> tuple[int, int]:
    """Take out the smallest block of type ``kind`` that serves ``order``; return (frame, its order) or (NIL, 0)."""
    for have in range(order, MAX_ORDER + 1):
        if zone.blocks[part, have, kind] > 0:
            return pop(zone, words, blocks, part, have, kind), have
    return NIL, 0


@kernel
def pop_claimed(zone: Zone, words: Words, blocks: Blocks, part: int, order: int, kind: int) -> tuple[int, int]:
    """Claim a pageblock for ``kind``, the largest free block first, and take a block out of it; or (NIL, 0)."""
    have = MAX_ORDER
    while have >= order and may_claim(have, kind):
        other = fallback(zone, part, have, kind)
        if other >= 0:
            if have >= PAGEBLOCK_ORDER:
                frame = pop(zone, words, blocks, part, have, other)
                set_type(blocks, frame, kind)
                set_type(blocks, frame + (1 << have) - 1, kind)
                zone.claims += 1
                return frame, have
            # Pages of two types may soon share a pageblock: kswapd is to make room, and kcompactd whole blocks.
            zone.boost[part] = min(zone.boost[part] + PAGEBLOCK, zone.boost_most[part])
            if claim_pageblock(zone, words, blocks, zone.head[part, have, other], kind):
                return pop_own(zone, words, blocks, part, order, kind)
        have -= 1
    return NIL, 0


@kernel
def pop_block(zone: Zone, words: Words, blocks: Blocks, part: int, order: int, kind: int) -> tuple[int, int]:
    """Take out the block from which ``order`` is served to ``kind``; return (frame, its order) or (NIL, 0).

    Own lists first; then a pageblock is claimed; then pages are stolen, the smallest block first. Counts no pages.
    """
    apart()
    frame, have = pop_own(zone, words, blocks, part, order, kind)
    if frame == NIL:
        frame, have = pop_claimed(zone, words, blocks, part, order, kind)
    if frame == NIL:
        for size in range(order, MAX_ORDER + 1):
            other = fallback(zone, part, size, kind)
            if other >= 0:
                zone.steals += 1
                return pop(zone, words, blocks, part, size, other), size
    return frame, have


@kernel
def cut(zone: Zone, words: Words, blocks: Blocks, frame: int, limit: int) -> int:
    """Take [frame, end) out of the free block that holds ``frame``; return end, at most ``limit``. Counts pages.

    Which blocks the rest becomes follows from its place.
    """
    apart()
    if tag_of(blocks, frame) & FRESH:
        thaw(zone, words, blocks, frame)
    order, head = 0, frame
    while words[WORDS * head + STATE] != free_head(order):
        order += 1
        head = frame & -(1 << order)
    size = 1 << order
    end = min(head + size, limit)
    unlink(zone, words, part_of(zone, head), head, order, type_of(blocks, head))
    count_free(zone, blocks, part_of(zone, head), frame, end, -1)
    link_range(zone, words, blocks, head, frame)
    link_range(zone, words, blocks, end, head + size)
    return end
