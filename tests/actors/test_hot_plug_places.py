"""Where hot-added memory goes: in one piece, never into the I/O gap, and nowhere that was promised to another."""

from __future__ import annotations

import numpy as np

from tests.actors.living import GIB, MIB, boot, live, simulation
from vmmsim.memory.frames import Kind

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
