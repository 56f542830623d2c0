"""Compile every kernel of the engine, so that the next process finds them all in the disk cache."""

from __future__ import annotations

import itertools

import numpy as np

from vmmsim.config import MODES, DataCache, DataCaches, Machine, TlbPart
from vmmsim.translation.chunk import pack
from vmmsim.translation.costs import count_coverage
from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import hits_between, random_filter
from vmmsim.translation.page_table import WRITABLE
from vmmsim.translation.registers import Registers, Segment


def warm() -> None:
    """Run each kernel once on a toy."""
    cache = DataCache(size_bytes=128, ways=2, cycles=1)
    tlb = (TlbPart(entries=2, ways=2),)
    machine = Machine(
        name="warm",
        frequency_hz=1,
        l1_data_tlb=tlb,
        l1_instruction_tlb=tlb,
        caches=DataCaches(l1_data=cache, l1_instruction=cache, l2=cache, memory_cycles=1),
    )
    engine = Engine(machine, hierarchy=True)
    frames = itertools.count(1000)
    table = engine.table(lambda count: np.array([next(frames) for _ in range(count)], np.int64))
    table.map(np.arange(4), np.arange(4))
    table.map(512, 512, size=1)
    table.leaves()
    table.split_many(512)
    table.protect_many(512, clear_flags=WRITABLE)
    table.remap(512, 5)
    table.unmap_many(513)
    table.mapped_sizes(512)
    table.translate(512)
    table.move_table(1001, 5000)
    held = random_filter(np.random.default_rng(0)).with_members(1)
    segment = Segment(base=0, limit=4, offset=0, filter=held)
    engine.load(Registers(mode=MODES["native-direct"], guest_table=table, guest_segment=segment))
    engine.run(pack(np.array([0, 1, 700])))
    engine.invalidate_page(1, 1, 0)
    engine.invalidate_frames(0, 1)
    count_coverage(engine.record(), engine.tables.entries, np.array([0]), np.zeros(4, np.int64))
    hits_between(engine.record(), 0, 0, 4, np.empty(4, np.int64))
