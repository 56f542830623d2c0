"""Hosts and VMs that live for the length of a test: a simulation, and scripts run on it step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs

from vmmsim.actors.guest import Guest
from vmmsim.scenario_file import checked
from vmmsim.simulation import Simulation

GIB = 1 << 18
"""Pages."""
MIB = 1 << 8
S = 10**9
Script = Callable[[Simulation], Generator[Any, Any, Any]]

PLAIN = """
title = "without walk caches"
frequency = "2.2GHz"
l1_data_tlb = [{ entries = 64, ways = 4, pages = ["4K"] }]
l1_instruction_tlb = [{ entries = 64, ways = 4, pages = ["4K"] }]
l2_tlb = [{ entries = 512, ways = 4, pages = ["4K"] }]

[caches]
l1_data = { size = "32KiB", ways = 8, cycles = 4 }
l1_instruction = { size = "32KiB", ways = 8, cycles = 4 }
l2 = { size = "256KiB", ways = 8, cycles = 12 }
l3 = { size = "2560KiB", ways = 20, cycles = 30 }
memory_cycles = 200
"""
"""A machine on which every miss walks from the root: no walk caches, no nested TLB."""
HOST = {"memory": "4GiB", "kernelcore": "1GiB"}


def simulation(
    *, host: dict[str, Any] | None = None, machine: str = "", until: str = "1d", check: bool = False, **parts: Any
) -> Simulation:
    """Return a simulation of a scenario given as plain data; ``machine``: text of a machine file."""
    folder = Path(tempfile.mkdtemp())
    told = {**HOST, **(host or {})}
    if machine:
        (folder / "plain.toml").write_text(machine)
        told["machine"] = "plain.toml"
    data = {"host": told, "run": {"until": until}, **parts}
    if "vm" not in parts:
        data["run"]["script"] = "nothing.py:nothing"
        (folder / "nothing.py").write_text("def nothing(sim):\n    yield sim.sleep(0)\n")
    scenario = checked(data, name="test", folder=folder)
    if "vm" not in parts:
        scenario = attrs.evolve(scenario, vm={}, run=attrs.evolve(scenario.run))
    return Simulation(scenario, check=check)


def live(sim: Simulation, script: Script, *args: Any) -> Any:
    """Run ``script(sim, ...)``, a generator, to its end on the simulation's clock, and return its value."""
    started = sim.env.process(script(sim, *args))
    while not started.triggered:
        sim.env.step()
        if sim.checked:
            from vmmsim.actors.invariants import check_all

            check_all(sim.vmm, sim.engine, sim.guests.values())
    if not started.ok:
        raise started.value
    return started.value


def boot(sim: Simulation, name: str = "vm", **described: Any) -> Guest:
    """Boot a VM and return its actors."""

    def script(sim: Simulation) -> Generator[Any, Any, None]:
        yield sim.boot(name, **described)

    live(sim, script)
    return sim.guests[name]


def timed(sim: Simulation, doing: Generator[Any, Any, Any]) -> tuple[Any, int]:
    """Run a generator of an actor to its end; return its value and the nanoseconds that it took."""
    began = int(sim.env.now)

    def script(sim: Simulation) -> Generator[Any, Any, Any]:
        return (yield from doing)

    value = live(sim, script)
    return value, int(sim.env.now) - began
