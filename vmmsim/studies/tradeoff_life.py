"""One life of the paired experiment: the same host, the same VM, the same seed; only the mode wanted differs.

The life is lived until the VM has the mode and its program has done its first work. Then the guest has read files into
its page cache, has swap space, and a small second VM has booted, whose pages are the equal twins that page sharing
needs. From here on the clock stands still: every attempt begins from this very state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.actors.guest_swap import GuestSwap
from vmmsim.actors.swap_device import SwapDevice
from vmmsim.actors.vm import wants
from vmmsim.config import MODES, WalkCache
from vmmsim.decisions import SimulationFailed
from vmmsim.errors import BadInput, Refused
from vmmsim.memory.frames import Kind
from vmmsim.scenario.host import Sharing, Swap
from vmmsim.scenario_file import machine_of
from vmmsim.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.actors.guest import Guest
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.config import Machine
    from vmmsim.scenario import Scenario

STUDIED: Final = tuple(name for name, mode in MODES.items() if mode.nested != "identity")
"""The modes of a VM, in the order of the modes' own table."""
TWIN: Final = "twin"
"""Name of the VM whose pages are made equal to others'."""
_TWIN_BYTES: Final = 16 << 20
_SWAP_BYTES: Final = 1 << 30
_FILES_SHARE: Final = 1 / 32
"""Share of its memory that the guest fills with page cache."""
_GUEST_SWAP_PAGES: Final = 1 << 12
_MOST_STEPS: Final = 1 << 20


@attrs.define(eq=False)
class Life:
    """A VM in one mode, at the moment at which attempts are made on it."""

    mode: str
    sim: Simulation
    guest: Guest
    twin: Guest | None
    files: NDArray[np.int64]
    """int64[n]: the gfns of the page cache that was read last, in the order of the files' pages."""

    @property
    def vm(self) -> VirtualMachine:
        """The VM that is studied."""
        return self.guest.vm


def studied_vm(scenario: Scenario) -> str:
    """Return the name of the VM that is studied: the first that runs a program; ``BadInput`` if none does."""
    found = next((name for name, vm in scenario.vm.items() if vm.workload is not None), None)
    if found is None:
        raise BadInput("no VM of it has a workload, so that there is nothing to translate", file=scenario.name)
    if TWIN in scenario.vm:
        raise BadInput(f'a VM may not be called "{TWIN}" here: that is the name of the one that pages are shared with')
    return found


def plain_machine(scenario: Scenario) -> Machine:
    """Return the scenario's machine without walk caches and nested TLB: every miss walks from the root."""
    machine = machine_of(scenario)
    switches = attrs.evolve(machine.switches, ntlb_in_l2=False)
    return attrs.evolve(
        machine, walk_cache=WalkCache(), nested_walk_cache=WalkCache(), nested_tlb=(), switches=switches
    )


def prepared(scenario: Scenario, name: str, mode: Any) -> Scenario:
    """Return the scenario with its VM ``name`` wanting ``mode`` all along, and the services that are tried there."""
    host = scenario.host
    host = attrs.evolve(
        host,
        sharing=host.sharing or Sharing(),
        swap=host.swap or Swap(device="nvme", size_bytes=_SWAP_BYTES),
    )
    vms = {**scenario.vm, name: attrs.evolve(scenario.vm[name], mode=mode)}
    events = tuple(event for event in scenario.event if not (event.do == "mode" and getattr(event, "vm", "") == name))
    return attrs.evolve(scenario, host=host, vm=vms, event=events)


def live(scenario: Scenario, name: str, mode: str, *, services: bool = True, must: bool = True) -> Life:
    """Live until the VM ``name`` has ``mode`` and its program has begun; ``Refused`` if that does not come to be.

    services  whether pages are to be tried there: files are read, swap space and the twin are made
    must      whether the mode must be had; if not, what the VM gets is waited for
    """
    described = prepared(scenario, name, mode)
    sim = Simulation(described, machine=plain_machine(described))
    sim.start()
    guest = _run_until(sim, name, mode, must)
    if not services:
        return Life(mode=mode, sim=sim, guest=guest, twin=None, files=np.empty(0, np.int64))
    booting = sim.boot(TWIN, memory=_TWIN_BYTES)
    _step_until(sim, lambda: bool(booting.triggered))
    _add_guest_swap(sim, guest)
    files = _read_files(guest)
    _step_until(sim, lambda: _is_quiet(sim, guest))
    assert guest.vm.running
    return Life(mode=mode, sim=sim, guest=guest, twin=sim.guests[TWIN], files=files)


def _run_until(sim: Simulation, name: str, mode: str, must: bool) -> Guest:
    until = sim.scenario.run.until_ns

    def there() -> bool:
        guest = sim.guests.get(name)
        return guest is not None and _has_begun(guest) and (guest.vm.mode == mode or (not must and _has_settled(guest)))

    while not there():
        if sim.env.peek() > until or sim.lost:
            raise _why_not(sim, name, mode)
        _step(sim)
    return sim.guests[name]


def _has_begun(guest: Guest) -> bool:
    """Tell whether the program has made its first pass over its memory, or at least some accesses."""
    vcpus = guest.vcpus
    return vcpus is not None and vcpus.position() >= max(vcpus.workload.begins, 1)


def _has_settled(guest: Guest) -> bool:
    """Tell whether the VM has all that it can have of the mode it wants."""
    vm = guest.vm
    _, wanted_vmm = wants(vm.mode_wanted)
    return (
        guest.controller.guest_tried.triggered and vm.lease is None and (vm.vmm_segment is not None or not wanted_vmm)
    )


def _why_not(sim: Simulation, name: str, mode: str) -> Refused:
    """Return the refusal that says why the VM does not have the mode."""
    said = [
        row
        for row in sim.recorder.last(len(sim.recorder))
        if row.vm == name and row.verb in ("gain", "boot") and row.why
    ]
    guest = sim.guests.get(name)
    if sim.lost or guest is None:
        why = sim.lost or (said[-1].why if said else "it does not boot before the run ends")
    elif guest.vm.mode == mode:
        why = "its program has not begun when the run ends"
    else:
        why = said[-1].why if said else "it is not there when the run ends"
    return Refused("mode", why=why, asked=mode, vm=name)


def _step(sim: Simulation) -> None:
    try:
        sim.env.step()
    except (BadInput, Refused):
        raise
    except Exception as error:
        raise SimulationFailed(sim.recorder) from error


def _step_until(sim: Simulation, there: Callable[[], bool]) -> None:
    for _ in range(_MOST_STEPS):
        if there():
            return
        _step(sim)
    raise AssertionError("the simulation does not come to rest")


def _is_quiet(sim: Simulation, guest: Guest) -> bool:
    """Tell whether nobody is in the middle of moving anything of the host's or the guest's."""
    return not sim.host.tokens and not guest.vm.guest.tokens and guest.vm.lease is None


def _add_guest_swap(sim: Simulation, guest: Guest) -> None:
    """Give the guest swap space of its own, if it has none."""
    process = guest.os.process
    if guest.os.swap is None:
        guest.os.swap = GuestSwap(guest.os, SwapDevice(sim.env, "nvme", _GUEST_SWAP_PAGES))
        process.swapped = np.zeros(process.pages, np.int32)


def _read_files(guest: Guest) -> NDArray[np.int64]:
    """Let the guest read files into its page cache, and return the gfns of what it read."""
    vm = guest.vm
    memory = vm.guest
    wanted = min(round(memory.present_pages * _FILES_SHARE), max(memory.free_pages - memory.watermarks.high, 0) // 2)
    gfns = memory.take(wanted, kind=Kind.CACHE, floor=memory.watermarks.high)
    guest.os.vmm.back(vm, gfns)
    if vm.contents is not None:
        vm.contents.kernel(gfns)
    return gfns
