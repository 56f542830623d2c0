"""Memory that was given up under a VMM segment: held, and made reusable by escaping it, trimming or leaving."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import MIB, S, boot, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.held_memory import HeldMemory
from vmmsim.actors.invariants import check_all
from vmmsim.actors.vm import BLOCK_PAGES
from vmmsim.actors.vmm import Vmm
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")


def wait(sim, seconds: float) -> None:
    def script(sim):
        yield Pause(sim.env, round(seconds * S), Turn.MEASURE)

    live(sim, script)


def under_a_segment(memory: str = "640MiB", **more):
    """Return a host and a guest of five blocks of 128 MiB, idle, all of it under a VMM segment."""
    sim = simulation(host={"memory": "3GiB", "kernelcore": "1GiB", **more}, check=True)
    guest = boot(sim, "a", memory=memory, mode="vmm-direct")
    wait(sim, 5)
    assert guest.vm.mode == "vmm-direct"
    return sim, guest


def give_up(sim, guest, pages: int) -> None:
    live(sim, lambda sim: sim.verbs.ballooning(guest, pages))
    assert guest.vm.ballooned_pages == pages


def free(sim, guest, pages: int):
    found = live(sim, lambda sim: sim.held_memory.freeing(guest.balloon, pages))
    check_all(sim.vmm, sim.engine, sim.guests.values())
    return found


def books(sim, guest) -> tuple[int, int]:
    """Return what was given up and what of it is reusable, as the table of VMs says."""
    rows = [row for row in sim.recorder.tables()["vms"].to_pylist() if row["vm"] == guest.vm.name]
    return rows[-1]["balloon_bytes"] >> 12, rows[-1]["reusable_bytes"] >> 12


def test_what_is_given_up_under_a_segment_is_not_reusable():
    sim, guest = under_a_segment()
    before = sim.host.free_pages
    give_up(sim, guest, 200 * MIB)
    sim.series.record()
    assert sim.host.free_pages == before
    assert guest.vm.held_pages == 200 * MIB
    assert books(sim, guest) == (200 * MIB, 0)


def test_trimming_frees_the_blocks_at_the_end_and_the_segment_stays_live():
    sim, guest = under_a_segment()
    vm, before = guest.vm, sim.host.free_pages
    give_up(sim, guest, 300 * MIB)
    segment = vm.vmm_segment
    kernel = [
        int(np.count_nonzero(vm.guest.frames["kind"][n * BLOCK_PAGES : (n + 1) * BLOCK_PAGES] == Kind.KERNEL))
        for n in range(5)
    ]
    freed = free(sim, guest, 130 * MIB)
    assert vm.mode == "vmm-direct"
    assert (vm.vmm_segment.base, vm.vmm_segment.offset) == (segment.base, segment.offset)
    assert vm.vmm_segment.limit == segment.limit - 2 * BLOCK_PAGES
    given = 2 * BLOCK_PAGES - kernel[4] - kernel[3]
    assert freed.pages == given, "all of two blocks but what the kernel has there"
    split = sim.host.free_pages - before
    assert given - 8 <= split <= given, "but for tables of blocks that were split"
    assert vm.ballooned_pages == 300 * MIB, "the balloon is as large as before"
    assert vm.held_pages == 300 * MIB - given
    sim.series.record()
    assert books(sim, guest) == (300 * MIB, given)


def test_given_up_is_held_and_reusable_throughout():
    """Conservation: whatever is done, what the balloon holds is either held or free for the host."""
    sim, guest = under_a_segment()
    vm, met = guest.vm, set()
    for pages in (50 * MIB, 300 * MIB, 260 * MIB, 400 * MIB, 0):
        live(sim, lambda sim, pages=pages: sim.verbs.ballooning(guest, pages))
        free(sim, guest, 64 * MIB)
        gone = vm.given_up(0, vm.guest.pages)
        held = int(np.count_nonzero(vm.nested.translate(gone) >= 0))
        assert held == vm.held_pages
        assert gone.size == vm.ballooned_pages
        met.add((held > 0, held < gone.size))
    assert met >= {(True, False), (True, True), (False, False)}, "all held, some of it, and nothing"


def test_trimming_stops_where_the_balloon_holds_too_little():
    sim, guest = under_a_segment()
    give_up(sim, guest, 64 * MIB)
    limit = guest.vm.vmm_segment.limit
    freed = free(sim, guest, 64 * MIB)
    assert freed.pages == 0
    assert "the block has" in freed.why
    assert guest.vm.vmm_segment.limit == limit
    assert guest.vm.held_pages == 64 * MIB


def test_trimming_never_takes_the_last_block():
    sim, guest = under_a_segment("256MiB")
    vm = guest.vm
    live(sim, lambda sim: sim.verbs.ballooning(guest, 150 * MIB))
    freed = free(sim, guest, 256 * MIB)
    assert vm.vmm_segment is not None
    assert vm.vmm_segment.limit - vm.vmm_segment.base == BLOCK_PAGES
    assert freed.why == "less than a block of the segment is left"


def test_what_the_program_uses_moves_out_of_the_block_and_is_not_lost():
    sim = simulation(
        host={"memory": "3GiB", "kernelcore": "1GiB", "swap": {"device": "nvme", "size": "1GiB"}}, check=False
    )
    guest = boot(sim, "a", memory="640MiB", mode="vmm-direct", workload={"name": "gups", "footprint": "200MiB"})
    wait(sim, 10)
    vm = guest.vm
    assert vm.mode == "vmm-direct"
    contents = sim.vmm.contents.of_frame
    pages = np.flatnonzero(vm.process.mapped)

    def held() -> np.ndarray:
        gfns = vm.process.table.translate(vm.process.gvpns(pages))
        return contents[vm.nested.translate(gfns)].copy()

    guest.vcpus.set_load(0.0)
    wait(sim, 1)
    give_up(sim, guest, 256 * MIB)
    before, places = held(), vm.process.table.translate(vm.process.gvpns(pages)).copy()
    end = vm.vmm_segment.limit
    assert free(sim, guest, 128 * MIB).pages >= 100 * MIB
    moved = places != vm.process.table.translate(vm.process.gvpns(pages))
    in_block = places >= end - BLOCK_PAGES
    assert np.array_equal(before, held())
    assert np.all(moved[in_block])


def test_a_few_held_pages_escape_and_are_free_at_once():
    sim, guest = under_a_segment()
    vm, before = guest.vm, sim.host.free_pages
    give_up(sim, guest, 10)
    freed = free(sim, guest, 10)
    assert freed.pages == 10
    assert vm.held_pages == 0
    assert len(vm.escapes.members) == 10
    assert sim.host.free_pages >= before + 10 - 2, "but for tables of blocks that were split"
    assert vm.mode == "vmm-direct"
    live(sim, lambda sim: sim.verbs.ballooning(guest, 0))
    check_all(sim.vmm, sim.engine, sim.guests.values())


def test_the_filter_s_budget_bounds_what_escapes():
    sim, guest = under_a_segment()
    give_up(sim, guest, 17)
    assert sim.held_memory.escape(guest.vm).pages == 0
    assert not guest.vm.escapes.members


def test_leaving_the_segment_makes_all_of_it_reusable():
    sim, guest = under_a_segment()
    before = sim.host.free_pages
    give_up(sim, guest, 200 * MIB)
    sim.vmm.leave_segment(guest.vm, "memory")
    assert guest.vm.held_pages == 0
    assert sim.host.free_pages >= before + 199 * MIB


def test_the_manager_trims_when_the_host_is_short():
    sim, guest = under_a_segment(balloon={"policy": "proportional", "every": "10s", "reserve": "512MiB"})
    sim.host.take(sim.host.spare_pages - 312 * MIB, kind=Kind.USER)
    before = sim.host.free_pages
    for _ in range(4):
        sim.manager.look()
        wait(sim, 5)
        check_all(sim.vmm, sim.engine, sim.guests.values())
    assert guest.vm.mode == "vmm-direct"
    assert sim.host.free_pages - before >= 150 * MIB
    trims = [one for one in sim.recorder.last(99) if one.verb == "trim"]
    assert trims
    assert trims[0].outcome in ("done", "partial")


BUGS = {
    "frames stay pinned": lambda patch: patch.setattr("vmmsim.memory.ledger.Memory.unpin", lambda self, frames: None),
    "held pages are not counted anew": lambda patch: patch.setattr(
        "vmmsim.actors.vm.VirtualMachine.held_now", lambda self: self.held_pages
    ),
    "given-up frames are not freed": lambda patch: patch.setattr(Vmm, "unback", lambda self, vm, gfns: 0),
    "the registers stay": lambda patch: patch.setattr(HeldMemory, "trim", _trim_without_registers),
}


def _trim_without_registers(self, vm, limit: int) -> int:
    segment = vm.vmm_segment
    return self.vmm.unback(vm, vm.given_up(limit, segment.limit))


@pytest.mark.parametrize("bug", ["frames stay pinned", "held pages are not counted anew", "the registers stay"])
def test_a_planted_bug_of_trimming_is_found(bug: str, monkeypatch):
    sim, guest = under_a_segment()
    give_up(sim, guest, 300 * MIB)
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        free(sim, guest, 130 * MIB)


def test_frames_that_are_not_freed_are_seen(monkeypatch):
    sim, guest = under_a_segment()
    give_up(sim, guest, 300 * MIB)
    BUGS["given-up frames are not freed"](monkeypatch)
    gone = guest.vm.given_up(0, guest.vm.guest.pages)
    live(sim, lambda sim: sim.held_memory.trimming(guest.balloon, 130 * MIB))
    gone = guest.vm.given_up(0, guest.vm.guest.pages)
    held = int(np.count_nonzero(guest.vm.nested.translate(gone) >= 0))
    assert held != guest.vm.held_pages, "what conservation compares"
