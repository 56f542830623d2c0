"""The mode controller of one VM: gains the segments that the wanted mode has, keeps trying, and gives them up in order.

The default policy is the MICRO 2014 paper's table: fragmented guest memory is rescued by self-ballooning, which is
quick and comes first because donors must lie outside the VMM segment; fragmented host memory by compaction in the
background, while the VM runs with what it has. By that policy a segment is entered if it is worth it (``worth``): gain
x expected dwell > 2 x (copies + stall). A mode that was asked for in the middle of a life, and one that a policy of the
user's own wants, is not weighed. Every refusal is recorded with demand, blocker and reason, numbers included.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast, get_args

from vmmsim import rates
from vmmsim.actors import guest_segment
from vmmsim.actors.attempt import Attempt
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.costs import rendezvous_ns
from vmmsim.actors.views import host_view, vm_view
from vmmsim.actors.vm import mode_name, wants
from vmmsim.actors.worth import Worth, guest_effort
from vmmsim.addresses import format_bytes, format_duration, write_bytes
from vmmsim.scenario import VmMode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from simpy import Environment, Event

    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.self_balloon import Exchanged
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.worth import Effort, Level
    from vmmsim.decisions import Outcome, Recorder
    from vmmsim.protocols import ModePolicy, Region


class Priority(IntEnum):
    """Why a segment is entered or left; a lower priority never undoes what a higher one did within its hold time."""

    CORRECTNESS = 0
    """A fault beyond the filter's budget, an isolation."""
    SURVIVAL = 1
    """The host is short of memory."""
    OPERATOR = 2
    """Migration, unplug, resize: what a person asked for."""
    PERFORMANCE = 3
    """The gain is worth the cost."""
    DENSITY = 4
    """Sharing and proactive compaction."""


class Exchange(Protocol):
    """What self-ballooning offers (see ``self_balloon.SelfBalloon``)."""

    def obstacle(self, pages: int) -> str:
        """Return what is in the way now; "" if nothing is."""

    def exchanging(self, pages: int) -> Generator[Event, object, Exchanged]:
        """Exchange scattered pages for a contiguous range, which is leased."""

    def hand_over(self, done: Exchanged) -> None:
        """Let the new range be used."""


class Builder(Protocol):
    """What builds VMM segments (see ``compactor.Compactor``)."""

    def building(
        self, vm: VirtualMachine, base: int, limit: int, objection: Callable[[Effort], str]
    ) -> Generator[Event, object, Attempt]:
        """Build the VMM segment of ``vm`` over gfns [base, limit), unless there is an objection to what it takes."""


class GuestCompaction(Protocol):
    """What makes room in the guest by moving pages (see ``guest_compactor.GuestCompactor``)."""

    def clearing(self, pages: int) -> Generator[Event, object, str]:
        """Make a free run of ``pages``; return "" or what is in the way."""


FORCED: Final = {"faults": Priority.CORRECTNESS, "memory": Priority.SURVIVAL}
"""Reasons for which a segment is taken away and held off for a while."""
WEIGHING: Final = "paper"
"""The policy that enters no segment that is not worth it."""
RESCUES: Final = {"paper": "self-balloon", "guest-compaction": "compaction", "wait": "none"}
"""What each policy does about fragmented guest memory."""
SEGMENTS: Final[dict[Level, str]] = {"guest": "guest segment", "vmm": "VMM segment"}
"""What each level's segment is called."""


class ModeController:
    """Steers one VM towards the mode it wants."""

    def __init__(
        self,
        env: Environment,
        guest_os: GuestOs,
        recorder: Recorder,
        *,
        exchange: Exchange,
        guest_compaction: GuestCompaction,
        builder: Builder,
    ) -> None:
        self.env = env
        self.guest_os = guest_os
        self.vm = guest_os.vm
        self.recorder = recorder
        self.exchange = exchange
        self.guest_compaction = guest_compaction
        self.builder = builder
        self.only_when_woken = False
        """Whether it looks again on changes only: in lifetime detail there are no periodic attempts."""
        self.policy: ModePolicy | None = None
        """Who says which mode is wanted, if a user's code does."""
        self.rescue = RESCUES.get(self.vm.description.mode_policy, RESCUES["paper"])
        self.worth = Worth(self.vm)
        """What it knows of gain and dwell."""
        self.weighs = self.vm.description.mode_policy == WEIGHING
        """Whether segments must be worth it: not once somebody has asked for a mode."""
        self.held = (Priority.DENSITY, 0)
        """Who changed the mode last of those that may hold it, and until when."""
        self.gives_way_to = ""
        """What an operator does for which the VM has no VMM segment meanwhile; "" if nothing."""
        self._cause = -1
        self.guest_tried = env.event()
        """Happens when the first attempt at a guest segment is over: a program asks for its memory as it begins."""
        self._wake = env.event()
        self._said: dict[str, str] = {}
        self.vm.segment_lost = self._segment_lost
        self._first_ns = int(rates.number("mode.backoff_first_ns"))
        self._last_ns = int(rates.number("mode.backoff_last_ns"))

    # What others ask of it

    def want(self, mode: VmMode, *, cause: int = -1) -> None:
        """Want another mode from now on: an operator's wish."""
        self.vm.mode_wanted = mode
        self.weighs = False
        self.recorder.decide(
            "mode_controller", "want", vm=self.vm.name, asked=mode, got=self.vm.mode, outcome="begun", cause=cause
        )
        self.wake()

    def stand_back(self, what: str, *, cause: int = -1) -> None:
        """Leave the VMM segment, and enter none until ``go_on``: what an operator does comes before performance."""
        vm, self.gives_way_to = self.vm, what
        if vm.vmm_segment is not None:
            self.guest_os.vmm.leave_segment(vm, what)
            self.recorder.decide(
                "mode_controller", "mode", vm=vm.name, asked=vm.mode_wanted, got=vm.mode, outcome="done",
                why=f"the VMM segment is left for the {what}", cost_ns=rendezvous_ns(vm.description.vcpus), cause=cause,
            )  # fmt: skip

    def go_on(self, *, cause: int = -1) -> None:
        """Seek the mode that is wanted again: a segment that was left is entered, if nothing has moved."""
        self.gives_way_to, self._cause = "", cause
        self.wake()

    def _segment_lost(self, reason: str) -> None:
        """Look again after the VMM segment was taken away, not before the hold time is over if it had to be."""
        self.worth.dwells["vmm"].ended(int(self.env.now))
        if reason in FORCED:
            self.held = (FORCED[reason], int(self.env.now) + int(rates.number("mode.hold_ns")))
        self.wake()

    def wake(self) -> None:
        """Look again now: something changed."""
        if not self._wake.triggered:
            self._wake.succeed()

    def _listen(self) -> None:
        """Hear what changes from now on; what it did itself, just now, is no news."""
        if self._wake.triggered:
            self._wake = self.env.event()

    # Steering

    def steering(self) -> Generator[Event, object, None]:
        """Live for as long as the VM runs."""
        wait_ns = self._first_ns
        while self.vm.running:
            before = self.vm.mode
            settled = yield from self._approach()
            if not self.vm.running:
                return  # type: ignore[unreachable]  # it may have ended meanwhile
            wait_ns = self._first_ns if self.vm.mode != before else min(2 * wait_ns, self._last_ns)
            if self._wake.triggered:
                continue  # something changed while it tried: a mode that is wanted now, a segment that was lost
            if self.gives_way_to:
                yield self._wake
            elif self._is_held():
                yield self._wake | Pause(self.env, self.held[1] - int(self.env.now), Turn.COMPACTOR)
            elif self.only_when_woken or (settled and self.policy is None):
                yield self._wake
            else:
                yield self._wake | Pause(self.env, wait_ns, Turn.COMPACTOR)

    def _approach(self) -> Generator[Event, object, bool]:
        """Try each segment that is wanted and not had; return whether there is nothing left to try."""
        vm = self.vm
        if self.policy is not None:
            self._heed_policy()
        wanted_guest, wanted_vmm = wants(vm.mode_wanted)
        self._leave_unwanted(wanted_guest, wanted_vmm)
        self._listen()
        if self._is_held():
            return False
        settled = True
        if wanted_guest and vm.guest_segment is None:
            attempt = yield from self._gain_guest()
            settled &= self._tell("guest", attempt)
        if not self.guest_tried.triggered:
            self.guest_tried.succeed()
        wanted_guest, wanted_vmm = wants(vm.mode_wanted)  # gaining a guest segment may have taken a while
        if wanted_vmm and vm.vmm_segment is None and vm.running and not self._is_held() and not self.gives_way_to:
            attempt = yield from self._gain_vmm(wanted_guest)
            settled &= self._tell("vmm", attempt)
        return settled

    def _heed_policy(self) -> None:
        """Let the user's policy say what is wanted now; what is no mode is recorded, and nothing changes."""
        assert self.policy is not None
        vm = self.vm
        wanted = self.policy.wanted(vm_view(vm), host_view(self.guest_os.vmm))
        if wanted not in get_args(VmMode):
            why = f"the policy wants {wanted!r}, which is no mode"
            self.recorder.decide("mode_controller", "want", vm=vm.name, asked=str(wanted), outcome="refused", why=why)
        elif wanted != vm.mode_wanted:
            self.want(cast(VmMode, wanted))

    def _is_held(self) -> bool:
        priority, until = self.held
        return bool(self.gives_way_to) or (priority < Priority.PERFORMANCE and self.env.now < until)

    def _leave_unwanted(self, wanted_guest: bool, wanted_vmm: bool) -> None:
        vm, before = self.vm, self.vm.mode
        if vm.guest_segment is not None and not wanted_guest:
            guest_segment.leave(self.guest_os, "mode")
            self.worth.dwells["guest"].ended(int(self.env.now))
        if vm.vmm_segment is not None and not wanted_vmm:
            self.guest_os.vmm.leave_segment(vm, "mode")
        if vm.mode != before:
            self.recorder.decide(
                "mode_controller",
                "mode",
                vm=vm.name,
                asked=vm.mode_wanted,
                got=vm.mode,
                outcome="done",
                why="asked for",
            )

    def _objection(self, level: Level, effort: Effort) -> str:
        """Return why the segment of a level is not worth its effort; "" if it is, or need not be."""
        return self.worth.objection(level, effort, int(self.env.now)) if self.weighs else ""

    def _tell(self, level: Level, attempt: Attempt) -> bool:
        """Record how an attempt ended, a repeated refusal once; return whether trying again is no use."""
        vm, what = self.vm, SEGMENTS[level]
        said = "not worth it" if attempt.declined else attempt.why
        if attempt.won:
            self._said.pop(what, None)
            self.worth.dwells[level].entered(int(self.env.now))
            self.recorder.decide(
                "mode_controller",
                "mode",
                vm=vm.name,
                asked=vm.mode_wanted,
                got=vm.mode,
                outcome="done",
                why=attempt.why,
                cause=self._cause,
            )
            self._cause = -1
        elif self._said.get(what) != said:
            self._said[what] = said
            outcome: Outcome = "refused" if attempt.hopeless or attempt.declined else "failed"
            self.recorder.decide(
                "mode_controller", "gain", vm=vm.name, asked=what, got=vm.mode, outcome=outcome, why=attempt.why
            )
        return attempt.won or attempt.hopeless

    # The guest segment

    def _gain_guest(self) -> Generator[Event, object, Attempt]:
        process = self.vm.process
        region = process.primary if process is not None else None
        if region is None:
            return Attempt(won=False, why="the workload has no primary region to put under a segment", hopeless=True)
        first = guest_segment.find_run(self.guest_os, region)
        if first >= 0:
            if why := self._objection("guest", guest_effort(guest_segment.pages_mapped(self.guest_os, region), 0)):
                return Attempt(won=False, why=why, declined=True)
            return self._enter_guest(region, first, "guest memory is contiguous")
        if self.rescue == "self-balloon":
            return (yield from self._gain_by_exchange(region))
        if self.rescue == "compaction":
            return (yield from self._gain_by_guest_compaction(region))
        return Attempt(won=False, why=self._fragmented(region))

    def _enter_guest(self, region: Region, first: int, why: str) -> Attempt:
        copies = guest_segment.enter(self.guest_os, region, first)
        return Attempt(won=True, why=f"{why}; {copies} pages copied into the segment")

    def _gain_by_exchange(self, region: Region) -> Generator[Event, object, Attempt]:
        vm, started = self.vm, int(self.env.now)
        pages = guest_segment.pages_needed(region)
        if obstacle := self.exchange.obstacle(pages):
            return Attempt(won=False, why=obstacle)
        if why := self._objection("guest", guest_effort(guest_segment.pages_mapped(self.guest_os, region), pages)):
            return Attempt(won=False, why=why, declined=True)
        if vm.vmm_segment is not None:
            self.guest_os.vmm.leave_segment(vm, "donors must lie outside the VMM segment")
            self._listen()
        row = self.recorder.decide(
            "self_balloon",
            "exchange",
            vm=vm.name,
            asked=write_bytes(pages << 12),
            outcome="begun",
            why=self._fragmented(region),
        )
        done = yield from self.exchange.exchanging(pages)
        start, end, short = done.start, done.end, done.short
        took = int(self.env.now) - started
        self.recorder.decide(
            "self_balloon",
            "exchange",
            vm=vm.name,
            asked=write_bytes(pages << 12),
            got=write_bytes((end - start) << 12),
            outcome="partial" if short and end > start else "failed" if short else "done",
            why=short or f"no page copied; {done.reclaimed_pages} pages of page cache dropped",
            cost_ns=took,
            cause=row,
        )
        self.exchange.hand_over(done)
        first = guest_segment.find_run(self.guest_os, region, within=(start, end)) if vm.running and end > start else -1
        if first < 0:
            return Attempt(won=False, why=short or "the new range is in use already")
        return self._enter_guest(
            region, first, f"self-ballooned {format_bytes((end - start) << 12)} in {format_duration(took)}"
        )

    def _gain_by_guest_compaction(self, region: Region) -> Generator[Event, object, Attempt]:
        pages = guest_segment.pages_needed(region)
        blocker = yield from self.guest_compaction.clearing(pages)
        first = guest_segment.find_run(self.guest_os, region) if self.vm.running else -1
        if first < 0:
            return Attempt(won=False, why=blocker or self._fragmented(region))
        return self._enter_guest(region, first, "compaction in the guest made room")

    def _fragmented(self, region: Region) -> str:
        guest = self.vm.guest
        pages = guest_segment.pages_needed(region)
        return (
            f"needs {format_bytes(pages << 12)} of contiguous guest memory; the largest free run is "
            f"{format_bytes(guest.largest_free_run() << 12)} of {format_bytes(guest.free_pages << 12)} free"
        )

    # The VMM segment

    def _gain_vmm(self, wanted_guest: bool) -> Generator[Event, object, Attempt]:
        vm = self.vm
        attempt = Attempt(won=False, why="no memory to cover")
        for base, limit in self._ranges(wanted_guest):
            objection = partial(self._objection, "vmm")
            if vm.remembered is not None and vm.remembered[:2] == (base, limit) and vm.remembered_moves == 0:
                if why := objection(self.worth.rendezvous()):
                    return Attempt(won=False, why=why, declined=True)
                self.guest_os.vmm.enter_segment(vm, *vm.remembered)
                return Attempt(won=True, why="the window was left as it is: entered again")
            attempt = yield from self.builder.building(vm, base, limit, objection)
            if attempt.won or not vm.running or self.gives_way_to:
                return attempt
        return attempt

    def _ranges(self, wanted_guest: bool) -> list[tuple[int, int]]:
        """Return the gfn ranges that a VMM segment could cover, best first: the longest on one side of the I/O gap.

        Holes would have to be given frames too: a range ends where memory does. If the guest exchanged memory, what
        lies under the guest segment is enough for Dual Direct.
        """
        vm = self.vm
        segment = vm.guest_segment
        if not wanted_guest or segment is None:
            return [vm.longest_memory()]
        under = (segment.base + segment.offset) & -512, (segment.limit + segment.offset + 511) & -512
        if vm.exchanged_pages:
            return [under]
        return [*(run for run in vm.memory_runs() if run[0] <= under[0] and under[1] <= run[1]), under]

    def missing(self) -> str:
        """Return the mode that is wanted and not had, or ""."""
        wanted_guest, wanted_vmm = wants(self.vm.mode_wanted)
        wanted = mode_name(guest=wanted_guest, vmm=wanted_vmm)
        return "" if wanted == self.vm.mode else wanted
