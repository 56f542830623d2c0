"""Toy hosts for tests: the machine of the smallest caches, and a life that is checked after every event."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from vmmsim.actors.guest import Guest
from vmmsim.scenario import VM, Scenario
from vmmsim.simulation import Simulation
from vmmsim.testing import MIB, toy_scenario, toy_vm

MACHINE = Path(__file__).parents[1] / "machines" / "toy.toml"
S = 10**9


def toy(vm: dict[str, VM] | None = None, **told: Any) -> Scenario:
    return toy_scenario({"db": toy_vm()} if vm is None else vm, machine=MACHINE, **{"detail": "lifetime", **told})


def checked(vm: dict[str, VM] | None = None, **told: Any) -> Simulation:
    """Return a simulation whose VMs are about to boot."""
    sim = Simulation(toy(vm, **told), check=True)
    sim.start()
    return sim


def without_ksmd(sim: Simulation) -> Simulation:
    """Let pages be merged by the test alone: of a simulation that has not begun."""
    from vmmsim.actors.merging import Merging

    sim.vmm.merging, sim.sharing, sim.series.sharing = Merging(sim.vmm), None, None
    return sim


def until(sim: Simulation, at_ns: int) -> Simulation:
    """Let time pass until ``at_ns``, checked after every event; at the end nobody holds anything."""
    from vmmsim.testing import check

    while sim.env.peek() <= at_ns and not sim.lost:
        sim.env.step()
        check(sim)
    assert not sim.host.tokens, "tokens of the host are left open"
    for guest in sim.guests.values():
        assert not guest.vm.guest.tokens, "tokens of a guest are left open"
    return sim


def lived(vm: dict[str, VM] | None = None, *, at_ns: int = S, **told: Any) -> tuple[Simulation, Guest]:
    """Return a checked host at ``at_ns``, and its first VM."""
    sim = until(checked(vm, **told), at_ns)
    return sim, next(iter(sim.guests.values()))


def doing(sim: Simulation, started: Any, most_ns: int = 60 * S) -> Any:
    """Run, checked, until the process ``started`` ends; return its value, or raise what it raised."""
    ended: list[Any] = []

    def hear() -> Generator[Any, Any, None]:
        try:
            ended.append((yield started))
        except Exception as error:
            ended.append(error)

    sim.env.process(hear())
    end = int(sim.env.now) + most_ns
    while not ended:
        assert sim.env.peek() <= end, "it does not come to an end"
        until_event(sim)
    until(sim, int(sim.env.now))
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]


def until_event(sim: Simulation) -> None:
    """Take one event, and check."""
    from vmmsim.testing import check

    sim.env.step()
    check(sim)


def step_until(sim: Simulation, there: Any, most: int = 2000) -> None:
    """Take events, checked, until ``there()`` holds."""
    for _ in range(most):
        if there():
            return
        until_event(sim)
    raise AssertionError("it never came to that")


def whys(sim: Simulation, actor: str, verb: str) -> list[str]:
    """Return the outcome and reason of each decision of ``actor`` to ``verb``, in order."""
    return [
        f"{one.outcome}: {one.why}"
        for one in sim.recorder.last(len(sim.recorder))
        if (one.actor, one.verb) == (actor, verb)
    ]


__all__ = [
    "MIB",
    "S",
    "checked",
    "doing",
    "lived",
    "step_until",
    "toy",
    "toy_vm",
    "until",
    "until_event",
    "whys",
    "without_ksmd",
]
