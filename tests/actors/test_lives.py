"""Short lives of toy hosts, recounted after every event; what must be true is by the paper or by accounting."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.toys import MIB, S, checked, doing, lived, toy_vm, until, until_event, whys
from vmmsim.actors.guest import Guest
from vmmsim.actors.vm import BLOCK_PAGES
from vmmsim.errors import Refused
from vmmsim.memory.frames import Kind
from vmmsim.scenario import BalloonEvent, BootEvent, FaultEvent, ShutdownEvent
from vmmsim.scenario.vm import Escape
from vmmsim.simulation import Simulation

PAGE = 4096


def frames_of_vms(sim: Simulation) -> int:
    return sim.host.count(kind=Kind.USER)


def page_of_workload(guest: Guest, number: int = 0) -> int:
    """Return the gfn behind one of the workload's pages."""
    process = guest.vm.process
    assert process is not None
    gfns = process.table.translate(process.gvpns(np.flatnonzero(process.mapped)[[number]]))
    return int(gfns[0])


def strike(sim: Simulation, gfns: list[int], **told: object) -> None:
    for gfn in gfns:
        doing(sim, sim.fault(fault="bit", vm="db", gfn=gfn, **told))


class TestModes:
    @pytest.mark.parametrize("mode", ["base", "guest-direct", "vmm-direct", "dual-direct"])
    def test_on_a_fresh_host_each_mode_is_reached(self, mode: str) -> None:
        _, guest = lived({"db": toy_vm(mode=mode)})
        assert guest.vm.mode == mode
        assert (guest.vm.guest_segment is not None) == (mode in ("guest-direct", "dual-direct"))
        assert (guest.vm.vmm_segment is not None) == (mode in ("vmm-direct", "dual-direct"))

    def test_a_vmm_segment_covers_all_memory_of_the_guest(self) -> None:
        _, guest = lived({"db": toy_vm(mode="vmm-direct")})
        segment = guest.vm.vmm_segment
        assert segment is not None
        assert (segment.base, segment.limit) == (0, 32 * MIB // PAGE)
        assert guest.vm.resident_pages == 32 * MIB // PAGE, "what is under it has frames, touched or not"

    def test_two_vms_have_segments_side_by_side(self) -> None:
        sim, _ = lived({"db": toy_vm(mode="vmm-direct"), "web": toy_vm(mode="dual-direct")})
        assert sim.modes() == {"db": "vmm-direct", "web": "dual-direct"}
        windows = [
            (s.base + s.offset, s.limit + s.offset) for g in sim.guests.values() if (s := g.vm.vmm_segment) is not None
        ]
        (_, end), (start, _) = sorted(windows)
        assert end <= start

    def test_leaving_a_segment_copies_nothing_and_coming_back_copies_nothing(self) -> None:
        """A rendezvous of the vCPUs and a flush; no page lies elsewhere afterwards."""
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        vm, gfns = guest.vm, np.arange(32 * MIB // PAGE)
        before, moved, first = vm.nested.translate(gfns), sim.compactor.moved_pages, vm.vmm_segment
        began = sim.env.now
        doing(sim, sim.vm("db").want("base"))
        assert vm.mode == "base"
        assert np.array_equal(vm.nested.translate(gfns), before)
        doing(sim, sim.vm("db").want("vmm-direct"))
        assert vm.vmm_segment == first
        assert np.array_equal(vm.nested.translate(gfns), before)
        assert sim.compactor.moved_pages == moved
        assert len(whys(sim, "compactor", "build")) == 2, "one build, begun and done"
        assert whys(sim, "mode_controller", "mode")[-1].endswith("entered again")
        assert sim.env.now - began <= 3 * S

    def test_a_segment_is_built_anew_where_a_page_went_meanwhile(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        doing(sim, sim.vm("db").want("base"))
        doing(sim, sim.vm("db").balloon.inflate("4MiB"))
        assert guest.vm.remembered_moves == 4 * MIB // PAGE
        doing(sim, sim.vm("db").want("vmm-direct"))
        assert len(whys(sim, "compactor", "build")) == 4


class TestBalloons:
    def test_without_a_segment_what_the_balloon_takes_is_the_hosts(self) -> None:
        sim, guest = lived({"db": toy_vm()})
        vm = guest.vm
        doing(sim, sim.vm("db").balloon.inflate("8MiB"))
        assert vm.ballooned_pages == 8 * MIB // PAGE
        assert vm.held_pages == 0
        given = vm.given_up(0, vm.guest.pages)
        assert np.all(vm.nested.translate(given) < 0)

    def test_under_a_segment_pages_are_given_up_and_held_until_it_is_left(self) -> None:
        """A given-up gPA still translates, so that its frame must not be lent to anybody."""
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        vm, pages = guest.vm, 8 * MIB // PAGE
        before = frames_of_vms(sim)
        doing(sim, sim.vm("db").balloon.inflate("8MiB"))
        assert vm.ballooned_pages == vm.held_pages == pages
        assert frames_of_vms(sim) == before, "not one of them became free"
        assert "held and not reusable" in whys(sim, "balloon", "balloon")[-1]
        doing(sim, sim.vm("db").want("base"))
        assert vm.held_pages == 0
        assert vm.ballooned_pages == pages
        assert frames_of_vms(sim) == before - pages, "all of them did"

    def test_deflating_under_a_segment_ends_the_holding(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        doing(sim, sim.vm("db").balloon.inflate("8MiB"))
        doing(sim, sim.vm("db").balloon.deflate("6MiB"))
        assert guest.vm.ballooned_pages == guest.vm.held_pages == 2 * MIB // PAGE

    def test_a_balloon_that_asks_for_too_much_is_refused_and_the_script_is_told(self) -> None:
        sim, guest = lived()
        with pytest.raises(Refused) as told:
            doing(sim, sim.vm("db").balloon.inflate("31MiB"))
        assert told.value.verb == "balloon"
        assert told.value.asked == "31MiB"
        assert guest.vm.ballooned_pages == 0

    def test_a_target_out_of_reach_is_met_in_part(self) -> None:
        sim, guest = lived()
        doing(sim, sim.vm("db").balloon.target("1MiB"))
        assert 0 < guest.vm.ballooned_pages < 31 * MIB // PAGE
        assert whys(sim, "balloon", "balloon")[-1].startswith("partial: out of puff")


class TestFaults:
    def test_bad_pages_under_a_segment_escape_it(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        vm, gfns = guest.vm, [7000, 7001, 7600]
        old = vm.nested.translate(np.array(gfns))
        strike(sim, gfns)
        assert vm.mode == "vmm-direct"
        assert vm.escapes is not None
        assert vm.escapes.members == tuple(gfns)
        segment = vm.vmm_segment
        assert segment is not None
        assert segment.filter is not None
        assert segment.filter.members == tuple(gfns)
        new = vm.nested.translate(np.array(gfns))
        assert np.all(new >= 0), "translated still"
        assert not np.isin(new, old).any()
        assert (sim.host.kinds(old) == Kind.BAD).all()
        assert (sim.host.kinds(new) == Kind.USER).all()

    def test_beyond_the_budget_the_segment_is_left(self) -> None:
        few = Escape(members=2)
        sim, guest = lived({"db": toy_vm(mode="vmm-direct", escape_filter=few)})
        vm = guest.vm
        strike(sim, [7000, 7001])
        assert vm.mode == "vmm-direct"
        strike(sim, [7002])
        assert vm.mode == "base"
        assert whys(sim, "vmm", "mode")[-1].endswith("2 escape already, the filter may hold 2")

    def test_without_a_filter_one_bad_page_is_enough(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct", escape_filter=Escape(bits=0))})
        strike(sim, [7000])
        assert guest.vm.mode == "base"

    def test_a_page_that_was_given_up_and_goes_bad_is_held_no_longer(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        vm = guest.vm
        doing(sim, sim.vm("db").balloon.inflate("8MiB"))
        strike(sim, [int(vm.given_up(0, vm.guest.pages)[0])])
        assert vm.held_pages == vm.ballooned_pages - 1
        doing(sim, sim.vm("db").balloon.deflate("8MiB"))
        assert vm.held_pages == 0

    def test_an_uncorrectable_fault_in_the_workloads_page_ends_it(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct"), "web": toy_vm()})
        strike(sim, [page_of_workload(guest)], correctable=False)
        assert "its process is killed" in guest.vm.lost
        assert list(sim.guests) == ["web"]
        assert whys(sim, "guest", "memory_failure")[-1].startswith("failed")

    def test_an_uncorrectable_fault_in_a_free_page_loses_nothing(self) -> None:
        sim, guest = lived({"db": toy_vm(mode="vmm-direct")})
        free = np.flatnonzero(guest.vm.guest.kinds(np.arange(guest.vm.guest.pages)) == Kind.FREE)
        strike(sim, [int(free[100])], correctable=False)
        assert guest.vm.running
        assert guest.vm.lost == ""
        assert whys(sim, "guest", "memory_failure")[-1].endswith("nothing is lost")

    def test_a_correctable_fault_in_the_workloads_page_moves_it(self) -> None:
        sim, guest = lived()
        gfn = page_of_workload(guest)
        old = int(guest.vm.nested.translate(np.array([gfn]))[0])
        strike(sim, [gfn])
        assert guest.vm.running
        assert int(guest.vm.nested.translate(np.array([gfn]))[0]) != old
        assert int(sim.host.kinds(np.array([old]))[0]) == Kind.BAD

    def test_a_fault_where_nothing_is_mapped_is_refused(self) -> None:
        sim, guest = lived({"db": toy_vm(thp="never")}, host={"thp": "never"})
        absent = np.flatnonzero(guest.vm.nested.translate(np.arange(32 * MIB // PAGE)) < 0)
        with pytest.raises(Refused, match="no such frame is in use"):
            strike(sim, [int(absent[0])])


class TestBootAndShutdown:
    @pytest.mark.parametrize("mode", ["base", "dual-direct"])
    def test_shutting_down_gives_every_frame_back(self, mode: str) -> None:
        vm = toy_vm(mode=mode)
        sim = checked({"db": vm})
        before = sim.host.free_pages
        until(sim, S)
        doing(sim, sim.vm("db").balloon.inflate("2MiB"))
        doing(sim, sim.shutdown("db"))
        assert sim.guests == {}
        assert sim.host.free_pages == before
        assert sim.host.count(kind=Kind.USER) == sim.host.count(kind=Kind.TABLE) == 0

    @pytest.mark.parametrize("after_ns", [0, 1_400_000, 2_000_000, 5_000_000, 9_000_000])
    def test_it_does_so_whatever_was_under_way(self, after_ns: int) -> None:
        sim = checked({"db": toy_vm(mode="dual-direct"), "web": toy_vm(mode="vmm-direct")})
        before = sim.host.free_pages
        while sim.env.peek() <= after_ns:
            until_event(sim)
        for name in list(sim.guests):
            sim.shutdown(name)
        until(sim, 5 * S)
        assert sim.guests == {}
        assert sim.host.free_pages == before

    def test_a_vm_that_was_shut_down_boots_again(self) -> None:
        events = (ShutdownEvent(at_ns=S, vm="db"), BootEvent(at_ns=2 * S, vm="db"))
        _, guest = lived({"db": toy_vm(mode="dual-direct")}, event=events, at_ns=3 * S)
        assert guest.vm.number == 2
        assert guest.vm.mode == "dual-direct"

    def test_a_host_too_small_refuses(self) -> None:
        sim = checked({"db": toy_vm(), "big": toy_vm(256 * MIB, boot_ns=S)})
        until(sim, 2 * S)
        assert list(sim.guests) == ["db"]
        assert any(one.startswith("refused: the host has ") for one in whys(sim, "scenario", "boot"))

    def test_a_host_that_fills_up_ends_a_vm_and_says_why(self) -> None:
        """Two guests that write all they have, on a host that has not as much."""
        vms = {name: toy_vm(40 * MIB, footprint_bytes=28 * MIB) for name in ("one", "two")}
        sim = until(checked(vms, host_bytes=64 * MIB, host={"kernelcore_bytes": 64 * MIB}), 5 * S)
        assert len(sim.guests) == 1
        assert whys(sim, "vmm", "oom_kill")[0].startswith("done: the host is out of memory")

    @pytest.mark.parametrize("thp", ["never", "always"])
    def test_a_vm_that_is_ended_for_its_own_fault_gives_back_what_was_taken_for_it(self, thp: str) -> None:
        vms = {"one": toy_vm(46 * MIB, footprint_bytes=44 * MIB), "two": toy_vm(12 * MIB, footprint_bytes=2 * MIB)}
        sim = until(checked(vms, host_bytes=64 * MIB, host={"kernelcore_bytes": 64 * MIB, "thp": thp}), 5 * S)
        assert len(whys(sim, "vmm", "oom_kill")) == 1
        assert list(sim.guests) == ["two"]
        assert frames_of_vms(sim) == sim.guests["two"].vm.resident_pages

    def test_a_script_can_catch_what_is_refused(self) -> None:
        heard: list[str] = []
        sim = checked({"db": toy_vm()})

        def script() -> object:
            yield sim.sleep("1s")
            try:
                yield sim.boot("db")
            except Refused as no:
                heard.append(no.why)
            try:
                sim.vm("nobody")
            except Refused as no:
                heard.append(no.why)

        doing(sim, sim.env.process(script()))
        assert heard == ["it runs already", "no VM of that name runs"]

    def test_what_a_scenario_asks_for_in_vain_is_recorded(self) -> None:
        asked = (BalloonEvent(at_ns=S, vm="web", target_bytes=MIB), FaultEvent(at_ns=S, fault="bit", vm="web"))
        sim = until(checked({"db": toy_vm(), "web": toy_vm(boot_ns=2 * S)}, event=asked), 3 * S)
        assert whys(sim, "scenario", "balloon") == ["refused: no VM of that name runs"]
        assert whys(sim, "scenario", "fault") == ["refused: no VM of that name runs"]


class TestMemoryThatComesAndGoes:
    """On a host of 1 GiB: memory is plugged in blocks of 128 MiB."""

    def big(self, **keys: object) -> tuple[Simulation, Guest]:
        vm = toy_vm(512 * MIB, **keys)  # type: ignore[arg-type]
        return lived({"db": vm}, host_bytes=1024 * MIB)

    def test_self_ballooning_conserves_present_minus_ballooned_to_the_byte(self) -> None:
        sim, guest = self.big()
        memory = guest.vm.guest
        before = memory.present_pages - memory.count(kind=Kind.BALLOON)
        free = memory.free_pages
        done = doing(sim, sim.vm("db").self_balloon("128MiB"))
        assert done.end - done.start == BLOCK_PAGES
        assert memory.present_pages == 512 * MIB // PAGE + BLOCK_PAGES
        assert memory.count(kind=Kind.BALLOON) == BLOCK_PAGES
        assert memory.present_pages - memory.count(kind=Kind.BALLOON) == before
        # Of what the guest can use, the block's struct pages go: 64 bytes a page (Linux, mm_types.h).
        assert free - memory.free_pages == BLOCK_PAGES * 64 // PAGE

    def test_a_block_that_was_added_can_be_removed(self) -> None:
        sim, guest = self.big()
        free = guest.vm.guest.free_pages
        start, end = doing(sim, sim.vm("db").hot_add("128MiB"))
        assert (start, end) == (512 * MIB // PAGE, 640 * MIB // PAGE)
        assert guest.vm.memory_pages == end
        removed = doing(sim, sim.vm("db").hot_remove("128MiB"))
        assert removed == 128 * MIB
        assert guest.vm.memory_pages == start
        assert guest.vm.guest.free_pages == free

    def test_a_block_with_a_page_that_cannot_move_stays_and_it_is_said_which(self) -> None:
        sim, guest = self.big()
        doing(sim, sim.vm("db").hot_add("128MiB"))
        last = guest.hotplug.last_blocks()
        for start, end in last:
            frame = next(n for n in range(end - 1, start, -1) if guest.vm.guest.is_free(n, n + 1))
            guest.vm.guest.take_range(frame, frame + 1, kind=Kind.SLAB, owner=0)
            guest.os.vmm.back(guest.vm, np.array([frame]))
        stuck = next(
            n for n in range(*last[0]) if guest.vm.guest.kinds(np.array([n]))[0] in (Kind.SLAB, Kind.KERNEL, Kind.TABLE)
        )
        before = guest.vm.memory_pages
        assert doing(sim, sim.vm("db").hot_remove("128MiB")) == 0
        assert guest.vm.memory_pages == before
        said = whys(sim, "hotplug", "hot_remove")[-1]
        assert said.startswith("failed: ")
        assert f"frames cannot move, the first at {stuck:#x}" in said

    def test_a_vm_that_ends_while_memory_is_plugged_in_gets_none(self) -> None:
        sim, guest = self.big()
        adding = sim.vm("db").hot_add("128MiB")
        doing(sim, sim.shutdown("db"))
        start, end = doing(sim, adding)
        assert start == end
        assert guest.vm.added_pages == 0
        assert frames_of_vms(sim) == 0
        assert whys(sim, "hotplug", "hot_add") == ["failed: the VM is gone"]

    def test_memory_that_is_no_whole_block_is_refused(self) -> None:
        sim, _ = self.big()
        for size in ("1MiB", "129MiB"):
            with pytest.raises(Refused, match="blocks of 128 MiB"):
                doing(sim, sim.vm("db").hot_add(size))
        with pytest.raises(Refused, match="gPA has room for"):
            doing(sim, sim.vm("db").hot_add("4GiB"))

    def test_a_guest_with_too_little_free_memory_exchanges_none(self) -> None:
        sim, guest = lived({"db": toy_vm()})
        done = doing(sim, sim.vm("db").self_balloon("128MiB"))
        assert done.start == done.end
        assert done.short.startswith("the guest can spare")
        assert guest.vm.exchanged_pages == guest.vm.added_pages == 0

    def test_a_vmm_segment_over_a_block_that_is_unplugged_is_left_and_comes_back_without_it(self) -> None:
        vm = toy_vm(128 * MIB, mode="vmm-direct", footprint_bytes=4 * MIB)
        sim, guest = lived({"db": vm}, host_bytes=512 * MIB)
        doing(sim, sim.vm("db").want("base"))
        doing(sim, sim.vm("db").hot_add("128MiB"))
        doing(sim, sim.vm("db").want("vmm-direct"))
        segment = guest.vm.vmm_segment
        assert segment is not None
        assert (segment.base, segment.limit) == (0, 256 * MIB // PAGE)
        assert doing(sim, sim.vm("db").hot_remove("128MiB")) == 128 * MIB
        until(sim, int(sim.env.now) + 5 * S)
        segment = guest.vm.vmm_segment
        assert segment is not None
        assert (segment.base, segment.limit) == (0, 128 * MIB // PAGE)
        assert guest.vm.resident_pages == 128 * MIB // PAGE

    def test_a_vmm_segment_covers_no_hole(self) -> None:
        sim, guest = lived({"db": toy_vm(32 * MIB)}, host_bytes=512 * MIB)
        doing(sim, sim.vm("db").hot_add("128MiB"))
        doing(sim, sim.vm("db").want("vmm-direct"))
        segment = guest.vm.vmm_segment
        assert segment is not None
        assert (segment.base, segment.limit) == (128 * MIB // PAGE, 256 * MIB // PAGE), "the longer of the two runs"
