"""Faults in frames that nobody needs any more: what leaving the VMM segment gave back is retired, and no more."""

from __future__ import annotations

import numpy as np

from tests.actors.test_host_survival import fill, under_segments
from tests.actors.living import timed
from vmmsim.memory.frames import Kind


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


def test_a_host_without_a_free_frame_still_finds_healthy_ones_for_struck_pages():
    sim, (guest,) = under_segments()
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
