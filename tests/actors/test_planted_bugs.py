"""Bugs planted one at a time into the actors: a check after some event, or a law of accounting, must find each.

Each is one behaviour replaced while a life runs that passes without it; no bug is found by a life that does not meet
it, so that every life is lived unharmed first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.actors.toys import MIB, S, doing, lived, toy_vm, until
from vmmsim.actors import faults, guest_os, guest_segment, segment_builder, vm, vmm
from vmmsim.actors.balloon import Balloon
from vmmsim.actors.compactor import Compactor
from vmmsim.actors.hotplug import Hotplug
from vmmsim.actors.self_balloon import SelfBalloon
from vmmsim.memory.frames import PINNED, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.scenario.host import Compaction

Patch = pytest.MonkeyPatch


# Lives: each meets what a bug changes, and ends with what must hold.


def balloons() -> None:
    """Give up pages outside a segment and under one; leave it, and come back."""
    sim, guest = lived({"db": toy_vm(mode="vmm-direct"), "web": toy_vm(24 * MIB)})
    before = sim.host.count(kind=Kind.USER)
    doing(sim, sim.vm("web").balloon.inflate("4MiB"))
    gone = guest_of(sim, "web").ballooned_pages
    assert gone == 4 * MIB >> 12
    assert np.all(guest_of(sim, "web").nested.translate(guest_of(sim, "web").given_up(0, 24 * MIB >> 12)) < 0)
    doing(sim, sim.vm("db").balloon.inflate("4MiB"))
    doing(sim, sim.vm("db").want("base"))
    assert sim.host.count(kind=Kind.USER) <= before - (4 * MIB >> 12)
    doing(sim, sim.vm("db").balloon.deflate("2MiB"))
    doing(sim, sim.vm("db").want("vmm-direct"))
    assert guest.vm.held_pages == 2 * MIB >> 12


def under_segments(sim: Any) -> Any:
    """Return uint8[frames]: every bit set for frames that a VMM segment reaches, and for those nothing moves anyway."""
    reached = np.where(sim.host.kinds(np.arange(sim.host.pages)) == Kind.USER, 0, 0xFF).astype(np.uint8)
    for guest in sim.guests.values():
        if (segment := guest.vm.vmm_segment) is not None:
            reached[segment.base + segment.offset : segment.limit + segment.offset] = 0xFF
    return reached


def guest_of(sim: Any, name: str) -> Any:
    return sim.guests[name].vm


def faulty() -> None:
    """Strike pages under a segment, and elsewhere, while the workload runs."""
    vms = {"db": toy_vm(mode="vmm-direct"), "web": toy_vm(24 * MIB)}
    sim, _ = lived(vms)
    for gfn in (100, 4000, 7000):
        doing(sim, sim.fault(fault="bit", vm="db", gfn=gfn))
    used = np.flatnonzero(guest_of(sim, "web").nested.translate(np.arange(24 * MIB >> 12)) >= 0)
    doing(sim, sim.fault(fault="bit", vm="web", gfn=int(used[5])))
    until(sim, int(sim.env.now) + S)
    assert guest_of(sim, "db").mode == "vmm-direct"
    assert len(guest_of(sim, "db").vmm_segment.filter.members) == 3
    assert sim.host.count(kind=Kind.BAD) == 4


def crowded() -> None:
    """Compact a host on which VMs come, go and have segments, with churn, while workloads run."""
    vms = {
        "old": toy_vm(24 * MIB),
        "db": toy_vm(mode="dual-direct", boot_ns=S // 100),
        "web": toy_vm(24 * MIB, mode="base", thp="never"),
    }
    told = {"compaction": Compaction(bandwidth_bytes_per_second=1 << 30, proactiveness=0), "thp": "never"}
    sim, _ = lived(vms, at_ns=S // 20, host=told)
    doing(sim, sim.shutdown("old"))
    assert doing(sim, sim.compact()) > 0
    doing(sim, sim.vm("web").want("vmm-direct"))
    assert guest_of(sim, "web").mode == "vmm-direct"
    doing(sim, sim.vm("web").want("base"))
    doing(sim, sim.vm("web").balloon.inflate("8MiB"))
    doing(sim, sim.vm("web").balloon.deflate("4MiB"))
    assert doing(sim, sim.env.process(sim.guests["web"].compactor.compacting())) > 0
    assert not np.any(sim.host.frames["mark"] & PINNED & ~under_segments(sim)), "pinned, and under no segment"
    for name in list(sim.guests):
        doing(sim, sim.shutdown(name))
    assert not sim.host.count(kind=Kind.USER)


def exchanging() -> None:
    """Self-balloon 128 MiB in a guest of 320 MiB, and plug memory in and out."""
    sim, guest = lived({"db": toy_vm(320 * MIB)}, host_bytes=768 * MIB)
    memory = guest.vm.guest
    before = memory.present_pages - memory.count(kind=Kind.BALLOON)
    done = doing(sim, sim.vm("db").self_balloon("128MiB"))
    assert done.end - done.start == 128 * MIB >> 12
    assert memory.present_pages - memory.count(kind=Kind.BALLOON) == before
    assert guest.vm.exchanged_pages == 128 * MIB >> 12
    doing(sim, sim.vm("db").hot_add("128MiB"))
    assert doing(sim, sim.vm("db").hot_remove("128MiB")) == 128 * MIB


def guest_segments() -> None:
    """Put a program's memory under a guest segment, which copies all of it, and take the segment away again."""
    sim, _ = lived({"db": toy_vm(thp="never")})
    doing(sim, sim.vm("db").want("guest-direct"))
    doing(sim, sim.vm("db").want("base"))
    until(sim, int(sim.env.now) + S)


LIVES = (balloons, faulty, crowded, exchanging, guest_segments)


# Bugs


def nothing(*_: Any, **__: Any) -> None:
    return None


def no_flush(patch: Patch) -> None:
    patch.setattr(vmm.Vmm, "flush", nothing)


def guest_does_not_invalidate(patch: Patch) -> None:
    patch.setattr(guest_os.GuestOs, "invalidate", nothing)


def no_pins(patch: Patch) -> None:
    patch.setattr(vmm.Vmm, "_pin", nothing)


def pins_stay(patch: Patch) -> None:
    pin = vmm.Vmm._pin
    patch.setattr(vmm.Vmm, "_pin", lambda self, one, *, pinned: pin(self, one, pinned=True) if pinned else None)
    patch.setattr(Memory, "unpin", nothing)


def balloon_keeps_frames(patch: Patch) -> None:
    patch.setattr(vmm.Vmm, "release", lambda self, one, gfns: 0)


def balloon_ignores_segments(patch: Patch) -> None:
    patch.setattr(vmm.Vmm, "release", lambda self, one, gfns: self.unback(one, gfns))


def held_is_never_ended(patch: Patch) -> None:
    def leave(self: Any, one: Any, why: str) -> None:
        given, one.given_up = one.given_up, lambda start, end: np.empty(0, np.int64)
        real(self, one, why)
        one.given_up = given

    real = vmm.Vmm.leave_segment
    patch.setattr(vmm.Vmm, "leave_segment", leave)


def balloon_loses_count(patch: Patch) -> None:
    real = Balloon.give_back

    def give_back(self: Any, pages: int) -> int:
        self.vm.ballooned_pages += 1
        return real(self, pages)

    patch.setattr(Balloon, "give_back", give_back)


def escapes_without_moving(patch: Patch) -> None:
    patch.setattr(faults.Faults, "_replace", nothing)


def escapes_without_the_filter(patch: Patch) -> None:
    patch.setattr(vmm.Vmm, "reload_filter", nothing)


def bad_frames_are_lent_again(patch: Patch) -> None:
    patch.setattr(Memory, "retire", lambda self, frames: self.give_back(frames))


def tables_are_forgotten(patch: Patch) -> None:
    def depart(self: Any, one: Any) -> None:
        patch.setattr(one.nested, "free", nothing)
        patch.setattr(self.host, "owned", lambda owner: np.empty(0, np.int64))
        real(self, one)

    real = vmm.Vmm.depart
    patch.setattr(vmm.Vmm, "depart", depart)


def contexts_are_forgotten(patch: Patch) -> None:
    from vmmsim.translation.engine import Engine

    patch.setattr(Engine, "forget", nothing)


def commits_out_of_place(patch: Patch) -> None:
    real = segment_builder.commit

    def commit(vmm: Any, vm: Any, lease: Any) -> str:
        gfn = np.array([lease.limit - 1])
        vmm.move(vm, gfn, vmm.take_for(vm, gfn))
        patch.setattr(np, "all", lambda *_: True)
        try:
            return real(vmm, vm, lease)
        finally:
            patch.setattr(np, "all", ALL)

    patch.setattr(segment_builder, "commit", commit)


ALL = np.all


def lease_is_kept(patch: Patch) -> None:
    real = Memory.release

    def release(self: Any, token: Any) -> None:
        if not token.by.startswith("lease of"):
            real(self, token)

    patch.setattr(Memory, "release", release)


def exchange_keeps_its_lease(patch: Patch) -> None:
    patch.setattr(SelfBalloon, "hand_over", nothing)


def backing_is_miscounted(patch: Patch) -> None:
    real = vm.VirtualMachine.note_backing

    def note(self: Any, gfns: Any, change: int, *, size_pages: int = 1) -> None:
        real(self, gfns[1:], change, size_pages=size_pages)

    patch.setattr(vm.VirtualMachine, "note_backing", note)


def two_blocks_for_one(patch: Patch) -> None:
    real = Hotplug.adding

    def adding(self: Any, pages: int, *, at: int | None = None) -> Generator[Any, Any, Any]:
        first, end = yield from real(self, pages, at=at)
        if at is not None:
            self.vm.guest.add(end, end + pages)
            self.vm.note_memory(end, end + pages, True)
            self.vm.added_pages += pages
        return first, end

    patch.setattr(Hotplug, "adding", adding)


def plugged_memory_is_not_noted(patch: Patch) -> None:
    patch.setattr(vm.VirtualMachine, "note_memory", nothing)


def compactor_moves_books_only(patch: Patch) -> None:
    patch.setattr(Compactor, "carry_out", nothing)


def guest_moves_books_only(patch: Patch) -> None:
    patch.setattr(guest_os.GuestOs, "move", nothing)


def guest_segment_is_not_pinned(patch: Patch) -> None:
    real = guest_segment.enter

    def enter(os: Any, region: Any, first: int) -> int:
        copies = real(os, region, first)
        os.vm.guest.frames["mark"][first : first + region.pages] &= 0xFF ^ PINNED
        return copies

    patch.setattr(guest_segment, "enter", enter)


class Bug(NamedTuple):
    """A behaviour replaced, and the life that meets it."""

    plant: Callable[[Patch], None]
    life: Callable[[], None]


BUGS = (
    Bug(no_flush, balloons),
    Bug(no_flush, faulty),
    Bug(no_flush, crowded),
    Bug(guest_does_not_invalidate, guest_segments),
    Bug(no_pins, balloons),
    Bug(pins_stay, crowded),
    Bug(balloon_keeps_frames, balloons),
    Bug(balloon_ignores_segments, balloons),
    Bug(held_is_never_ended, balloons),
    Bug(balloon_loses_count, balloons),
    Bug(escapes_without_moving, faulty),
    Bug(escapes_without_the_filter, faulty),
    Bug(bad_frames_are_lent_again, faulty),
    Bug(tables_are_forgotten, crowded),
    Bug(contexts_are_forgotten, crowded),
    Bug(commits_out_of_place, balloons),
    Bug(lease_is_kept, balloons),
    Bug(exchange_keeps_its_lease, exchanging),
    Bug(backing_is_miscounted, crowded),
    Bug(two_blocks_for_one, exchanging),
    Bug(plugged_memory_is_not_noted, exchanging),
    Bug(compactor_moves_books_only, crowded),
    Bug(guest_moves_books_only, crowded),
    Bug(guest_segment_is_not_pinned, crowded),
)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_each_life_passes_unharmed(life: Callable[[], None]) -> None:
    life()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.plant.__name__}-{bug.life.__name__}")
def test_a_planted_bug_is_found(bug: Bug, monkeypatch: Patch) -> None:
    """By an assertion, or by a layer below that refuses to go along."""
    bug.plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, RuntimeError, LookupError)):
        bug.life()
