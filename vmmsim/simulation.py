"""The composition root: builds a host and its actors from a scenario, connects them, runs them, and returns a Result.

Order of building: recorder; host memory and its age; engine; VMM, compactor, faults; then each VM as it boots. No part
looks up another: what it needs it is given here and in ``booting``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import simpy

from vmmsim import rates, user_code
from vmmsim.actors.balloon_policies import SHIPPED, min_free_bytes
from vmmsim.actors.calibration import Calibrations
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.compactor import Compactor
from vmmsim.actors.contents import Contents
from vmmsim.actors.faults import Faults
from vmmsim.actors.guest_failure import GuestFailure
from vmmsim.actors.held_memory import HeldMemory
from vmmsim.actors.host_manager import HostManager
from vmmsim.actors.host_series import HostSeries
from vmmsim.actors.host_survival import HostSurvival
from vmmsim.actors.host_swap import HostSwap
from vmmsim.actors.host_swapper import HostSwapper
from vmmsim.actors.invariants import check_all
from vmmsim.actors.merging import Merging
from vmmsim.actors.sharing import Sharing
from vmmsim.actors.swap_device import Storage, SwapDevice
from vmmsim.actors.vmm import Vmm
from vmmsim.addresses import format_duration
from vmmsim.booting import Boot
from vmmsim.decisions import Recorder, SimulationFailed
from vmmsim.errors import BadInput, Refused
from vmmsim.handles import Handle
from vmmsim.memory.ageing import age, profile
from vmmsim.memory.frames import Kind
from vmmsim.memory.ledger import Memory
from vmmsim.protocols import BalloonPolicy
from vmmsim.randomness import stream
from vmmsim.scaling import scaled, scaled_machine
from vmmsim.scenario.values import VmMode, is_user_code
from vmmsim.scenario_file import machine_of
from vmmsim.translation.engine import Engine
from vmmsim.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from threading import Event as Flag

    import numpy as np

    from vmmsim.actors.calibration import PriceSource
    from vmmsim.actors.guest import Guest
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.config import Machine
    from vmmsim.handles import Handle
    from vmmsim.scenario import Scenario
    from vmmsim.scenario.host import Swap

MAX_EVENTS: Final = 10**9
"""Events a run may take unless it is told otherwise."""
_PROGRESS_EVERY: Final = 64
"""Events between two reports of progress."""


class Simulation:
    """One host, its VMs, and the clock. ``env`` is SimPy's own."""

    def __init__(self, scenario: Scenario, *, machine: Machine | None = None, check: bool = False) -> None:
        """machine: in place of the scenario's; check: recount everything after every event."""
        scenario = scaled(scenario)
        self.scenario = scenario
        """What is simulated: already scaled, if it is to be."""
        self.checked = check
        self.env = simpy.Environment(initial_time=0)
        self.as_if = _as_if(scenario)
        """Modes that samples are priced in too: those asked for, and those that VMs want, for the cost of waiting."""
        self.recorder = Recorder(lambda: int(self.env.now), as_if=self.as_if)
        self.machine = scaled_machine(machine or machine_of(scenario), scenario.run.scale)
        self.host = self._host_memory()
        self.engine = Engine(self.machine, cores=0)
        self.prices: PriceSource = Calibrations(self.engine)
        host = scenario.host
        self.vmm = Vmm(self.host, self.engine, self.recorder, thp=host.thp == "always")
        self.vmm.kill = self.kill
        self._storages: dict[str, Storage] = {}
        if self.has_contents:
            self.vmm.contents = Contents(self.host.pages)
        self.sharing = self._sharing()
        """ksmd; None where page sharing is off."""
        self.compactor = Compactor(self.env, self.vmm, self.recorder, host.compaction)
        self.survival = HostSurvival(self.vmm, self.recorder, abort_build=self.compactor.abort_build)
        self.vmm.survive = self.survival.free
        self.swapper = self._swapper()
        """Decides what the host swaps out; None without swap space."""
        self.failure = GuestFailure(self.recorder, self.kill)
        self.faults = Faults(self.vmm, self.recorder, self.failure.memory_failure)
        self.faults.host_lost = self._host_lost
        self.guests: dict[str, Guest] = {}
        """Guests that run, by name."""
        self.series = HostSeries(self.env, self.vmm, self.compactor, self.recorder, self.sharing)
        self.held_memory = HeldMemory(self.vmm, self.recorder)
        self.manager = self._manager()
        """Who sets balloon targets; None where no policy does."""
        self.verbs = Verbs(self)
        if self.manager is not None:
            self.manager.resize = self.verbs.resizing
        self.boots = Boot(self)
        self.scripts: list[Generator[simpy.Event, object, object]] = []
        """Generators of users: a script's, and those of their actors."""
        self.stalled = ""
        """Who waits for whom, if no VM made progress for too long; "" otherwise."""
        self.lost = ""
        """Why the host is gone; "" while it is not."""
        self.events = 0
        """SimPy events so far."""

    @property
    def lifetime(self) -> bool:
        """Whether only what the scenario names happens: no churn, no daemons, samples on changes only."""
        return self.scenario.run.detail == "lifetime"

    @property
    def has_contents(self) -> bool:
        """Whether what pages hold matters: to page sharing, and to swapping."""
        return self.scenario.host.sharing is not None or self.scenario.host.swap is not None

    @property
    def every_ns(self) -> int:
        """The longest stratum, and the time between rows of the time series."""
        every = self.scenario.measure.every_ns
        return every or max(self.scenario.run.until_ns // int(rates.number("measure.strata_a_run")), 1)

    def swap_device(self, described: Swap) -> SwapDevice:
        """Make a swap space: all of them on one kind of device lie on the same one."""
        kind = described.device
        if kind not in self._storages:
            self._storages[kind] = Storage(self.env, kind)
        return SwapDevice(self.env, kind, described.size_bytes >> 12, self._storages[kind])

    def random(self, name: str) -> np.random.Generator:
        """Return the stream of randomness of the thing ``name``."""
        return stream(self.scenario.run.seed, name)

    def _manager(self) -> HostManager | None:
        """Make the host's memory manager, with the policy that the scenario names."""
        host = self.scenario.host
        if host.balloon is None:
            return None
        words, given = host.balloon.policy, host.balloon.parameters
        if is_user_code(words):
            policy = user_code.make(words, self.scenario.folder or Path.cwd(), given)
            if not isinstance(policy, BalloonPolicy):
                raise BadInput(f"{words} is no balloon policy: it has no target_bytes(vm, host)")
        else:
            policy = SHIPPED[words](**given)
        manager = HostManager(
            self.env, self.vmm, self.guests, self.recorder,
            policy=policy,
            named=words,
            every_ns=host.balloon.every_ns,
            reserve_bytes=host.balloon.reserve_bytes or min_free_bytes(host.memory_bytes),
            held_memory=self.held_memory,
        )  # fmt: skip
        manager.swap_out = self.swapper.swap_out if self.swapper is not None else None
        return manager

    def _sharing(self) -> Sharing | None:
        """Make ksmd, and the frames that it lets pages share, where the scenario has page sharing."""
        described = self.scenario.host.sharing
        if described is None:
            return None
        self.vmm.merging = Merging(self.vmm)
        return Sharing(self.env, self.vmm, self.recorder, described, every_ns=self.every_ns)

    def _swapper(self) -> HostSwapper | None:
        """Make the host's swap space and its kswapd, where the scenario has any."""
        described = self.scenario.host.swap
        if described is None:
            return None
        self.vmm.swap = HostSwap(self.vmm, self.swap_device(described))
        swapper = HostSwapper(self.env, self.vmm, self.vmm.swap, self.recorder)
        self.survival.swap_out, self.survival.swappable = swapper.direct, swapper.swappable
        self.env.process(swapper.running())
        return swapper

    def _host_memory(self) -> Memory:
        """Make host memory: the kernel at the bottom, then what its age has made of the rest."""
        host = self.scenario.host
        pages, movable_from = host.memory_bytes >> 12, host.unmovable_bytes >> 12
        memory = Memory(pages, name="host", kernelcore=movable_from if movable_from < pages else None)
        kernel = pages * int(rates.number("guest.memmap_bytes_per_page")) + int(
            rates.number("guest.kernel_image_bytes")
        )
        kernel_pages = min(-(-kernel >> 12), movable_from // 4)
        if host.age_ns:
            age(memory, host.age_ns, self.random("host.age"), profile("host"))
            memory.drop_cache(max(kernel_pages + memory.watermarks.low - memory.free_pages, 0))
            memory.take(kernel_pages, kind=Kind.KERNEL, owner=0)
        else:
            memory.take_range(0, kernel_pages, kind=Kind.KERNEL, owner=0)
        return memory

    # Life

    def start(self) -> None:
        """Start the actors that a scenario names, and schedule its events."""
        scenario = self.scenario
        if not self.lifetime:
            if scenario.host.compaction is not None:
                self.env.process(self.compactor.background())
            if self.manager is not None:
                self.env.process(self.manager.managing())
            if self.sharing is not None:
                self.env.process(self.sharing.scanning())
            self.env.process(self.series.sampling(self.every_ns))
        else:
            self.series.record()  # a life in which nothing happens has a host, too
        if scenario.host.faults is not None:
            self.env.process(self._faulting())
        self.verbs.schedule()
        for script in self.scripts:
            self.env.process(script)

    def _faulting(self) -> Generator[simpy.Event, object, None]:
        """Let the faults that the rates bring strike, each when it is discovered."""
        from vmmsim.actors.dram import draw_faults

        host = self.scenario.host
        assert host.faults is not None
        assert host.dimms is not None
        drawn = draw_faults(
            host.dimms,
            host.faults,
            host_pages=self.host.pages,
            until_ns=self.scenario.run.until_ns,
            random=self.random("faults"),
        )
        for fault in sorted(drawn, key=lambda one: one.discovered_ns):
            yield Pause(self.env, fault.discovered_ns - int(self.env.now), Turn.FAULTS)
            if fault.permanent:
                self.faults.strike(fault.frames.all(), what=fault.mode, correctable=fault.correctable)
                self.series.record()

    def kill(self, vm: VirtualMachine, why: str) -> None:
        """End a VM before its time."""
        vm.lost = vm.lost or why
        self.boots.end(vm.name, why)

    def _host_lost(self, why: str) -> None:
        self.lost = why
        self.recorder.decide("faults", "host_lost", outcome="failed", why=why)
        for name in list(self.guests):
            self.boots.end(name, why)

    def run(
        self,
        *,
        progress: Callable[[int, int, dict[str, str]], None] | None = None,
        stop: Flag | None = None,
        max_events: int = MAX_EVENTS,
    ) -> bool:
        """Run to the end; return whether it was reached (False: stopped, or stalled)."""
        until = self.scenario.run.until_ns
        self.start()
        try:
            complete = self._step_until(until, progress, stop, max_events)
        except (BadInput, Refused, KeyboardInterrupt):
            raise
        except Exception as error:
            raise SimulationFailed(self.recorder) from error
        if complete:
            self.env.run(until=until) if self.env.now < until else None
        self.finish()
        return complete

    def _step_until(
        self,
        until: int,
        progress: Callable[[int, int, dict[str, str]], None] | None,
        stop: Flag | None,
        max_events: int,
    ) -> bool:
        said = time.monotonic()
        stall = Stall(self)
        while self.env.peek() < until and not self.lost:
            if stop is not None and stop.is_set():
                return False
            self.env.step()
            self.events += 1
            if self.checked:
                check_all(self.vmm, self.engine, self.guests.values())
            if self.events > max_events:
                raise BadInput(f"more than {max_events} events by {self.env.now} ns; allow more with --max-events")
            if stall.is_over():
                return False
            if progress is not None and self.events % _PROGRESS_EVERY == 0 and time.monotonic() - said > 0.1:
                said = time.monotonic()
                progress(int(self.env.now), until, self.modes())
        return True

    def modes(self) -> dict[str, str]:
        """Return the mode of each VM that runs."""
        return {name: guest.vm.mode for name, guest in self.guests.items()}

    def finish(self) -> None:
        """Write the last rows of the time series."""
        for guest in self.guests.values():
            if guest.vcpus is not None:
                guest.vcpus.stop()
        if self.sharing is not None:
            self.sharing.tell()
            if guest.swapper is not None:
                guest.swapper.tell()
        if self.swapper is not None:
            self.swapper.tell()
        self.series.record()

    # What scripts call

    def boot(self, name: str, **description: Any) -> simpy.Process:
        """Boot a VM: ``sim.boot("db", memory="64GiB", mode="dual-direct")``; its value is a handle of the VM."""
        return self.verbs.start(self.verbs.booting(name, description))

    def shutdown(self, name: str) -> simpy.Process:
        """Shut a VM down; its memory goes back to the host."""
        return self.verbs.start(self.verbs.shutting_down(name))

    def sleep(self, duration: str | int) -> simpy.Event:
        """Wait for a duration: "2h", or whole nanoseconds."""
        return Pause(self.env, self.verbs.duration(duration), Turn.VCPU)

    def vm(self, name: str) -> Handle:
        """Return the handle of a VM that runs; ``Refused`` if none is called so."""
        return self.verbs.handle(name)

    def compact(self) -> simpy.Process:
        """Compact all of the host's memory once."""
        return self.verbs.start(self.verbs.compacting_host())

    def fault(self, **arguments: Any) -> simpy.Process:
        """Let DRAM fail: the arguments of a scenario's ``do = "fault"``."""
        return self.verbs.start(self.verbs.faulting(arguments))


def _as_if(scenario: Scenario) -> tuple[str, ...]:
    """Return the modes that samples are priced in: those asked for, those that are wanted, and base beside them."""
    wanted = {
        "base",
        *(vm.mode for vm in scenario.vm.values()),
        *(getattr(at, "mode", "base") for at in scenario.event),
    }
    if scenario.run.script is not None:
        wanted |= set(get_args(VmMode))
    if wanted == {"base"}:
        return scenario.measure.as_if
    return (*scenario.measure.as_if, *sorted(wanted - set(scenario.measure.as_if)))


class Stall:
    """Watches whether any VM makes progress."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._progress = -1
        self._since = 0

    def is_over(self) -> bool:
        """Tell whether VMs that should run made no progress for ``run.stall``; ``sim.stalled`` then says who waits."""
        sim, now = self._sim, int(self._sim.env.now)
        if now - self._since < sim.scenario.run.stall_ns:
            return False
        busy = [guest for guest in sim.guests.values() if guest.vcpus is not None and guest.vcpus.is_busy]
        progress = sum(guest.vm.progress for guest in sim.guests.values())
        waiting = [guest for guest in busy if guest.vcpus is not None and guest.vcpus.waits_for]
        if progress != self._progress or len(waiting) < max(len(busy), 1):
            self._progress, self._since = progress, now
            return False
        waits = ", ".join(f"{guest.vm.name} waits for {guest.vcpus.waits_for}" for guest in waiting if guest.vcpus)
        sim.stalled = f"no VM made progress for {format_duration(now - self._since)}: {waits}"
        return True
