"""The maps of what a filter hits in each 2 MiB block: shared, bounded in number, and never taken from under a core."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from vmmsim.addresses import TABLE_ENTRIES
from vmmsim.config import MODES
from vmmsim.jit import INTERPRETED
from vmmsim.machine_file import load_machine
from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import hits_between, random_filter
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


@pytest.mark.parametrize(("bits", "hashes"), [(256, 4), (8, 4), (4096, 1), (16384, 4), (6, 3)])
def test_a_map_says_of_each_block_whether_the_filter_hits_a_page_of_it(bits: int, hashes: int) -> None:
    """Against a look at every page, in segments that begin and end anywhere."""
    random = np.random.default_rng(bits)
    engine = Engine(load_machine(str(TOY)))
    frames = itertools.count(5000)
    table = engine.table(lambda count: np.array([next(frames) for _ in range(count)], np.int64))
    hit, clear = 0, 0
    for case in range(3 if INTERPRETED else 20):
        base = int(random.integers(0, 4000))
        limit = base + int(random.integers(1, 2000 if INTERPRETED else 40_000))
        members = random.integers(base, limit, int(random.integers(1, 3 if case % 2 else 12))).tolist()
        held = random_filter(random, bits=bits, hashes=hashes).with_members(*members)
        segment = Segment(base=base, limit=limit, offset=0, filter=held)
        engine.load(Registers(mode=MODES["native-direct"], guest_table=table, guest_segment=segment))
        found = np.empty(limit - base, np.int64)
        count = hits_between(engine.record(), 0, base, limit, found)
        expected = set((found[:count] >> 9).tolist())
        place = int(engine.record().escape_map[0])
        for block in range(base >> 9, (limit + 511) >> 9):
            number = block - (base >> 9)
            said = int(engine.tables.entries[place + (number >> 5)]) >> (number & 31) & 1
            assert said == (block in expected)
            hit, clear = hit + said, clear + 1 - said
    assert hit >= 3
    assert clear >= 3 or bits < 32 or INTERPRETED
