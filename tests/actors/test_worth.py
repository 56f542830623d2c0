"""Whether a segment is worth entering: the rule, what is learned for it, and lives that go by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.actors.small import TOY_MACHINE
from tests.actors.toys import MIB, S, checked, doing, toy, toy_vm, until, whys
from vmmsim import rates, strict
from vmmsim.actors.worth import Dwell, Effort, Sampled, Worth, guest_effort
from vmmsim.config import Machine
from vmmsim.report.story import story
from vmmsim.result import Result
from vmmsim.simulation import Simulation

FIRST = 600 * S
"""What is expected of a first segment, in ns."""


def test_without_anything_learned_ten_minutes_are_expected() -> None:
    assert rates.number("mode.dwell_ns") == FIRST
    assert rates.sure("mode.dwell_ns") == "assumed"


def test_the_expected_dwell_is_the_time_held_over_the_times_ended() -> None:
    """By hand: 600 s to begin with, then segments of 100 s and 20 s, and one that has lasted 900 s and still lasts."""
    dwell = Dwell(FIRST)
    assert dwell.expected_ns(0) == FIRST
    dwell.entered(0)
    assert dwell.expected_ns(50 * S) == 650 * S
    dwell.ended(100 * S)
    dwell.ended(101 * S)  # what is not held does not end
    assert dwell.expected_ns(500 * S) == 350 * S
    dwell.entered(500 * S)
    dwell.ended(520 * S)
    assert dwell.expected_ns(600 * S) == 240 * S
    dwell.entered(600 * S)
    assert dwell.expected_ns(1500 * S) == 540 * S


def test_of_segments_lost_at_random_the_mean_is_learned() -> None:
    """Exponential lives of mean 40 s: after 1000 of them the prior is forgotten; the standard error is 3 %."""
    dwell, now = Dwell(FIRST), 0
    for life in np.random.default_rng(1).exponential(40 * S, 1000).astype(np.int64).tolist():
        dwell.entered(now)
        now += life
        dwell.ended(now)
    assert dwell.expected_ns(now) == pytest.approx(40 * S, rel=0.12)


def test_what_a_mode_saves_is_a_share_of_all_cycles() -> None:
    sampled = Sampled(ideal=6.0, walk={"base": 4.0, "dual-direct": 1.0})
    assert sampled.saved_share("base", "dual-direct") == pytest.approx(0.3)
    assert sampled.saved_share("dual-direct", "base") == pytest.approx(-3 / 7)
    assert sampled.saved_share("base", "vmm-direct") is None


def vm_that(**known: Any) -> Any:
    return SimpleNamespace(
        mode="base", mode_wanted="vmm-direct", description=SimpleNamespace(vcpus=4), **{"sampled": None, **known}
    )


def test_a_segment_is_entered_if_gain_times_dwell_is_more_than_twice_copies_and_stall() -> None:
    """A tenth of four vCPUs for 600 s is 240 s: copies and stall of 120 s are just too much."""
    worth = Worth(vm_that(sampled=Sampled(ideal=9.0, walk={"base": 1.0, "vmm-direct": 0.0})))
    assert worth.objection("vmm", Effort(copies_ns=100 * S, stall_ns=20 * S - 1), 0) == ""
    why = worth.objection("vmm", Effort(copied_pages=7, zeroed_pages=8, copies_ns=100 * S, stall_ns=20 * S), 0)
    assert why == (
        "not worth it: vmm-direct saves 4 min (10 % of its time) in an expected 10 min; "
        "copies (7 pages to move and 8 to zero) and stall take 2 min, and it must save 2 times that"
    )
    worth.dwells["vmm"].entered(0)
    worth.dwells["vmm"].ended(2 * S)
    assert worth.objection("vmm", Effort(copies_ns=100 * S, stall_ns=20 * S - 1), 0), "301 s are expected now"
    assert worth.objection("guest", Effort(copies_ns=100 * S, stall_ns=20 * S - 1), 0) == "", "of the other level 600"


def test_what_would_cost_more_is_not_worth_anything() -> None:
    worth = Worth(vm_that(sampled=Sampled(ideal=9.0, walk={"base": 1.0, "vmm-direct": 1.0})))
    assert "vmm-direct saves nothing" in worth.objection("vmm", Effort(), 0)


def test_what_is_not_known_is_not_weighed() -> None:
    assert Worth(vm_that()).objection("vmm", Effort(copies_ns=10**6 * S), 0) == ""
    other = Sampled(ideal=1.0, walk={"base": 1.0, "guest-direct": 0.0})
    assert Worth(vm_that(sampled=other)).objection("vmm", Effort(copies_ns=10**6 * S), 0) == ""


def test_a_guest_segment_takes_copies_and_what_exchanging_memory_takes() -> None:
    """By the published rates: 2.5 us a page moved in the guest; 4.14 us a page of the balloon, 1.227 ms a block."""
    assert guest_effort(1000, 0) == Effort(copied_pages=1000, copies_ns=2_500_000)
    exchanged = guest_effort(0, 2 << 15)
    assert exchanged.copies_ns == 0
    assert exchanged.stall_ns == (2 << 15) * 4140 + 2 * 1_227_000


class TestLives:
    """An idle VM is never sampled, so that what its samples say can be said here."""

    def living(self, **vm: Any) -> tuple[Simulation, Any]:
        sim = until(checked({"db": toy_vm(mode="vmm-direct", footprint_bytes=None, **vm)}), S)
        sim.env.run(until=S)
        return sim, sim.guests["db"]

    def lose(self, sim: Simulation, guest: Any, *, saved: float) -> None:
        guest.vm.sampled = Sampled(ideal=1.0, walk={"base": saved, "vmm-direct": 0.0})
        sim.vmm.leave_segment(guest.vm, "test")
        until(sim, int(sim.env.now) + S)

    def test_before_any_sample_it_gets_what_it_wants(self) -> None:
        _, guest = self.living()
        assert guest.vm.mode == "vmm-direct"

    def test_what_is_not_worth_it_is_declined_once_and_entered_when_it_is(self) -> None:
        sim, guest = self.living()
        entered = next(one.t_ns for one in sim.recorder.last(len(sim.recorder)) if one.verb == "mode")
        self.lose(sim, guest, saved=0.0)
        assert guest.vm.mode == "base"
        for _ in range(3):
            guest.controller.wake()
            until(sim, int(sim.env.now) + S)
        refused = [why for why in whys(sim, "mode_controller", "gain") if "not worth it" in why]
        assert len(refused) == 1
        assert refused[0].startswith("refused: not worth it: vmm-direct saves nothing")
        expected = guest.controller.worth.dwells["vmm"].expected_ns(int(sim.env.now))
        assert expected == (FIRST + S - entered) // 2
        guest.vm.sampled = Sampled(ideal=1.0, walk={"base": 1.0, "vmm-direct": 0.0})
        guest.controller.wake()
        until(sim, int(sim.env.now) + S)
        assert guest.vm.mode == "vmm-direct"

    def test_a_window_that_must_be_built_anew_is_weighed_by_its_copies(self) -> None:
        """What the rendezvous alone is worth, a build with pages to zero is not."""
        for given, mode in (("", "vmm-direct"), ("8MiB", "base")):
            sim, guest = self.living()
            if given:
                doing(sim, sim.vm("db").balloon.inflate(given))
            # Four blocks of 2 MiB are zeroed in 464 us each, a rendezvous takes 1.6 us; a millisecond is to be saved
            # in the 300 s that are expected after one segment that was lost at once.
            self.lose(sim, guest, saved=0.001 / 300)
            assert guest.vm.mode == mode

    def test_what_a_person_asks_for_is_not_weighed(self) -> None:
        sim, guest = self.living()
        self.lose(sim, guest, saved=0.0)
        doing(sim, sim.vm("db").want("vmm-direct"))
        assert guest.vm.mode == "vmm-direct"

    def test_other_policies_do_not_weigh(self) -> None:
        sim, guest = self.living(mode_policy="wait")
        self.lose(sim, guest, saved=0.0)
        assert guest.vm.mode == "vmm-direct"

    def test_the_story_tells_it(self) -> None:
        sim, guest = self.living()
        self.lose(sim, guest, saved=0.0)
        sim.finish()
        result = Result.of(
            sim.recorder, name="toy", scenario=strict.unstructure(sim.scenario), seed=1, end_ns=int(sim.env.now),
            complete=True, stalled="", user_code={},
        )  # fmt: skip
        text = " ".join(line.plain for line in story(result))
        assert "not worth it: vmm-direct saves nothing" in " ".join(text.split())


def test_samples_of_a_life_say_what_modes_save() -> None:
    """Of gups on a machine of a few entries nearly every access walks: the wanted mode saves most of its cycles."""
    machine = strict.structure(Machine, TOY_MACHINE, "the toy machine")
    sim = Simulation(
        toy({"db": toy_vm(mode="dual-direct", footprint_bytes=8 * MIB, thp="never")}, until_ns=2 * S, detail="full"),
        machine=machine,
    )
    assert sim.run()
    vm = sim.guests["db"].vm
    assert vm.sampled is not None
    walk = vm.sampled.walk
    assert walk["dual-direct"] == 0 < walk["guest-direct"]
    share = vm.sampled.saved_share("guest-direct", "dual-direct")
    assert share == pytest.approx(walk["guest-direct"] / (vm.sampled.ideal + walk["guest-direct"]))
