"""Random lives with page sharing on: verbs, scans and writes in any order, all recounted after every event."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.actors.toys import MACHINE, MIB
from vmmsim.actors.guest import Guest
from vmmsim.actors.merging import Merging
from vmmsim.jit import INTERPRETED
from vmmsim.scenario import Scenario, VmMode
from vmmsim.scenario.host import Compaction, Sharing
from vmmsim.testing import SystemMachine, check, toy_scenario, toy_vm

LIVES = 1 if INTERPRETED else 3
RULES = 12 if INTERPRETED else 45


def small(seed: int, mode: VmMode = "dual-direct") -> Scenario:
    """Two small VMs that come and go, one of which wants segments, and ksmd beside them."""
    vms = {"a": toy_vm(16 * MIB, mode=mode, footprint_bytes=4 * MIB), "b": toy_vm(16 * MIB)}
    host = {
        "compaction": Compaction(bandwidth_bytes_per_second=1 << 30),
        "sharing": Sharing(),
        "thp": ("always", "never")[seed % 2],
    }
    return toy_scenario(
        vms, machine=MACHINE, host_bytes=(80, 128)[seed % 2] * MIB, until_ns=10**13, seed=seed, host=host
    )


class SharingMachine(SystemMachine):
    """Guests that come to hold equal pages, and write to them again; ksmd scans on its own, and when told."""

    def __init__(self, scenario: Scenario, *, seed: int) -> None:
        super().__init__(scenario, seed=seed)
        self.merging = self.sim.vmm.merging
        assert self.merging is not None
        move = self.merging.move

        def moving(old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
            self.counts["moved"] += old.size
            move(old, new)

        self.merging.move = moving  # type: ignore[method-assign]
        self.rules += ["do_scan", "do_equal", "do_write"] * 3

    def resident(self) -> tuple[Guest, NDArray[np.int64]]:
        guest = self.sim.guests[self.a_vm()]
        return guest, np.flatnonzero(guest.vm.nested.translate(np.arange(guest.vm.guest.pages)) >= 0)

    def do_scan(self) -> None:
        """Scan some at once."""
        assert self.sim.sharing is not None
        before = self.sim.sharing.merged_pages
        self.sim.sharing.scan(int(self.random.integers(1, 200)))
        self.counts["merged"] += self.sim.sharing.merged_pages - before
        check(self.sim)

    def do_equal(self) -> None:
        """Write the same few contents to some pages of a VM."""
        guest, gfns = self.resident()
        some = np.sort(self.random.choice(gfns, min(gfns.size, 400), replace=False))
        self.write(guest, some, self.random.integers(0, 4, some.size).astype(np.int32))

    def do_write(self) -> None:
        """Write to some pages what nobody has."""
        guest, gfns = self.resident()
        some = self.random.choice(gfns, min(gfns.size, 200), replace=False)
        assert self.sim.vmm.contents is not None
        self.write(guest, some, self.sim.vmm.contents.fresh(some.size))

    def write(self, guest: Guest, gfns: NDArray[np.int64], held: NDArray[np.int32]) -> None:
        vm = guest.vm
        assert vm.merged is not None
        assert vm.contents is not None
        self.counts["broken"] += int(np.count_nonzero(vm.merged[gfns]))
        if not self.sim.vmm.is_busy(vm, gfns):
            self.sim.vmm.back(vm, gfns)
            vm.contents.put(gfns, held)
            check(self.sim)


def test_random_lives_with_page_sharing_pass_every_check_and_meet_enough() -> None:
    met: Counter[str] = Counter()
    for seed in range(LIVES):
        machine = SharingMachine(small(seed), seed=seed)
        machine.run(RULES)
        assert machine.sim.sharing is not None
        met.update(machine.counts)
        met["pinned"] += sum(machine.sim.sharing.refused.values())
        met["by itself"] += machine.sim.sharing.merged_pages
    if INTERPRETED:
        return
    least = {"merged": 20, "by itself": 200, "broken": 20, "moved": 5, "pinned": 20, "dual-direct": 5, "base": 20}
    assert not {name: met[name] for name, most in least.items() if met[name] < most}, met


def test_a_life_with_no_bug_planted_passes(monkeypatch: Any) -> None:
    assert not found_with(monkeypatch, "_count", _count)


def test_a_merge_that_forgets_to_protect_a_page_is_found(monkeypatch: Any) -> None:
    """A planted bug: the leaf of a merged page may still be written through."""
    assert found_with(monkeypatch, "_protect", _protect_nothing)


def test_a_break_that_counts_no_mapping_less_is_found(monkeypatch: Any) -> None:
    assert found_with(monkeypatch, "_count", lambda self, frames, change: _count(self, frames, max(change, 0)))


_count = Merging._count


def _protect_nothing(self: Merging, vm: Any, gfns: NDArray[np.int64]) -> None:
    vm.merged[gfns] = True
    vm.merged_pages += int(gfns.size)


def found_with(monkeypatch: Any, name: str, bug: Any) -> bool:
    """Return whether a life with ``bug`` in place of a method of ``Merging`` fails a check."""
    monkeypatch.setattr(Merging, name, bug)
    machine = SharingMachine(small(1, "base"), seed=1)
    try:
        machine.advance(10**9)
        for rule in ("do_equal", "do_equal", "do_scan", "do_scan", "do_scan", "do_write", "do_write", "do_write"):
            machine.follow(rule)
        machine.advance(10**9)
    except AssertionError:
        return True
    return False
