"""Toy hosts whose VMs swap at both levels, standing still; and what their pages hold, read the long way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.actors.small import toy_scenario
from vmmsim.actors.guest import Guest
from vmmsim.actors.host_swap import HostSwap
from vmmsim.actors.process import Process
from vmmsim.simulation import Simulation
from vmmsim.testing import check

SWAP = {"device": "zram", "size": "32MiB"}


def stand_still(
    names: str = "ab", *, memory: str = "8MiB", checked: bool = True, **vm: Any
) -> tuple[Simulation, list[Guest]]:
    """Return VMs whose programs have written all of their memory, and do nothing from now on."""
    described = {"memory": memory, "swap": SWAP, "workload": {"name": "gups", "footprint": "3MiB"}, **vm}
    scenario = toy_scenario(host={"swap": SWAP, "sharing": {}}, vm=dict.fromkeys(names, described))
    sim = Simulation(scenario, check=checked)
    sim.start()
    sim.env.run(until=10**9)
    for guest in sim.guests.values():
        assert guest.vcpus is not None
        guest.vcpus.set_load(0.0)
    sim.env.run(until=1_100_000_000)
    for guest in sim.guests.values():
        assert guest.vm.activity is not None
        guest.vm.activity.look(np.flatnonzero(program(guest).mapped))  # what was written last is known
    check(sim)
    return sim, list(sim.guests.values())


def program(guest: Guest) -> Process:
    assert guest.vm.process is not None
    return guest.vm.process


def swap_of(sim: Simulation) -> HostSwap:
    assert sim.vmm.swap is not None
    return sim.vmm.swap


def gfns(guest: Guest, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the gfns of mapped pages by number."""
    return program(guest).table.translate(program(guest).gvpns(numbers))


class Reader:
    """Remembers what each page of a program held when it was last written to, and reads it again, the long way."""

    def __init__(self, sim: Simulation, guest: Guest) -> None:
        self.sim, self.guest, self.vm = sim, guest, guest.vm
        self.held = self.read()

    def read(self) -> NDArray[np.int32]:
        """Return what each page holds: in the guest's swap space, the host's, or its frame; -1: no page."""
        vm, process = self.vm, program(self.guest)
        assert vm.swapped is not None
        assert process.swapped is not None
        assert self.guest.os.swap is not None
        assert self.sim.vmm.contents is not None
        found = np.full(process.pages, -1, np.int32)
        for number in range(process.pages):
            if not process.mapped[number]:
                slot = int(process.swapped[number]) - 1
                found[number] = self.guest.os.swap.device.content[slot] if slot >= 0 else -1
                continue
            gfn = int(process.table.translate(process.gvpns(np.array([number])))[0])
            hfn, slot = int(vm.nested.translate([gfn])[0]), int(vm.swapped[gfn]) - 1
            assert hfn >= 0 or slot >= 0, f"gfn {gfn} is nowhere"
            of = self.sim.vmm.contents.of_frame[hfn] if hfn >= 0 else swap_of(self.sim).device.content[slot]
            found[number] = of
        return found

    def lost(self) -> NDArray[np.int64]:
        """Return the pages that hold something else than was last written to them."""
        return np.flatnonzero(self.held != self.read())
