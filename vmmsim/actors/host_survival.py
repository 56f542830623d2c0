"""What a host that is out of memory does before it ends a VM: it takes back what costs its guests least.

In order: page cache; frames that were zeroed for a VMM segment and that the guest has not touched since, of VMs that
have no segment now; the balloon; memory of VMs that no segment pins, swapped out; builds of segments that wait for
something, which hold whole windows; then the live VMM segment that saves the fewest walk cycles for each GiB that
leaving it frees, and at last what it pinned is swapped out. What leaving frees is known: pages that the guest
gave up, held because their gPAs still translated, and pages that were zeroed for the segment and never touched. A
segment leaves no accessed bits; what was never touched is found as KSM finds zero pages, by reading it, and the model
knows which those are. Only when none of that is left does the OOM killer choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.addresses import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder


def reclaimable(vm: VirtualMachine) -> int:
    """Return how many host pages would become free if ``vm`` left its VMM segment."""
    segment = vm.vmm_segment
    if segment is None:
        return 0
    untouched = vm.untouched()
    return vm.held_pages + int(np.count_nonzero((untouched >= segment.base) & (untouched < segment.limit)))


class HostSurvival:
    """Finds memory in time of need; each call takes the cheapest step that frees anything."""

    def __init__(self, vmm: Vmm, recorder: Recorder, *, abort_build: Callable[[], str]) -> None:
        """abort_build() gives up one build of a segment that waits, and returns its VM's name; "" if none does."""
        self.vmm = vmm
        self.recorder = recorder
        self.abort_build = abort_build
        self.balloon: Callable[[int], int] = lambda pages: 0
        """Takes pages back from guests by their balloons, at once; set by whoever sets their targets."""
        self.swap_out: Callable[[int], int] = lambda pages: 0
        """Swaps out memory of VMs that nothing pins; set by the host's swapper,"""
        self.swappable: Callable[[VirtualMachine], int] = lambda vm: 0
        """which also tells how many pages of a VM could go if it left its VMM segment."""

    def free(self, pages: int) -> int:
        """Free host frames, ``pages`` of which are short; return how many became free, 0 if nothing is left to try."""
        return (
            self.vmm.free_wanted(pages)
            or self._take_back_untouched(pages)
            or self.balloon(pages)
            or self.swap_out(pages)
            or self._abort_builds()
            or self._leave_segment(pages)
        )

    def _take_back_untouched(self, pages: int) -> int:
        """Take back what was zeroed for segments that are gone, and never touched: nobody loses anything."""
        for vm in self.vmm.vms.values():
            if vm.vmm_segment is None and vm.lease is None and (freed := self._unback(vm)):
                what = f"{format_bytes(freed << 12)} zeroed for a segment that is gone, and never touched"
                self.recorder.decide(
                    "vmm", "take_back", vm=vm.name, asked=f"{pages} pages", got=f"{freed} pages", outcome="done",
                    why=f"the host is short of memory: {what}",
                )  # fmt: skip
                return freed
        return 0

    def _abort_builds(self) -> int:
        before = self.vmm.host.free_pages
        while self.abort_build():
            if freed := self.vmm.host.free_pages - before:
                return freed
        return 0

    def _leave_segment(self, pages: int) -> int:
        """Leave the VMM segment that saves least for what it would free, and take back what the guest does not use."""
        worth = {vm: max(reclaimable(vm), self.swappable(vm)) for vm in self.vmm.vms.values()}
        candidates = [vm for vm, gain in worth.items() if gain]
        if not candidates:
            return 0
        vm = min(candidates, key=lambda one: (one.saved_cycles_per_s / worth[one], one.number))
        before, mode, held = self.vmm.host.free_pages, vm.mode, vm.held_pages
        self.vmm.leave_segment(vm, "memory")
        untouched = self._unback(vm)
        why = (
            f"the host is {pages} pages short: {format_bytes(held << 12)} that the guest gave up and "
            f"{format_bytes(untouched << 12)} that it never touched lay under the segment"
        )
        self.recorder.decide("vmm", "mode", vm=vm.name, asked=mode, got=vm.mode, outcome="done", why=why)
        return self.vmm.host.free_pages - before or self.swap_out(pages)

    def _unback(self, vm: VirtualMachine) -> int:
        gfns = vm.untouched()
        return self.vmm.unback(vm, gfns) if gfns.size else 0
