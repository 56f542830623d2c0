"""The host's compactor: kcompactd's background work, and one builder of VMM segments at a time for each VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.attempt import Attempt
from vmmsim.actors.backing import VmLost
from vmmsim.actors.build_turns import TURN_PAGES
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.costs import copy_ns
from vmmsim.actors.remapping import split_for
from vmmsim.actors.segment_builder import SegmentBuilder
from vmmsim.memory import compaction_policy as policy
from vmmsim.memory.compaction import Compaction as Run
from vmmsim.memory.compaction import Mode
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, SHARED, Kind
from vmmsim.memory.moves import abandon, finish
from vmmsim.memory.window import Infeasible

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.actors.worth import Effort
    from vmmsim.decisions import Recorder
    from vmmsim.memory.moves import Moves
    from vmmsim.scenario import Compaction

WITHOUT_BANDWIDTH: Final = 1 << 30
"""Bytes a second for a VM's own pages where compaction is off: moving them into place is part of giving the segment."""


@attrs.frozen
class _Refusal:
    """Why there was no segment, as the host was then."""

    host: tuple[int, ...]
    attempt: Attempt
    effort: Effort | None
    """What the best window would have taken, if it was not worth it."""

    def holds(self, host: tuple[int, ...], objection: Callable[[Effort], str]) -> bool:
        """Tell whether it would be the same again."""
        return self.host == host and (self.effort is None or bool(objection(self.effort)))


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
        self._refused: dict[tuple[int, int, int], _Refusal] = {}
        self._in_flight: list[Moves] = []
        """Copies of compaction that are under way: several, where it was asked for while it ran."""
        vmm.disrupt = self.disrupt
        vmm.struck = self.struck

    @property
    def bandwidth(self) -> int:
        """Bytes a second that moving pages may copy."""
        return self.settings.bandwidth_bytes_per_second if self.settings is not None else WITHOUT_BANDWIDTH

    # Segments

    def building(
        self, vm: VirtualMachine, base: int, limit: int, objection: Callable[[Effort], str] = lambda effort: ""
    ) -> Generator[Event, object, Attempt]:
        """Build the VMM segment of ``vm`` over gfns [base, limit), if there is a window for it.

        objection  asked when the window is known and nothing has been done: why that is not worth it, or ""
        """
        known = self._refused.get((vm.number, base, limit))
        if known is not None and known.holds(self._signature(), objection):
            return known.attempt
        builder = SegmentBuilder(
            self.env, self.vmm, self.recorder, vm, bandwidth=self.bandwidth, may_evict=self.settings is not None
        )
        choice = builder.choose(base, limit, self._leased())
        if isinstance(choice, Infeasible):
            gone = choice.what == "size" or {kind for kind, _ in choice.kinds} == {"bad"}
            why = f"host compaction is off, and {choice}" if choice.what == "others" else str(choice)
            return self._refuse((vm.number, base, limit), Attempt(won=False, why=why, hopeless=gone))
        if why := objection(builder.effort(choice)):
            declined = Attempt(won=False, why=why, declined=True)
            return self._refuse((vm.number, base, limit), declined, builder.effort(choice))
        self._builders[vm.number] = builder
        try:
            attempt = yield from builder.building(choice)
        finally:
            del self._builders[vm.number]
            self.moved_pages += builder.copied_pages
        return attempt

    def _refuse(self, what: tuple[int, int, int], attempt: Attempt, effort: Effort | None = None) -> Attempt:
        """Remember a refusal: as long as the host is what it was, looking at every window again finds no other."""
        self._refused[what] = _Refusal(self._signature(), attempt, effort)
        return attempt

    def _signature(self) -> tuple[int, ...]:
        """Return what the host looks like from afar: VMs, free memory in GiB, frames moved in 64 MiB, bad frames."""
        host = self.vmm.host
        return (
            *sorted(self.vmm.vms), host.free_pages >> 18, self.moved_pages >> 14, host.count(kind=Kind.BAD),
        )  # fmt: skip

    def _leased(self) -> list[tuple[int, int]]:
        """Return what is leased, whole pageblocks: by builds of VMs that are gone, too, until they end."""
        return [token.range for token in self.vmm.host.tokens.values() if token.range is not None]

    def disrupt(self) -> None:
        """Let go of everything that is being copied: a frame of it must be had now. Turns are done again."""
        for builder in self._builders.values():
            builder.turns.abandon()
        for moves in self._in_flight:
            abandon(self.vmm.host, moves)
        self._in_flight.clear()

    def struck(self, frames: NDArray[np.int64]) -> None:
        """Let go of frames that have failed: copies begin anew, builds let slots escape, or are given up."""
        if np.any(self.vmm.host.frames["mark"][frames] & ISOLATED):
            self.disrupt()
        for _, builder in sorted(self._builders.items()):
            builder.struck(frames)

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
            # Linux asks for the score pageblock by pageblock.
            moved = yield from self._run(Mode.PROACTIVE, proactiveness=wanted, turn_pages=PAGEBLOCK)
            after = host.fragmentation().score
            wait_ns = policy.next_check_ns(score, after)
            self.recorder.decide(
                "compactor", "compact", got=f"{moved} pages", outcome="done", why=f"score {after}", cause=row,
                cost_ns=copy_ns(moved, self.bandwidth),
            )  # fmt: skip

    def compacting(self) -> Generator[Event, object, int]:
        """Compact all of host memory once, as writing to compact_memory does; return pages moved."""
        return (yield from self._run(Mode.ALL))

    def _run(
        self, mode: Mode, *, proactiveness: int | None = None, turn_pages: int = TURN_PAGES
    ) -> Generator[Event, object, int]:
        """Let the scanners run until they meet, or the score is at the low mark; return pages moved."""
        host, moved = self.vmm.host, 0
        run = Run(host, mode=mode, proactiveness=proactiveness)
        while len(moves := run.plan(turn_pages)):
            self._in_flight.append(moves)
            yield Pause(self.env, copy_ns(len(moves), self.bandwidth), Turn.COMPACTOR)
            if moves in self._in_flight:
                self._split_for(moves)
            if moves not in self._in_flight:
                run = Run(host, mode=mode, proactiveness=proactiveness)  # the scanners have passed what it let go of
                continue
            self._in_flight.remove(moves)
            self.carry_out(moves.old, moves.new)
            finish(host, moves)
            moved += len(moves)
            self.moved_pages += len(moves)
        return moved

    def _split_for(self, moves: Moves) -> None:
        """Split leaves of which a part moves: tables for that may cost a VM, whose end makes these moves let go."""
        for vm, pages, frames in self._of_vms(moves.old, moves.new):
            try:
                if vm.running and moves in self._in_flight:
                    split_for(vm.nested, pages, frames)
            except VmLost:
                continue

    def carry_out(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Let every VM's nested table say that its pages are in the new frames; the ledger's books follow."""
        per_flush = int(rates.number("vmm.moves_per_flush"))
        shared = self.vmm.host.frames["owner"][old] == SHARED
        self.vmm.move_shared(old[shared], new[shared])
        for vm, pages, frames in self._of_vms(old, new):
            self.vmm.move(vm, pages, frames)
            vm.flushes += -(-int(pages.size) // per_flush)

    def _of_vms(
        self, old: NDArray[np.int64], new: NDArray[np.int64]
    ) -> list[tuple[VirtualMachine, NDArray[np.int64], NDArray[np.int64]]]:
        """Return each VM that has pages in the frames ``old``, those pages, and their new frames."""
        book = self.vmm.host.frames
        user = book["kind"][old] == Kind.USER
        owners, pages = book["owner"][old], book["page"][old].astype(np.int64)
        mine = [(vm, user & (owners == number)) for number, vm in self.vmm.vms.items()]
        return [(vm, pages[which], new[which]) for vm, which in mine if which.any()]
