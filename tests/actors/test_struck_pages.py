"""Faults in frames that nobody needs any more: what leaving the VMM segment gave back is retired, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import boot, simulation, timed
from tests.actors.test_host_survival import fill, under_segments
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")


def test_pages_given_up_under_a_segment_that_a_fault_ends_are_retired():
    sim, (guest,) = under_segments()
    vm = guest.vm
    timed(sim, guest.balloon.resizing(1000))
    held = np.flatnonzero(vm.guest.frames["kind"] == Kind.BALLOON)
    struck = vm.nested.translate(held[:20])  # more than the 16 that may escape
    sim.faults.strike(struck, what="column", correctable=True)
    assert vm.mode == "base"
    assert (sim.host.kinds(struck) == Kind.BAD).all()
    assert vm.held_pages == 0
    assert (vm.nested.translate(held) < 0).all()


def test_a_struck_page_may_get_the_frame_that_leaving_the_segment_frees():
    sim, (guest,) = under_segments(kernelcore="3GiB")
    vm = guest.vm
    timed(sim, guest.balloon.resizing(1000))
    used = np.flatnonzero(np.isin(vm.guest.frames["kind"], (Kind.KERNEL, Kind.BALLOON)))[:10]
    struck = vm.nested.translate(used)
    fill(sim)
    sim.faults.strike(struck, what="row", correctable=True)
    assert guest.vm.running
    assert (sim.host.kinds(struck) == Kind.BAD).all()
    kernel = used[vm.guest.frames["kind"][used] == Kind.KERNEL]
    moved = vm.nested.translate(kernel)
    assert (moved >= 0).all()
    assert not np.isin(moved, struck).any()


def test_a_vm_for_whose_page_there_is_no_healthy_frame_is_ended_and_the_run_goes_on():
    sim = simulation(host={"memory": "3GiB", "kernelcore": "3GiB"}, check=True)
    guest = boot(sim, memory="256MiB")
    struck = guest.vm.nested.translate(np.arange(4))
    fill(sim)
    sim.faults.strike(struck, what="row", correctable=True)
    assert not sim.guests
    assert (sim.host.kinds(struck) == Kind.BAD).all()


def test_a_guest_kernel_that_asks_for_memory_of_a_host_that_has_none_takes_its_vm_down_and_not_the_run():
    sim = simulation(host={"memory": "3GiB", "kernelcore": "3GiB"}, check=True)
    churn = {"name": "web", "footprint": "64MiB", "load": [["0s", 0.0]]}
    guest = boot(sim, memory="512MiB", workload=churn)
    timed(sim, _sleep(sim, 1))
    fill(sim)
    timed(sim, _sleep(sim, 600))
    assert not guest.vm.running


def _sleep(sim, seconds: int):
    yield sim.sleep(seconds * 10**9)
