"""Proactive compaction by the clock: when it looks, starts, stops and backs off.

Expected values: Linux mm/compaction.c. At the default compaction_proactiveness of 20 it starts above a score of 90 and
stops at 80 (fragmentation_score_wmark); it looks each HPAGE_FRAG_CHECK_INTERVAL_MSEC = 500 ms, after a run without
progress only 500 ms << COMPACT_MAX_DEFER_SHIFT = 32 s later (kcompactd).
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import S, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.memory.frames import Kind

HALF_S = S // 2


@pytest.fixture
def sim():
    """A host of 512 MiB without VMs, where anything may lie anywhere."""
    return simulation(host={"memory": "512MiB", "kernelcore": "512MiB", "compaction": {"bandwidth": "8GiB/s"}})


def fill(sim, kind: Kind, *, whole: float = 0.0) -> np.ndarray:
    """Let others hold every fourth page, but for a share of free memory that is free in whole 2 MiB blocks."""
    host = sim.host
    taken = host.take(host.free_pages, kind=kind, owner=999, floor=0)
    blocks, counts = np.unique(taken >> 9, return_counts=True)
    blocks = blocks[counts == 512]
    # Of n blocks, w are wholly free and of the others three quarters: w = whole * (w + 3/4 (n - w)).
    share = 0.75 * whole / (1 - 0.25 * whole)
    empty = np.isin(taken >> 9, blocks[: round(share * blocks.size)])
    held = (taken % 4 == 0) & ~empty
    host.give_back(taken[~held])
    return taken[held]


def watch(sim, seconds: float) -> None:
    """Let kcompactd live for so long."""

    def script(sim):
        yield Pause(sim.env, round(seconds * S), Turn.MEASURE)

    sim.env.process(sim.compactor.background())
    live(sim, script)


def runs(sim) -> list[tuple[int, str]]:
    """Return (time, outcome) of what it decided."""
    told = sim.recorder.tables()["decisions"].to_pylist()
    assert {(one["actor"], one["verb"]) for one in told} <= {("compactor", "compact")}
    return [(one["t_ns"], one["outcome"]) for one in told]


def test_it_starts_at_the_first_look_above_90_and_stops_once_the_score_is_80(sim):
    movable = fill(sim, Kind.USER)
    assert sim.host.fragmentation().score > 90
    watch(sim, 60)
    assert [outcome for _, outcome in runs(sim)] == ["begun", "done"]
    assert runs(sim)[0][0] == HALF_S
    assert 0 < sim.compactor.moved_pages < movable.size
    assert 75 < sim.host.fragmentation().score <= 80
    assert sim.host.count(kind=Kind.USER) == movable.size


def test_it_leaves_memory_alone_whose_score_is_above_80_but_not_above_90(sim):
    fill(sim, Kind.USER, whole=0.13)
    assert 80 < sim.host.fragmentation().score <= 90
    watch(sim, 60)
    assert runs(sim) == []
    assert sim.compactor.moved_pages == 0


def test_it_looks_every_500_ms(sim):
    looks = []
    fragmentation = sim.host.fragmentation

    def looked():
        looks.append(int(sim.env.now))
        return fragmentation()

    sim.host.fragmentation = looked
    watch(sim, 10.1)
    assert looks == [look * HALF_S for look in range(1, 21)]


def test_where_nothing_can_move_it_backs_off_for_32_s(sim):
    stuck = fill(sim, Kind.KERNEL)
    watch(sim, 100)
    begun = [when for when, outcome in runs(sim) if outcome == "begun"]
    assert begun == [HALF_S, HALF_S + 32 * S, HALF_S + 64 * S, HALF_S + 96 * S]
    assert sim.compactor.moved_pages == 0
    assert (sim.host.kinds(stuck) == Kind.KERNEL).all()
