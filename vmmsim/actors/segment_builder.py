"""Building a VMM segment for a running VM: lease a window, clear it, put every page in its slot, switch the segment on.

The VM runs all the while. Its nested faults are served slot-first, so that what it touches meanwhile need not move.
Copies go at ``compaction.bandwidth``; the guests feel a flush for each 32 pages, no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.attempt import Attempt
from vmmsim.actors.backing import VmLost
from vmmsim.actors.build_turns import TURN_PAGES, BuildTurns
from vmmsim.actors.copy_tally import CopyTally, built
from vmmsim.actors.costs import copy_ns, rendezvous_ns
from vmmsim.actors.eviction import Eviction
from vmmsim.actors.placing import Placing
from vmmsim.actors.segment_commit import commit, may_escape
from vmmsim.actors.vm import Lease
from vmmsim.actors.worth import Effort
from vmmsim.addresses import write_bytes
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind
from vmmsim.memory.window import Choice, Infeasible, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder

GONE: Final = "the VM is gone"


class SegmentBuilder:
    """One build: a VM, a range of its gfns, and the window chosen for it."""

    def __init__(
        self, env: Environment, vmm: Vmm, recorder: Recorder, vm: VirtualMachine, *, bandwidth: int, may_evict: bool
    ) -> None:
        self.env = env
        self.vmm = vmm
        self.host = vmm.host
        self.recorder = recorder
        self.vm = vm
        self.may_evict = may_evict
        self.turns = BuildTurns(env, vmm.host, vm, bandwidth=bandwidth)
        self.eviction = Eviction(vmm, self.turns)
        self.own = Placing(vmm, self.turns)
        self.zeroed_pages = 0

    @property
    def copied_pages(self) -> int:
        """Pages copied so far, evicted ones included."""
        return self.turns.copied_pages

    # Choosing

    def choose(self, base: int, limit: int, leased: list[tuple[int, int]]) -> Choice | Infeasible:
        """Return the cheapest window, or what prevents every one."""
        vm, host = self.vm, self.host
        return choose(
            vm.private_frames(base, limit),
            host.survey(vm.number),
            host.frames,
            base=base,
            budget=vm.escape_budget,
            free_pages=host.spare_pages + host.count(kind=Kind.CACHE),
            within=(movable_from if (movable_from := int(host.zone.kernelcore)) < host.pages else 0, host.pages),
            leased=leased,
            only_owner=None if self.may_evict else vm.number,
        )

    def effort(self, choice: Choice) -> Effort:
        """Return what building at a window takes: copies at the bandwidth given, zeroing, the rendezvous at the end."""
        vcpus = self.vm.description.vcpus
        fault = rates.number("vmm.fault_2m_ns") / PAGEBLOCK if self.vmm.thp else rates.number("vmm.fault_4k_ns")
        return Effort(
            copied_pages=choice.copies,
            zeroed_pages=choice.absent,
            copies_ns=copy_ns(choice.copies, self.turns.bandwidth) + round(choice.absent * fault),
            stall_ns=vcpus * rendezvous_ns(vcpus),
        )

    def building(self, choice: Choice) -> Generator[Event, object, Attempt]:
        """Build the segment at the window chosen; the attempt says what it took, or why it was given up."""
        vm, started = self.vm, self.env.now
        start, end = choice.start & -PAGEBLOCK, -(-choice.end // PAGEBLOCK) * PAGEBLOCK
        token = self.host.isolate_range(start, min(end, self.host.pages), f"lease of {vm.name}")
        vm.lease = Lease(
            base=choice.base, limit=choice.limit, offset=choice.offset, escaped=choice.escaped, token=token
        )
        self.turns.tally = CopyTally(choice.copies, vm.nested.translate_range(choice.base, choice.limit))
        row = self.recorder.decide(
            "compactor", "build", vm=vm.name, asked=write_bytes((choice.limit - choice.base) << 12), outcome="begun",
            why=f"{choice.copies} pages to move, {choice.absent} to zero, {choice.escaped.size} to escape",
        )  # fmt: skip
        try:
            self.vmm.own(vm, choice.base, choice.limit)
            why = yield from self._fill(choice)
            self.own.return_spares()
            why = why or commit(self.vmm, vm, self.turns.lease)
        except VmLost:
            why = GONE
        self.own.return_spares()
        if vm.lease is not None:
            vm.lease = None
            self.host.release(token)
        self.recorder.decide(
            "compactor", "build", vm=vm.name, asked=f"{choice.copies} pages", got=f"{self.copied_pages} pages",
            outcome="aborted" if why else "done",
            why=why or self.turns.tally.why(self.copied_pages, self.eviction.dropped_pages),
            cost_ns=int(self.env.now - started), cause=row,
        )  # fmt: skip
        return Attempt(won=not why, why=why or built(int(self.env.now - started), self.copied_pages, self.zeroed_pages))

    def _fill(self, choice: Choice) -> Generator[Event, object, str]:
        """Clear the window and fill its slots; return "" or why it cannot go on.

        Where there is no room outside for all that is in the way, own pages move in first and leave their frames.
        """
        before = (-1, -1, -1)
        while self.turns.go_on:
            short = yield from self.eviction.clearing(choice.start, choice.end)
            if not self.turns.go_on:
                break  # type: ignore[unreachable]  # it may have ended meanwhile
            placement = self.own.plan()
            now = (placement.left, placement.absent, placement.foreign)
            if placement.is_complete:
                return ""
            if now == before and not self.turns.disturbed:
                return short or f"stuck with {placement.left} pages out of place and {placement.absent} absent"
            before, self.turns.disturbed = now, False
            why = yield from self.own.placing(placement, split=not short)
            del placement  # it has nine bytes a page: one at a time
            if not why and not short and self.turns.go_on:
                yield from self._zero()
            if why or not self.turns.go_on:
                return self.turns.given_up or why or GONE
        return self.turns.given_up or GONE

    def give_up(self, why: str) -> bool:
        """End the build now and let go of its window; what was moved stays. False in the middle of a step."""
        lease = self.vm.lease
        if not self.turns.waits or lease is None:
            return False
        self.turns.abandon()
        self.own.return_spares()
        self.turns.given_up, self.vm.lease = why, None
        self.host.release(lease.token)
        return True

    def struck(self, frames: NDArray[np.int64]) -> None:
        """Begin the turn anew without frames that have failed: slots escape if the filter takes them, or it is over."""
        lease = self.vm.lease
        if lease is None:
            return
        gfns = np.sort(frames - lease.offset)
        slots = np.setdiff1d(gfns[(gfns >= lease.base) & (gfns < lease.limit)], lease.escaped)
        if not self.own.lends(frames) and not slots.size:
            return
        self.turns.abandon()
        self.own.return_spares()
        self.turns.disturbed = True
        escaped = np.union1d(lease.escaped, slots)
        if may_escape(self.vm, lease).fits(escaped.tolist()):
            self.vm.lease = attrs.evolve(lease, escaped=escaped)
        else:
            self.give_up(f"{escaped.size} slots of its window have failed, the filter takes {self.vm.escape_budget}")

    # Absent pages

    def _zero(self) -> Generator[Event, object, None]:
        """Give absent pages zeroed frames in their slots, whole blocks first, turn by turn."""
        vm, lease = self.vm, self.turns.lease
        first, last = -(-lease.base // PAGEBLOCK), lease.limit // PAGEBLOCK
        step = TURN_PAGES // PAGEBLOCK
        for block in range(first, last, step):
            blocks = np.arange(block, min(block + step, last))
            blocks = blocks[(vm.backed[blocks] == 0) & (vm.swapped_of_block[blocks] == 0) & self.vmm.thp]
            yield from self._zeroed(self.vmm.fill_blocks, blocks, PAGEBLOCK)
            if not self.turns.go_on:
                return
        for gfn in range(lease.base, lease.limit, TURN_PAGES):
            gfns = np.arange(gfn, min(gfn + TURN_PAGES, lease.limit))
            if int(vm.backed[gfn >> PAGEBLOCK_ORDER : -(-(int(gfns[-1]) + 1) // PAGEBLOCK)].sum()) >= gfns.size:
                continue
            absent = gfns[vm.nested.translate(gfns) < 0]
            yield from self._zeroed(self.vmm.fill_slots, absent, 1)
            if not self.turns.go_on:
                return

    def _zeroed(
        self, fill: Callable[[VirtualMachine, NDArray[np.int64]], int], what: NDArray[np.int64], each: int
    ) -> Generator[Event, object, None]:
        """Fill some slots; the time is the VMM's own, not the guest's."""
        vm = self.vm
        before = vm.stall_ns["nested fault"]
        pages = fill(vm, what) * each
        took, vm.stall_ns["nested fault"] = vm.stall_ns["nested fault"] - before, before
        self.zeroed_pages += pages
        if pages:
            gfns = ((what * each)[:, None] + np.arange(each)).ravel()
            vm.note_zeroed(gfns[vm.nested.translate(gfns) >= 0])
            yield from self.turns.pausing(took)
