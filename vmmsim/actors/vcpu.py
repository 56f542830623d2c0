"""The vCPUs of a VM: they run its workload through time, handle every transition once, and measure rates by samples.

A life is cut into strata. Each hands all first touches of its span to the guest, weight 1; then a few accesses, run
through the engine from cold, say what translation costs; then the clock moves by what the span took. A stratum begins
at 100 ms after a change and doubles while nothing changes; the end of an epoch closes it in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import VmLost
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.guest_memory import GuestOutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.measuring import Cost, Meter
    from vmmsim.protocols import Workload

SECOND_NS: Final = 10**9
BATCH_PAGES: Final = 4096
"""First touches that are handled between two looks at the clock."""
NEVER: Final = 1 << 62


@attrs.frozen(kw_only=True)
class _Span:
    """A stratum under way: accesses [x0, x1) that take so long if nothing changes."""

    x0: int
    x1: int
    began_ns: int
    takes_ns: int
    cost: Cost


class Vcpus:
    """All vCPUs of one VM, which share its workload equally."""

    def __init__(
        self,
        env: Environment,
        guest_os: GuestOs,
        workload: Workload,
        meter: Meter,
        *,
        every_ns: int,
        lifetime: bool,
        most_accesses: int = NEVER,
        frequency_hz: int,
        load: tuple[tuple[int, float], ...],
        begin: Event,
    ) -> None:
        """begin: what the program waits for before its first access, its guest segment if it is to have one."""
        self.env = env
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.workload = workload
        self.meter = meter
        self.lifetime = lifetime
        self.frequency = frequency_hz
        self.most_accesses = most_accesses
        """Accesses of a stratum at most: few, where every one is translated."""
        self.load = load
        self.load_now: float | None = None
        """Load that an event set, in place of the schedule's."""
        self.finished: Callable[[str], None] = lambda why: None
        """Called when the workload ends; set by whoever started it."""
        self.is_busy = False
        """Whether it should make progress now: it runs, and its load is not 0."""
        self.waits_for = ""
        """What it waits for, in words; "" while it makes accesses."""
        self._begin = begin
        self._every_ns = every_ns
        self._first_ns = min(int(rates.number("measure.first_stratum_ns")), every_ns)
        self._stratum_ns = self._first_ns
        self._changed = env.event()
        self._span: _Span | None = None
        self._throttled = 0.0
        self._resumed: Event | None = None
        self.reasons: dict[str, int] = {}
        """How often each reason ended an epoch."""
        self.vm.changed = self.end_epoch

    def end_epoch(self, reason: str) -> None:
        """Let what is measured from now on count apart from what was: something about translation changed."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self._stratum_ns = self._first_ns
        if not self._changed.triggered:
            self._changed.succeed(reason)

    def set_load(self, share: float | None) -> None:
        """Run at ``share`` of full load from now on; None follows the schedule again."""
        self.load_now = share
        self.end_epoch("load")

    def throttle(self, share: float) -> None:
        """Keep the vCPUs from running for ``share`` of the time in which they would; 0 ends that."""
        if share != self._throttled:
            self._throttled = share
            self.end_epoch("throttle")

    def halt(self) -> None:
        """Stand still until ``resume``: from now on nothing is accessed, and no fault is served."""
        self.settle()
        self._resumed = self.env.event()
        self.end_epoch("halt")

    def resume(self) -> None:
        """Go on where ``halt`` stopped."""
        if self._resumed is not None:
            self._resumed.succeed()
            self._resumed = None

    def _standing_still(self) -> Generator[Event, object, None]:
        began = int(self.env.now)
        while self._resumed is not None:
            self.waits_for = "its migration to end"
            yield self._resumed
            self.waits_for = ""
            self.meter.book_stall("migration", (int(self.env.now) - began) * self.vm.description.vcpus)

    def stop(self) -> None:
        """Stop where things are: the VM is gone, or the run is over."""
        self.settle()
        self.meter.close()
        self.end_epoch("end")

    def running(self) -> Generator[Event, object, None]:
        """Run the workload until it ends, or the VM does."""
        vm = self.vm
        yield self._begin
        try:
            while vm.running and not self._at_end():
                yield from self._standing_still() if self._resumed is not None else self._stratum()
        except GuestOutOfMemory as full:
            why = f"the guest is out of memory: {full}"
            self._lose(why)
            self.guest_os.oom_kill(why)
            return
        except VmLost:
            return
        self.is_busy = False
        if vm.running:
            self.meter.close()
            self.finished("finished")

    def _lose(self, why: str) -> None:
        self.vm.lost, self.is_busy = why, False
        self.meter.close()
        self.finished(why)

    def _at_end(self) -> bool:
        length = self.workload.length
        return length is not None and self.vm.progress >= length

    # One stratum

    def _stratum(self) -> Generator[Event, object, None]:
        vm = self.vm
        if self._changed.triggered:
            self._changed = self.env.event()
            self.meter.new_epoch()
        load = self._load()
        self.is_busy = load > 0
        if load <= 0:
            yield self._changed | Pause(self.env, self._load_until() - int(self.env.now), Turn.VCPU)
            return
        x0 = vm.progress
        x1, freed = self._end(x0, load)
        yield from self._advance(x0, x1)
        if not vm.running:
            return
        cost = self.meter.measure(x0, x1, now_ns=int(self.env.now), every_ns=self._stratum_ns)
        yield from self._charge()
        if not vm.running:
            return  # type: ignore[unreachable]  # it may have ended meanwhile
        dt = max(round(cost.cycles * SECOND_NS / (self.frequency * vm.description.vcpus * load)), 1)
        self._span = _Span(x0=x0, x1=x1, began_ns=int(self.env.now), takes_ns=dt, cost=cost)
        yield self._changed | Pause(self.env, min(dt, NEVER), Turn.VCPU)
        self.settle()
        if vm.progress == x1:
            self._stratum_ns = min(2 * self._stratum_ns, self._every_ns)
            for region in freed:
                self.guest_os.free_region(self.workload.regions[region])

    def settle(self) -> None:
        """Book what has been done of the stratum that is under way: all of it, or in proportion to the time passed."""
        span, self._span = self._span, None
        if span is None:
            return
        passed = int(self.env.now) - span.began_ns
        done = span.x1 - span.x0 if passed >= span.takes_ns else int((span.x1 - span.x0) * (passed / span.takes_ns))
        self.vm.progress = span.x0 + done
        self.meter.add(done, span.cost)

    def position(self) -> int:
        """Return where the program is now, in the middle of a stratum too."""
        span = self._span
        if span is None:
            return self.vm.progress
        share = min((int(self.env.now) - span.began_ns) / span.takes_ns, 1.0)
        return span.x0 + int((span.x1 - span.x0) * share)

    def _end(self, x0: int, load: float) -> tuple[int, list[int]]:
        """Return where the stratum that begins at x0 ends, and the regions that are freed there."""
        span_ns = (NEVER if self.lifetime else self._stratum_ns) if self.meter.knows_rate else self._first_ns
        span_ns = min(span_ns, max(self._load_until() - int(self.env.now), 1))
        per_access = self.meter.cycles_per_access
        rate = self.frequency * self.vm.description.vcpus * load / per_access / SECOND_NS
        x1 = x0 + max(min(int(span_ns * rate), self.most_accesses), 1)
        if self.workload.length is not None:
            x1 = min(x1, self.workload.length)
        if x0 < self.workload.begins:
            x1 = min(x1, self.workload.begins)
        ends = (
            [(x, region) for x, region in self.workload.frees(x0 + 1, min(x1 + 1, x0 + 1 + NEVER // 2))]
            if not self.lifetime
            else []
        )
        if not ends:
            return x1, []
        first = ends[0][0]
        return first, [region for x, region in ends if x == first]

    def _load(self) -> float:
        share = self.load_now
        if share is None:
            share = next((share for at, share in reversed(self.load) if at <= self.env.now), 1.0)
        return share * (1 - self._throttled)

    def _load_until(self) -> int:
        """Return when the schedule changes the load next."""
        return next((at for at, _ in self.load if at > self.env.now), NEVER)

    def _advance(self, x0: int, x1: int) -> Generator[Event, object, None]:
        """Hand every first touch of [x0, x1) to the guest, and let the time pass that it takes."""
        gvpns, written = self._first_touches(x0, x1)
        for start in range(0, gvpns.size, BATCH_PAGES):
            self.guest_os.touch(gvpns[start : start + BATCH_PAGES], written[start : start + BATCH_PAGES], x1)
            yield from self._charge()
            yield from self._standing_still()
            if not self.vm.running:
                return
        if self.guest_os.serve_watched(x1):
            yield from self._charge()

    def _first_touches(self, x0: int, x1: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        process = self.vm.process
        assert process is not None
        if process.mapped_pages == process.pages:
            return np.empty(0, np.int64), np.empty(0, np.bool_)
        if x0 < self.workload.begins:
            read, wrote = self.workload.touched(x0, x1)
            gvpns = np.concatenate([wrote, np.setdiff1d(read, wrote, assume_unique=True)])
            return gvpns, np.arange(gvpns.size) < wrote.size
        pending = process.gvpns(np.flatnonzero(~process.mapped))
        read_mask, wrote_mask = self.workload.touched_among(pending, x0, x1)
        either = read_mask | wrote_mask
        return pending[either], wrote_mask[either]

    def _charge(self) -> Generator[Event, object, None]:
        """Let the time pass that faults and services took from the vCPUs, which share it."""
        stall = self.meter.take_stall()
        if stall:
            self.waits_for = "its faults to be served"
            yield Pause(self.env, max(stall // self.vm.description.vcpus, 1), Turn.VCPU)
            self.waits_for = ""
        yield from self._read_in()

    def _read_in(self) -> Generator[Event, object, None]:
        """Wait for the pages that swap devices are to bring; all vCPUs do, as many of their accesses miss at once."""
        vm, vcpus = self.vm, self.vm.description.vcpus
        reads = {device: (vm.read_requests[device], pages) for device, pages in vm.reads.items()}
        writes = dict(vm.writes)
        vm.reads.clear()
        vm.read_requests.clear()
        vm.writes.clear()
        for write, asked in ((True, writes), (False, reads)):
            began = int(self.env.now)
            for device, (requests, pages) in asked.items():
                self.waits_for = f"{pages} pages {'to' if write else 'from'} {device.kind}"
                yield from device.transferring(pages, write=write, requests=requests, streams=vcpus, turn=Turn.VCPU)
            if asked:
                self.meter.book_stall("swap write" if write else "swap read", (int(self.env.now) - began) * vcpus)
        self.waits_for = ""
