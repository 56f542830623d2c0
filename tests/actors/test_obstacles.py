"""Pages that are asked for by name: which go, and why the others stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.actors.small import toy_scenario
from tests.actors.toys import without_ksmd
from vmmsim.actors.guest import Guest
from vmmsim.actors.invariants import check_all
from vmmsim.actors.obstacles import Obstacle, first_of
from vmmsim.memory.frames import Kind
from vmmsim.simulation import Simulation

SERVICES = {"sharing": {}, "swap": {"device": "zram", "size": "32MiB"}}


def lived(mode: str = "base") -> tuple[Simulation, Guest]:
    """Return a VM of 16 MiB that has written 4 MiB, of which 3 are its primary region, and has its mode."""
    vm = {
        "memory": "16MiB",
        "mode": mode,
        "thp": "never",
        "workload": {"name": "gups", "footprint": "4MiB", "scratch_share": 0.25},
    }
    sim = Simulation(toy_scenario(host={**SERVICES, "compaction": {"bandwidth": "1GiB/s"}}, vm={"db": vm}), check=True)
    without_ksmd(sim).start()
    sim.env.run(until=10**9)
    guest = sim.guests["db"]
    assert guest.vm.mode == mode
    assert guest.vcpus is not None
    guest.vcpus.set_load(0.0)
    sim.env.run(until=1_100_000_000)
    return sim, guest


def program(guest: Guest, region: int) -> NDArray[np.int64]:
    """Return the gfns of a region of the program."""
    process = guest.os.process
    one = process.regions[region]
    return np.asarray(process.table.translate(one.start + np.arange(one.pages)))


def test_the_first_obstacle_that_applies_is_the_one_told() -> None:
    yes, no, mixed = np.ones(2, np.bool_), np.zeros(2, np.bool_), np.array([False, True])
    told = first_of((Obstacle.BUSY, no), (Obstacle.PINNED_VMM, mixed), (Obstacle.ABSENT, yes))
    assert told.tolist() == [Obstacle.ABSENT, Obstacle.PINNED_VMM]


def test_the_balloon_gives_up_just_the_pages_it_is_asked_for() -> None:
    sim, guest = lived()
    vm, memory = guest.vm, guest.vm.guest
    cache = memory.take(8, kind=Kind.CACHE)
    guest.os.vmm.back(vm, cache)
    free = np.flatnonzero(memory.kinds(np.arange(memory.pages)) == Kind.FREE)[:8]
    kernel = np.flatnonzero(memory.frames["kind"] == Kind.KERNEL)[:8]
    used = program(guest, 0)[:8]
    held = guest.os.process.mapped_pages
    contents = vm.contents
    assert contents is not None
    before = contents.of(used)
    asked = np.concatenate([cache, free, kernel, used])
    why, took_ns = guest.balloon.give_up(asked)
    assert Counter(why.tolist()) == {Obstacle.NONE: 24, Obstacle.IMMOVABLE: 8}
    assert np.all(memory.frames["kind"][np.concatenate([cache, free, used])] == Kind.BALLOON)
    assert np.all(memory.frames["kind"][kernel] == Kind.KERNEL)
    assert vm.ballooned_pages == 24
    assert took_ns > 0
    # The program has all its pages still, elsewhere, and what they held; the host has the frames of those given up.
    now = program(guest, 0)[:8]
    assert guest.os.process.mapped_pages == held
    assert not np.any(np.isin(now, used))
    assert np.array_equal(contents.of(now), before)
    assert np.all(vm.nested.translate(used) < 0)
    check_all(sim.vmm, sim.engine, sim.guests.values())
    again, _ = guest.balloon.give_up(used)
    assert set(again.tolist()) == {Obstacle.GIVEN_UP}
    assert guest.balloon.give_back(24) == 24
    check_all(sim.vmm, sim.engine, sim.guests.values())


def test_a_page_to_be_given_up_never_moves_onto_another_one() -> None:
    sim, guest = lived()
    memory = guest.vm.guest
    free = np.flatnonzero(memory.kinds(np.arange(memory.pages)) == Kind.FREE)
    room = memory.watermarks.min + 4
    asked = np.concatenate([program(guest, 0)[:4], free[: free.size - room]])
    why, _ = guest.balloon.give_up(asked)
    assert not np.any(why)
    assert np.all(memory.frames["kind"][asked] == Kind.BALLOON)
    check_all(sim.vmm, sim.engine, sim.guests.values())


def test_what_the_guest_segment_covers_is_not_given_up_and_what_the_vmm_segment_covers_is_held() -> None:
    sim, guest = lived("dual-direct")
    vm = guest.vm
    table, scratch = program(guest, 0)[:8], program(guest, 1)[:8]
    why, _ = guest.balloon.give_up(np.concatenate([table, scratch]))
    assert why.tolist() == [Obstacle.PINNED_GUEST] * 8 + [Obstacle.NONE] * 8
    assert np.all(vm.under_vmm_segment(scratch))
    assert vm.held_pages == 8
    check_all(sim.vmm, sim.engine, sim.guests.values())


@pytest.mark.parametrize("mode", ["base", "guest-direct", "vmm-direct", "dual-direct"])
def test_what_a_vmm_segment_covers_is_neither_shared_nor_swapped_out(mode: str) -> None:
    sim, guest = lived(mode)
    vm, merging, swap = guest.vm, sim.vmm.merging, sim.vmm.swap
    assert merging is not None
    assert swap is not None
    gfns = program(guest, 0)
    covered = vm.under_vmm_segment(gfns)
    assert covered.all() == mode.startswith(("vmm", "dual"))
    for found in (merging.obstacles(vm, gfns), swap.obstacles(vm, gfns)):
        assert np.array_equal(found == Obstacle.PINNED_VMM, covered)
    assert np.array_equal(merging.may_share(vm, gfns), ~covered)
    assert np.array_equal(swap.may_go(vm, gfns), ~covered)
    if covered.any():
        with pytest.raises(AssertionError, match="may not be shared"):
            merging.share(vm, gfns[:1])
    else:
        merging.share(vm, gfns[:1])
        assert merging.obstacles(vm, gfns[:1]).tolist() == [Obstacle.MERGED]
        check_all(sim.vmm, sim.engine, sim.guests.values())


def test_page_tables_of_the_guest_are_neither_shared_nor_swapped_out() -> None:
    sim, guest = lived()
    assert sim.vmm.merging is not None
    assert sim.vmm.swap is not None
    tables = np.flatnonzero(guest.vm.guest.frames["kind"] == Kind.TABLE)
    assert tables.size
    for found in (sim.vmm.merging.obstacles(guest.vm, tables), sim.vmm.swap.obstacles(guest.vm, tables)):
        assert set(found.tolist()) == {Obstacle.IMMOVABLE}
