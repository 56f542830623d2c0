"""DRAM faults that strike frames in the middle of a change: being copied, leased for a segment, or several at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.actors.toys import MIB, S, checked, doing, lived, step_until, toy_vm, until
from vmmsim.actors.vm import VirtualMachine
from vmmsim.memory.compaction import Mode
from vmmsim.memory.frames import ISOLATED, NOBODY, Kind
from vmmsim.scenario.host import Compaction
from vmmsim.simulation import Simulation

SLOW = Compaction(bandwidth_bytes_per_second=1 << 20, proactiveness=0)
"""So slow that a test finds every copy under way."""


def told(sim: Simulation, *verbs: str) -> list[tuple[str, str, str]]:
    """Return (verb, VM, outcome) of each decision with one of ``verbs``."""
    rows = [sim.recorder.decision(row) for row in range(len(sim.recorder))]
    return [(one.verb, one.vm, one.outcome) for one in rows if one.verb in verbs]


def strike(sim: Simulation, frames: Any, *, correctable: bool = True) -> None:
    sim.faults.strike(np.asarray(frames), what="row", correctable=correctable)


def finished(sim: Simulation) -> None:
    """Let everything come to an end, and shut down: nobody holds anything."""
    until(sim, int(sim.env.now) + 100 * S)
    for name in list(sim.guests):
        doing(sim, sim.shutdown(name))
    assert not sim.host.count(kind=Kind.USER)
    assert not sim.host.count(kind=Kind.TABLE)


class TestTables:
    def test_two_nested_tables_of_one_vm_lost_at_once_end_that_vm_once_and_not_the_host(self) -> None:
        sim, guest = lived({"db": toy_vm(thp="never"), "web": toy_vm(24 * MIB)}, host={"thp": "never"})
        tables = guest.vm.nested.table_frames[:2]
        strike(sim, tables, correctable=False)
        assert not sim.lost
        assert list(sim.guests) == ["web"]
        assert told(sim, "lose", "shutdown") == [("lose", "db", "done"), ("shutdown", "db", "done")]
        assert (sim.host.kinds(tables) == Kind.BAD).all(), "and what has failed is not used again"
        finished(sim)

    def test_tables_of_two_vms_lost_at_once_end_both(self) -> None:
        sim, _ = lived({"db": toy_vm(), "web": toy_vm(24 * MIB)})
        tables = [one.vm.nested.table_frames[0] for one in sim.guests.values()]
        strike(sim, tables, correctable=False)
        assert not sim.lost
        assert not sim.guests
        assert (sim.host.kinds(np.array(tables)) == Kind.BAD).all()

    def test_a_vm_that_a_machine_check_ends_may_lose_tables_to_the_same_fault(self) -> None:
        sim, guest = lived({"db": toy_vm(), "web": toy_vm(24 * MIB)})
        vm = guest.vm
        kernel = vm.nested.translate(vm.guest.frames["kind"].tolist().index(Kind.KERNEL))
        struck = np.append(vm.nested.table_frames, kernel)
        strike(sim, struck, correctable=False)
        assert not sim.lost
        assert list(sim.guests) == ["web"]
        assert len(told(sim, "shutdown")) == 1
        assert (sim.host.kinds(struck) == Kind.BAD).all()

    def test_a_table_of_a_vm_that_runs_is_used_on_while_it_is_corrected(self) -> None:
        sim, guest = lived()
        strike(sim, guest.vm.nested.table_frames)
        assert guest.vm.running
        assert told(sim, "retire")[0] == ("retire", "", "refused")


def building(bandwidth: Compaction = SLOW) -> tuple[Simulation, VirtualMachine]:
    """Return a host on which the segment of "db" is being built, in the middle of a copy, with others in its window."""
    vms = {
        "old": toy_vm(24 * MIB, thp="never"),
        "web": toy_vm(24 * MIB, thp="never"),
        "db": toy_vm(48 * MIB, mode="vmm-direct", boot_ns=S // 100),
    }
    sim = checked(vms, host={"compaction": bandwidth, "thp": "never"})
    until(sim, S // 200)
    hosted = sim.host.owned(sim.guests["web"].vm.number)
    doing(sim, sim.shutdown("old"))
    assert hosted.size
    step_until(sim, lambda: "db" in sim.guests and sim.guests["db"].vm.lease is not None)
    return sim, sim.guests["db"].vm


def window(vm: VirtualMachine) -> tuple[int, int]:
    assert vm.lease is not None
    return vm.lease.base + vm.lease.offset, vm.lease.limit + vm.lease.offset


def held(sim: Simulation) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.flatnonzero(sim.host.frames["mark"] & ISOLATED)


class TestWindows:
    def test_free_frames_of_a_leased_window_that_fail_are_retired_and_escape(self) -> None:
        sim, vm = building()
        start, end = window(vm)
        free = start + np.flatnonzero(sim.host.kinds(np.arange(start, end)) == Kind.FREE)
        struck = free[[0, free.size // 2, -1]]
        strike(sim, struck)
        assert (sim.host.kinds(struck) == Kind.BAD).all()
        step_until(sim, lambda: vm.mode == "vmm-direct", 100_000)
        assert vm.vmm_segment is not None
        assert set((struck - vm.vmm_segment.offset).tolist()) <= set(vm.vmm_segment.filter.members)
        finished(sim)

    def test_frames_of_the_margin_of_a_lease_are_retired_only(self) -> None:
        sim, vm = building()
        assert vm.lease is not None
        assert vm.lease.token.range is not None
        struck = np.array([vm.lease.token.range[0], vm.lease.token.range[1] - 1])
        struck = struck[sim.host.kinds(struck) == Kind.FREE]
        strike(sim, struck)
        assert (sim.host.kinds(struck) == Kind.BAD).all()
        finished(sim)

    @pytest.mark.parametrize("correctable", [True, False], ids=["corrected", "lost"])
    def test_frames_that_a_build_is_copying_are_let_go_of_and_the_build_goes_on_or_ends(
        self, correctable: bool
    ) -> None:
        sim, vm = building()
        step_until(sim, lambda: held(sim).size)
        struck = held(sim)[:2]
        strike(sim, struck, correctable=correctable)
        assert (sim.host.kinds(struck) == Kind.BAD).all()
        assert not held(sim).size
        if correctable:
            step_until(sim, lambda: vm.mode == "vmm-direct", 100_000)
        finished(sim)

    def test_more_failed_slots_than_the_filter_takes_end_the_build_and_let_the_window_go(self) -> None:
        sim, vm = building()
        start, end = window(vm)
        free = start + np.flatnonzero(sim.host.kinds(np.arange(start, end)) == Kind.FREE)
        strike(sim, free[: vm.escape_budget + 1])
        assert vm.lease is None
        assert not sim.host.tokens
        step_until(sim, lambda: len(told(sim, "build")) > 1)
        assert ("build", "db", "aborted") in told(sim, "build")
        finished(sim)

    def test_a_spare_frame_lent_to_a_build_may_fail(self) -> None:
        sim, vm = building()
        spares = lambda: np.flatnonzero(  # noqa: E731
            (sim.host.frames["kind"] == Kind.USER) & (sim.host.frames["owner"] == NOBODY)
        )
        builder = sim.compactor._builders[vm.number]
        builder.own._spares.append(int(sim.host.take(1, kind=Kind.USER)[0]))
        struck = spares()
        strike(sim, struck)
        assert (sim.host.kinds(struck) == Kind.BAD).all()
        finished(sim)


def fragmented() -> Simulation:
    """Return a host with scattered pages that compaction would move."""
    vms = {"old": toy_vm(24 * MIB, thp="never"), "web": toy_vm(24 * MIB, thp="never")}
    sim = checked(vms, host={"compaction": SLOW, "thp": "never"})
    until(sim, S // 20)
    doing(sim, sim.shutdown("old"))
    return sim


class TestCompaction:
    @pytest.mark.parametrize("correctable", [True, False], ids=["corrected", "lost"])
    @pytest.mark.parametrize("side", ["sources", "targets"])
    def test_frames_that_compaction_is_copying_may_fail(self, side: str, correctable: bool) -> None:
        sim = fragmented()
        started = sim.compact()
        step_until(sim, lambda: held(sim).size)
        frames = held(sim)
        free = sim.host.kinds(frames) == Kind.FREE
        struck = frames[free if side == "targets" else ~free][:3]
        strike(sim, struck, correctable=correctable)
        assert (sim.host.kinds(struck) == Kind.BAD).all()
        assert not held(sim).size
        moved = doing(sim, started)
        assert moved > 0 or not sim.guests, "what it let go of is moved in the end"
        finished(sim)

    def test_two_compactions_at_once_leave_nothing_held(self) -> None:
        sim = fragmented()
        one, two = (sim.env.process(sim.compactor._run(Mode.ALL, turn_pages=64)) for _ in range(2))
        step_until(sim, lambda: len(sim.host.tokens) == 2)
        strike(sim, held(sim)[:3])
        assert not held(sim).size
        doing(sim, one)
        doing(sim, two)
        assert not sim.host.tokens
        finished(sim)
