"""Random lives of toy hosts: verbs in any order and at any time, some while others are under way, all recounted."""

from __future__ import annotations

from collections import Counter

import simpy

from tests.actors.toys import MACHINE, MIB
from vmmsim.errors import Refused
from vmmsim.jit import INTERPRETED
from vmmsim.scenario import VM, Scenario
from vmmsim.scenario.host import Compaction
from vmmsim.testing import SystemMachine, toy_scenario, toy_vm

LIVES = 2 if INTERPRETED else 5
RULES = 15 if INTERPRETED else 45


def small(seed: int) -> Scenario:
    """Two small VMs on a host that is nearly too small for segments of both; churn and daemons live too."""
    vms = {
        "a": toy_vm(32 * MIB, mode="dual-direct"),
        "b": toy_vm(24 * MIB, footprint_bytes=6 * MIB, thp=("always", "never")[seed % 2]),
    }
    return scenario(vms, seed, host_bytes=(96 + 16 * (seed % 3)) * MIB)


def large(seed: int) -> Scenario:
    """A VM that memory can be plugged into."""
    vms = {"a": toy_vm(160 * MIB, mode="dual-direct", footprint_bytes=16 * MIB), "b": toy_vm(24 * MIB)}
    return scenario(vms, seed, host_bytes=512 * MIB)


def scenario(vms: dict[str, VM], seed: int, *, host_bytes: int) -> Scenario:
    host = {
        "compaction": Compaction(bandwidth_bytes_per_second=1 << 25 + seed % 6),
        "thp": ("always", "never")[seed % 4 == 3],
    }
    return toy_scenario(vms, machine=MACHINE, host_bytes=host_bytes, until_ns=10**13, seed=seed, host=host)


def test_random_lives_pass_every_check_and_meet_enough() -> None:
    """In one test, so that what all lives together met can be counted whoever runs them."""
    met: Counter[str] = Counter()
    for seed in range(LIVES):
        machine = SystemMachine(small(seed) if seed % 4 else large(seed), seed=seed)
        machine.run(RULES)
        met.update(machine.counts)
    if INTERPRETED:
        return
    least = {"events": 2000, "refused": 10, "dual-direct": 50, "vmm-direct": 50, "guest-direct": 50, "base": 50}
    least |= dict.fromkeys([name for name in dir(SystemMachine) if name.startswith("do_")], 5)
    assert not {name: met[name] for name, most in least.items() if met[name] < most}


def test_users_add_rules_of_their_own() -> None:
    class Mine(SystemMachine):
        def do_nothing_at_all(self) -> simpy.Process:
            return self.sim.env.process(self.waiting())

        def do_refuse(self) -> None:
            raise Refused("mine", why="it always is")

        def waiting(self) -> object:
            yield self.sim.sleep("1ms")

    machine = Mine(small(1), seed=1)
    assert {"do_nothing_at_all", "do_refuse", "do_boot"} <= set(machine.rules)
    machine.follow("do_refuse")
    machine.follow("do_nothing_at_all")
    assert machine.counts["refused"] == 1
    machine.advance(2 * 10**6)
    assert machine.open == []
