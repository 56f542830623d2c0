"""Emptying a range of a guest while others hold frames of it: waited for, with back-off, and not for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.actors.toys import MIB, S, doing, lived, toy_vm, until, until_event, whys
from vmmsim.actors import emptying
from vmmsim.actors.guest import Guest
from vmmsim.actors.guest_compactor import best_window
from vmmsim.memory.frames import PAGEBLOCK, Kind
from vmmsim.simulation import Simulation

PAGES = 8 * PAGEBLOCK


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emptying, "TURN_PAGES", 256)


def scattered() -> tuple[Simulation, Guest, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return a guest with page cache in every pageblock, and the cache in the window that would be emptied."""
    sim, guest = lived({"db": toy_vm(64 * MIB, footprint_bytes=None)}, host_bytes=256 * MIB)
    memory = guest.vm.guest
    taken = memory.take(memory.free_pages - memory.watermarks.min, kind=Kind.CACHE)
    memory.give_back(taken[taken % 4 != 0])
    guest.os.vmm.back(guest.vm, taken[taken % 4 == 0])
    window = best_window(memory, PAGES)
    assert window is not None
    assert window.movable > 500
    inside = np.arange(window.start, window.end)
    return sim, guest, inside[memory.kinds(inside) == Kind.CACHE]


def let_go_at(sim: Simulation, guest: Guest, token: Any, at_ns: int) -> None:
    def letting_go() -> Any:
        yield sim.sleep(at_ns)
        guest.vm.guest.release(token)

    sim.env.process(letting_go())


def clearing(sim: Simulation, guest: Guest) -> Any:
    return sim.env.process(guest.compactor.clearing(PAGES))


def test_a_range_is_emptied_that_somebody_held_frames_of_for_a_while() -> None:
    sim, guest, cache = scattered()
    memory = guest.vm.guest
    started = clearing(sim, guest)
    while not whys(sim, "guest", "compact"):
        sim.env.step()
    token = memory.isolate(cache[memory.kinds(cache) == Kind.CACHE][::3], "somebody")
    let_go_at(sim, guest, token, S // 100)
    while started.is_alive:
        until_event(sim)
    assert started.value == ""
    assert memory.find_free_run(PAGES) >= 0


def test_frames_that_are_not_let_go_of_end_it_and_it_is_said_who_holds_them() -> None:
    sim, guest, cache = scattered()
    memory = guest.vm.guest
    began = int(sim.env.now)
    started = clearing(sim, guest)
    while not whys(sim, "guest", "compact"):
        sim.env.step()
    token = memory.isolate(cache[memory.kinds(cache) == Kind.CACHE][::3], "somebody")
    while started.is_alive:
        until_event(sim)
        assert sim.env.now < began + 60 * S
    assert "held by somebody" in started.value
    assert whys(sim, "guest", "compact")[-1].startswith("failed: ")
    memory.release(token)
    assert doing(sim, clearing(sim, guest)) == ""


@pytest.mark.parametrize("most", [1, 4096])
def test_a_lease_beside_it_that_comes_and_goes_does_not_keep_it_from_ending(most: int) -> None:
    sim, guest, cache = scattered()
    memory = guest.vm.guest
    last = memory.present_pages // PAGEBLOCK
    inside = {int(frame) // PAGEBLOCK for frame in cache}
    blocks = [block for block in range(last) if block not in inside][:most]
    started = clearing(sim, guest)
    while not whys(sim, "guest", "compact"):
        sim.env.step()
    leases = [memory.isolate_range(block * PAGEBLOCK, (block + 1) * PAGEBLOCK, "somebody") for block in blocks]
    while started.is_alive and sim.env.now < 60 * S:
        until_event(sim)
    assert not started.is_alive
    for lease in leases:
        memory.release(lease)
    assert doing(sim, clearing(sim, guest)) == ""
    until(sim, int(sim.env.now) + S)


def test_a_block_that_somebody_held_frames_of_for_a_while_is_unplugged() -> None:
    sim, guest = lived({"db": toy_vm(160 * MIB, footprint_bytes=None)}, host_bytes=768 * MIB)
    memory = guest.vm.guest
    doing(sim, sim.vm("db").hot_add("128MiB"))
    start, end = guest.hotplug.last_blocks()[0]
    taken = memory.take_range(start, end, kind=Kind.CACHE)
    memory.give_back(taken[8000:])
    guest.os.vmm.back(guest.vm, taken[:8000])
    started = sim.vm("db").hot_remove("128MiB")
    token = memory.isolate(taken[5000:5100], "somebody")
    let_go_at(sim, guest, token, S // 100)
    while started.is_alive:
        until_event(sim)
    assert started.value == 128 * MIB
    assert memory.kinds(start) == Kind.HOLE, "that block, not another"
