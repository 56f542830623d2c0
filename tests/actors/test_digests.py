"""The same scenario and seed leave the same rows; looking closer changes none, nor does a neighbour."""

from __future__ import annotations

from threading import Event

import attrs
import pytest

from tests.actors.toys import MACHINE, MIB, S, toy_vm
from vmmsim.decisions import Decision
from vmmsim.result import Result
from vmmsim.runs import simulate
from vmmsim.scenario import BalloonEvent, FaultEvent, Measure, ModeEvent, Scenario, ShutdownEvent
from vmmsim.simulation import Simulation
from vmmsim.testing import toy_scenario

EVENTS = (
    BalloonEvent(at_ns=S, vm="db", target_bytes=24 * MIB),
    FaultEvent(at_ns=S + S // 2, fault="bit", vm="db", segment=True),
    ModeEvent(at_ns=2 * S, vm="db", mode="base"),
    ModeEvent(at_ns=2 * S + S // 2, vm="db", mode="guest-direct"),
)
LATER = (*EVENTS, ShutdownEvent(at_ns=3 * S, vm="web"))


def scenario(*, seed: int = 1, neighbour: bool = True, **told: object) -> Scenario:
    """A life with a bit of everything, churn and sampling included."""
    vms = {"db": toy_vm(mode="dual-direct")} | ({"web": toy_vm(24 * MIB)} if neighbour else {})
    made = toy_scenario(vms, machine=MACHINE, seed=seed, until_ns=4 * S, event=LATER if neighbour else EVENTS)
    return attrs.evolve(made, **told)


@pytest.fixture(scope="module")
def first() -> Result:
    return simulate(scenario())


def test_the_same_seed_leaves_the_same_digest(first: Result) -> None:
    assert first.complete
    assert first["decisions"].num_rows > 10, "something happened"
    assert simulate(scenario()).digest == first.digest


def test_another_seed_leaves_another(first: Result) -> None:
    assert simulate(scenario(seed=2)).digest != first.digest


def test_checks_change_nothing(first: Result) -> None:
    assert simulate(scenario(), check=True).digest == first.digest


def test_being_told_of_progress_and_being_able_to_stop_change_nothing(first: Result) -> None:
    assert simulate(scenario(), progress=lambda now, end, modes: None, stop=Event()).digest == first.digest


def test_looking_at_other_modes_too_changes_no_other_number() -> None:
    plain = simulate(scenario())
    more = simulate(scenario(measure=Measure(window=1000, as_if=("guest-direct", "vmm-direct"))))
    assert more["decisions"].equals(plain["decisions"])
    shared = [name for name in plain["vms"].column_names if name in more["vms"].column_names]
    assert len(shared) > 10
    assert more["vms"].select(shared).equals(plain["vms"].select(shared))


def decisions_of(sim: Simulation, vm: str) -> list[Decision]:
    """Return what was decided about a VM, without the rows' numbers, which count other VMs' too."""
    every = sim.recorder.last(len(sim.recorder))
    return [attrs.evolve(one, row=0, cause=0) for one in every if one.vm == vm]


def test_a_neighbour_changes_no_draw_of_a_vm() -> None:
    """There is room for both and nothing is drawn for the host, so that the first lives as if it were alone."""
    sims = {}
    for neighbour in (False, True):
        vms = {"db": toy_vm(mode="guest-direct")} | ({"web": toy_vm(24 * MIB)} if neighbour else {})
        made = toy_scenario(vms, machine=MACHINE, until_ns=4 * S, event=[EVENTS[0], EVENTS[2]])
        sims[neighbour] = Simulation(made)
        sims[neighbour].run()
    alone, beside = (sims[neighbour].guests["db"].vm for neighbour in (False, True))
    assert beside.progress == alone.progress
    assert beside.guest.free_pages == alone.guest.free_pages
    assert decisions_of(sims[True], "db") == decisions_of(sims[False], "db")
