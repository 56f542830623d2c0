"""Building a VMM segment on a crowded host: which window is taken, who must move for it, and what must stay free."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.actors.toys import MIB, checked, doing, toy_vm, until, until_event, whys
from vmmsim.actors.segment_builder import SegmentBuilder
from vmmsim.memory.frames import PAGEBLOCK, Kind
from vmmsim.memory.window import Choice
from vmmsim.rates import number
from vmmsim.scenario.host import Compaction
from vmmsim.simulation import Simulation

PAGES = 32 * MIB >> 12
"""Of the VM db."""
COMPACTS = Compaction(bandwidth_bytes_per_second=1 << 30, proactiveness=0)


def idle(memory: int = 32 * MIB) -> Any:
    """Return a VM in which nothing runs."""
    return toy_vm(memory, footprint_bytes=None)


def absent(sim: Simulation, name: str) -> Any:
    """Return the gfns of a VM that have no frame yet."""
    vm = sim.guests[name].vm
    gfns = np.arange(vm.memory_pages)
    return gfns[vm.nested.translate(gfns) < 0]


def back(sim: Simulation, name: str, pages: int) -> None:
    sim.vmm.back(sim.guests[name].vm, absent(sim, name)[:pages])


def frames(sim: Simulation, name: str) -> Any:
    vm = sim.guests[name].vm
    return vm.nested.translate(np.arange(vm.memory_pages))


def test_without_compaction_a_window_free_of_others_is_taken_though_it_costs_more() -> None:
    """Most of db lies in its slots of a window already, but web has every fourth run of 64 frames there."""
    vms = {"db": idle(), "web": idle()}
    sim = until(checked(vms, host_bytes=256 * MIB, host={"thp": "never"}), 10**8)
    vm = sim.guests["db"].vm
    filler = sim.host.take(10_000, kind=Kind.CACHE)  # so that no slot lies below what can move
    back(sim, "web", 1)
    first = int(frames(sim, "web").max()) + 1
    # Of what kernel and tables of db have frames for already, the last page lies below.
    gfn = int(np.flatnonzero(frames(sim, "db")[: PAGES // 2] >= 0)[-1]) + 1
    gfn += (first + 64 - gfn) % PAGEBLOCK
    for at in range(gfn, gfn + 12 * 256, 256):
        back(sim, "web", 64)
        sim.vmm.back(vm, np.arange(at, at + 192))
    sim.host.give_back(filler)
    anybody = SegmentBuilder(sim.env, sim.vmm, sim.recorder, vm, bandwidth=1 << 30, may_evict=True)
    cheapest = anybody.choose(0, PAGES, [])
    assert isinstance(cheapest, Choice)
    assert cheapest.others >= 12 * 64, "else there is nothing to choose"
    before, own = frames(sim, "web"), vm.resident_pages
    doing(sim, sim.vm("db").want("vmm-direct"))
    assert vm.mode == "vmm-direct"
    assert np.array_equal(frames(sim, "web"), before)
    assert sim.compactor.moved_pages <= own, "each of its own pages once, at the most"
    assert vm.vmm_segment is not None
    assert vm.vmm_segment.offset != cheapest.offset


def test_pages_of_the_vm_outside_the_range_are_not_pages_of_others() -> None:
    """Its lower half lies in every window that its upper half could have."""
    sim = until(checked({"db": idle()}, host={"thp": "never"}), 10**8)
    vm, host, half = sim.guests["db"].vm, sim.host, PAGES // 2
    while host.spare_pages > 2000:
        back(sim, "db", 1) if absent(sim, "db")[0] < half else None
        host.take(500, kind=Kind.CACHE)
    host.drop_cache(host.pages)
    builder = SegmentBuilder(sim.env, sim.vmm, sim.recorder, vm, bandwidth=1 << 30, may_evict=False)
    choice = builder.choose(half, PAGES, [])
    assert isinstance(choice, Choice)
    assert choice.others > 0
    built = doing(sim, sim.env.process(builder.building(choice)))
    assert built.won
    assert vm.vmm_segment is not None
    assert (vm.vmm_segment.base, vm.vmm_segment.limit) == (half, PAGES)


def test_eviction_leaves_free_what_movable_memory_must_leave_free() -> None:
    """What page tables need lies below kernelcore, and movable memory leaves them a part of it.

    The host is full: pages of web in the window are as many as those of db outside, and there is hardly any room for
    them, so that they can leave only as fast as db's own pages make room.
    """
    vms = {"db": idle(), "web": idle(96 * MIB)}
    sim = until(checked(vms, host={"thp": "never", "compaction": COMPACTS}), 10**8)
    host, vm = sim.host, sim.guests["db"].vm
    while absent(sim, "db").size:
        back(sim, "db", 64)
        back(sim, "web", 96)
    while host.spare_pages > 300:
        back(sim, "web", host.spare_pages - 280)
    # Watermarks min of both parts, and a thirty-second of what is movable for those that can live nowhere else.
    kept = host.zone.present[1] // int(number("buddy.lowmem_reserve_ratio"))
    least = min(int(host.zone.free[0]), int(host.zone.watermark[0][0] + kept))
    started = sim.vm("db").want("vmm-direct")
    builds = 0
    while started.is_alive and not whys(sim, "compactor", "build")[1:]:
        until_event(sim)
        builds = max(builds, len(whys(sim, "compactor", "build")))
        tables = host.count(kind=Kind.TABLE)
        assert int(host.zone.free[0]) >= least, f"{tables} page tables, and no room for more"
    assert builds == 2
    assert whys(sim, "compactor", "build")[0].startswith("begun")
    assert sim.compactor.moved_pages > 1000, "more than there was room for"
    assert vm.mode == "vmm-direct"
