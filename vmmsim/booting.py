"""Building a VM out of its actors, and taking it apart: the part of the composition root that VMs need.

Order: guest memory and nested table; kernel; its age; the I/O gap; then mode controller, kernel churn and khugepaged,
and at last the workload on its vCPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import user_code
from vmmsim.actors import io_gap
from vmmsim.actors.activity import Activity
from vmmsim.actors.backing import VmLost, while_it_lives
from vmmsim.actors.balloon import Balloon
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.contents import Contents, GuestContents
from vmmsim.actors.guest import Guest
from vmmsim.actors.guest_churn import GuestChurn
from vmmsim.actors.guest_compactor import GuestCompactor
from vmmsim.actors.guest_os import GuestOs
from vmmsim.actors.guest_swap import GuestSwap
from vmmsim.actors.guest_swapper import GuestSwapper
from vmmsim.actors.hotplug import Hotplug
from vmmsim.actors.idle_sampling import IdleSampler
from vmmsim.actors.measuring import Meter, write_vm_row
from vmmsim.actors.mode_controller import ModeController
from vmmsim.actors.reporting import Reporting
from vmmsim.actors.sample import Lengths
from vmmsim.actors.sampling import Sampler
from vmmsim.actors.self_balloon import SelfBalloon
from vmmsim.actors.vcpu import NEVER, Vcpus
from vmmsim.actors.vm import ABOVE_GAP, BLOCK_PAGES, VirtualMachine, memory_ranges
from vmmsim.addresses import format_bytes, write_bytes
from vmmsim.errors import Refused
from vmmsim.memory.frames import Kind
from vmmsim.memory.ledger import Memory
from vmmsim.randomness import stream_key
from vmmsim.scenario.values import is_user_code
from vmmsim.scenario.vm import LOW_BYTES
from vmmsim.translation.escape_filter import random_filter
from vmmsim.workloads.programs import build

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Event

    from vmmsim.actors.process import Process
    from vmmsim.protocols import Workload
    from vmmsim.scenario import VM, Measure
    from vmmsim.scenario.host import Swap
    from vmmsim.simulation import Simulation


COMPLETE_ACCESSES: Final = 1 << 16
"""Accesses of a stratum where every one is translated."""


class Boot:
    """Starts and ends VMs."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self._numbers = 0

    def booting(self, name: str, description: VM) -> Generator[Event, object, Guest]:
        """Boot a VM; ``Refused`` if it runs already or the host cannot hold it."""
        sim = self.sim
        self._admit(name, description)
        row = sim.recorder.decide("vmm", "boot", vm=name, asked=write_bytes(description.memory_bytes), outcome="begun")
        try:
            guest = self._assemble(name, description)
            guest.os.boot(sim.random(f"vm.{name}.age"))
        except VmLost as lost:
            raise Refused("boot", vm=name, asked=write_bytes(description.memory_bytes), why=str(lost)) from None
        vm = guest.vm
        yield from self._settle(guest)
        if description.io_gap == "reclaim" and vm.running:
            yield from self.reclaim_io_gap(guest)
        if vm.running:
            sim.recorder.decide(
                "vmm", "boot", vm=name, got=write_bytes(vm.memory_pages << 12), outcome="done", cause=row
            )
            self._start(guest)
        return guest

    def _admit(self, name: str, description: VM) -> None:
        sim = self.sim
        if name in sim.guests:
            raise Refused("boot", vm=name, why="it runs already")
        host = sim.host.present_pages - sim.host.count(kind=Kind.KERNEL)
        if description.memory_bytes >> 12 > host:
            raise Refused(
                "boot", vm=name, asked=write_bytes(description.memory_bytes), possible=write_bytes(host << 12),
                why=f"the host has {format_bytes(host << 12)} for VMs",
            )  # fmt: skip

    def _assemble(self, name: str, description: VM) -> Guest:
        sim = self.sim
        self._numbers += 1
        number = self._numbers
        memory = _guest_memory(name, description)
        nested = sim.engine.table(
            lambda count: sim.vmm.table_frames(number, count), give_back_frames=sim.host.give_back
        )
        vm = VirtualMachine(number, name, description, memory, nested)
        if description.swap is not None and sim.vmm.contents is None:
            sim.vmm.contents = Contents(sim.host.pages)  # nobody has asked before
        if sim.vmm.contents is not None:
            vm.contents = GuestContents(vm, sim.vmm.contents, stream_key(sim.scenario.run.seed, f"vm.{name}.contents"))
        if sim.vmm.merging is not None:
            vm.merged = np.zeros(memory.pages, np.bool_)
        if sim.vmm.swap is not None:
            vm.swapped = np.zeros(memory.pages, np.int32)
        escape = description.escape_filter
        if escape.bits:
            vm.empty_filter = random_filter(sim.random(f"vm.{name}.filter"), bits=escape.bits, hashes=escape.hashes)
        else:
            vm.escape_budget = 0
        sim.vmm.vms[number] = vm
        guest_os = GuestOs(vm, sim.vmm, sim.engine, sim.recorder)
        balloon = Balloon(sim.env, guest_os, sim.recorder)
        hotplug = Hotplug(sim.env, guest_os, sim.recorder)
        self_balloon = SelfBalloon(guest_os, balloon, hotplug)
        compactor = GuestCompactor(sim.env, guest_os, sim.recorder)
        controller = ModeController(
            sim.env, guest_os, sim.recorder, exchange=self_balloon, guest_compaction=compactor, builder=sim.compactor
        )
        controller.only_when_woken = sim.lifetime
        if is_user_code(description.mode_policy):
            controller.policy = user_code.make(description.mode_policy, sim.scenario.folder or Path.cwd(), {})
        guest = Guest(
            vm=vm,
            os=guest_os,
            balloon=balloon,
            hotplug=hotplug,
            self_balloon=self_balloon,
            compactor=compactor,
            controller=controller,
            churn=GuestChurn(sim.env, guest_os, sim.random(f"vm.{name}.churn")),
        )
        sim.guests[name] = guest
        return guest

    def _settle(self, guest: Guest) -> Generator[Event, object, None]:
        """Let the time pass that booting took."""
        stall = sum(guest.vm.stall_ns.values())
        guest.vm.stall_ns.clear()
        yield Pause(self.sim.env, stall // guest.vm.description.vcpus, Turn.VCPU)

    def reclaim_io_gap(self, guest: Guest) -> Generator[Event, object, io_gap.Reclaimed]:
        """Move the memory below the I/O gap to the end of gPA."""
        sim, started = self.sim, self.sim.env.now
        done = yield from io_gap.reclaiming(guest.hotplug)
        sim.recorder.decide(
            "hotplug", "reclaim_io_gap", vm=guest.vm.name, got=write_bytes(done.moved_pages << 12),
            asked=write_bytes((done.moved_pages + done.left_pages) << 12),
            outcome="partial" if done.left_pages else "done", why=done.why, cost_ns=int(sim.env.now - started),
        )  # fmt: skip
        yield from self._settle(guest)
        return done

    def _start(self, guest: Guest) -> None:
        sim, vm = self.sim, guest.vm
        description = vm.description
        if description.workload is not None:
            workload = build(
                description.workload,
                seed=sim.scenario.run.seed,
                vm=vm.name,
                memory_bytes=description.program_bytes,
                folder=sim.scenario.folder or Path.cwd(),
            )
            process = guest.os.run(workload)
            meter = self._meter(guest, workload)
            guest.vcpus = Vcpus(
                sim.env, guest.os, workload, meter,
                every_ns=sim.every_ns,
                lifetime=sim.lifetime,
                most_accesses=COMPLETE_ACCESSES if sim.scenario.measure.complete else NEVER,
                frequency_hz=sim.machine.frequency_hz,
                begin=guest.controller.guest_tried,
                load=tuple((step.at_ns, step.share) for step in description.workload.load),
            )  # fmt: skip
            if vm.contents is not None or sim.manager is not None:
                vm.activity = Activity(process, workload, guest.vcpus.position, guest.os.page_written)
            if description.swap is not None:
                self._give_swap(guest, process, description.swap)
        write_vm_row(sim.recorder, vm)
        if sim.manager is not None:
            guest.idle = IdleSampler(sim.env, vm, sim.random(f"vm.{vm.name}.idle"))
            sim.env.process(while_it_lives(guest.idle.sampling()))
        if description.free_page_reporting and not sim.lifetime:
            guest.reporting = Reporting(sim.env, guest.os, sim.recorder)
            sim.env.process(while_it_lives(guest.reporting.reporting()))
        sim.env.process(while_it_lives(guest.controller.steering()))
        if guest.vcpus is not None:
            sim.env.process(guest.vcpus.running())
            if not sim.lifetime:
                sim.env.process(while_it_lives(guest.churn.churning()))
                sim.env.process(while_it_lives(guest.churn.collapsing()))

    def _give_swap(self, guest: Guest, process: Process, described: Swap) -> None:
        """Give a guest its swap space, and a kswapd that uses it."""
        sim = self.sim
        process.swapped = np.zeros(process.pages, np.int32)
        guest.os.swap = GuestSwap(guest.os, sim.swap_device(described))
        guest.swapper = GuestSwapper(sim.env, guest.os, guest.os.swap, sim.recorder)
        sim.env.process(while_it_lives(guest.swapper.running()))

    def _meter(self, guest: Guest, workload: Workload) -> Meter:
        sim, described = self.sim, guest.vm.description.workload
        assert described is not None
        measure = sim.scenario.measure
        sampler = Sampler(
            sim.engine, sim.prices, seed=sim.scenario.run.seed, vm=guest.vm.name,
            lengths=lengths(measure), as_if=sim.as_if,
            hierarchy="hierarchy" in sim.scenario.run.costs, by_hierarchy=sim.scenario.run.costs[0] == "hierarchy",
        )  # fmt: skip
        return Meter(
            guest.os, workload, sampler, sim.recorder,
            key=(described.name, described.trace, described.use, workload.regions),
            lifetime=sim.lifetime,
            complete=measure.complete,
            epoch_share=measure.epoch_share,
            frequency_hz=sim.machine.frequency_hz,
        )  # fmt: skip

    def end(self, name: str, why: str) -> None:
        """Take a VM apart at once: its vCPUs stop where they are, its memory goes back to the host."""
        sim = self.sim
        guest = sim.guests.pop(name)
        vm = guest.vm
        vm.running = False
        if guest.vcpus is not None:
            guest.vcpus.stop()
        guest.controller.wake()
        sim.vmm.depart(vm)
        sim.recorder.vm_row(name, mode="", resident_bytes=0, balloon_bytes=0, reusable_bytes=0, segment_bytes=0)
        sim.recorder.decide("vmm", "shutdown", vm=name, outcome="done", why=why)


def lengths(measure: Measure) -> Lengths:
    """Return how long samples are, as a scenario has it."""
    if measure.complete:
        return Lengths(measured=COMPLETE_ACCESSES)
    return Lengths() if measure.window is None else Lengths(warm=measure.window, measured=measure.window)


def _guest_memory(name: str, description: VM) -> Memory:
    """Make guest memory: what the VM boots with, and holes where blocks may be added, as many again."""
    pages = description.memory_bytes >> 12
    ranges = memory_ranges(pages, description.machine_type)
    room = -(-pages // BLOCK_PAGES) * BLOCK_PAGES + BLOCK_PAGES
    top, gap = ranges[-1][1], LOW_BYTES[description.machine_type][1] >> 12
    if top < ABOVE_GAP and top + room > gap:
        top = ABOVE_GAP  # what is added goes above the gap where it does not fit below
    capacity = -(-top // BLOCK_PAGES) * BLOCK_PAGES + room
    holes, at = [], 0
    for start, end in ranges:
        if start > at:
            holes.append((at, start))
        at = end
    return Memory(capacity, name=name, holes=[*holes, (at, capacity)])
