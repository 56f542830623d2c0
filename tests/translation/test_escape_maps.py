"""The maps of what a filter hits in each 2 MiB block: shared, bounded in number, and never taken from under a core."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from vmmsim.addresses import TABLE_ENTRIES
from vmmsim.config import MODES
from vmmsim.machine_file import load_machine
from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import random_filter
from vmmsim.translation.registers import Registers, Segment

TOY = Path(__file__).parents[1] / "machines" / "toy.toml"


def test_a_map_that_a_core_has_loaded_outlives_any_number_of_others() -> None:
    engine = Engine(load_machine(str(TOY)), cores=2)
    frames = itertools.count(5000)
    table = engine.table(lambda count: np.array([next(frames) for _ in range(count)], np.int64))
    empty = random_filter(np.random.default_rng(0))

    def load(member: int, core: int) -> int:
        segment = Segment(base=0, limit=1024, offset=0, filter=empty.with_members(member))
        engine.load(Registers(mode=MODES["native-direct"], guest_table=table, guest_segment=segment), core=core)
        return int(engine.record(core=core).escape_map[0])

    kept = load(513, core=0)
    in_use = engine.tables.nodes_in_use
    for member in range(200):
        load(member, core=1)
    assert engine.tables.nodes_in_use - in_use < 100, "maps that nobody has loaded are given back"
    # New page tables take the nodes given back, and begin empty.
    taken = engine.tables.take(200)
    assert kept // TABLE_ENTRIES not in taken
    assert int(engine.tables.entries[kept]) & 2, "page 513 lies in block 1, and its bit is still set"
