"""Live migration: copy a VM's memory while it runs, what it wrote meanwhile again, and the rest while it stands still.

Pre-copy, as QEMU does it. Round 0 copies all memory that has a frame, or lies in swap space, at a bandwidth; each
further round what was written in the one before. When the rest fits into the downtime that is allowed, the vCPUs stop
and it is copied. The host that it is copied to is outside the model: at the end the VM leaves, or it goes on here and
that was a rehearsal.

Copying takes nothing from the vCPUs but the exits of dirty logging. Every page is sent whole: pages of zeros are not
told from others. What lies in swap space is read from there, and stays. The state of devices is not modelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.activity import Activity
from vmmsim.actors.backing import VmLost
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.costs import copy_ns
from vmmsim.actors.dirty_log import DirtyLog
from vmmsim.addresses import format_bytes, format_duration, write_bytes
from vmmsim.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.guest import Guest
    from vmmsim.decisions import Outcome, Recorder
    from vmmsim.scenario.events import MigrateEvent

CHUNK_PAGES: Final = 1 << 13
"""Pages that are sent between two looks at the clock: 32 MiB."""
LOOKS: Final = 8
"""How often the log is looked at in a round, at most, so that exits are charged about when they happen,"""
LOOK_NS: Final = 1_000_000_000
"""and how far apart, at least: each look begins a stratum, which is sampled."""
_NONE: Final = np.empty(0, np.int64)


@attrs.frozen(kw_only=True)
class Round:
    """A round that was copied while the VM ran."""

    sent_pages: int
    dirtied_pages: int
    """Written to meanwhile: to be copied next."""
    ns: int


@attrs.frozen(kw_only=True)
class Migrated:
    """What came of a migration."""

    outcome: Outcome
    """"done"; "failed" if it did not converge; "aborted" if the VM ended."""
    rounds: tuple[Round, ...]
    last_pages: int
    """Copied while the vCPUs stood still."""
    downtime_ns: int
    total_ns: int
    exits: int
    """Exits that dirty logging took."""
    throttled: float
    """Share of their time that auto-converge kept the vCPUs from running, in the end."""

    @property
    def sent_pages(self) -> int:
        """All pages sent, each as often as it was."""
        return sum(one.sent_pages for one in self.rounds) + self.last_pages


class Migration:
    """One migration of one VM. ``abort_build``: ends the build of its VMM segment; ``depart``: ends the VM."""

    def __init__(
        self,
        env: Environment,
        guest: Guest,
        recorder: Recorder,
        order: MigrateEvent,
        *,
        abort_build: Callable[[str], None],
        depart: Callable[[str], None],
    ) -> None:
        self.env = env
        self.guest = guest
        self.vm = guest.vm
        self.recorder = recorder
        self.order = order
        self.bandwidth = order.bandwidth_bytes_per_second
        self.log = DirtyLog(guest.os.vmm, guest.vm, order.logging, self._position)
        self._abort_build = abort_build
        self._depart = depart
        self._rounds: list[Round] = []
        self._left = _NONE
        self._last_pages = self._downtime_ns = 0
        self._throttle = 0.0
        self._began_ns = 0
        self._row = -1
        self._owns_activity = False

    def migrating(self) -> Generator[Event, object, Migrated]:
        """Migrate the VM; ``Refused`` if it is being migrated already, or the machine cannot log as asked."""
        vm = self.vm
        self._admit()
        self._began_ns, size = int(self.env.now), write_bytes(self._there(np.arange(vm.guest.pages)).size << 12)
        self._row = self.recorder.decide("migration", "migrate", vm=vm.name, asked=size, outcome="begun")
        self._abort_build("given up: the VM is migrated")
        self.guest.controller.stand_back("migration", cause=self._row)
        self._watch_program()
        try:
            self.log.begin()
            converged = yield from self._precopying()
            if converged and vm.running:
                yield from self._stopping()
        except VmLost:
            converged = False
        outcome: Outcome = "aborted" if not vm.running else "done" if converged else "failed"
        done = self._report(outcome)
        self.recorder.decide(
            "migration", "migrate", vm=vm.name, asked=size, got=write_bytes(done.sent_pages << 12), outcome=outcome,
            why=self._why(done), cost_ns=done.total_ns, cause=self._row,
        )  # fmt: skip
        self._finish(leaves=outcome == "done" and self.order.then == "leave")
        return done

    def _admit(self) -> None:
        vm = self.vm
        if vm.dirty_log is not None:
            raise Refused("migrate", vm=vm.name, why="it is being migrated already")
        if self.order.logging == "pml" and not self.guest.os.engine.machine.switches.ept_accessed_dirty:
            raise Refused("migrate", vm=vm.name, why="PML needs dirty bits in nested tables, which the machine lacks")

    # Rounds

    def _precopying(self) -> Generator[Event, object, bool]:
        """Copy rounds until the rest can be sent within the downtime; False if that never comes, or the VM is gone."""
        gfns, most = self._there(np.arange(self.vm.guest.pages)), int(rates.number("migration.max_rounds"))
        while True:
            began = int(self.env.now)
            sent = yield from self._sending(gfns, looks=LOOKS)
            if not self.vm.running:
                return False
            gfns = self._there(self.log.collect())
            done = Round(sent_pages=sent, dirtied_pages=int(gfns.size), ns=int(self.env.now) - began)
            self._rounds.append(done)
            self.recorder.decide(
                "migration", "copy_round", vm=self.vm.name, asked=f"{sent} pages", got=f"{gfns.size} pages",
                outcome="done", why="written meanwhile, to be copied again", cost_ns=done.ns, cause=self._row,
            )  # fmt: skip
            if copy_ns(int(gfns.size), self.bandwidth) <= self.order.downtime_ns:
                self._left = gfns
                return True
            if len(self._rounds) >= most:
                return False
            if self.order.auto_converge and done.dirtied_pages > rates.number("migration.throttle_from") * sent:
                self._throttle_more()

    def _throttle_more(self) -> None:
        """Keep the vCPUs from running for more of their time."""
        first, step, most = (rates.number(f"migration.throttle_{what}") for what in ("first", "step", "most"))
        if self.guest.vcpus is not None and self._throttle < most:
            self._throttle = min(self._throttle + step, most) if self._throttle else first
            self.guest.vcpus.throttle(self._throttle)
            self.recorder.decide(
                "migration", "throttle", vm=self.vm.name, got=f"{self._throttle:.0%}", outcome="done", cause=self._row,
                why="it writes nearly as fast as is copied",
            )  # fmt: skip

    def _stopping(self) -> Generator[Event, object, None]:
        """Stop the vCPUs, and copy what was written last; what daemons of the guest write meanwhile is copied, too."""
        began, vcpus = int(self.env.now), self.guest.vcpus
        if vcpus is not None:
            vcpus.halt()
        gfns = np.union1d(self._left, self.log.collect())
        while gfns.size and self.vm.running:
            self._last_pages += yield from self._sending(gfns)
            gfns = self.log.collect() if self.vm.running else _NONE
        self._downtime_ns = int(self.env.now) - began
        self.recorder.decide(
            "migration", "downtime", vm=self.vm.name, got=f"{self._last_pages} pages", cause=self._row,
            outcome="done" if self.vm.running else "aborted", cost_ns=self._downtime_ns,
        )  # fmt: skip

    # Sending

    def sent(self, gfns: NDArray[np.int64]) -> None:
        """Called with each chunk when it has been sent: the destination holds now what these pages hold."""

    def _sending(self, gfns: NDArray[np.int64], *, looks: int = 0) -> Generator[Event, object, int]:
        """Send ``gfns``, chunk by chunk, and look at the log now and then; return how many pages were there to send."""
        sent, chunks = 0, -(-gfns.size // CHUNK_PAGES)
        a_look = -(-LOOK_NS // copy_ns(CHUNK_PAGES, self.bandwidth))
        every = max(-(-chunks // looks), a_look) if looks else chunks
        for chunk in range(chunks):
            some = self._there(gfns[chunk * CHUNK_PAGES : (chunk + 1) * CHUNK_PAGES])
            yield from self._read_from_swap(some)
            yield Pause(self.env, copy_ns(int(some.size), self.bandwidth), Turn.COMPACTOR)
            if not self.vm.running:
                break
            sent += int(some.size)
            self.sent(some)
            if chunk % every == every - 1 < chunks - 1:
                self.log.look()
        return sent

    def _there(self, gfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``gfns`` that hold anything: in a frame, or in swap space."""
        there = self.vm.nested.translate(gfns) >= 0
        if self.vm.swapped is not None:
            there |= self.vm.swapped[gfns] > 0
        return gfns[there]

    def _read_from_swap(self, gfns: NDArray[np.int64]) -> Generator[Event, object, None]:
        """Wait for those of ``gfns`` that lie in swap space to be read; they stay there."""
        swap = self.guest.os.vmm.swap
        if swap is not None:
            out = int(np.count_nonzero(self.vm.nested.translate(gfns) < 0))
            requests = -(-out // int(rates.number("swap.readahead_pages")))
            swap.device.reads += out
            swap.device.read_requests += requests
            yield from swap.device.transferring(out, write=False, requests=requests, turn=Turn.COMPACTOR)

    # Before and after

    def _position(self) -> int:
        return self.guest.vcpus.position() if self.guest.vcpus is not None else 0

    def _watch_program(self) -> None:
        """Have an account of the program's accesses from now on, where nobody else wants one."""
        vm, vcpus = self.vm, self.guest.vcpus
        if vm.activity is None and vm.process is not None and vcpus is not None:
            position = vcpus.position
            vm.activity = Activity(
                vm.process, vcpus.workload, position, self.guest.os.page_written, since=position()
            )  # fmt: skip
            self._owns_activity = True

    def _finish(self, *, leaves: bool) -> None:
        """Let the VM leave, or go on as if nothing had been."""
        vm, vcpus = self.vm, self.guest.vcpus
        if self._owns_activity:
            vm.activity = None
        if leaves:
            vm.dirty_log = None
            self._depart("migrated to another host")
        elif vm.running:
            self.log.end()
            self.guest.controller.go_on(cause=self._row)
        else:
            vm.dirty_log = None
        if vcpus is not None:
            vcpus.throttle(0.0)
            vcpus.resume()

    def _report(self, outcome: Outcome) -> Migrated:
        return Migrated(
            outcome=outcome,
            rounds=tuple(self._rounds),
            last_pages=self._last_pages,
            downtime_ns=self._downtime_ns,
            total_ns=int(self.env.now) - self._began_ns,
            exits=self.log.exits,
            throttled=self._throttle,
        )

    def _why(self, done: Migrated) -> str:
        if done.outcome == "aborted":
            return "the VM is gone"
        rounds = f"{len(done.rounds)} round{'s' if len(done.rounds) != 1 else ''}"
        if done.outcome == "failed":
            last = done.rounds[-1]
            return (
                f"does not converge: after {rounds}, {format_bytes(last.dirtied_pages << 12)} were written while "
                f"{format_bytes(last.sent_pages << 12)} were copied"
            )
        stays = "; a rehearsal: it goes on here" if self.order.then == "stay" else ""
        return f"{rounds}, then {format_duration(done.downtime_ns)} of standing still{stays}"
