"""What translation costs a VM as its life goes on: a sample for each stratum, summed, and told in rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.actors.overheads import Overheads
from vmmsim.actors.sample import Span
from vmmsim.actors.vm import mode_name
from vmmsim.actors.worth import Sampled
from vmmsim.config import MODES
from vmmsim.decisions import THE_VM
from vmmsim.translation.costs import Coverage
from vmmsim.translation.state import Exit

if TYPE_CHECKING:
    from collections.abc import Hashable

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.sample import Sample
    from vmmsim.actors.sampling import Sampler
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.decisions import Recorder
    from vmmsim.protocols import Workload

SECOND_NS: Final = 10**9


@attrs.frozen(kw_only=True)
class Cost:
    """What a stratum takes, flushes and stalls left out."""

    sample: Sample
    cycles: float
    """All its accesses: ideal, walks, L2 TLB hits."""
    accesses: int


def write_vm_row(recorder: Recorder, vm: VirtualMachine, **measured: Any) -> None:
    """Write a VM's row of the time series: its state now, and what was measured."""
    segment = vm.vmm_segment
    recorder.vm_row(
        vm.name,
        mode=vm.mode,
        mode_wanted=vm.mode_wanted,
        progress=vm.progress,
        resident_bytes=vm.resident_pages << 12,
        shared_bytes=vm.merged_pages << 12,
        swapped_bytes=vm.swapped_pages << 12,
        guest_swapped_bytes=vm.guest_swapped_pages << 12,
        balloon_bytes=vm.ballooned_pages << 12,
        balloon_target_bytes=vm.balloon_target_pages << 12,
        reusable_bytes=(vm.ballooned_pages - min(vm.held_pages, vm.ballooned_pages)) << 12,
        escaped_pages=len(vm.escapes.members) if vm.escapes is not None and segment is not None else 0,
        segment_bytes=0 if segment is None else (segment.limit - segment.base) << 12,
        **measured,
    )


class Meter:
    """Measures one VM."""

    def __init__(
        self,
        guest_os: GuestOs,
        workload: Workload,
        sampler: Sampler,
        recorder: Recorder,
        *,
        key: Hashable,
        lifetime: bool,
        complete: bool,
        epoch_share: float,
        frequency_hz: int,
    ) -> None:
        """key: what the workload is known by, for prices of misses; complete: every stratum is run, and run whole."""
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.vm.cores = sampler.cores
        self.workload = workload
        self.sampler = sampler
        self.recorder = recorder
        self.overheads = Overheads()
        self.stalls_ns: dict[str, int] = {}
        """Time lost so far, by cause, summed over vCPUs."""
        self._key = key
        self._lifetime = lifetime
        self._complete = complete
        self._epoch_share = epoch_share
        self._frequency = frequency_hz
        self._last: Sample | None = None
        self._stale = True
        self._begins = True
        """Whether the last stratum was of the program's initial phase, which says nothing of what comes."""
        self._closed = False
        self._sampled_ns = 0
        self._accesses = 0
        """Accesses made since the last sample,"""
        self._flushes = 0
        """and flushes."""

    @property
    def knows_rate(self) -> bool:
        """Whether anything was measured yet."""
        return self._last is not None

    @property
    def cycles_per_access(self) -> float:
        """Cycles of an access by the last sample; before the first, ideal ones."""
        if self._last is None:
            return self.workload.ideal_cycles
        return self.workload.ideal_cycles + self._last.walk_cycles + self._last.l2_tlb_cycles

    def measure(self, x0: int, x1: int, *, now_ns: int, every_ns: int) -> Cost:
        """Sample the stratum [x0, x1), whose touched pages are mapped, and write the rows that it begins with.

        Strata that are shorter than ``every_ns``, because something is freed, go by the last sample until one is due.
        """
        mapped = self.vm.process.mapped_pages if self.vm.process is not None else 0
        begins = x0 < self.workload.begins
        if self.vm.remapped_pages > self._epoch_share * mapped or begins != self._begins:
            self.new_epoch()
        self._begins = begins
        self.vm.remapped_pages = 0
        due = self._complete or (not self._lifetime and now_ns - self._sampled_ns >= every_ns)
        if self._last is None or self._stale or due:
            self._book()
            self._last = self._sample(x0, x1)
            self._price_segment(self._last)
            if not begins:
                self._tell_modes(self._last)
            self._sampled_ns = now_ns
            self._stale = False
            self.recorder.walks(self.vm.name, self.vm.mode, THE_VM, self._last.counters)
        self.write_row()
        return Cost(sample=self._last, cycles=(x1 - x0) * self.cycles_per_access, accesses=x1 - x0)

    def _without_vmm_segment(self, sample: Sample) -> tuple[str, float]:
        """Return the mode that the VM would have without its VMM segment, and r then: the same misses, linear model."""
        now = sample.coverage
        without = MODES[mode_name(guest=self.vm.guest_segment is not None, vmm=False)]
        cover = Coverage(guest_only=now.both + now.guest_only, neither=now.vmm_only + now.neither)
        cycles = sample.prices.walk_cycles(without, cover, native_misses=sample.misses, virtual_misses=sample.misses)
        return without.name, cycles / max(sample.accesses, 1)

    def _tell_modes(self, sample: Sample) -> None:
        """Book what the sample says about the modes that the VM might have."""
        without, cycles = self._without_vmm_segment(sample)
        self.vm.sampled = Sampled(
            ideal=self.workload.ideal_cycles + sample.l2_tlb_cycles,
            walk={without: cycles, **sample.as_if, sample.mode: sample.linear_walk_cycles},
        )

    def _price_segment(self, sample: Sample) -> None:
        """Book what the VMM segment saves each second at full load."""
        vm = self.vm
        vm.saved_cycles_per_s = 0.0
        if vm.vmm_segment is None:
            return
        _, cycles = self._without_vmm_segment(sample)
        accesses_per_s = self._frequency * vm.description.vcpus / self.cycles_per_access
        vm.saved_cycles_per_s = max(cycles - sample.linear_walk_cycles, 0.0) * accesses_per_s

    def _sample(self, x0: int, x1: int) -> Sample:
        vm = self.vm
        vcpu = self.sampler.strata % vm.description.vcpus
        process = vm.process
        assert process is not None
        primary, whole = process.primary, vm.longest_memory()
        return self.sampler.sample(
            vm.registers(),
            lambda x, n: self.workload.stream(x, n, vcpu),
            x0,
            x1,
            handle=self._mend,
            workload=(self._key, x0 < self.workload.begins),
            primary=Span() if primary is None else Span(start=primary.start, end=primary.start + primary.pages),
            vmm_range=Span(start=whole[0], end=whole[1]),
        )

    def _mend(self, why: Exit, gvpn: int, gfn: int, is_write: bool) -> None:
        """Handle a transition that a sample met: once, like all others."""
        if why is Exit.GUEST_FAULT:
            self.guest_os.touch(np.array([gvpn]), np.array([is_write]))
        elif why is Exit.NESTED_WRITE and self.vm.dirty_log is not None and not self._is_merged(gfn):
            self.vm.dirty_log.open(gfn)
        elif why is Exit.NESTED_FAULT or (why is Exit.NESTED_WRITE and self.vm.merged is not None):
            self.guest_os.vmm.back(self.vm, np.array([gfn]))
        else:
            raise AssertionError(f"{why.name} of page {gvpn:#x} of {self.vm.name}: nothing here is read-only")

    def _is_merged(self, gfn: int) -> bool:
        return self.vm.merged is not None and bool(self.vm.merged[gfn])

    def add(self, accesses: int, cost: Cost) -> None:
        """Book that so many accesses of a stratum were made; flushes met are charged as a stall to come."""
        assert cost.sample is self._last, "a stratum is booked before the next sample is taken"
        self._flushes += self.vm.flushes
        self.vm.flushes = 0
        self._accesses += accesses

    def _book(self) -> None:
        """Add what was done since the last sample to the sums."""
        accesses, flushes = self._accesses, self._flushes
        if self._last is None or not accesses:
            return
        self._accesses = self._flushes = 0
        stack = self.overheads.add(
            accesses, self._last, flushes=flushes * self.vm.description.vcpus, ideal=self.workload.ideal_cycles
        )
        if stack.refill > 0:
            self.vm.stall_ns["flush refill"] += round(stack.refill * SECOND_NS / self._frequency)

    def new_epoch(self) -> None:
        """What comes is measured apart from what was."""
        self._book()
        self._stale = True
        self.overheads.new_epoch()
        self.sampler.new_epoch()

    def shares(self) -> dict[str, float]:
        """Return what vCPUs spent their time on so far, by part; all together 1, but for what is under way."""
        ns = {part: SECOND_NS * cycles / self._frequency for part, cycles in self.overheads.stack.steady().items()}
        ns |= {cause: float(lost) for cause, lost in self.stalls_ns.items()}
        total = sum(ns.values())
        return {part: each / total for part, each in ns.items()} if total else {}

    def take_stall(self) -> int:
        """Return the time that vCPUs lost since the last call, summed over them, and book it."""
        total = 0
        for cause, ns in self.vm.stall_ns.items():
            self.stalls_ns[cause] = self.stalls_ns.get(cause, 0) + ns
            total += ns
        self.vm.stall_ns.clear()
        return total

    def book_stall(self, cause: str, ns: int) -> None:
        """Book time that vCPUs lost, summed over them, and that has passed already."""
        self.stalls_ns[cause] = self.stalls_ns.get(cause, 0) + ns

    def write_row(self) -> None:
        """Write the VM's row of the time series: what holds from now on."""
        vm, sample, ideal = self.vm, self._last, self.workload.ideal_cycles
        columns: dict[str, Any] = {}
        if sample is not None:
            overhead = vm.overhead = sample.walk_cycles / ideal
            low, high = self._around(overhead, sample.bias_cycles / ideal)
            columns = {
                "overhead": overhead,
                "overhead_low": low,
                "overhead_high": high,
                "refs_per_walk": sample.references_per_walk,
                "as_if": {mode: cycles / ideal for mode, cycles in sample.as_if.items()},
            }
        write_vm_row(self.recorder, vm, **columns)

    def _around(self, overhead: float, bias: float) -> tuple[float | None, float | None]:
        """Return an interval about one stratum's overhead: the run's share of error, and the bias bound below.

        None for both while the run has too few samples for an interval that says something.
        """
        error = self.overheads.share_of_error()
        if error is None:
            return None, None
        return max(overhead * (1 - error) - bias, 0.0), overhead * (1 + error)

    def close(self) -> None:
        """Write the last row and give the hardware back; nothing is measured any more."""
        if self._closed:
            return
        self._closed = True
        self._book()
        self.write_row()
        for cause, ns in self.stalls_ns.items():
            self.recorder.decide("vcpu", cause.replace(" ", "_"), vm=self.vm.name, outcome="done", cost_ns=ns)
