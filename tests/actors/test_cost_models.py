"""Lives whose every access is translated, lives that are sampled, and the two cost models: what must agree."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest

from tests.actors.sampled import GIVEN
from tests.actors.small import TOY_MACHINE
from tests.actors.toys import MIB, S, toy, toy_vm
from vmmsim import strict
from vmmsim.actors.measuring import Meter
from vmmsim.config import Machine
from vmmsim.errors import BadInput
from vmmsim.scenario import Measure, Scenario
from vmmsim.scenario_checks import check_scenario
from vmmsim.simulation import Simulation

LINEAR, HIERARCHY = ("linear",), ("hierarchy",)
MODES = ("base", "vmm-direct", "guest-direct", "dual-direct")
LARGER = {**TOY_MACHINE, "l2_tlb": [{"entries": 64, "ways": 4, "pages": ["4K"]}]}
"""A machine whose L2 TLB holds a quarter of what the programs here use, so that hits and misses are both frequent."""


def described(**told: Any) -> Scenario:
    """Return a quarter of a second of GUPS in 1 MiB of small pages."""
    vm = {"footprint_bytes": MIB, "thp": "never", **told.pop("vm", {})}
    measure = Measure(window=1000, every_ns=S // 40, complete=told.pop("complete", False))
    return toy({"db": toy_vm(8 * MIB, **vm)}, until_ns=S // 4, detail="full", measure=measure, **told)


def lived(**told: Any) -> tuple[Simulation, Meter]:
    """Live it; return the simulation and what measured its VM."""
    sim = Simulation(described(**told), machine=strict.structure(Machine, LARGER, "a larger toy"))
    sim.prices = GIVEN  # prices calibrated at different moments differ by chance, which no interval tells
    assert sim.run()
    vcpus = sim.guests["db"].vcpus
    assert vcpus is not None
    return sim, vcpus.meter


def translated(sim: Simulation) -> int:
    """Return how many accesses the tables tell of."""
    return sum(sim.recorder.tables()["walks"]["accesses"].to_pylist())


class TestComplete:
    @pytest.mark.parametrize("vcpus", [1, 3])
    def test_every_access_is_translated_and_once(self, vcpus: int) -> None:
        sim, meter = lived(complete=True, vm={"vcpus": vcpus})
        vm = sim.guests["db"].vm
        assert vm.progress > 5 * (1 << 16), "else a stratum or two are all"
        # A stratum is run before its time passes: the last one is cut short by the end of the run.
        assert vm.progress <= translated(sim) <= vm.progress + (1 << 16)
        assert meter.overheads.interval() == (meter.overheads.overhead,) * 2, "nothing is estimated"

    def test_a_sampled_life_translates_a_part(self) -> None:
        sim, _ = lived()
        assert translated(sim) < sim.guests["db"].vm.progress / 10

    def test_what_is_sampled_agrees_with_it(self) -> None:
        """In 20 of 24 lives at least, by intervals of 95 % and bias bounds: less has a chance of 1 %."""
        inside = 0
        for mode, costs, seed in itertools.product(("base", "vmm-direct"), (LINEAR, HIERARCHY), range(1, 7)):
            _, complete = lived(complete=True, seed=seed, costs=costs, vm={"mode": mode})
            _, sampled = lived(seed=seed, costs=costs, vm={"mode": mode})
            exact, told = complete.overheads.overhead, sampled.overheads
            low, high = told.interval()
            inside += low - told.bias - complete.overheads.bias <= exact <= high
            assert told.overhead == pytest.approx(exact, rel=0.1)
            assert exact > 0.1, "there is something to agree on"
        assert inside >= 20


def test_the_rate_of_a_program_s_beginning_is_not_that_of_what_comes() -> None:
    """GUPS goes through its table in order at first, and misses once a page; then three of four accesses miss."""
    sim, meter = lived()
    rows = [row for row in sim.recorder.tables()["vms"].to_pylist() if row["overhead"] is not None]
    first, later = (
        [row["overhead"] for row in rows if (row["progress"] >= meter.workload.begins) == past]
        for past in (False, True)
    )
    assert max(first) < min(later) / 10


class TestHierarchy:
    @pytest.mark.parametrize("mode", ["base", "guest-direct"])
    def test_it_drives_time_and_is_what_overheads_are(self, mode: str) -> None:
        """Of a complete life whose modes do not change all is counted: walk cycles over ideal ones by the counters."""
        sim, meter = lived(complete=True, costs=HIERARCHY, vm={"mode": mode})
        walks = sim.recorder.tables()["walks"]
        per_access = sum(walks["walk_cycles"].to_pylist()) / translated(sim)
        assert meter.overheads.overhead == pytest.approx(per_access / meter.workload.ideal_cycles, rel=0.02)

    def test_beside_the_linear_model_it_changes_nothing_but_its_own_counters(self) -> None:
        """Caches take no part in translation, and what the linear model says of it is the same."""
        alone, _ = lived(complete=True, costs=LINEAR)
        beside, _ = lived(complete=True, costs=("linear", "hierarchy"))
        for name in ("vms", "decisions", "host"):
            assert alone.recorder.tables()[name] == beside.recorder.tables()[name]

    def test_it_is_slower_where_memory_is_farther(self) -> None:
        """The same accesses in fewer seconds or more: the first model named is the one that the clock goes by."""
        done = {}
        for cycles in (100, 1000):
            caches = {**TOY_MACHINE["caches"], "memory_cycles": cycles}
            machine = strict.structure(Machine, {**LARGER, "caches": caches}, "a toy")
            sim = Simulation(described(costs=HIERARCHY), machine=machine)
            assert sim.run()
            done[cycles] = sim.guests["db"].vm.progress
        assert done[1000] < done[100]


@pytest.mark.parametrize("costs", [LINEAR, HIERARCHY], ids="-".join)
@pytest.mark.parametrize(
    ("mode", "complete"), [*((mode, False) for mode in MODES), ("base", True), ("dual-direct", True)]
)
def test_the_parts_of_time_are_all_of_it(costs: tuple[str, ...], mode: str, complete: bool) -> None:
    """Ideal cycles, walks, L2 TLB hits, faults, refills and services, by the clock: what vCPUs had from boot to end."""
    sim, meter = lived(complete=complete, costs=costs, vm={"mode": mode, "vcpus": 2})
    shares = meter.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    boot = next(one for one in sim.recorder.last(len(sim.recorder)) if (one.verb, one.outcome) == ("boot", "done"))
    begun = boot.t_ns
    spent = 2 * (S // 4 - begun)
    steady = sum(meter.overheads.stack.steady().values()) / sim.machine.frequency_hz * S
    assert steady + sum(meter.stalls_ns.values()) == pytest.approx(spent, rel=0.01)


def test_a_cost_model_of_one_s_own_is_refused_rather_than_left_out() -> None:
    scenario = described()
    mine = attrs.evolve(scenario, run=attrs.evolve(scenario.run, costs=("linear", "mine.py:Cost")))
    with pytest.raises(BadInput, match=r"run\.costs\[1\]: cost models of your own are not called yet"):
        check_scenario(mine)
