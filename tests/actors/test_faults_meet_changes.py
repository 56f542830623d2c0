"""DRAM faults that strike frames in the middle of a change: being copied, leased for a segment, or several at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.actors.toys import MIB, S, doing, lived, toy_vm, until, until_event
from vmmsim.memory.frames import Kind
from vmmsim.scenario.host import Compaction
from vmmsim.simulation import Simulation

SLOW = Compaction(bandwidth_bytes_per_second=1 << 20, proactiveness=0)
"""So slow that a test finds every copy under way."""


def told(sim: Simulation, *verbs: str) -> list[tuple[str, str, str]]:
    """Return (verb, VM, outcome) of each decision with one of ``verbs``."""
    rows = [sim.recorder.decision(row) for row in range(len(sim.recorder))]
    return [(one.verb, one.vm, one.outcome) for one in rows if one.verb in verbs]


def step_until(sim: Simulation, there: Any, most: int = 2000) -> None:
    """Take events, checked, until ``there()`` holds."""
    for _ in range(most):
        if there():
            return
        until_event(sim)
    raise AssertionError("it never came to that")


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
