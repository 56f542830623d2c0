"""Hosts small enough to be recounted after every event, and random lives on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.actors.invariants import check_all
from vmmsim.errors import Refused
from vmmsim.memory.frames import ISOLATED, Kind
from vmmsim.scenario import VM, Event, Host, Measure, Run, Scenario
from vmmsim.scenario import Workload as Described
from vmmsim.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    import simpy

    from vmmsim.scenario import VmMode

MIB: Final = 1 << 20


def toy_vm(
    memory_bytes: int = 32 * MIB, *, mode: VmMode = "base", footprint_bytes: int | None = 8 * MIB, **keys: Any
) -> VM:
    """Describe a small VM that runs gups over ``footprint_bytes`` (None: it runs nothing); ``keys``: others of VM."""
    workload = None if footprint_bytes is None else Described(name="gups", footprint_bytes=footprint_bytes)
    return VM(memory_bytes=memory_bytes, mode=mode, workload=workload, **keys)


def toy_scenario(
    vm: Mapping[str, VM] | None = None,
    *,
    machine: str | Path = "sandy-bridge-2012",
    host_bytes: int = 128 * MIB,
    until_ns: int = 5 * 10**9,
    seed: int = 1,
    event: Sequence[Event] = (),
    host: Mapping[str, Any] | None = None,
    measure: Measure | None = None,
    **run: Any,
) -> Scenario:
    """Describe a host so small that every event can be checked: 128 MiB, a quarter of it for what cannot move.

    vm       VMs by name; one of ``toy_vm()``, called "db", unless told
    machine  a shipped machine's name, or a machine file; the smaller its TLBs, the quicker the checks
    host     other keys of ``Host``
    run      other keys of ``Run``
    """
    path = Path(machine)
    keys = {"kernelcore_bytes": host_bytes // 4, **(host or {})}
    return Scenario(
        name="toy",
        folder=path.parent if path.suffix else None,
        run=Run(until_ns=until_ns, seed=seed, **run),
        host=Host(machine=path.name, memory_bytes=host_bytes, **keys),
        vm={"db": toy_vm()} if vm is None else dict(vm),
        event=tuple(event),
        measure=measure or Measure(window=1000),
    )


def check(sim: Simulation) -> None:
    """Recount everything of a host as it is now; AssertionError says what is wrong and where."""
    check_all(sim.vmm, sim.engine, sim.guests.values())


class SystemMachine:
    """A random life on a host: verbs drawn by a seed, some started while others are under way, checked at every event.

    Every method called ``do_...`` is a rule, drawn as often as the others: it may return a process to keep an eye on.
    Subclass it to add rules of one's own; ``setting_up`` says what the host begins with. ``counts`` tells how often
    each rule was followed, and what came of it.
    """

    VMS: Sequence[str] = ("a", "b")
    """Names of the VMs that come and go."""
    MODES: Sequence[VmMode] = ("base", "guest-direct", "vmm-direct", "dual-direct")

    def __init__(self, scenario: Scenario, *, seed: int) -> None:
        self.sim = Simulation(scenario)
        self.random = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        """Rules followed, and what was met: ``refused``, ``events``, and the modes that VMs were in."""
        self.open: list[simpy.Process] = []
        """Processes that were started and have not come to an end."""
        self.rules = sorted(name for name in dir(self) if name.startswith("do_"))
        self.said: list[str] = []
        """The life so far, a line a rule, for whoever has to find out what went wrong."""
        self.sim.start()

    def run(self, rules: int) -> None:
        """Follow so many rules, with some simulated time between them; AssertionError tells the life that led there."""
        try:
            self.advance(10**9)
            for _ in range(rules):
                rule = str(self.random.choice(self.rules))
                self.said.append(f"{self.sim.env.now} ns: {rule}")
                self.follow(rule)
                self.advance(int(self.random.choice([0, 10**5, 10**6, 10**7, 10**9])))
            self.advance(60 * 10**9, until_quiet=True)
            self.check_quiet()
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.said[-20:]])) from error

    def follow(self, rule: str) -> None:
        """Follow one rule."""
        self.counts[rule] += 1
        try:
            started = getattr(self, rule)()
        except Refused:
            self.counts["refused"] += 1
            return
        if started is not None:
            self.open.append(self.sim.env.process(self._heard(started)))

    def _heard(self, started: simpy.Process) -> Generator[simpy.Event, object, None]:
        try:
            yield started
        except Refused:
            self.counts["refused"] += 1

    def advance(self, duration_ns: int, *, until_quiet: bool = False) -> None:
        """Let simulated time pass, checking after every event; ``until_quiet``: only as long as verbs are under way."""
        sim = self.sim
        until = int(sim.env.now) + duration_ns
        while sim.env.peek() <= until and not sim.lost:
            if until_quiet and not any(one.is_alive for one in self.open):
                break
            sim.env.step()
            check(sim)
            self.counts["events"] += 1
            for mode in sim.modes().values():
                self.counts[mode] += 1
        self.open = [one for one in self.open if one.is_alive]

    def check_quiet(self) -> None:
        """Shut everything down, and check that nothing is left of it."""
        sim = self.sim
        for name in list(sim.guests):
            sim.shutdown(name)
        self.advance(10 * 10**9)
        assert sim.lost or not sim.guests, "VMs run still"
        tokens = [token.by for token in sim.host.tokens.values()]
        assert not tokens, f"tokens are left open: {tokens}"
        assert not sim.host.count(kind=Kind.USER), "frames of VMs are left"
        assert not sim.host.count(kind=Kind.TABLE), "frames of nested tables are left"

    # Rules

    def a_vm(self) -> str:
        """Return the name of a VM that runs; ``Refused`` if none does."""
        running = sorted(self.sim.guests)
        if not running:
            raise Refused("find", why="no VM runs")
        return str(self.random.choice(running))

    def do_boot(self) -> simpy.Process:
        """Boot one of the VMs, or be refused because it runs."""
        return self.sim.boot(str(self.random.choice(self.VMS)))

    def do_shutdown(self) -> simpy.Process | None:
        """Shut one down, every other time it is asked for."""
        name = self.a_vm()
        return self.sim.shutdown(name) if self.random.random() < 0.3 else None

    def do_balloon(self) -> simpy.Process:
        """Let the guest keep a part of its memory."""
        name = self.a_vm()
        memory = self.sim.guests[name].vm.memory_pages
        return self.sim.vm(name).balloon.target(int(self.random.integers(memory // 2, memory + 1)) << 12)

    def do_want(self) -> simpy.Process:
        """Want any mode."""
        return self.sim.vm(self.a_vm()).want(str(self.random.choice(self.MODES)))

    def do_hot_add(self) -> simpy.Process:
        """Add a block of 128 MiB."""
        return self.sim.vm(self.a_vm()).hot_add(128 * MIB)

    def do_hot_remove(self) -> simpy.Process:
        """Take the last block away."""
        return self.sim.vm(self.a_vm()).hot_remove(128 * MIB)

    def do_compact_host(self) -> simpy.Process:
        """Compact the host's memory."""
        return self.sim.compact()

    def do_compact_guest(self) -> simpy.Process:
        """Compact one guest's memory."""
        guest = self.sim.guests[self.a_vm()]
        return self.sim.env.process(guest.compactor.compacting())

    def do_fault(self) -> simpy.Process:
        """Let one correctable bit of a VM's memory fail."""
        return self.sim.fault(fault="bit", vm=self.a_vm())

    def do_fault_in_flight(self) -> simpy.Process:
        """Let a row fail where something is under way: frames held or leased, or a nested table; sometimes for good."""
        host = self.sim.host
        frames = host.frames
        leases = [vm.lease.token.range for vm in self.sim.vmm.vms.values() if vm.lease and vm.lease.token.range]
        places = [np.flatnonzero(frames["mark"] & ISOLATED), np.flatnonzero(frames["kind"] == Kind.TABLE)]
        places += [np.arange(*lease) for lease in leases]
        place = places[int(self.random.integers(len(places)))]
        if not place.size:
            raise Refused("fault", why="nothing is under way")
        frame = int(self.random.choice(place))
        lasting = self.random.random() < 0.2 and self._spares_the_host(frame)
        return self.sim.fault(fault=str(self.random.choice(["bit", "row"])), hfn=frame, correctable=not lasting)

    def _spares_the_host(self, frame: int) -> bool:
        """Tell whether no frame of the row around ``frame`` is the host kernel's: its life would be over."""
        first = max(frame - 64, 0)
        return not np.any(np.isin(self.sim.host.frames["kind"][first : frame + 64], (Kind.KERNEL, Kind.SLAB)))

    def do_change_one_s_mind(self) -> simpy.Process:
        """Want one mode after another, each before the one before it can be had."""
        vm = self.sim.vm(self.a_vm())
        for mode in self.random.choice(self.MODES, 2):
            vm.want(str(mode))
            self.advance(int(self.random.choice([0, 10**4, 10**6])))
        return self.sim.vm(self.a_vm()).want(str(self.random.choice(self.MODES)))

    def do_migrate(self) -> simpy.Process:
        """Migrate a VM, which goes on here in most cases."""
        then = "leave" if self.random.random() < 0.2 else "stay"
        logging = str(self.random.choice(["wp", "pml"]))
        return self.sim.vm(self.a_vm()).migrate(then=then, logging=logging, bandwidth="1GiB/s", downtime="10ms")

    def do_load(self) -> simpy.Process:
        """Run a workload at another load."""
        return self.sim.vm(self.a_vm()).load(float(self.random.choice([0.0, 0.3, 1.0])))
