"""Hosts with page sharing whose guests hold what a test puts there, and whose ksmd scans when a test says so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.actors.toys import lived
from vmmsim.actors.guest import Guest
from vmmsim.actors.vm import VirtualMachine
from vmmsim.scenario import VM
from vmmsim.scenario.host import Sharing
from vmmsim.simulation import Simulation
from vmmsim.testing import MIB, check, toy_vm


def host(vms: int = 2, *, thp: str = "never", mode: str = "base", **told: Any) -> tuple[Simulation, list[Guest]]:
    """Return a host of idle VMs of 16 MiB, "a", "b" ..., no two pages of which are equal; nobody acts by the clock."""
    vm: dict[str, VM] = {
        name: toy_vm(16 * MIB, mode=mode, footprint_bytes=None, thp="never")  # type: ignore[arg-type]
        for name in "abcdefgh"[:vms]
    }
    more = told.pop("host", {})
    sim, _ = lived(vm, host={"sharing": Sharing(**told.pop("sharing", {})), "thp": thp, **more}, **told)
    for guest in sim.guests.values():
        every = resident(guest.vm)
        assert guest.vm.contents is not None
        guest.vm.contents.put(every, fresh(sim, every.size))
    return sim, list(sim.guests.values())


def fresh(sim: Simulation, count: int) -> NDArray[np.int32]:
    """Return contents that no page has."""
    assert sim.vmm.contents is not None
    return sim.vmm.contents.fresh(count)


def resident(vm: VirtualMachine) -> NDArray[np.int64]:
    return np.flatnonzero(vm.nested.translate(np.arange(vm.guest.pages)) >= 0)


def hold(guest: Guest, count: int, content: int) -> NDArray[np.int64]:
    """Have the guest take pages that all hold ``content``; return them."""
    gfns = guest.os.take_kernel(count)
    put(guest, gfns, content)
    return gfns


def put(guest: Guest, gfns: NDArray[np.int64], content: int) -> None:
    assert guest.vm.contents is not None
    guest.vm.contents.put(gfns, np.full(gfns.size, content, np.int32))


def wake_ups(sim: Simulation) -> int:
    """Return how many wake-ups a full scan takes: the last one finds the end, even if that is all that it finds."""
    pages = sum(resident(guest.vm).size for guest in sim.guests.values())
    return pages // per_wake_up(sim) + 1


def per_wake_up(sim: Simulation) -> int:
    assert sim.scenario.host.sharing is not None
    return sim.scenario.host.sharing.pages_to_scan


def full_scans(sim: Simulation, count: int = 1) -> None:
    """Do so many full scans, one wake-up after the other."""
    assert sim.sharing is not None
    end = sim.sharing.full_scans + count
    while sim.sharing.full_scans < end:
        sim.sharing.scan(1)
    check(sim)


def is_merged(guest: Guest, gfns: NDArray[np.int64]) -> NDArray[np.bool_]:
    assert guest.vm.merged is not None
    return guest.vm.merged[gfns]
