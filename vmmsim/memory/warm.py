"""Compile every kernel of the memory, so that the next process finds them all in the disk cache."""

from __future__ import annotations

import attrs
import numpy as np

from vmmsim.memory.ageing import HOUR_NS, age, profile
from vmmsim.memory.compaction import Mode, compact, evacuate, finish
from vmmsim.memory.content_trees import ContentTrees
from vmmsim.memory.frames import PAGEBLOCK, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.placement import Placement
from vmmsim.memory.window import choose


def warm() -> None:
    """Run each kernel once on a toy."""
    memory = Memory(4 * PAGEBLOCK, name="warm", holes=[(3 * PAGEBLOCK, 4 * PAGEBLOCK)], kernelcore=PAGEBLOCK)
    frames = memory.take(2 * PAGEBLOCK, kind=Kind.USER, owner=1)
    memory.give_back(frames[::2])
    memory.assign(frames[1:10:2], kind=Kind.CACHE)
    memory.drop_cache(1)
    finish(memory, compact(memory, pages=32, mode=Mode.ALL))
    lease = memory.isolate_range(0, PAGEBLOCK, "warm")
    finish(memory, evacuate(memory, 0, PAGEBLOCK, pages=32)[0])
    memory.take_range(0, PAGEBLOCK, kind=Kind.USER, token=lease)
    memory.release(lease)
    memory.add(3 * PAGEBLOCK, 4 * PAGEBLOCK)
    memory.remove(3 * PAGEBLOCK, 4 * PAGEBLOCK)
    memory.retire(memory.owned(1)[:1])
    memory.release(memory.isolate(memory.owned(1)[:1], "warm"))
    memory.is_free(0, 1)
    memory.survey()
    memory.find_free_run(1)
    aged = Memory(4 * PAGEBLOCK, name="warm")
    lived = attrs.evolve(profile("host"), file_pages=32, process_pages=32)
    age(aged, HOUR_NS // 100, np.random.default_rng(0), lived)
    _place(aged)
    _share()


def _place(host: Memory) -> None:
    """Choose a window for pages that lie in a cycle, and fill it."""
    backing = np.append(np.arange(1, PAGEBLOCK, dtype=np.int32), np.int32(0))
    choose(backing, host.survey(1), host.frames, base=0, budget=1, free_pages=host.free_pages)
    plan = Placement(backing, base=0, offset=0, free=np.zeros(backing.size, np.bool_))
    plan.lend(PAGEBLOCK)
    while batch := plan.batch():
        plan.commit(batch)


def _share() -> None:
    """Scan a few pages, two of which merge and come apart, and let both trees grow."""
    trees = ContentTrees(2)
    contents, frames = np.arange(1 << 10, dtype=np.int32), np.arange(1 << 10, dtype=np.int32)
    contents[1] = 0
    states, seen, flags = np.ones(1 << 10, np.uint8), np.zeros(1 << 10, np.int32), np.zeros(1 << 10, np.uint8)
    for _ in range(2):
        trees.candidates(contents, states, seen, flags)
        nodes = trees.scan(0, contents, states, seen, flags, frames)[1]
    trees.remove(nodes[1:2])
