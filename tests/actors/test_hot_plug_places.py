"""Where hot-added memory goes: in one piece, never into the I/O gap, and nowhere that was promised to another."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import GIB, MIB, boot, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")

BLOCK = 128 * MIB


def test_a_range_that_would_reach_into_the_io_gap_begins_at_4_gib():
    sim = simulation(host={"memory": "6GiB"}, check=True)
    guest = boot(sim, memory="2GiB")
    assert guest.hotplug.room() == 2 * GIB + BLOCK  # above the gap; below it only 1.5 GiB are left
    first = live(sim, lambda sim: guest.hotplug.adding(GIB))
    assert first == (2 * GIB, 3 * GIB)  # fits below 3.5 GiB, where QEMU's pc-1.4 has its gap
    second = live(sim, lambda sim: guest.hotplug.adding(GIB))
    assert second == (4 * GIB, 5 * GIB)
    assert guest.hotplug.room() == GIB + BLOCK


def test_two_who_add_memory_at_once_each_get_one_range():
    sim = simulation(check=True)
    guest = boot(sim, memory="1GiB")
    one = sim.env.process(guest.hotplug.adding(4 * BLOCK))
    two = sim.env.process(guest.hotplug.adding(4 * BLOCK))
    live(sim, lambda sim: (both for both in [one & two]))
    assert one.value == (GIB, GIB + 4 * BLOCK)
    assert two.value == (GIB + 4 * BLOCK, GIB + 8 * BLOCK)


def test_a_guest_that_has_no_page_left_to_describe_a_block_with_gets_none():
    sim = simulation(check=True)
    guest = boot(sim, memory="256MiB")
    hog = guest.vm.guest.take(guest.vm.guest.free_pages, kind=Kind.KERNEL)
    sim.vmm.back(guest.vm, hog)
    assert live(sim, lambda sim: guest.hotplug.adding(BLOCK)) == (256 * MIB, 256 * MIB)
    assert guest.hotplug.place(BLOCK) == 256 * MIB  # the place is free again


def test_a_guest_whose_exchange_crosses_the_gap_gets_one_range_above_it():
    sim = simulation(host={"memory": "6GiB"})
    guest = boot(sim, memory="3GiB")
    done = live(sim, lambda sim: guest.self_balloon.exchanging(GIB))
    assert (done.start, done.end, done.short) == (4 * GIB, 5 * GIB, "")
    kinds = guest.vm.guest.kinds(np.arange(4 * GIB, 5 * GIB))
    assert (kinds == Kind.FREE).all()


def wait(sim, seconds: int) -> None:
    live(sim, lambda sim: (pause for pause in [Pause(sim.env, seconds * 10**9, Turn.MEASURE)]))


def test_memory_that_was_taken_away_makes_room_for_as_much_again():
    sim = simulation(host={"memory": "6GiB"})
    guest = boot(sim, memory="2GiB")
    for _ in range(3):
        assert live(sim, lambda sim: guest.hotplug.adding(2 * GIB)) == (4 * GIB, 6 * GIB)
        assert live(sim, lambda sim: guest.hotplug.removing(4 * GIB, 6 * GIB)) == ""


def test_a_vmm_segment_covers_the_longest_range_of_memory_and_no_hole():
    compaction = {"bandwidth": "1GiB/s", "proactiveness": 0}
    sim = simulation(host={"memory": "3GiB", "compaction": compaction}, check=True)
    guest = boot(sim, memory="1GiB")
    # The last block holds the kernel's map of frames and stays: the two below it go.
    assert live(sim, lambda sim: sim.verbs.hot_removing(guest, 256 << 20)) == 256 << 20
    guest.controller.want("vmm-direct")
    wait(sim, 5)
    assert guest.vm.mode == "vmm-direct"
    segment = guest.vm.vmm_segment
    assert (segment.base, segment.limit) == (0, 5 * BLOCK)


def test_memory_under_a_vmm_segment_is_unplugged_once_the_segment_is_left_which_then_covers_what_is_left():
    sim = simulation(host={"memory": "3GiB"}, check=True)
    guest = boot(sim, memory="1GiB", mode="vmm-direct")
    wait(sim, 3)
    assert guest.vm.vmm_segment.limit == GIB
    live(sim, lambda sim: sim.verbs.hot_removing(guest, 128 << 20))
    wait(sim, 3)
    assert guest.vm.mode == "vmm-direct"
    assert guest.vm.vmm_segment.limit == 6 * BLOCK
