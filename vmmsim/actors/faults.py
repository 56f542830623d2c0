"""Permanent DRAM faults as they strike: whose frame it is, what can be saved, and what it does to segments.

A correctable fault: the page is copied to a healthy frame, and either escapes the VMM segment over it or is mapped
elsewhere (soft-offline); the frame is retired. An uncorrectable one: the contents are lost, and a machine check is
injected at that gPA. Beyond the escape filter's budget the segment is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import VmLost
from vmmsim.memory.frames import SHARED, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder

FEW: Final = 64
"""Frames of one fault that are each worth a member of a filter; more are a column or a bank, and evacuated."""
HOSTS_OWN: Final = (Kind.KERNEL, Kind.SLAB)
"""Memory without which the host cannot go on."""
UNSAVED: Final = (Kind.TABLE, *HOSTS_OWN)
"""Memory that cannot move, whatever befalls it."""


class Faults:
    """What becomes of the frames that go bad."""

    def __init__(self, vmm: Vmm, recorder: Recorder, memory_failure: Callable[[VirtualMachine, int, int], str]) -> None:
        """memory_failure(vm, gfn, cause): the guest's answer to a machine check; returns what it came to."""
        self.vmm = vmm
        self.recorder = recorder
        self.memory_failure = memory_failure
        self.host_lost: Callable[[str], None] = lambda why: None
        """Ends the run: the host's own memory is gone; set by whoever runs it."""
        self._copy_ns = int(rates.number("vmm.copy_4k_ns"))

    def strike(self, frames: NDArray[np.int64], *, what: str, correctable: bool) -> int:
        """Let host frames go bad, all at once; return the row of the decision that says so."""
        book = self.vmm.host.frames
        if np.any(np.diff(frames) <= 0):  # a bank has 786,432 frames, and they come in order
            frames = np.unique(frames)
        frames = frames[(book["kind"][frames] != Kind.BAD) & (book["kind"][frames] != Kind.HOLE)]
        row = self.recorder.decide(
            "faults",
            "fault",
            asked=f"{what}, {frames.size} frames",
            outcome="done",
            why="correctable" if correctable else "uncorrectable",
        )
        self.vmm.struck(frames)
        kinds, owners = book["kind"][frames].copy(), book["owner"][frames].copy()
        nobody = frames[(kinds == Kind.FREE) | (kinds == Kind.CACHE)]
        self.vmm.host.retire(nobody)
        for owner in np.unique(owners[kinds == Kind.USER]).tolist():
            vm = self.vmm.vms.get(owner)
            if vm is not None:
                try:
                    self._strike_vm(vm, frames[(kinds == Kind.USER) & (owners == owner)], correctable, row)
                except VmLost:  # there was no healthy frame for it
                    self._retire_free(frames)
        self._strike_shared(frames[(kinds == Kind.USER) & (owners == SHARED)], frames, correctable, row)
        # Whose frames these are was noted before: the VM of one may be ended by another, and its tables freed.
        if correctable:
            for kind in kinds[np.isin(kinds, UNSAVED)].tolist():
                self._use_on(Kind(kind), row)
        else:
            self._lose_tables(np.unique(owners[kinds == Kind.TABLE]), row)
            if np.isin(kinds, HOSTS_OWN).any():
                self.host_lost("an uncorrectable fault in the host kernel's memory")
        self._retire_free(frames)
        return row

    def _strike_vm(self, vm: VirtualMachine, frames: NDArray[np.int64], correctable: bool, cause: int) -> None:
        """Save or lose the pages of one VM; under its VMM segment they escape, as far as the filter may grow."""
        gfns = self.vmm.host.frames["page"][frames].astype(np.int64)
        if vm.vmm_segment is not None:
            self._keep_or_leave(vm, gfns, cause)
        if not vm.running:
            return
        self._replace(vm, gfns, frames)
        if not correctable:
            for gfn in gfns.tolist():
                if vm.running:
                    self.memory_failure(vm, gfn, cause)

    def _strike_shared(self, frames: NDArray[np.int64], bad: NDArray[np.int64], correctable: bool, cause: int) -> None:
        """Save what several VMs share, once for all; what cannot be read is lost to every one of them.

        ``bad``: all frames that the fault strikes, none of which is a new place.
        """
        host, book = self.vmm.host, self.vmm.host.frames
        if not frames.size:
            return
        new = self.vmm.take_unmapped(int(frames.size))
        while np.any(again := np.isin(new, bad)):
            host.retire(new[again])
            new[again] = self.vmm.take_unmapped(int(np.count_nonzero(again)))
        self._retire_free(frames)
        still = (book["kind"][frames] == Kind.USER) & (
            book["owner"][frames] == SHARED
        )  # finding room may have cost VMs
        host.give_back(new[~still])
        frames, new = frames[still], new[still]
        if not frames.size:
            return
        sharers = [(vm, vm.nested_to(frames)) for vm in self.vmm.vms.values()]
        host.assign(new, owner=SHARED, pages=book["page"][frames].astype(np.int64))
        self.vmm.move_shared(frames, new)
        host.retire(frames)
        for vm, gfns in sharers if not correctable else ():
            for gfn in gfns.tolist():
                if vm.running:
                    self.memory_failure(vm, gfn, cause)

    def _keep_or_leave(self, vm: VirtualMachine, gfns: NDArray[np.int64], cause: int) -> None:
        """Make the pages under the segment escape it, or leave the segment if the filter's budget does not allow it."""
        inside = gfns[vm.under_vmm_segment(gfns)]
        if not inside.size:
            return
        assert vm.escapes is not None
        if inside.size <= FEW and vm.escapes.fits(inside.tolist()):
            vm.escapes.insert(inside.tolist())
            self.recorder.decide(
                "vmm",
                "escape",
                vm=vm.name,
                asked=f"{inside.size} pages",
                got=f"{len(vm.escapes.members)} members",
                outcome="done",
                cost_ns=int(inside.size) * self._copy_ns,
                cause=cause,
            )
            self._escape(vm, inside)
            return
        budget = vm.escape_budget
        why = f"{inside.size} more bad pages, {len(vm.escapes.members)} escape already, the filter may hold {budget}"
        mode = vm.mode
        self.vmm.leave_segment(vm, "faults")
        self.recorder.decide("vmm", "mode", vm=vm.name, asked=mode, got=vm.mode, outcome="done", why=why, cause=cause)

    def _escape(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Load the grown filter; the frames are replaced right after, in the same step."""
        self.vmm.unpin(vm, gfns)
        self.vmm.reload_filter(vm)

    def _replace(self, vm: VirtualMachine, gfns: NDArray[np.int64], bad: NDArray[np.int64]) -> None:
        """Give gfns healthy frames and retire the old ones; contents are copied (if they can be read).

        What the guest had given up, or never used, may have lost its frame with the segment: it is retired, no more.
        """
        host = self.vmm.host
        self._retire_free(bad)
        gfns = gfns[vm.nested.translate(gfns) >= 0]
        new = self._healthy(vm, gfns, bad)
        if not vm.running:
            return
        self._retire_free(bad)
        old = vm.nested.translate(gfns)
        host.give_back(new[old < 0])
        gfns, old, new = gfns[old >= 0], old[old >= 0], new[old >= 0]
        self.vmm.move(vm, gfns, new)
        host.retire(old)
        vm.stall_ns["page copies"] += int(gfns.size) * self._copy_ns
        vm.flushes += 1

    def _retire_free(self, frames: NDArray[np.int64]) -> None:
        host = self.vmm.host
        host.retire(frames[host.kinds(frames) == Kind.FREE])

    def _healthy(self, vm: VirtualMachine, gfns: NDArray[np.int64], bad: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return new frames for gfns, none of them bad: finding room may free a page whose frame is."""
        new = self.vmm.take_for(vm, gfns)
        while vm.running and np.any(again := np.isin(new, bad)):
            self.vmm.host.retire(new[again])
            new[again] = self.vmm.take_for(vm, gfns[again])
        return new

    def _use_on(self, kind: Kind, cause: int) -> None:
        """A frame that cannot move is used on while ECC corrects it."""
        why = f"{kind.name.lower()} memory cannot move; ECC corrects it"
        self.recorder.decide("faults", "retire", asked="1 frame", outcome="refused", why=why, cause=cause)

    def _lose_tables(self, owners: NDArray[np.int64], cause: int) -> None:
        """End the VMs that lost frames of their nested tables, each once, however many it lost."""
        why = "an uncorrectable fault in its nested page table"
        for owner in owners.tolist():
            vm = self.vmm.vms.get(owner)
            if vm is not None:
                self.recorder.decide("vmm", "lose", vm=vm.name, outcome="done", why=why, cause=cause)
                self.vmm.kill(vm, why)
