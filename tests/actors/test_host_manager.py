"""The host's memory manager: who decides, what holds, what is recorded, and what each state calls for."""

from __future__ import annotations

import pytest

from tests.actors.living import GIB, MIB, S, boot, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.invariants import check_all
from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind
from vmmsim.scenario_file import checked
from vmmsim.simulation import Simulation

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")

HOST = {"memory": "3GiB", "kernelcore": "1GiB"}
PROPORTIONAL = {"policy": "proportional", "every": "10s", "reserve": "512MiB"}

KEEP_FREE = '''
import attrs
@attrs.frozen(kw_only=True)
class KeepFree:
    """Let every guest keep a fixed share of its memory free."""
    share: float = 0.1
    def target_bytes(self, vm, host):
        return vm.used_bytes + round(self.share * vm.memory_bytes)
'''
"""The example of how a policy of one's own is written, as it stands."""


def pressed(policy=PROPORTIONAL, *, names: str = "ab", check: bool = True, **host) -> Simulation:
    """Return a host with idle VMs of 512 MiB whose manager looks when it is told to."""
    sim = simulation(host={**HOST, "balloon": policy, **host}, check=check)
    for name in names:
        boot(sim, name, memory="512MiB")
    return sim


def fill(sim: Simulation, spare_pages: int) -> None:
    """Let somebody else take what the host could give its guests, but for so many pages."""
    sim.host.take(max(sim.host.spare_pages - spare_pages, 0), kind=Kind.USER)


def wait(sim: Simulation, seconds: float) -> None:
    def script(sim):
        yield Pause(sim.env, round(seconds * S), Turn.MEASURE)

    live(sim, script)


def look(sim: Simulation, seconds: float = 5) -> None:
    sim.manager.look()
    wait(sim, seconds)
    check_all(sim.vmm, sim.engine, sim.guests.values())


def decided(sim: Simulation, actor: str, *verbs: str) -> list:
    everything = [sim.recorder.decision(row) for row in range(len(sim.recorder))]
    return [one for one in everything if one.actor == actor and one.verb in verbs]


def balloon(sim: Simulation, name: str) -> int:
    return sim.guests[name].vm.ballooned_pages


def test_a_host_with_its_reserve_leaves_guests_alone():
    sim = pressed()
    look(sim)
    assert not decided(sim, "host_manager", "balloon", "state")
    assert balloon(sim, "a") == balloon(sim, "b") == 0


def test_a_host_that_is_short_takes_what_is_short_and_gives_it_back():
    sim = pressed()
    fill(sim, 412 * MIB)
    look(sim)
    gone = balloon(sim, "a") + balloon(sim, "b")
    assert gone == pytest.approx(100 * MIB, abs=4), "two VMs alike give the 100 MiB that are short"
    assert balloon(sim, "a") == pytest.approx(balloon(sim, "b"), abs=2)
    began = decided(sim, "host_manager", "balloon")
    ended = decided(sim, "balloon", "balloon")
    assert [one.outcome for one in began] == ["done", "done"]
    assert {one.cause for one in ended if one.outcome == "begun"} == {one.row for one in began}
    taken = sim.host.frames["kind"] == Kind.USER
    taken &= sim.host.frames["owner"] < 1
    sim.host.give_back(taken.nonzero()[0])
    look(sim)
    assert balloon(sim, "a") == balloon(sim, "b") == 0


def test_no_guest_gives_more_than_65_percent_and_what_was_clipped_is_recorded():
    """Mem.CtlMaxPercent."""
    sim = pressed(names="a")
    fill(sim, 0)
    look(sim)
    vm = sim.guests["a"].vm
    assert vm.ballooned_pages == int(0.65 * vm.memory_pages)
    (said,) = decided(sim, "host_manager", "balloon")
    assert said.outcome == "partial"
    assert "65% of its memory" in said.why
    assert said.got != said.asked


def test_no_guest_is_asked_for_what_it_cannot_give():
    sim = pressed(names="a")
    guest = sim.guests["a"]
    most = guest.vm.guest.free_pages - guest.vm.guest.watermarks.high
    guest.os.take_kernel(most - 50 * MIB)
    fill(sim, 300 * MIB)
    look(sim)
    assert guest.vm.ballooned_pages == 50 * MIB
    assert guest.vm.guest.free_pages >= guest.vm.guest.watermarks.high
    assert "can give no more than 50 MiB" in decided(sim, "host_manager", "balloon")[0].why


def test_an_explicit_target_holds_until_auto():
    sim = pressed()
    live(sim, lambda sim: iter_of(sim.vm("a").balloon.target("480MiB")))
    assert balloon(sim, "a") == 32 * MIB
    fill(sim, 412 * MIB)
    look(sim)
    look(sim)
    assert balloon(sim, "a") == 32 * MIB, "the policy leaves it alone"
    assert balloon(sim, "b") > 32 * MIB, "the other gives what is short"
    live(sim, lambda sim: iter_of(sim.vm("a").balloon.auto()))
    wait(sim, 5)
    assert balloon(sim, "a") == pytest.approx(balloon(sim, "b"), rel=0.2)
    assert [one.why for one in decided(sim, "balloon", "auto")] == ["proportional does"]


def iter_of(process):
    return (yield process)


def test_auto_without_a_policy_gives_all_of_it_back_and_says_so():
    sim = simulation(host=HOST, check=True)
    boot(sim, "a", memory="512MiB")
    live(sim, lambda sim: iter_of(sim.vm("a").balloon.target("480MiB")))
    live(sim, lambda sim: iter_of(sim.vm("a").balloon.auto()))
    assert balloon(sim, "a") == 0
    assert "no policy sets balloons on this host" in decided(sim, "balloon", "auto")[0].why


def scenario_beside(tmp_path, text: str, policy: dict) -> Simulation:
    (tmp_path / "keep.py").write_text(text)
    data = {
        "run": {"until": "30s"},
        "host": {**HOST, "balloon": {"every": "10s", **policy}},
        "vm": {"db": {"memory": "512MiB"}},
    }
    return Simulation(checked(data, name="test", folder=tmp_path), check=True)


@pytest.mark.parametrize("share", [0.2])
def test_a_policy_from_a_file_runs_as_it_is_written_with_its_arguments(tmp_path, share: float):
    given = {} if share == 0.1 else {"share": share}
    sim = scenario_beside(tmp_path, KEEP_FREE, {"policy": "keep.py:KeepFree", **given})
    sim.manager._most = 1.0
    assert sim.run()
    vm = sim.guests["db"].vm
    free = vm.memory_pages - vm.ballooned_pages - vm.used_pages()
    assert free == pytest.approx(share * vm.memory_pages, abs=0.011 * vm.memory_pages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class KeepFree:\n    pass", "keep.py:KeepFree is no balloon policy: it has no target_bytes(vm, host)"),
        ("class Keep:\n    pass", 'keep.py has no "KeepFree"; did you mean "Keep"?'),
        (
            "class KeepFree:\n    def target_bytes(self, vm, host):\n        return 1 // 0",
            "policy keep.py:KeepFree failed on db: ZeroDivisionError: integer division or modulo by zero",
        ),
    ],
)
def test_a_policy_that_does_not_work_is_one_clear_line(tmp_path, text: str, said: str):
    with pytest.raises(BadInput) as told:
        scenario_beside(tmp_path, text, {"policy": "keep.py:KeepFree"}).run()
    assert str(told.value) == said


def test_what_is_no_number_is_recorded_once_and_changes_nothing(tmp_path):
    text = "class KeepFree:\n    def target_bytes(self, vm, host):\n        return 1.5"
    sim = scenario_beside(tmp_path, text, {"policy": "keep.py:KeepFree"})
    assert sim.run()
    (said,) = decided(sim, "host_manager", "balloon")
    assert (said.outcome, said.why) == ("refused", "the policy says 1.5, which is no whole number of bytes")
    assert balloon(sim, "db") == 0


def test_states_are_recorded_with_what_they_call_for_and_whoever_shares_pages_is_told():
    sim = pressed({"policy": "thresholds", "every": "10s", "reserve": "512MiB"})
    told: list[str] = []
    sim.manager.told.append(told.append)
    fill(sim, 400 * MIB)
    look(sim)
    assert balloon(sim, "a") == 0, "clear asks nobody"
    fill(sim, 100 * MIB)
    look(sim)
    assert balloon(sim, "a") > 0
    assert told[:2] == ["clear", "hard"]
    assert [(one.asked, one.got) for one in decided(sim, "host_manager", "state")][:2] == [
        ("high", "clear"),
        ("clear", "hard"),
    ]


def test_a_hard_host_swaps_through_the_hook_and_needs_none():
    sim = pressed({"policy": "thresholds", "every": "10s", "reserve": "512MiB"})
    fill(sim, 100 * MIB)
    sim.manager.look()
    assert not decided(sim, "host_manager", "swap_out"), "there is no swap space"
    asked: list[int] = []
    sim.manager.swap_out = lambda pages: asked.append(pages) or pages
    sim.manager.look()
    assert asked == [int(0.64 * 512 * MIB) - sim.host.spare_pages]
    (said,) = decided(sim, "host_manager", "swap_out")
    assert said.outcome == "done"
    assert decided(sim, "host_manager", "state")[-1].row == said.cause


def test_a_hard_host_swaps_what_was_not_used_lately():
    sim = pressed(
        {"policy": "thresholds", "every": "10s", "reserve": "512MiB"}, swap={"device": "nvme", "size": "1GiB"}
    )
    for guest in sim.guests.values():
        guest.os.take_kernel(300 * MIB)
    fill(sim, 100 * MIB)
    for _ in range(3):  # a page is spared when it is met first
        look(sim, 1)
    swapped = sum(guest.vm.swapped_pages for guest in sim.guests.values())
    assert swapped >= int(0.64 * 512 * MIB) - 100 * MIB
    assert sim.vmm.swap.device.used_pages >= swapped


def test_a_vm_above_its_target_waits_while_the_state_is_low():
    sim = pressed({"policy": "thresholds", "every": "10s", "reserve": "512MiB"}, names="")
    guest = boot(sim, "db", memory="512MiB", vcpus=2, workload={"name": "gups", "footprint": "400MiB"})
    wait(sim, 5)
    guest.balloon.by_event, guest.vm.balloon_target_pages = True, 200 * MIB
    fill(sim, 10 * MIB)
    sim.manager.look()
    assert guest.vm.stall_ns["blocked"] == 2 * 10 * S
    sim.manager.look()
    assert guest.vm.stall_ns["blocked"] == 2 * 10 * S, "once a period"


def test_more_guest_memory_than_the_host_has_boots():
    sim = pressed(names="abcdefgh")
    assert len(sim.guests) == 8
    assert sum(guest.vm.memory_pages for guest in sim.guests.values()) == 4 * GIB > sim.host.pages


def test_a_life_under_pressure_keeps_every_book():
    """Seven programs that want more than the host has, with swap: checked now and then, and at the end."""
    vm = {
        "memory": "512MiB",
        "count": 7,
        "workload": {"name": "gups", "footprint": "410MiB"},
    }
    data = {
        "run": {"until": "3s"},
        "host": {
            **HOST, "swap": {"device": "zram", "size": "2GiB"},
            "balloon": {"policy": "thresholds", "every": "1s", "reserve": "256MiB"},
        },
        "vm": {"vm": vm},
        "measure": {"window": 1000},
    }  # fmt: skip
    sim = Simulation(checked(data, name="test", folder=None))
    sim.start()
    while sim.env.peek() < 3 * S:
        sim.env.step()
        sim.events += 1
        if sim.events % 1000 == 0:
            check_all(sim.vmm, sim.engine, sim.guests.values())
    check_all(sim.vmm, sim.engine, sim.guests.values())
    assert len(sim.guests) == 7, "nobody is ended"
    assert decided(sim, "host_manager", "state")
    assert sum(guest.vm.swapped_pages for guest in sim.guests.values()) > 0
