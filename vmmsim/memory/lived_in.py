"""The life that splinters a memory, compiled: files are cached and reclaimed, processes come and go, the kernel asks.

Everything goes through the allocator as it is; nothing is placed. An *object* is what lives and dies as one: a cached
file, a process's memory. Its frames are a chain: ``page`` is the
next one, ``owner`` the one before, or which object's first it is. Unmovable blocks live one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from vmmsim.jit import bare, inlined, kernel
from vmmsim.memory.buddy import ISOLATE
from vmmsim.memory.bulk import free_one, take_blocks
from vmmsim.memory.frames import NOBODY, PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.memory.moves import finish_one
from vmmsim.memory.scanners import FREE_AT, FREE_BLOCK, MIGRATE, plan_bare
from vmmsim.memory.zone import OWNER, PAGE, PARTS, READ_AHEAD, WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.zone import Blocks, Words, Zone

CACHE = int(Kind.CACHE)
USER = int(Kind.USER)
KERNEL = int(Kind.KERNEL)

OPEN: Final = 16
"""Objects of each sort that grow at the same time."""
FILE: Final = 0
PROCESS: Final = 1
SORTS: Final = 2
COLUMNS: Final = 2
"""Of an object: its last frame (the chain's head) and its pages."""

LIFE: Final = np.dtype(
    [
        # the profile, in pages or as shares of what is allocated
        ("process_pages", np.int64),
        ("kernel_pages", np.int64),
        ("burst_pages", np.int64),
        ("chunk_share", np.float64, (SORTS,)),
        ("mean_pages", np.float64, (SORTS,)),
        ("huge_share", np.float64),
        ("burst_gap_pages", np.float64),
        ("stay_share", np.float64),
        # what goes on: pages that the present burst still asks for, pages until the next one
        ("asked", np.int64),
        ("until_burst", np.int64),
        ("allocated", np.int64),
        ("objects", np.int64, (SORTS,)),
        ("sort_pages", np.int64, (SORTS,)),
        ("short", np.int64),
        ("long", np.int64),
        ("long_pages", np.int64),
        ("compacts", np.int64),
        ("moved", np.int64),
    ],
    align=True,
)
Life: TypeAlias = Any
"""A scalar record of dtype LIFE."""

DEFER_MOST: Final = 6
"""Attempts to compact that are skipped after failures: 2**6 at most, as compaction_policy says."""
DRAWS: Final = 8
"""Random numbers that one step may use."""


@inlined
def first_of(objects: NDArray[np.int64], sort: int, i: int) -> int:
    """Return what the first frame of object ``i`` has for a frame before it."""
    return -2 - (sort * objects.shape[1] + i)


@inlined
def put_first(words: Words, objects: NDArray[np.int64], sort: int, i: int, frame: int) -> None:
    """Make ``frame`` the first of the chain of object ``i``."""
    objects[sort, i, 0] = frame
    if frame != NOBODY:
        words[WORDS * frame + OWNER] = first_of(objects, sort, i)


@inlined
def kill(zone: Zone, words: Words, blocks: Blocks, life: Life, objects: NDArray[np.int64], sort: int, i: int) -> None:
    """Free all frames of object ``i`` of a sort; the last object takes its place."""
    frame = objects[sort, i, 0]
    while frame != NOBODY:
        following = words[WORDS * frame + PAGE]
        free_one(zone, words, blocks, frame, 0)
        frame = following
    life.sort_pages[sort] -= objects[sort, i, 1]
    last = life.objects[sort] - 1
    if i != last:
        objects[sort, i, 1] = objects[sort, last, 1]
        put_first(words, objects, sort, i, objects[sort, last, 0])
    life.objects[sort] = last


@inlined
def kill_block(zone: Zone, words: Words, blocks: Blocks, held: NDArray[np.int64], count: int, i: int) -> int:
    """Free unmovable block ``i`` of ``count``; the last takes its place. Return its pages."""
    order = held[i] & 15
    free_one(zone, words, blocks, held[i] >> 4, order)
    held[i] = held[count - 1]
    return 1 << order


@inlined
def reclaim(zone: Zone, words: Words, blocks: Blocks, life: Life, objects: NDArray[np.int64], draw: float) -> bool:
    """Below the mark low, or boosted, drop cached files up to high and the boost; without any, end a process.

    Tell whether it was boosted: then kcompactd is to make a whole pageblock.
    """
    boost = zone.boost.sum()
    if zone.free.sum() >= zone.watermark[1].sum() and boost == 0:
        return False
    enough = zone.watermark[2].sum() + boost
    while zone.free.sum() < enough:
        sort = FILE if life.objects[FILE] > OPEN else PROCESS
        if life.objects[sort] <= OPEN:
            break
        # One number serves for all: its digits further down are as random as the first.
        draw = (draw * 1048583.0) % 1.0
        kill(zone, words, blocks, life, objects, sort, OPEN + int(draw * (life.objects[sort] - OPEN)))
    zone.boost[:] = 0
    return boost > 0


@kernel
def make_block(
    zone: Zone, words: Words, blocks: Blocks, part: int, objects: NDArray[np.int64], run: NDArray[np.int64]
) -> int:
    """Compact one part until a pageblock is free or the scanners meet, as kcompactd does; return the moves.

    run  int64[RUN_WORDS], written to: where the scanners are; they begin anew once they have met
    """
    limit = 1 << zone.defer_shift[part]
    zone.considered[part] += 1
    if zone.considered[part] < limit or zone.present[part] == 0:
        return 0
    start, end = (0, zone.kernelcore) if part == 0 else (zone.kernelcore, zone.frames)
    old, new = np.empty(32, np.int64), np.empty(32, np.int64)
    moved = 0
    if run[MIGRATE] & -PAGEBLOCK >= run[FREE_BLOCK]:
        run[:] = 0
        run[MIGRATE], run[FREE_BLOCK], run[FREE_AT] = start, end - PAGEBLOCK, end - PAGEBLOCK
    while zone.blocks[part, PAGEBLOCK_ORDER:, :ISOLATE].sum() == 0 and run[MIGRATE] & -PAGEBLOCK < run[FREE_BLOCK]:
        planned = plan_bare(zone, words, blocks, run, False, False, True, 32, old, new)
        for i in range(planned):
            finish_one(zone, words, blocks, old[i], new[i], False)
            before, after = words[WORDS * new[i] + OWNER], words[WORDS * new[i] + PAGE]
            if after != NOBODY:
                words[WORDS * after + OWNER] = new[i]
            if before >= 0:
                words[WORDS * before + PAGE] = new[i]
            else:
                at = -2 - before
                objects[at // objects.shape[1], at % objects.shape[1], 0] = new[i]
        moved += planned
    zone.considered[part] = 0
    if zone.blocks[part, PAGEBLOCK_ORDER:, :ISOLATE].sum() > 0:
        zone.defer_shift[part] = 0
    else:
        zone.defer_shift[part] = min(zone.defer_shift[part] + 1, DEFER_MOST)
    return moved


@inlined
def grow(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    life: Life,
    objects: NDArray[np.int64],
    sort: int,
    draws: NDArray[np.float64],
    floors: NDArray[np.int64],
    nothing: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Let one of the objects that are open grow by a chunk; it may close, and a new one open in its place."""
    i = int(draws[1] * OPEN)
    order = PAGEBLOCK_ORDER if sort == PROCESS and draws[2] < life.huge_share else 0
    kind = CACHE if sort == FILE else USER
    got = take_blocks(zone, words, blocks, floors, order, kind, NOBODY, nothing, out[: 1 if order else READ_AHEAD])
    if order and got == 0:
        order = 0
        got = take_blocks(zone, words, blocks, floors, 0, kind, NOBODY, nothing, out[:READ_AHEAD])
    for k in range(got):
        for frame in range(out[k], out[k] + (1 << order)):
            first = objects[sort, i, 0]
            words[WORDS * frame + PAGE] = first
            if first != NOBODY:
                words[WORDS * first + OWNER] = frame
            put_first(words, objects, sort, i, frame)
    pages = got << order
    objects[sort, i, 1] += pages
    life.sort_pages[sort] += pages
    life.allocated += pages
    closes = got == 0 or draws[3] * life.mean_pages[sort] < pages
    if closes and objects[sort, i, 1] > 0 and life.objects[sort] < objects.shape[1]:
        last = life.objects[sort]
        objects[sort, last, 1] = objects[sort, i, 1]
        put_first(words, objects, sort, last, objects[sort, i, 0])
        life.objects[sort] += 1
        objects[sort, i, 0] = NOBODY
        objects[sort, i, 1] = 0


@inlined
def ask(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    life: Life,
    short: NDArray[np.int64],
    long: NDArray[np.int64],
    draws: NDArray[np.float64],
    floors: NDArray[np.int64],
    nothing: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Serve the kernel some of what its burst asks for: most of it is given back soon, a share stays."""
    order = 3 if draws[1] < 0.25 else 0
    got = take_blocks(zone, words, blocks, floors, order, KERNEL, NOBODY, nothing, out[: 4 if order else READ_AHEAD])
    for k in range(got):
        # Which ones stay: every n-th, from a random one on.
        stays = (k + draws[2] * 97.0) * life.stay_share % 1.0 < life.stay_share
        if stays and life.long < long.size:
            long[life.long] = out[k] << 4 | order
            life.long += 1
            life.long_pages += 1 << order
        elif life.short < short.size:
            short[life.short] = out[k] << 4 | order
            life.short += 1
        else:
            free_one(zone, words, blocks, out[k], order)
    life.asked -= max(got << order, 1)
    life.allocated += got << order


@inlined
def settle(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    life: Life,
    short: NDArray[np.int64],
    long: NDArray[np.int64],
    draws: NDArray[np.float64],
) -> None:
    """Between bursts: free what was asked for briefly, and what is more than the kernel keeps, at random."""
    draw = draws[4]
    for _ in range(min(life.short, READ_AHEAD)):
        draw = (draw * 1048583.0) % 1.0
        kill_block(zone, words, blocks, short, life.short, int(draw * life.short))
        life.short -= 1
    while life.long_pages > life.kernel_pages:
        draw = (draw * 1048583.0) % 1.0
        life.long_pages -= kill_block(zone, words, blocks, long, life.long, int(draw * life.long))
        life.long -= 1


@kernel
def live(
    zone: Zone,
    words: Words,
    blocks: Blocks,
    life: Life,
    objects: NDArray[np.int64],
    short: NDArray[np.int64],
    long: NDArray[np.int64],
    runs: NDArray[np.int64],
    floors: NDArray[np.int64],
    draws: NDArray[np.float64],
    until: int,
) -> int:
    """Live on until ``until`` pages have been allocated in all, or the draws are used up; return the steps taken.

    life         LIFE record, written to
    objects      int64[SORTS, n, COLUMNS], written to: the first OPEN of each sort grow
    short, long  int64[n], written to: unmovable blocks, frame << 4 | order
    runs         int64[PARTS, RUN_WORDS], written to: where compaction's scanners are
    floors       int64[2]: pages that stay free
    draws        float64[steps, DRAWS]: uniform in [0, 1)
    """
    held, tags = bare(words), bare(blocks)
    nothing, out = np.empty(0, np.int64), np.empty(READ_AHEAD, np.int64)
    steps = 0
    while steps < draws.shape[0] and life.allocated < until:
        draw = draws[steps]
        if reclaim(zone, held, tags, life, objects, draw[7]) and life.compacts:
            for part in range(PARTS):
                life.moved += make_block(zone, held, tags, part, objects, runs[part])
        before = life.allocated
        if life.asked > 0:
            ask(zone, held, tags, life, short, long, draw, floors, nothing, out)
        else:
            settle(zone, held, tags, life, short, long, draw)
            sort = PROCESS if draw[0] < life.chunk_share[PROCESS] else FILE
            if sort == PROCESS and life.sort_pages[PROCESS] >= life.process_pages and life.objects[PROCESS] > OPEN:
                victim = OPEN + int(draw[5] * (life.objects[PROCESS] - OPEN))
                kill(zone, held, tags, life, objects, PROCESS, victim)
            grow(zone, held, tags, life, objects, sort, draw, floors, nothing, out)
            life.until_burst -= life.allocated - before
            if life.until_burst <= 0:
                life.asked = 1 + int(life.burst_pages * -np.log(1.0 - draw[5]))
                life.until_burst = 1 + int(life.burst_gap_pages * -np.log(1.0 - draw[6]))
        steps += 1
    return steps


@kernel
def forget(words: Words, objects: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Take the chains out of the frames of all objects."""
    held = bare(words)
    for sort in range(SORTS):
        for i in range(counts[sort]):
            frame = objects[sort, i, 0]
            while frame != NOBODY:
                following = held[WORDS * frame + PAGE]
                held[WORDS * frame + OWNER] = held[WORDS * frame + PAGE] = NOBODY
                frame = following
