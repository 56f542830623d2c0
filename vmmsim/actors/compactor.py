"""The host's compactor: kcompactd's background work, and one builder of VMM segments at a time for each VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim import rates
from vmmsim.actors.attempt import Attempt
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.costs import copy_ns
from vmmsim.actors.segment_builder import TURN_PAGES, SegmentBuilder
from vmmsim.memory import compaction_policy as policy
from vmmsim.memory.compaction import Compaction as Run
from vmmsim.memory.compaction import Mode
from vmmsim.memory.frames import PAGEBLOCK, SHARED, Kind
from vmmsim.memory.moves import abandon, finish
from vmmsim.memory.window import Infeasible

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder
    from vmmsim.memory.moves import Moves
    from vmmsim.scenario import Compaction

WITHOUT_BANDWIDTH: Final = 1 << 30
"""Bytes a second for a VM's own pages where compaction is off: moving them into place is part of giving the segment."""


class Compactor:
    """Moves host memory: in the background, for segments, on request."""

    def __init__(self, env: Environment, vmm: Vmm, recorder: Recorder, settings: Compaction | None) -> None:
        self.env = env
        self.vmm = vmm
        self.recorder = recorder
        self.settings = settings
        self.moved_pages = 0
        """Pages copied since time 0."""
        self._builders: dict[int, SegmentBuilder] = {}
        self._refused: dict[tuple[int, int, int], tuple[tuple[int, ...], Attempt]] = {}
        self._in_flight: Moves | None = None
        vmm.disrupt = self.disrupt

    @property
    def bandwidth(self) -> int:
        """Bytes a second that moving pages may copy."""
        return self.settings.bandwidth_bytes_per_second if self.settings is not None else WITHOUT_BANDWIDTH

    # Segments

    def building(self, vm: VirtualMachine, base: int, limit: int) -> Generator[Event, object, Attempt]:
        """Build the VMM segment of ``vm`` over gfns [base, limit), if there is a window for it."""
        seen, refused = self._refused.get((vm.number, base, limit), (None, Attempt(won=False)))
        if seen == self._signature():
            return refused
        builder = SegmentBuilder(
            self.env, self.vmm, self.recorder, vm, bandwidth=self.bandwidth, may_evict=self.settings is not None
        )
        choice = builder.choose(base, limit, self._leased())
        if isinstance(choice, Infeasible):
            gone = choice.what == "size" or {kind for kind, _ in choice.kinds} == {"bad"}
            return self._refuse((vm.number, base, limit), Attempt(won=False, why=str(choice), hopeless=gone))
        if others := builder.may_not_evict(choice):
            return self._refuse((vm.number, base, limit), Attempt(won=False, why=others))
        self._builders[vm.number] = builder
        try:
            attempt = yield from builder.building(choice)
        finally:
            del self._builders[vm.number]
            self.moved_pages += builder.copied_pages
        return attempt

    def _refuse(self, what: tuple[int, int, int], attempt: Attempt) -> Attempt:
        """Remember a refusal: as long as the host is what it was, looking at every window again finds no other."""
        self._refused[what] = (self._signature(), attempt)
        return attempt

    def _signature(self) -> tuple[int, ...]:
        """Return what the host looks like from afar: VMs, free memory in GiB, frames moved in 64 MiB, bad frames."""
        host = self.vmm.host
        return (
            *sorted(self.vmm.vms), host.free_pages >> 18, self.moved_pages >> 14, host.count(kind=Kind.BAD),
        )  # fmt: skip

    def _leased(self) -> list[tuple[int, int]]:
        leases = [vm.lease for vm in self.vmm.vms.values() if vm.lease is not None]
        return [(lease.base + lease.offset, lease.limit + lease.offset) for lease in leases]

    def disrupt(self) -> None:
        """Let go of everything that is being copied: a frame of it must be had now. Turns are done again."""
        for builder in self._builders.values():
            builder.abandon_turn()
        if self._in_flight is not None:
            abandon(self.vmm.host, self._in_flight)
            self._in_flight = None

    def abort_build(self) -> str:
        """Give up one build that waits for something, and return its VM's name; "" if none does."""
        for _, builder in sorted(self._builders.items()):
            if builder.give_up("given up: the host is short of memory"):
                builder.vm.segment_lost("memory")
                return builder.vm.name
        return ""

    def abort_build_of(self, vm: VirtualMachine, why: str) -> None:
        """Give up the build of a VM's segment, if one is under way."""
        if vm.number in self._builders:
            self._builders[vm.number].give_up(why)

    # In the background

    def background(self) -> Generator[Event, object, None]:
        """Be kcompactd: look every 500 ms, start above the high mark, stop at the low one, back off if stuck."""
        assert self.settings is not None
        wanted, host, wait_ns = self.settings.proactiveness, self.vmm.host, policy.check_interval_ns()
        while wanted:
            yield Pause(self.env, wait_ns, Turn.COMPACTOR)
            wait_ns = policy.check_interval_ns()
            score = host.fragmentation().score
            if not policy.should_begin(score, proactiveness=wanted):
                continue
            marks = policy.marks(wanted)
            row = self.recorder.decide(
                "compactor", "compact", outcome="begun", why=f"score {score}, above {marks.high}"
            )
            run = Run(host, mode=Mode.PROACTIVE, proactiveness=wanted)
            moved = yield from self._run(run, turn_pages=PAGEBLOCK)  # Linux asks for the score pageblock by pageblock
            after = host.fragmentation().score
            wait_ns = policy.next_check_ns(score, after)
            self.recorder.decide(
                "compactor", "compact", got=f"{moved} pages", outcome="done", why=f"score {after}", cause=row,
                cost_ns=copy_ns(moved, self.bandwidth),
            )  # fmt: skip

    def compacting(self) -> Generator[Event, object, int]:
        """Compact all of host memory once, as writing to compact_memory does; return pages moved."""
        return (yield from self._run(Run(self.vmm.host, mode=Mode.ALL)))

    def _run(self, run: Run, *, turn_pages: int = TURN_PAGES) -> Generator[Event, object, int]:
        """Let the scanners run until they meet, or the score is at the low mark; return pages moved."""
        host, moved = self.vmm.host, 0
        while len(moves := run.plan(turn_pages)):
            self._in_flight = moves
            yield Pause(self.env, copy_ns(len(moves), self.bandwidth), Turn.COMPACTOR)
            if self._in_flight is not moves:
                continue
            self._in_flight = None
            self.carry_out(moves.old, moves.new)
            finish(host, moves)
            moved += len(moves)
            self.moved_pages += len(moves)
        return moved

    def carry_out(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Let every VM's nested table say that its pages are in the new frames; the ledger's books follow."""
        book = self.vmm.host.frames
        user = book["kind"][old] == Kind.USER
        owners, pages = book["owner"][old], book["page"][old].astype("int64")
        per_flush = int(rates.number("vmm.moves_per_flush"))
        self.vmm.move_shared(old[user & (owners == SHARED)], new[user & (owners == SHARED)])
        for number, vm in self.vmm.vms.items():
            mine = user & (owners == number)
            if mine.any():
                self.vmm.move(vm, pages[mine], new[mine])
                vm.flushes += -(-int(mine.sum()) // per_flush)
