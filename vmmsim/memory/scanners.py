"""The two scanners of compaction: one takes movable frames from the start, the other free ones from the end.

L: isolate_migratepages, isolate_freepages, mm/compaction.c. Left out: fast_find_migrateblock and
fast_isolate_freepages, which guess a good place to begin from the free lists; contention for locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import bare, inlined, kernel
from vmmsim.memory.buddy import MOVABLE, cut, is_movable, kind_of, mark_of, type_of
from vmmsim.memory.bulk import FREE, write
from vmmsim.memory.frames import ISOLATED, NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED
from vmmsim.memory.ranges import is_free
from vmmsim.memory.zone import (
    ABSENT,
    BLOCK_WORDS,
    FREE_FRAMES,
    LEASED,
    MARK_SHIFT,
    MOVABLE_FRAMES,
    ORDER_SHIFT,
    SKIP,
    STATE,
    TAG,
    WORDS,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.memory.zone import Blocks, Words, Zone

MIGRATE = 0
FREE_BLOCK = 1
FREE_AT = 2
FOUND = 3
"""Places in ``run``: next frame of the migration scanner; pageblock of the free scanner, by its first frame, and the
next frame in it; how many frames the migration scanner has isolated in its pageblock so far."""
FREE_FOUND = 4
RUN_WORDS = 5


@inlined
def can_move(words: Words, frame: int) -> bool:
    """Tell whether ``frame`` can be moved on its own: not pinned, not held, not part of a 2 MiB allocation."""
    mark = mark_of(words, frame)
    order = words[WORDS * frame + STATE] >> ORDER_SHIFT & 255
    return is_movable(kind_of(words, frame)) and mark & (ISOLATED | PINNED) == 0 and order < PAGEBLOCK_ORDER


@inlined
def may_source(blocks: Blocks, block: int, only_movable: bool, heed_skip: bool) -> bool:
    """Tell whether the migration scanner looks into the pageblock at frame ``block``."""
    at = BLOCK_WORDS * (block >> PAGEBLOCK_ORDER)
    if blocks[at + TAG] & (ABSENT | LEASED) or blocks[at + MOVABLE_FRAMES] == 0:
        return False
    if heed_skip and blocks[at + TAG] & SKIP:
        return False
    return type_of(blocks, block) == MOVABLE or not only_movable


@inlined
def may_target(blocks: Blocks, block: int, heed_skip: bool) -> bool:
    """Tell whether the free scanner looks into a pageblock: a movable one that is neither all free nor without any."""
    at = BLOCK_WORDS * (block >> PAGEBLOCK_ORDER)
    if blocks[at + FREE_FRAMES] == 0 or blocks[at + FREE_FRAMES] == PAGEBLOCK or blocks[at + TAG] & ABSENT:
        return False
    if heed_skip and blocks[at + TAG] & SKIP:
        return False
    return type_of(blocks, block) == MOVABLE


@inlined
def scan_movable(
    words: Words,
    blocks: Blocks,
    run: NDArray[np.int64],
    only_movable: bool,
    heed_skip: bool,
    old: NDArray[np.int64],
    done: int,
    limit: int,
) -> int:
    """Find frames to move in one pageblock, the next that may give some, up to ``limit`` or the pageblock's end.

    They are written to ``old`` from ``done`` on. Return how far it is filled. Marks nothing but skip bits.
    """
    while run[MIGRATE] % PAGEBLOCK == 0 and run[MIGRATE] < run[FREE_BLOCK]:
        if may_source(blocks, run[MIGRATE], only_movable, heed_skip):
            break
        run[MIGRATE] += PAGEBLOCK
    frame = run[MIGRATE]
    block = frame & -PAGEBLOCK
    if block >= run[FREE_BLOCK]:
        return done
    begun = done
    while frame < block + PAGEBLOCK and done < limit:
        if can_move(words, frame):
            old[done] = frame
            done += 1
        frame += 1
    run[MIGRATE] = frame
    run[FOUND] += done - begun
    if frame == block + PAGEBLOCK:
        if run[FOUND] == 0:
            blocks[BLOCK_WORDS * (block >> PAGEBLOCK_ORDER) + TAG] |= SKIP
        run[FOUND] = 0
    return done


@inlined
def scan_free(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    run: NDArray[np.int64],
    heed_skip: bool,
    new: NDArray[np.int64],
    done: int,
    limit: int,
) -> int:
    """Isolate free frames into ``new`` from ``done`` to ``limit``, while the free scanner is above the other one."""
    while done < limit and run[FREE_BLOCK] > (run[MIGRATE] - 1) & -PAGEBLOCK:
        block = run[FREE_BLOCK]
        if run[FREE_AT] > block or may_target(blocks, block, heed_skip):
            while run[FREE_AT] < block + PAGEBLOCK and done < limit:
                frame = run[FREE_AT]
                if is_free(words, blocks, frame):
                    end = cut(zone, words, blocks, frame, min(block + PAGEBLOCK, frame + limit - done))
                    for at in range(frame, end):
                        write(words, at, NOBODY, NOBODY, FREE | ISOLATED << MARK_SHIFT)
                        new[done] = at
                        done += 1
                    run[FREE_FOUND] += end - frame
                    run[FREE_AT] = end
                else:
                    run[FREE_AT] += 1
            if run[FREE_AT] < block + PAGEBLOCK:
                break
            if run[FREE_FOUND] == 0:
                blocks[BLOCK_WORDS * (block >> PAGEBLOCK_ORDER) + TAG] |= SKIP
        run[FREE_BLOCK] = run[FREE_AT] = block - PAGEBLOCK
        run[FREE_FOUND] = 0
    return done


@kernel
def plan_moves(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    run: NDArray[np.int64],
    only_movable: bool,
    heed_skip: bool,
    pause: bool,
    batch: int,
    old: NDArray[np.int64],
    new: NDArray[np.int64],
) -> int:
    """Plan up to ``old.size`` moves, in batches: a batch of movable frames, then as many free ones.

    run           int64[RUN_WORDS], written to: where the scanners are
    only_movable  look for frames to move in movable pageblocks only (asynchronous compaction)
    heed_skip     pass over pageblocks that gave nothing before
    pause         return after each pageblock, so that the caller can see whether that was enough
    old, new      int64[n], written to; both sides are marked isolated

    Return how many are planned. Fewer than asked for, without a pause: the scanners have met.
    """
    return plan_bare(zone, bare(words), bare(blocks), run, only_movable, heed_skip, pause, batch, old, new)


@kernel
def plan_bare(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    run: NDArray[np.int64],
    only_movable: bool,
    heed_skip: bool,
    pause: bool,
    batch: int,
    old: NDArray[np.int64],
    new: NDArray[np.int64],
) -> int:
    """Do what plan_moves says, on arrays that are bare already."""
    done = 0
    while done < old.size and run[MIGRATE] & -PAGEBLOCK < run[FREE_BLOCK]:
        stop = scan_movable(words, blocks, run, only_movable, heed_skip, old, done, min(done + batch, old.size))
        found = scan_free(zone, words, blocks, run, heed_skip, new, done, stop)
        for i in range(done, found):
            words[WORDS * old[i] + STATE] |= ISOLATED << MARK_SHIFT
        done = found
        if found < stop:
            # The scanners met with frames left over: the next run begins with them.
            run[MIGRATE] = old[found]
            run[FREE_BLOCK] = run[FREE_AT] = run[MIGRATE] & -PAGEBLOCK
        elif pause and run[MIGRATE] % PAGEBLOCK == 0:
            break
    return done


@kernel
def clear_skip(blocks: Blocks, first: int, last: int) -> None:
    """Clear the skip bits of pageblocks [first, last)."""
    for block in range(first, last):
        blocks[BLOCK_WORDS * block + TAG] &= ~SKIP
