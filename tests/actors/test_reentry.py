"""Going back to a segment that was left, or wanting another mode, while something else is under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.actors.toys import MIB, S, checked, doing, lived, step_until, toy_vm, until, until_event, whys
from vmmsim.actors.segment_builder import SegmentBuilder
from vmmsim.memory.frames import ISOLATED, PINNED, Kind
from vmmsim.scenario.host import Compaction
from vmmsim.simulation import Simulation

SLOW = Compaction(bandwidth_bytes_per_second=1 << 20, proactiveness=0)
QUICK = Compaction(bandwidth_bytes_per_second=1 << 30, proactiveness=0)


def crowd(bandwidth: Compaction, **modes: Any) -> Simulation:
    """Return a host with scattered pages of two VMs; one that was there before them has gone."""
    vms = {
        "old": toy_vm(24 * MIB, thp="never"),
        "web": toy_vm(24 * MIB, thp="never", mode=modes.get("web", "base")),
        "db": toy_vm(32 * MIB, thp="never", boot_ns=S // 100, mode=modes.get("db", "base")),
    }
    sim = checked(vms, host={"compaction": bandwidth, "thp": "never"})
    until(sim, S // 20)
    doing(sim, sim.shutdown("old"))
    return sim


def holders(sim: Simulation, name: str) -> bool:
    """Tell whether frames of a VM are being copied."""
    return bool(np.any(sim.host.frames["mark"][sim.host.owned(sim.guests[name].vm.number)] & ISOLATED))


def remembering(sim: Simulation, name: str = "web") -> Any:
    """Let a VM have a segment, and leave it: the window is remembered."""
    doing(sim, sim.vm(name).want("vmm-direct"))
    doing(sim, sim.vm(name).want("base"))
    vm = sim.guests[name].vm
    assert vm.remembered is not None
    assert vm.remembered_moves == 0
    return vm


def test_a_mode_wanted_while_a_segment_is_built_is_heard() -> None:
    sim = crowd(SLOW)
    vm = sim.guests["db"].vm
    sim.vm("db").want("vmm-direct")
    step_until(sim, lambda: vm.lease is not None)
    sim.vm("db").want("base")
    until(sim, int(sim.env.now) + 1000 * S)
    assert vm.mode == "base"


@pytest.mark.parametrize("back", ["vmm-direct", "dual-direct"])
def test_what_is_wanted_back_while_a_build_is_under_way_is_had_in_the_end(back: Any) -> None:
    sim = crowd(QUICK)
    vm = sim.guests["db"].vm
    sim.vm("db").want("vmm-direct")
    step_until(sim, lambda: vm.lease is not None)
    sim.vm("db").want("base")
    sim.vm("db").want("guest-direct")
    doing(sim, sim.vm("db").want(back))
    assert vm.mode == back


def test_a_window_is_entered_again_while_compaction_copies_its_frames() -> None:
    """The copy lets go: else it would move pages out from under the segment."""
    sim, _ = lived({"web": toy_vm(24 * MIB)}, host={"compaction": QUICK})
    vm = remembering(sim, "web")
    end = vm.remembered[1] + vm.remembered[2]
    above = sim.host.take(sim.host.spare_pages, kind=Kind.USER)
    sim.host.give_back(above[(above < end) | (above % 2 == 0)])
    compacting = sim.compact()
    step_until(sim, lambda: holders(sim, "web"))
    sim.vm("web").want("vmm-direct")
    step_until(sim, lambda: vm.mode == "vmm-direct")
    assert not holders(sim, "web")
    assert whys(sim, "mode_controller", "mode")[-1].endswith("entered again")
    doing(sim, compacting)
    until(sim, int(sim.env.now) + 10 * S)
    assert vm.mode == "vmm-direct"


def test_a_window_is_entered_again_while_another_vm_s_build_evicts_it() -> None:
    sim = crowd(SLOW)
    vm = remembering(sim)
    start, end = vm.remembered[0] + vm.remembered[2], vm.remembered[1] + vm.remembered[2]
    old = np.arange(start, start + 100)
    db = sim.guests["db"].vm
    builder = SegmentBuilder(sim.env, sim.vmm, sim.recorder, db, bandwidth=1 << 20, may_evict=True)
    sim.compactor._builders[db.number] = builder
    evicting = sim.env.process(builder.eviction._evict_some(old))
    sim.env.step()
    step_until(sim, lambda: holders(sim, "web"))
    sim.vm("web").want("vmm-direct")
    step_until(sim, lambda: vm.mode == "vmm-direct")
    assert not holders(sim, "web")
    assert np.all(sim.host.frames["mark"][start:end] & PINNED)
    step_until(sim, lambda: not evicting.is_alive)
    assert vm.mode == "vmm-direct"


def test_modes_wanted_one_after_another_without_waiting_end_in_the_last() -> None:
    sim, guest = lived({"db": toy_vm(mode="dual-direct"), "web": toy_vm(24 * MIB)}, host={"compaction": QUICK})
    for wait in (0, 1, 10**6, 10**9):
        for mode in ("base", "vmm-direct", "guest-direct", "dual-direct", "base", "vmm-direct"):
            sim.vm("db").want(mode)
            until_ns = int(sim.env.now) + wait
            while wait and sim.env.peek() <= until_ns:
                until_event(sim)
        until(sim, int(sim.env.now) + 100 * S)
        assert guest.vm.mode == "vmm-direct"


def test_a_policy_that_changes_its_mind_whenever_it_is_asked_does_not_stop_the_clock() -> None:
    sim, guest = lived({"db": toy_vm(mode="vmm-direct")}, detail="full")

    class Fickle:
        asked = 0

        def wanted(self, vm: Any, host: Any) -> Any:
            self.asked += 1
            return ("base", "vmm-direct")[self.asked % 2]

    guest.controller.policy = policy = Fickle()
    guest.controller.wake()
    began = int(sim.env.now)
    while sim.env.now < began + 10 * S:
        sim.env.step()
        assert policy.asked < 30
    assert policy.asked > 2


def test_a_build_does_not_wait_for_ever_for_frames_that_nobody_lets_go_of() -> None:
    sim = crowd(QUICK)
    db = sim.guests["db"].vm
    sim.vm("db").want("vmm-direct")
    step_until(sim, lambda: db.lease is not None)
    gfns = np.arange(db.lease.base, db.lease.limit)
    frames = db.nested.translate(gfns)
    sim.compactor.disrupt()
    token = sim.host.isolate(frames[(frames >= 0) & (frames != gfns + db.lease.offset)], "somebody")
    for _ in range(20_000):
        if any("somebody" in why for why in whys(sim, "compactor", "build")):
            break
        sim.env.step()
    else:
        raise AssertionError("it waits for ever")
    sim.host.release(token)
    until(sim, int(sim.env.now) + S)


def test_a_build_keeps_off_the_window_of_a_vm_that_has_just_gone() -> None:
    sim = crowd(SLOW)
    for name in ("web", "db"):
        vm = sim.guests[name].vm
        sim.vm(name).want("vmm-direct")
        step_until(sim, lambda vm=vm: vm.lease is not None)
        if name == "web":
            sim.shutdown("web")
            step_until(sim, lambda: "web" not in sim.guests)
            assert sim.host.tokens, "its build is in the middle of a copy"
    step_until(sim, lambda: vm.mode == "vmm-direct")
