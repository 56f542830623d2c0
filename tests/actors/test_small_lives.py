"""Lives on a toy host, every one of them recounted from scratch after every event."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.small import toy_life, toy_scenario
from vmmsim.errors import Refused
from vmmsim.memory.frames import Kind
from vmmsim.testing import check

GIB = 1 << 30
MIB = 1 << 20
SECOND = 10**9


def lived(**parts):
    """Live a toy life, checked; return its simulation."""
    sim = toy_life(toy_scenario(**parts))
    assert sim.run()
    check(sim)
    assert not sim.host.tokens, "a change of host memory was never ended"
    for guest in sim.guests.values():
        assert not guest.vm.guest.tokens, "a change of guest memory was never ended"
    return sim


def decisions(sim, verb, **wanted):
    rows = [sim.recorder.decision(row) for row in range(len(sim.recorder))]
    return [
        row for row in rows if row.verb == verb and all(getattr(row, key) == value for key, value in wanted.items())
    ]


# Modes


@pytest.mark.parametrize("mode", ["base", "guest-direct", "vmm-direct", "dual-direct"])
def test_on_a_fresh_host_a_vm_gets_the_mode_it_wants(mode):
    sim = lived(vm={"db": {"mode": mode}})
    vm = sim.guests["db"].vm
    assert vm.mode == mode
    assert vm.process.mapped_pages == vm.process.pages == 256, "gups touches all of its table, each page once"
    assert vm.progress > 256 * 64


def test_small_pages_and_huge_pages_live_alike():
    for thp in ("always", "never"):
        sim = lived(vm={"db": {"mode": "dual-direct", "thp": thp, "workload": {"name": "gups", "footprint": "4MiB"}}})
        small, large, _ = sim.guests["db"].vm.process.table.leaf_counts
        assert (large > 0) == (thp == "always")
        assert small + 512 * large == 1024


def test_a_mode_that_is_no_longer_wanted_is_left_without_copying():
    sim = toy_life(toy_scenario(vm={"db": {"mode": "dual-direct"}}, run={"until": "1s"}))
    assert sim.run()
    guest = sim.guests["db"]
    before = (sim.compactor.moved_pages, guest.compactor.copied_pages, guest.vm.resident_pages)
    frames = guest.vm.nested.translate(np.arange(guest.vm.guest.pages))
    guest.controller.want("base")
    sim.env.run(until=sim.env.now + SECOND)
    assert guest.vm.mode == "base"
    assert (sim.compactor.moved_pages, guest.compactor.copied_pages, guest.vm.resident_pages) == before
    assert np.array_equal(guest.vm.nested.translate(np.arange(guest.vm.guest.pages)), frames)
    check(sim)


def test_a_window_that_was_left_as_it_is_costs_only_a_rendezvous_to_enter_again():
    sim = lived(
        vm={"db": {"mode": "vmm-direct", "thp": "never"}},
        event=(
            {"at": "800ms", "do": "mode", "vm": "db", "mode": "base"},
            {"at": "1200ms", "do": "mode", "vm": "db", "mode": "vmm-direct"},
        ),
    )
    assert sim.guests["db"].vm.mode == "vmm-direct"
    assert len(decisions(sim, "build", outcome="begun")) == 1, "it was built once"
    assert decisions(sim, "mode")[-1].why == "the window was left as it is: entered again"


def test_a_segment_is_built_past_the_pages_of_others_if_compaction_may_move_them():
    others = {"mode": "base", "workload": {"name": "gups", "footprint": "8MiB"}}
    sim = lived(
        host={"memory": "64MiB", "kernelcore": "16MiB", "compaction": {"bandwidth": "1GiB/s", "proactiveness": 0}},
        vm={
            "a": {**others, "memory": "16MiB"},
            "b": {**others, "memory": "16MiB", "boot": "100ms"},
            "db": {"memory": "16MiB", "boot": "200ms", "thp": "never"},
        },
        event=(
            {"at": "500ms", "do": "shutdown", "vm": "a"},
            {"at": "600ms", "do": "mode", "vm": "db", "mode": "vmm-direct"},
        ),
        run={"until": "3s"},
    )
    assert sim.guests["db"].vm.mode == "vmm-direct"


def test_without_compaction_pages_of_others_are_in_the_way_and_it_is_said():
    crowd = {"memory": "16MiB", "workload": {"name": "gups", "footprint": "12MiB"}}
    sim = lived(
        host={"memory": "64MiB", "kernelcore": "16MiB"},
        vm={
            "a": crowd,
            "b": {**crowd, "boot": "1ms"},
            "db": {"memory": "32MiB", "boot": "700ms", "mode": "vmm-direct"},
        },
    )
    assert sim.guests["db"].vm.mode == "base"
    why = decisions(sim, "gain", vm="db")[0].why
    assert "host compaction is off" in why or "free frames are missing" in why


# Balloons


def test_what_is_given_up_under_a_vmm_segment_is_held_until_the_segment_is_left():
    sim = lived(
        vm={"db": {"mode": "vmm-direct"}},
        event=({"at": "1s", "do": "balloon", "vm": "db", "target": "12MiB"},),
    )
    vm = sim.guests["db"].vm
    assert vm.ballooned_pages == 1024
    assert vm.held_pages == 1024, "every page of the guest is under the segment"
    resident, tables = vm.resident_pages, sim.host.count(kind=Kind.TABLE)
    free = sim.host.free_pages
    sim.vmm.leave_segment(vm, "test")
    assert vm.held_pages == 0
    assert vm.resident_pages == resident - 1024
    split = sim.host.count(kind=Kind.TABLE) - tables
    assert sim.host.free_pages == free + 1024 - split, "the host has them now, less the tables of split pages"
    check(sim)


def test_without_a_segment_the_host_gets_what_the_guest_gives_up():
    sim = lived(
        vm={"db": {"workload": {"name": "gups", "footprint": "8MiB"}}},
        event=(
            {"at": "1s", "do": "balloon", "vm": "db", "target": "12MiB"},
            {"at": "1500ms", "do": "balloon", "vm": "db", "target": "auto"},
        ),
    )
    vm = sim.guests["db"].vm
    assert vm.held_pages == vm.ballooned_pages == 0
    first = decisions(sim, "balloon", outcome="done")[0]
    assert first.got == "4MiB"
    assert sim.guests["db"].balloon.requests == 8, "4 requests of 256 pages there, 4 back"


def test_a_guest_that_has_no_more_to_give_is_out_of_puff():
    sim = lived(
        vm={"db": {"workload": {"name": "gups", "footprint": "8MiB"}}},
        event=({"at": "1s", "do": "balloon", "vm": "db", "target": "4MiB"},),
        run={"until": "30s"},
    )
    row = decisions(sim, "balloon", outcome="partial")[0]
    assert "out of puff" in row.why
    vm = sim.guests["db"].vm
    assert 0 < vm.ballooned_pages < 3072
    assert vm.guest.free_pages <= vm.guest.watermarks.low


# Self-ballooning and hot-plug


BIG = {"memory": "256MiB", "workload": {"name": "gups", "footprint": "4MiB"}}
ROOMY = {"memory": "512MiB", "kernelcore": "64MiB"}


def test_self_ballooning_conserves_memory_to_the_byte_and_copies_nothing():
    sim = toy_life(toy_scenario(host=ROOMY, vm={"db": BIG}, run={"until": "1500ms"}))
    assert sim.run()
    guest = sim.guests["db"]
    vm = guest.vm
    before = vm.guest.present_pages - vm.guest.count(kind=Kind.BALLOON)
    used = vm.guest.count(kind=Kind.KERNEL)
    copied = guest.compactor.copied_pages
    requests = guest.balloon.requests
    process = sim.env.process(guest.self_balloon.exchanging(1 << 15))
    done = sim.env.run(until=process)
    guest.self_balloon.hand_over(done)
    assert (done.end - done.start, done.short) == (1 << 15, "")
    assert vm.guest.present_pages - vm.guest.count(kind=Kind.BALLOON) == before
    assert vm.guest.count(kind=Kind.KERNEL) == used + 512, "a block's map of frames: 64 bytes a page"
    assert guest.compactor.copied_pages == copied == 0
    assert guest.balloon.requests - requests == 128, "32,768 pages at 256 a request"
    assert vm.guest.find_free_run(1 << 15, within=(done.start, done.end)) == done.start
    check(sim)


def test_memory_that_was_added_can_be_taken_away_again():
    sim = lived(
        host=ROOMY,
        vm={"db": BIG},
        event=(
            {"at": "500ms", "do": "hot_add", "vm": "db", "size": "128MiB"},
            {"at": "1s", "do": "hot_remove", "vm": "db", "size": "128MiB"},
        ),
    )
    vm = sim.guests["db"].vm
    assert vm.guest.present_pages == 1 << 16
    assert decisions(sim, "hot_remove")[0].outcome == "done"


def test_a_block_with_a_page_that_cannot_move_stays_and_says_why():
    sim = toy_life(toy_scenario(host=ROOMY, vm={"db": BIG}, run={"until": "500ms"}))
    assert sim.run()
    guest = sim.guests["db"]
    block = guest.hotplug.last_blocks()[0]
    free = block[0] + int(np.flatnonzero(guest.vm.guest.kinds(np.arange(*block)) == Kind.FREE)[0])
    taken = guest.vm.guest.take_range(free, free + 1, kind=Kind.KERNEL, owner=0)
    sim.vmm.back(guest.vm, taken)
    why = sim.env.run(until=sim.env.process(guest.hotplug.removing(*block)))
    assert "kernel frames cannot move" in why
    assert guest.vm.guest.present_pages == 1 << 16
    check(sim)


# Faults


def test_a_bad_page_under_a_segment_escapes_and_lies_elsewhere():
    sim = lived(
        vm={"db": {"mode": "dual-direct"}},
        event=({"at": "1s", "do": "fault", "fault": "bit", "vm": "db", "segment": True},),
    )
    vm = sim.guests["db"].vm
    assert vm.mode == "dual-direct"
    (gfn,) = vm.escapes.members
    segment = vm.vmm_segment
    assert int(vm.nested.translate(gfn)[0]) != gfn + segment.offset
    assert Kind(int(sim.host.frames["kind"][gfn + segment.offset])) is Kind.BAD
    assert sim.host.count(kind=Kind.BAD) == 1


def test_beyond_the_budget_of_the_filter_the_segment_is_left():
    fault = {"do": "fault", "fault": "bit", "vm": "db", "segment": True}
    sim = lived(
        vm={"db": {"mode": "vmm-direct", "escape_filter": {"members": 2}}},
        event=tuple({"at": f"{n}00ms", **fault} for n in range(8, 11)),
    )
    vm = sim.guests["db"].vm
    assert vm.mode == "base", "and it is not entered again within the hold time"
    assert sim.host.count(kind=Kind.BAD) == 3
    assert "the filter may hold 2" in decisions(sim, "mode", actor="vmm")[0].why


def test_without_a_filter_the_first_bad_page_costs_the_segment():
    sim = lived(
        vm={"db": {"mode": "vmm-direct", "escape_filter": {"bits": 0}}},
        event=({"at": "1s", "do": "fault", "fault": "bit", "vm": "db", "segment": True},),
    )
    assert sim.guests["db"].vm.mode == "base"


def test_an_uncorrectable_fault_in_the_workloads_page_ends_the_workloads_vm():
    sim = toy_life(toy_scenario(run={"until": "1s"}))
    assert sim.run()
    vm = sim.guests["db"].vm
    gfn = int(vm.process.table.translate(vm.process.regions[0].start)[0])
    sim.faults.strike(vm.nested.translate(gfn), what="bit", correctable=False)
    assert not sim.guests, "its process was killed"
    assert "machine check in user memory" in vm.lost
    check(sim)


def test_an_uncorrectable_fault_in_a_free_page_of_the_guest_loses_nothing():
    sim = toy_life(toy_scenario(vm={"db": {"mode": "vmm-direct"}}, run={"until": "1s"}))
    assert sim.run()
    vm = sim.guests["db"].vm
    gfns = np.arange(vm.guest.pages)
    free = gfns[(vm.guest.kinds(gfns) == Kind.FREE) & (vm.nested.translate(gfns) >= 0)]
    sim.faults.strike(vm.nested.translate(free[:1]), what="bit", correctable=False)
    assert sim.guests["db"].vm.running
    check(sim)


def test_an_uncorrectable_fault_in_the_hosts_kernel_ends_the_run():
    sim = toy_life(toy_scenario(run={"until": "1s"}))
    assert sim.run()
    sim.faults.strike(np.array([0]), what="bit", correctable=False)
    assert sim.lost
    assert not sim.guests


# Coming and going


def test_a_vm_that_is_gone_leaves_every_frame_behind():
    sim = toy_life(toy_scenario(vm={"db": {"mode": "dual-direct"}}, run={"until": "1s"}))
    free = sim.host.free_pages
    assert sim.run()
    assert sim.host.free_pages < free
    sim.boots.end("db", "test")
    assert sim.host.free_pages == free
    assert sim.engine.tables.nodes_in_use == 0, "its page tables are gone, too"
    check(sim)


def test_a_host_too_small_refuses_and_says_what_it_has():
    sim = lived(
        vm={"db": {}, "late": {"boot": "1s"}},
    )
    assert set(sim.guests) == {"db", "late"}
    with pytest.raises(Refused, match="the host has"):
        sim.env.run(until=sim.boot("huge", memory=64 * MIB, mode="base"))
    with pytest.raises(Refused, match="runs already"):
        sim.env.run(until=sim.boot("db"))


def test_when_the_host_is_full_the_largest_vm_is_ended():
    one = {"memory": "40MiB", "workload": {"name": "gups", "footprint": "30MiB"}}
    sim = lived(vm={"a": one, "b": {**one, "boot": "100ms"}}, run={"until": "4s"})
    assert len(sim.guests) == 1
    assert decisions(sim, "oom_kill")


def test_when_a_guest_is_full_its_workload_ends_and_the_vm_stays():
    sim = lived(
        vm={"db": {"memory": "8MiB", "workload": {"name": "gups", "footprint": "4MiB"}}},
        event=(),
    )
    guest = sim.guests["db"]
    assert guest.vm.running
    taken = guest.vm.guest.take(1 << 20, kind=Kind.KERNEL, owner=0)
    sim.vmm.back(guest.vm, taken)
    assert guest.os.vm.guest.free_pages <= guest.vm.guest.watermarks.min


# Scripts


def test_a_script_hears_refusals_and_goes_on():
    heard = []

    def life(sim):
        db = yield sim.boot("db", memory=16 * MIB, workload={"name": "gups", "footprint": "1MiB"})
        try:
            yield db.balloon.inflate(64 * MIB)
        except Refused as no:
            heard.append((no.verb, no.vm, no.asked))
        yield db.balloon.inflate(MIB)
        yield db.want("vmm-direct")
        assert db.mode == "vmm-direct"
        yield db.shutdown()

    scenario = toy_scenario(vm={"unused": {"boot": "1500ms"}})
    sim = toy_life(scenario)
    sim.scripts.append(life(sim))
    assert sim.run()
    assert heard == [("balloon", "db", "64MiB")]
    assert set(sim.guests) == {"unused"}


def test_two_boots_are_waited_for_together():
    def life(sim):
        one = {"memory": 8 * MIB, "workload": {"name": "gups", "footprint": "1MiB"}}
        a, b = (yield sim.boot("a", **one) & sim.boot("b", **one)).values()
        assert (a.name, b.name) == ("a", "b")
        yield a.shutdown() & b.shutdown()

    sim = toy_life(toy_scenario())
    sim.scripts.append(life(sim))
    assert sim.run()
    assert set(sim.guests) == {"db"}
