"""What users can make happen: the verbs of scenario files and of scripts, which are the same.

From a script a verb is a started SimPy process: yield it, combine it with ``&`` and ``|``, or let it run; one that
the model declines fails with ``Refused``. From a scenario file a refusal is recorded.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import simpy

from vmmsim import strict
from vmmsim.actors.backing import VmLost
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.dram import geometry
from vmmsim.actors.migration import Migration
from vmmsim.actors.vm import BLOCK_PAGES
from vmmsim.addresses import format_bytes, parse_duration, write_bytes
from vmmsim.decisions import NO_CAUSE
from vmmsim.errors import BadInput, Refused
from vmmsim.handles import Handle
from vmmsim.hints import unknown
from vmmsim.memory.frames import Kind
from vmmsim.scenario import VM
from vmmsim.scenario.events import (
    BalloonEvent,
    BootEvent,
    CompactEvent,
    Event,
    FaultEvent,
    HotAddEvent,
    HotRemoveEvent,
    LoadEvent,
    MigrateEvent,
    ModeEvent,
    ReclaimIoGapEvent,
    SelfBalloonEvent,
    ShutdownEvent,
)
from vmmsim.scenario.values import VmMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmsim.actors.guest import Guest
    from vmmsim.simulation import Simulation

Doing = "Generator[simpy.Event, object, Any]"


def duration_of(duration: str | int) -> int:
    """Return the nanoseconds that "2h" or a whole number mean; ``BadInput`` for anything else."""
    if isinstance(duration, str):
        return parse_duration(duration)
    if type(duration) is int:
        return duration
    raise BadInput(f'{duration!r} is not a duration; write e.g. "2h", or whole nanoseconds')


def _refused_if_lost(doing: Any) -> Any:
    try:
        return (yield from doing)
    except VmLost as lost:
        raise Refused("go on", why=str(lost)) from None


class Verbs:
    """Carries verbs out."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self._doing: dict[type[Event], Callable[[Any], Any]] = {
            BootEvent: lambda event: self.booting(event.vm, None),
            ShutdownEvent: lambda event: self.shutting_down(event.vm),
            BalloonEvent: lambda event: self._balloon_to(self.guest(event.vm), event.target_bytes),
            ModeEvent: lambda event: self.wanting(self.guest(event.vm), event.mode),
            CompactEvent: lambda event: self._compacting(event.vm),
            SelfBalloonEvent: lambda event: self.self_ballooning(self.guest(event.vm), event.size_bytes),
            HotAddEvent: lambda event: self.hot_adding(self.guest(event.vm), event.size_bytes),
            HotRemoveEvent: lambda event: self.hot_removing(self.guest(event.vm), event.size_bytes),
            ReclaimIoGapEvent: lambda event: self.reclaiming_io_gap(self.guest(event.vm)),
            FaultEvent: self._fault,
            LoadEvent: lambda event: self.loading(self.guest(event.vm), event.share),
            MigrateEvent: self.migrating,
        }

    def duration(self, duration: str | int) -> int:
        """Return a duration in nanoseconds."""
        return duration_of(duration)

    def start(self, doing: Any) -> simpy.Process:
        """Return a verb as a started process, which fails with ``Refused`` if the VM is ended in the middle of it."""
        return self.sim.env.process(_refused_if_lost(doing))

    def guest(self, name: str) -> Guest:
        """Return the actors of a VM that runs; ``Refused`` if none is called so."""
        guest = self.sim.guests.get(name)
        if guest is None:
            raise Refused("find", vm=name, why="no VM of that name runs")
        return guest

    def handle(self, name: str) -> Handle:
        """Return the handle of a VM that runs; ``Refused`` if none is called so."""
        return Handle(self, self.guest(name))

    # Events of a scenario

    def schedule(self) -> None:
        """Start a process for each VM's boot and for each event, and the scenario's script and actors."""
        scenario = self.sim.scenario
        for name, description in scenario.vm.items():
            self.start(self._at(description.boot_ns, "boot", name, partial(self.booting, name, None)))
        for event in scenario.event:
            vm = getattr(event, "vm", "")
            self.start(self._at(event.at_ns, event.do, vm, partial(self._doing[type(event)], event)))

    def _at(self, at_ns: int, verb: str, vm: str, begin: Callable[[], Any]) -> Any:
        """Do a verb at a time; record it if the model declines it."""
        yield Pause(self.sim.env, at_ns - int(self.sim.env.now), Turn.FAULTS)
        try:
            yield from begin()
        except Refused as no:
            self.sim.recorder.decide(
                "scenario", verb, vm=vm, asked=no.asked, got=no.possible, outcome="refused", why=no.why
            )
        except VmLost as lost:
            self.sim.recorder.decide("scenario", verb, vm=vm, outcome="failed", why=str(lost))

    # Boot and shutdown

    def booting(self, name: str, description: dict[str, Any] | None) -> Any:
        """Boot a VM by its description in the scenario, or by keywords; the value is its handle."""
        described = self.sim.scenario.vm.get(name)
        if description:
            written = {
                key: write_bytes(value) if type(value) is int and key == "memory" else value
                for key, value in description.items()
            }
            described = strict.structure(VM, written, f"boot of {name}")
        if described is None:
            raise Refused("boot", vm=name, why="no VM of that name is described")
        guest = yield from self.sim.boots.booting(name, described)
        return Handle(self, guest)

    def shutting_down(self, name: str) -> Any:
        """End a VM in good order."""
        self.guest(name)
        self.sim.boots.end(name, "shut down")
        yield Pause(self.sim.env, 0, Turn.VCPU)

    # Memory of one guest

    def _balloon_to(self, guest: Guest, target_bytes: int | None) -> Any:
        vm = guest.vm
        if target_bytes is None:
            return (yield from self.returning_to_policy(guest))
        return (yield from self.ballooning(guest, max(vm.memory_pages - vm.exchanged_pages - (target_bytes >> 12), 0)))

    def returning_to_policy(self, guest: Guest) -> Any:
        """Let the host's policy set the balloon again, at once; without one the guest has all of its memory back."""
        sim, manager = self.sim, self.sim.manager
        guest.balloon.by_event = False
        why = "no policy sets balloons on this host (host.balloon): all of it goes back"
        row = sim.recorder.decide(
            "balloon", "auto", vm=guest.vm.name, outcome="done", why=why if manager is None else f"{manager.named} does"
        )
        if manager is None:
            return (yield from self.resizing(guest, 0, row))
        manager.look()
        yield Pause(sim.env, 0, Turn.BALLOON)
        return guest.vm.ballooned_pages

    def inflating(self, guest: Guest, pages: int) -> Any:
        """Give up ``pages`` more, refused beforehand if the guest cannot."""
        possible = self._givable(guest)
        if pages > possible:
            what = "outside the guest segment" if guest.vm.guest_segment is not None else "free or cache"
            raise Refused(
                "balloon", vm=guest.vm.name, asked=write_bytes(pages << 12), possible=write_bytes(possible << 12),
                why=f"{format_bytes(possible << 12)} lies {what}",
            )  # fmt: skip
        return (yield from self.ballooning(guest, guest.vm.ballooned_pages + pages))

    def _givable(self, guest: Guest) -> int:
        memory = guest.vm.guest
        return max(memory.free_pages - memory.watermarks.min, 0) + memory.count(kind=Kind.CACHE)

    def ballooning(self, guest: Guest, target_pages: int) -> Any:
        """Move the balloon to a target that holds until it is given back to the policy."""
        guest.balloon.by_event = True
        return (yield from self.resizing(guest, target_pages, NO_CAUSE))

    def resizing(self, guest: Guest, target_pages: int, cause: int) -> Any:
        """Move the balloon to a target, and say how far it came and how much of it the host can use."""
        sim, vm, started = self.sim, guest.vm, self.sim.env.now
        short = target_pages - vm.ballooned_pages - max(vm.guest.free_pages - vm.guest.watermarks.low, 0)
        if short > 0:
            vm.guest.drop_cache(short)
        row = sim.recorder.decide(
            "balloon", "balloon", vm=vm.name, asked=write_bytes(target_pages << 12), outcome="begun", cause=cause
        )
        held = yield from guest.balloon.resizing(target_pages, patience_ns=10 * 10**9)
        why = (
            f"{format_bytes(vm.held_pages << 12)} of it under the VMM segment, held and not reusable"
            if vm.held_pages
            else ""
        )
        if held != target_pages == vm.balloon_target_pages:
            why = "out of puff: the guest has no more free pages" + (f"; {why}" if why else "")
        sim.recorder.decide(
            "balloon", "balloon", vm=vm.name, asked=write_bytes(target_pages << 12), got=write_bytes(held << 12),
            outcome="done" if held == target_pages else "partial", why=why,
            cost_ns=int(sim.env.now - started), cause=row,
        )  # fmt: skip
        return held

    def self_ballooning(self, guest: Guest, size_bytes: int) -> Any:
        """Exchange memory of a guest, whatever its mode."""
        done = yield from guest.self_balloon.exchanging(size_bytes >> 12)
        guest.self_balloon.hand_over(done)
        self.sim.recorder.decide(
            "self_balloon", "self_balloon", vm=guest.vm.name, asked=write_bytes(size_bytes),
            got=write_bytes((done.end - done.start) << 12), outcome="partial" if done.short else "done", why=done.short,
        )  # fmt: skip
        guest.controller.wake()
        return done

    def hot_adding(self, guest: Guest, size_bytes: int) -> Any:
        """Add memory; refused where gPA has no room for it, or it is not whole blocks."""
        pages, room = self._blocks("hot_add", guest, size_bytes), guest.hotplug.room()
        if pages > room:
            raise Refused(
                "hot_add", vm=guest.vm.name, asked=write_bytes(size_bytes), possible=write_bytes(room << 12),
                why=f"gPA has room for {format_bytes(room << 12)}",
            )  # fmt: skip
        started = self.sim.env.now
        start, end = yield from guest.hotplug.adding(pages)
        self.sim.recorder.decide(
            "hotplug", "hot_add", vm=guest.vm.name, asked=write_bytes(size_bytes), got=write_bytes((end - start) << 12),
            outcome="done" if end - start == pages else "partial" if end > start else "failed",
            why="" if end - start == pages else self._why_not_added(guest),
            cost_ns=int(self.sim.env.now - started),
        )  # fmt: skip
        guest.controller.wake()
        return start, end

    def _why_not_added(self, guest: Guest) -> str:
        return "the guest has no memory left to describe more with" if guest.vm.running else "the VM is gone"

    def hot_removing(self, guest: Guest, size_bytes: int) -> Any:
        """Take the last blocks away, as far as they can be emptied."""
        pages, vm = self._blocks("hot_remove", guest, size_bytes), guest.vm
        started, removed, why = self.sim.env.now, 0, ""
        for start, end in guest.hotplug.last_blocks():
            if removed >= pages:
                break
            said = yield from guest.hotplug.removing(start, end)
            if said:
                why = why or said
            else:
                removed += end - start
        self.sim.recorder.decide(
            "hotplug", "hot_remove", vm=vm.name, asked=write_bytes(size_bytes), got=write_bytes(removed << 12),
            outcome="done" if removed >= pages else "partial" if removed else "failed", why=why,
            cost_ns=int(self.sim.env.now - started),
        )  # fmt: skip
        return removed << 12

    def reclaiming_io_gap(self, guest: Guest) -> Any:
        """Move the memory below the I/O gap to the end; a VMM segment may reach it there."""
        done = yield from self.sim.boots.reclaim_io_gap(guest)
        guest.controller.wake()
        return done.moved_pages << 12

    def _blocks(self, verb: str, guest: Guest, size_bytes: int) -> int:
        pages = size_bytes >> 12
        if pages <= 0 or pages % BLOCK_PAGES:
            raise Refused(
                verb, vm=guest.vm.name, asked=write_bytes(size_bytes), why="memory comes in blocks of 128 MiB"
            )
        return pages

    # Modes, load, compaction

    def wanting(self, guest: Guest, mode: str) -> Any:
        """Want a mode, and wait until the VM has it (or is gone)."""
        known = get_args(VmMode)
        if mode not in known:
            raise BadInput(unknown(mode, known))
        guest.controller.want(mode)  # type: ignore[arg-type]  # one of them, as was just seen
        while guest.vm.running and guest.vm.mode_wanted == mode != guest.vm.mode:
            yield Pause(self.sim.env, 10**9, Turn.MEASURE)
        return guest.vm.mode

    def loading(self, guest: Guest, share: float | None) -> Any:
        """Set a load."""
        if guest.vcpus is None:
            raise Refused("load", vm=guest.vm.name, why="it runs no workload")
        guest.vcpus.set_load(share)
        self.sim.recorder.decide("scenario", "load", vm=guest.vm.name, asked=f"{share}", outcome="done")
        yield Pause(self.sim.env, 0, Turn.VCPU)

    def compacting_host(self) -> Any:
        """Compact the host once."""
        moved = yield from self.sim.compactor.compacting()
        self.sim.recorder.decide("compactor", "compact", got=f"{moved} pages", outcome="done", why="asked for")
        return moved

    def _compacting(self, vm: str) -> Any:
        return self.compacting_host() if not vm else self.compacting_guest(self.guest(vm))

    def compacting_guest(self, guest: Guest) -> Any:
        """Compact a guest once."""
        moved = yield from guest.compactor.compacting()
        self.sim.recorder.decide(
            "guest", "compact", vm=guest.vm.name, got=f"{moved} pages", outcome="done", why="asked for"
        )
        guest.controller.wake()
        return moved

    # Migration

    def migrating(self, event: MigrateEvent) -> Any:
        """Migrate a VM; it leaves in the end, or goes on here."""
        sim, guest = self.sim, self.guest(event.vm)
        return Migration(
            sim.env, guest, sim.recorder, event,
            abort_build=partial(sim.compactor.abort_build_of, guest.vm), depart=partial(sim.boots.end, guest.vm.name),
        ).migrating()  # fmt: skip

    # Faults

    def faulting(self, arguments: dict[str, Any]) -> Any:
        """Let DRAM fail by keywords."""
        event = strict.structure(FaultEvent, {"at": "0s", "do": "fault", **arguments}, "fault")
        yield from self._fault(event)

    def _fault(self, event: FaultEvent) -> Any:
        frames = self._struck(event)
        self.sim.faults.strike(frames, what=event.fault, correctable=event.correctable)
        self.sim.series.record()
        yield Pause(self.sim.env, 0, Turn.FAULTS)

    def _struck(self, event: FaultEvent) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the host frames that an event strikes."""
        sim = self.sim
        random = sim.random(f"fault.{event.at_ns}.{sim.env.now}.{len(sim.recorder)}")
        if event.hfn is not None:
            first = event.hfn + np.arange(event.pages)
        elif event.gfn is not None:
            first = self.guest(event.vm).vm.nested.translate(event.gfn + np.arange(event.pages))
        else:
            first = random.choice(self._candidates(event), event.pages, replace=False)
        first = first[(first >= 0) & (first < sim.host.pages)]
        if not first.size:
            raise Refused("fault", vm=event.vm, why="no such frame is in use")
        place = geometry(sim.host.pages, sim.scenario.host.dimms)
        return np.unique(np.concatenate([place.frames(event.fault, int(frame)).all() for frame in first]))

    def _candidates(self, event: FaultEvent) -> np.ndarray[Any, np.dtype[np.int64]]:
        if not event.vm:
            return np.arange(self.sim.host.pages)
        vm = self.guest(event.vm).vm
        segment = vm.vmm_segment
        if event.segment:
            if segment is None:
                raise Refused("fault", vm=vm.name, why="it has no VMM segment now")
            return np.arange(segment.base + segment.offset, segment.limit + segment.offset)
        return self.sim.host.owned(vm.number)
