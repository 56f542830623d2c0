"""A host that runs out of memory: what it takes back, in which order, before it ends a VM (semantics of priorities)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import MIB, S, boot, live, simulation, timed
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.host_survival import reclaimable
from vmmsim.actors.invariants import check_all
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")

SMALL = 256 * MIB


def wait(sim, seconds: float) -> None:
    def script(sim):
        yield Pause(sim.env, round(seconds * S), Turn.MEASURE)

    live(sim, script)


def under_segments(names: str = "a", **host):
    """Return a simulation and guests of 256 MiB that are idle, each under a VMM segment."""
    sim = simulation(host={"memory": "3GiB", "kernelcore": "1GiB", **host}, check=True)
    guests = [boot(sim, name, memory="256MiB", mode="vmm-direct") for name in names]
    wait(sim, 5)
    assert [guest.vm.mode for guest in guests] == ["vmm-direct"] * len(guests)
    return sim, guests


def fill(sim, spare: int = 0) -> None:
    """Let somebody else take all of the host's free memory but ``spare`` pages."""
    host = sim.host
    host.take(max(host.free_pages - host.watermarks.min - spare, 0), kind=Kind.USER)


def need(sim, pages: int) -> int:
    """Be so many host pages short, as a fault that finds none is; return how many were freed."""
    before = sim.host.free_pages
    sim.vmm._make_room(pages, owner=0)
    return sim.host.free_pages - before


def decided(sim, *verbs: str) -> list[tuple[str, str, str]]:
    everything = [sim.recorder.decision(row) for row in range(len(sim.recorder))]
    return [(one.verb, one.vm, one.got) for one in everything if one.verb in verbs]


def test_page_cache_goes_before_any_segment():
    sim, (guest,) = under_segments()
    sim.host.take(8192, kind=Kind.CACHE)
    fill(sim)
    assert need(sim, 100) >= 100
    assert guest.vm.mode == "vmm-direct"


def test_a_segment_over_memory_never_touched_is_left_before_a_vm_is_ended():
    sim, (guest,) = under_segments()
    vm = guest.vm
    resident, gain = vm.resident_pages, reclaimable(vm)
    in_use = vm.guest.present_pages - vm.guest.free_pages
    assert resident == SMALL
    assert 0 < gain <= resident - in_use
    fill(sim)
    freed = need(sim, 100)
    assert freed >= gain
    assert vm.mode == "base"
    assert vm.resident_pages == resident - gain
    assert decided(sim, "mode")[-1] == ("mode", "a", "base")
    assert not decided(sim, "oom_kill")


def test_what_the_guest_touched_under_the_segment_is_kept():
    sim, (guest,) = under_segments()
    vm = guest.vm
    touched = vm.guest.take(10_000, kind=Kind.CACHE)
    sim.vmm.back(vm, touched)
    vm.guest.give_back(touched)  # free again in the guest; the host cannot know
    gain = reclaimable(vm)
    fill(sim)
    need(sim, 100)
    assert (vm.nested.translate(touched) >= 0).all()
    assert vm.resident_pages == SMALL - gain


def test_what_the_guest_gave_up_under_the_segment_comes_free_too():
    sim, (guest,) = under_segments()
    vm = guest.vm
    touched = vm.guest.take(vm.guest.free_pages, kind=Kind.CACHE)
    sim.vmm.back(vm, touched)
    vm.guest.give_back(touched)
    assert reclaimable(vm) < 1024  # but for what the guest keeps free
    timed(sim, guest.balloon.resizing(20_000))
    assert vm.held_pages == 20_000
    assert 20_000 <= reclaimable(vm) < 21_024
    fill(sim)
    assert need(sim, 100) > 19_900  # less the tables of split 2 MiB pages
    assert (vm.mode, vm.held_pages) == ("base", 0)


def test_the_segment_that_saves_least_for_what_it_frees_goes_first():
    sim, (one, two, three) = under_segments("abc", memory="4GiB")
    for guest, saved in ((one, 3e9), (two, 1e9), (three, 2e9)):
        guest.vm.saved_cycles_per_s = saved
    touched = two.vm.guest.take(two.vm.guest.free_pages - 2048, kind=Kind.CACHE)
    sim.vmm.back(two.vm, touched)  # frees little: the most is lost for each page
    for expected in ("c", "a", "b"):
        fill(sim)
        need(sim, 100)
        assert decided(sim, "mode")[-1][1] == expected


def test_it_does_not_come_back_at_once():
    sim, (guest,) = under_segments()
    fill(sim)
    need(sim, 100)
    wait(sim, 50)
    assert guest.vm.mode == "base"


def test_a_build_that_waits_is_given_up_and_its_window_let_go():
    sim = simulation(host={"memory": "3GiB", "compaction": {"bandwidth": "1MiB/s", "proactiveness": 0}}, check=False)
    others = sim.host.take(sim.host.free_pages - SMALL - 65536, kind=Kind.USER)
    sim.host.give_back(others[::4])
    guest = boot(sim, "a", memory="256MiB", mode="vmm-direct")
    wait(sim, 2)
    assert guest.vm.lease is not None
    fill(sim)
    assert need(sim, 100) > 0
    assert guest.vm.lease is None
    wait(sim, 5)
    assert decided(sim, "build")[-1][0] == "build"
    assert not [token for token in sim.host.tokens.values() if token.by.startswith("lease")]
    check_all(sim.vmm, sim.engine, sim.guests.values())


def test_only_then_a_vm_is_ended_and_it_is_the_largest():
    sim = simulation(host={"memory": "3GiB"}, check=True)
    small, large = boot(sim, "small", memory="256MiB"), boot(sim, "large", memory="512MiB")
    for guest in (small, large):
        sim.vmm.back(guest.vm, np.arange(guest.vm.guest.present_pages))
    fill(sim)
    extra = boot(sim, "new", memory="256MiB")
    sim.vmm.back(extra.vm, np.arange(extra.vm.guest.present_pages))
    assert "large" not in sim.guests
    assert "small" in sim.guests
