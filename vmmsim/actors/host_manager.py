"""The host's memory manager: looks at free memory now and then, and decides who gives up how much, and how.

It chooses by the share of its reserve that is free, as VMware's ESXi does. *High* and *clear*: nothing is urgent.
*Soft*: guests are asked, by balloon; what they gave up under a VMM segment is made reusable. *Hard*: the VMM swaps
besides. *Low*: VMs that have more than their target wait. A state gets worse at once and better by a margin only, so
that memory which was just freed does not end what freed it. Page sharing, where it is on, is told of every state.

What each guest is to keep is said by a policy. Its word is clipped to what the guest can give and to 65 % of its
memory, and recorded when it changes anything. What an event or a script asked for holds until it says "auto".
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final

import attrs

from vmmsim import rates
from vmmsim.actors.backing import while_it_lives
from vmmsim.actors.balloon_policies import SHIPPED, STATES, next_state
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.views import host_view, vm_view
from vmmsim.addresses import format_bytes, write_bytes
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from simpy import Environment, Event, Process

    from vmmsim.actors.guest import Guest
    from vmmsim.actors.held_memory import HeldMemory
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Outcome, Recorder
    from vmmsim.protocols import BalloonPolicy, HostView, VmView

SWAPPED_AT_ONCE: Final = 64
"""2 MiB blocks that are swapped out between two looks at how much is free."""
MEANS: Final = {
    "high": "nothing is urgent",
    "clear": "page sharing, where it is on",
    "soft": "balloons",
    "hard": "balloons, and swap where there is any",
    "low": "balloons, swap where there is any, and VMs above their target wait",
}
"""What each state calls for."""


class HostManager:
    """Decides about the memory of one host."""

    def __init__(
        self,
        env: Environment,
        vmm: Vmm,
        guests: Mapping[str, Guest],
        recorder: Recorder,
        *,
        policy: BalloonPolicy,
        named: str,
        every_ns: int,
        reserve_bytes: int,
        held_memory: HeldMemory,
    ) -> None:
        """named: what the policy is called in scenarios."""
        self.env = env
        self.vmm = vmm
        self.guests = guests
        self.recorder = recorder
        self.policy = policy
        self.named = named
        self.every_ns = every_ns
        self.reserve_bytes = reserve_bytes
        self.held_memory = held_memory
        self.state = STATES[0]
        self.resize: Callable[[Guest, int, int], Generator[Event, object, int]] = _unset
        """Moves a balloon to so many pages, for the decision of that row; set by whoever knows the verbs."""
        self.swap_out: Callable[[int], int] | None = None
        """Swaps so many host pages out and returns how many went, set by who decides which; None: no swap space."""
        self.told: list[Callable[[str], None]] = []
        """Called with each new state: page sharing may hurry."""
        self._watch_ns = int(rates.number("manager.watch_ns"))
        self._blocked_until = 0
        self._least = rates.number("manager.least_change")
        self._most = rates.number("manager.most_share")
        self._soft = rates.number("manager.soft_below")
        self._row = -1
        self._said: dict[str, str] = {}
        self._freeing: set[str] = set()
        self._moving: dict[str, Process] = {}

    def managing(self) -> Generator[Event, object, None]:
        """Look every now and then, and at once when the state gets worse, for ever."""
        looked = -self.every_ns
        while True:
            pressing = self._note_state() or STATES.index(self.state) >= STATES.index("hard")
            if pressing or self.env.now - looked >= self.every_ns:
                looked = int(self.env.now)
                self.look()
            yield Pause(self.env, min(self.every_ns, self._watch_ns), Turn.BALLOON)

    def look(self) -> None:
        """Decide by what is so now: state, targets, and what is done beside the balloons."""
        self._note_state()
        guests = [guest for guest in self.guests.values() if guest.vm.kernel_table is not None]
        host = self.view(guests)
        views = {view.name: view for view in host.guests}
        for guest in guests:
            view = views.get(guest.vm.name)
            if view is not None and view.managed and guest.vm.running:
                self._set_target(guest, self._wanted(view, host))
        short = self.reserve_bytes - (self.vmm.host.spare_pages << 12)
        if short > 0:
            self._free_held(guests, short >> 12)
        self._press(guests)

    def view(self, guests: list[Guest]) -> HostView:
        """Return the host and its VMs as policies see them."""
        views = []
        for guest in guests:
            active = guest.idle.active_bytes() if guest.idle is not None else None
            views.append(attrs.evolve(vm_view(guest.vm), active_bytes=active, managed=not guest.balloon.by_event))
        host = host_view(self.vmm, contiguity=type(self.policy) not in SHIPPED.values())
        return attrs.evolve(host, reserve_bytes=self.reserve_bytes, state=self.state, guests=tuple(views))

    def _note_state(self) -> bool:
        """Find the state that follows, page cache of the host having made room; return whether it is worse."""
        short = (self.reserve_bytes >> 12) - self.vmm.host.spare_pages
        if short > 0:
            self.vmm.free_wanted(short)
        free = self.vmm.host.spare_pages << 12
        before, self.state = self.state, next_state(self.state, free, self.reserve_bytes)
        if self.state == before:
            return False
        why = f"{format_bytes(free)} available of {format_bytes(self.reserve_bytes)} in reserve: {MEANS[self.state]}"
        self._row = self.recorder.decide("host_manager", "state", asked=before, got=self.state, outcome="done", why=why)
        for tell in self.told:
            tell(self.state)
        return STATES.index(self.state) > STATES.index(before)

    # Targets

    def _wanted(self, vm: VmView, host: HostView) -> int | None:
        """Return what the policy says that ``vm`` is to keep; None if that is no number, which is recorded once."""
        try:
            said = self.policy.target_bytes(vm, host)
        except Exception as error:
            raise BadInput(f"policy {self.named} failed on {vm.name}: {type(error).__name__}: {error}") from error
        try:
            return operator.index(said)
        except TypeError:
            self._refuse(vm.name, f"the policy says {said!r}, which is no whole number of bytes")
            return None

    def _refuse(self, name: str, why: str) -> None:
        if self._said.get(name) != why:
            self._said[name] = why
            self.recorder.decide("host_manager", "balloon", vm=name, outcome="refused", why=why)

    def _set_target(self, guest: Guest, wanted_bytes: int | None) -> None:
        """Move a balloon to what the policy wants, as far as it goes; small changes are left for later."""
        if wanted_bytes is None:
            return
        vm = guest.vm
        pages, why = self.clip(guest, wanted_bytes)
        least = max(int(self._least * vm.memory_pages), 1)
        moving = self._moving.get(vm.name)
        now = vm.balloon_target_pages if moving is not None and moving.is_alive else vm.ballooned_pages
        change = abs(pages - now)
        if not change or (change < least and pages):
            return
        whole = vm.memory_pages - vm.exchanged_pages
        outcome: Outcome = "partial" if why else "done"
        row = self.recorder.decide(
            "host_manager", "balloon", vm=vm.name, asked=write_bytes(-(-max(wanted_bytes, 0) >> 12) << 12),
            got=write_bytes((whole - pages) << 12), outcome=outcome, why=why or f"{self.named}: what it is to keep",
            cause=self._row,
        )  # fmt: skip
        vm.balloon_target_pages = pages
        self._moving[vm.name] = self.env.process(while_it_lives(self.resize(guest, pages, row)))

    def clip(self, guest: Guest, wanted_bytes: int) -> tuple[int, str]:
        """Return the balloon in pages that leaves a guest ``wanted_bytes``, or the nearest; and why it is not that."""
        vm = guest.vm
        whole = vm.memory_pages - vm.exchanged_pages
        pages = whole + (-wanted_bytes >> 12)  # what it keeps is rounded up
        if pages < 0:
            return 0, f"it has no more than {write_bytes(whole << 12)}"
        can, cap = vm.ballooned_pages + guest.balloon.givable(), int(self._most * whole)
        if pages > min(can, cap):
            if can <= cap:
                return can, f"the guest can give no more than {format_bytes(can << 12)}"
            return cap, f"{write_bytes(cap << 12)} is {self._most:.0%} of its memory, the most a balloon takes"
        return pages, ""

    # Beside balloons

    def _free_held(self, guests: list[Guest], pages: int) -> None:
        """Make reusable what guests gave up under their segments: of the VM that has most of it, one at a time."""
        holding = [guest for guest in guests if guest.vm.held_pages and guest.vm.name not in self._freeing]
        if not holding or self._freeing:
            return
        guest = max(holding, key=lambda one: (one.vm.held_pages, one.vm.name))
        self._freeing.add(guest.vm.name)
        self.env.process(while_it_lives(self._making_reusable(guest, pages)))

    def _making_reusable(self, guest: Guest, pages: int) -> Generator[Event, object, None]:
        try:
            freed = yield from self.held_memory.freeing(guest.balloon, pages, cause=self._row)
        finally:
            self._freeing.discard(guest.vm.name)
        if not freed.pages and freed.why and self._said.get(f"trim {guest.vm.name}") != freed.why:
            self._said[f"trim {guest.vm.name}"] = freed.why
            self.recorder.decide(
                "vmm",
                "trim",
                vm=guest.vm.name,
                asked=f"{pages} pages",
                outcome="failed",
                why=freed.why,
                cause=self._row,
            )

    def _press(self, guests: list[Guest]) -> None:
        """Swap when the state is hard or worse, and let VMs wait when it is low."""
        at = STATES.index(self.state)
        if at >= STATES.index("hard") and self.swap_out is not None:
            short = (int(self._soft * self.reserve_bytes) >> 12) - self.vmm.host.spare_pages
            if short > 0:
                self._swap(short)
        if self.state == "low" and self.env.now >= self._blocked_until:
            self._blocked_until = int(self.env.now) + self.every_ns
            for guest in guests:
                self._block(guest)

    def _swap(self, pages: int) -> None:
        assert self.swap_out is not None
        went = self.swap_out(pages)
        why = "" if went else "nothing may be swapped out, or swap space is full"
        if went or self._said.get("swap") != why:
            self.recorder.decide(
                "host_manager", "swap_out", asked=write_bytes(pages << 12), got=write_bytes(went << 12),
                outcome="done" if went >= pages else "partial" if went else "failed", why=why, cause=self._row,
            )  # fmt: skip
        self._said["swap"] = why

    def _block(self, guest: Guest) -> None:
        """Let a VM that has more than its target wait until the next look."""
        vm = guest.vm
        kept = vm.memory_pages - vm.exchanged_pages - vm.balloon_target_pages
        if guest.vcpus is not None and vm.resident_pages > kept:
            vm.stall_ns["blocked"] += vm.description.vcpus * self.every_ns


def _unset(guest: Guest, pages: int, cause: int) -> Generator[Event, object, int]:
    raise NotImplementedError("nobody said how balloons are resized")
