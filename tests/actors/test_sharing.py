"""Page sharing as Linux's KSM does it: who is merged and when, who is left alone or refused, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.actors.shared import fresh, full_scans, hold, host, is_merged, per_wake_up, put, resident, wake_ups
from tests.actors.toys import doing
from vmmsim.actors.guest import Guest
from vmmsim.actors.sharing import Counters
from vmmsim.actors.vm import VirtualMachine
from vmmsim.memory.frames import PAGEBLOCK, SHARED, Kind
from vmmsim.rates import number
from vmmsim.simulation import Simulation
from vmmsim.testing import check


def counters(sim: Simulation) -> Counters:
    assert sim.sharing is not None
    return sim.sharing.counters()


# When


def test_a_full_scan_takes_as_many_wake_ups_as_its_pages_fill_and_the_one_that_finds_the_end() -> None:
    """mm/ksm.c, ksm_do_scan: returns when there is no next item, whatever is left of pages_to_scan."""
    sim, _ = host()
    assert sim.sharing is not None
    sim.sharing.scan(wake_ups(sim) - 1)
    assert sim.sharing.full_scans == 0
    sim.sharing.scan(1)
    assert sim.sharing.full_scans == 1
    assert sim.sharing.scanned_pages == sum(resident(guest.vm).size for guest in sim.guests.values())


@pytest.mark.parametrize("pages_to_scan", [1, 7, 100, 10_000])
def test_many_wake_ups_at_once_come_to_what_one_after_the_other_does(pages_to_scan: int) -> None:
    each = []
    for step in (1, 13):
        sim, guests = host(sharing={"pages_to_scan": pages_to_scan})
        assert sim.sharing is not None
        for content in (fresh(sim, 30)).tolist():
            hold(guests[content % 2], 3 + content % 5, content)
        for _ in range(0, 13 * 150, step):
            sim.sharing.scan(step)
        check(sim)
        each.append(counters(sim))
    assert each[0] == each[1]


def test_a_pair_merges_in_the_second_full_scan_at_the_wake_up_that_reaches_the_second_of_the_two() -> None:
    """Checksums are noted in the first full scan; with N pages at rate R nothing merges before N/R, all by 2N/R."""
    sim, (a, b) = host()
    assert sim.sharing is not None
    content = int(fresh(sim, 1)[0])
    one, other = hold(a, 1, content), hold(b, 1, content)
    before = int(resident(a.vm).size + np.searchsorted(resident(b.vm), other[0]))
    reached = before // per_wake_up(sim) + 1
    for _ in range(wake_ups(sim) + reached - 1):
        sim.sharing.scan(1)
        assert counters(sim).pages_shared == 0
    sim.sharing.scan(1)
    assert counters(sim).pages_shared == counters(sim).pages_sharing == 1
    assert is_merged(a, one).all()
    assert is_merged(b, other).all()
    check(sim)


def test_a_page_that_equals_a_shared_one_joins_it_at_its_first_scan() -> None:
    """mm/ksm.c, cmp_and_merge_page: "We first start with searching the page inside the stable tree"."""
    sim, (a, b) = host()
    content = int(fresh(sim, 1)[0])
    hold(a, 2, content)
    full_scans(sim, 2)
    assert counters(sim).pages_sharing == 1
    late = hold(b, 1, content)
    full_scans(sim)
    assert is_merged(b, late).all()
    assert (counters(sim).pages_shared, counters(sim).pages_sharing) == (1, 2)


def test_a_page_that_changes_between_scans_is_volatile_and_never_merges_though_it_has_an_equal() -> None:
    sim, (a, b) = host()
    one, other = hold(a, 1, 0), hold(b, 1, 0)
    for _ in range(5):
        content = int(fresh(sim, 1)[0])
        put(a, one, content)
        put(b, other, content)
        full_scans(sim)
        assert counters(sim).pages_shared == 0
    assert counters(sim).pages_volatile == 2
    full_scans(sim)
    assert counters(sim).pages_sharing == 1
    assert counters(sim).pages_volatile == 0


def test_a_page_that_changed_after_it_was_put_into_the_unstable_tree_is_not_merged() -> None:
    sim, (a, b) = host()
    assert sim.sharing is not None
    content = int(fresh(sim, 1)[0])
    one, other = hold(a, 1, content), hold(b, 1, content)
    full_scans(sim)
    while sim.sharing._vm == a.vm.number:
        sim.sharing.scan(1)
    put(a, one, int(fresh(sim, 1)[0]))
    full_scans(sim)
    assert not is_merged(a, one).any()
    assert not is_merged(b, other).any()
    assert counters(sim).pages_shared == 0


# What


def never_tables(vm: VirtualMachine) -> NDArray[np.int64]:
    """Return the resident gfns that are no page tables of the guest, which walks change all the time."""
    gfns = resident(vm)
    return gfns[vm.guest.frames["kind"][gfns] != Kind.TABLE]


def test_counters_reconcile_with_the_ledger_and_with_a_count_of_equal_pages() -> None:
    sim, guests = host(3)
    free = sim.host.free_pages + sim.host.count(kind=Kind.TABLE)
    taken = 0
    for content in fresh(sim, 40).tolist():
        for guest in guests[: 1 + content % 3]:
            hold(guest, 1 + content % 4, content)
            taken += 1 + content % 4
    assert sim.vmm.contents is not None
    held = np.concatenate(
        [sim.vmm.contents.of_frame[guest.vm.nested.translate(never_tables(guest.vm))] for guest in guests]
    )
    _, times = np.unique(held, return_counts=True)
    full_scans(sim, 2)
    count = counters(sim)
    assert count.pages_shared == np.count_nonzero(times > 1) == sim.host.count(kind=Kind.USER, owner=SHARED)
    assert count.pages_sharing == (times[times > 1] - 1).sum()
    assert count.pages_unshared == np.count_nonzero(times == 1)
    assert count.pages_volatile == 0
    assert sim.host.free_pages + sim.host.count(kind=Kind.TABLE) == free - taken + count.pages_sharing
    assert count.pages_shared + count.pages_sharing == sum(guest.vm.merged_pages for guest in guests)
    assert count.general_profit == 4096 * count.pages_sharing - 64 * held.size
    assert count.full_scans == 2


@pytest.mark.parametrize("zeros", [True, False])
def test_a_frame_has_256_mappings_at_most_and_more_equal_pages_found_further_nodes(zeros: bool) -> None:
    """mm/ksm.c: ksm_max_page_sharing = 256; a page of zeros is a page like others where use_zero_pages is 0."""
    sim, (a, b) = host()
    content = 0 if zeros else int(fresh(sim, 1)[0])
    hold(a, 600, content)
    hold(b, 4 * 256 + 1 - 600, content)
    full_scans(sim, 2)
    count = counters(sim)
    assert (count.pages_shared, count.pages_sharing, count.stable_node_chains) == (4, 4 * 255, 1)
    shared = np.flatnonzero((sim.host.frames["owner"] == SHARED) & (sim.host.frames["kind"] == Kind.USER))
    assert sim.host.frames["page"][shared].tolist() == [256] * 4
    hold(b, 1, content)
    full_scans(sim, 2)
    assert counters(sim).pages_shared == 5


def test_a_merge_splits_the_large_leaf_and_no_other() -> None:
    sim, (a, b) = host(thp="always")
    large = [guest.vm.nested.leaf_counts[1] for guest in (a, b)]
    assert min(large) > 1
    for guest in (a, b):
        pages = resident(guest.vm)
        put(guest, pages, 0)
        guest.vm.contents.put(pages, fresh(sim, pages.size))  # type: ignore[union-attr]
    content = int(fresh(sim, 1)[0])
    one = np.array([5], np.int64)
    put(a, one, content)
    put(b, one, content)
    full_scans(sim, 2)
    assert counters(sim).pages_sharing == 1
    for guest, before in zip((a, b), large, strict=True):
        assert guest.vm.nested.leaf_counts[1] == before - 1
        assert (guest.vm.nested.mapped_sizes(np.arange(PAGEBLOCK)) == 0).all()


def test_a_write_to_a_shared_page_gets_a_copy_and_is_charged_and_the_page_may_merge_again() -> None:
    sim, (a, b) = host()
    content = int(fresh(sim, 1)[0])
    one = hold(a, 1, content)
    hold(b, 2, content)
    full_scans(sim, 2)
    assert (counters(sim).pages_shared, counters(sim).pages_sharing) == (1, 2)
    free = sim.host.free_pages
    a.vm.stall_ns.clear()
    sim.vmm.back(a.vm, one)
    check(sim)
    assert a.vm.stall_ns["unsharing"] == number("sharing.break_ns")
    assert sim.host.free_pages == free - 1
    assert (counters(sim).pages_shared, counters(sim).pages_sharing) == (1, 1)
    assert sim.vmm.merging is not None
    assert sim.vmm.merging.broken_pages == 1
    put(a, one, int(fresh(sim, 1)[0]))
    full_scans(sim, 2)
    assert not is_merged(a, one).any()
    put(a, one, content)
    full_scans(sim)
    assert is_merged(a, one).all()


def test_room_that_a_write_left_in_a_full_frame_is_used_before_a_new_node_is_founded() -> None:
    sim, (a, _) = host()
    content = int(fresh(sim, 1)[0])
    pages = hold(a, 256, content)
    full_scans(sim, 2)
    sim.vmm.back(a.vm, pages[:1])
    put(a, pages[:1], int(fresh(sim, 1)[0]))
    hold(a, 1, content)
    full_scans(sim, 2)
    assert (counters(sim).pages_shared, counters(sim).pages_sharing) == (1, 255)


# Who is left alone


def test_what_somebody_else_holds_is_left_alone_until_it_is_let_go_of() -> None:
    sim, (a, b) = host()
    content = int(fresh(sim, 1)[0])
    one, other = hold(a, 1, content), hold(b, 1, content)
    token = sim.host.isolate(a.vm.nested.translate(one), "test")
    full_scans(sim, 3)
    assert token.number in sim.host.tokens
    assert not is_merged(a, one).any()
    sim.host.release(token)
    full_scans(sim, 2)
    assert is_merged(a, one).all()
    assert is_merged(b, other).all()


def segments() -> tuple[Simulation, Guest, Guest, int]:
    """Return a host of which "a" has a VMM segment over all its memory and shares ten equal pages with "b"."""
    sim, (a, b) = host(mode="vmm-direct", thp="always")
    doing(sim, sim.vm("b").want("base"))
    assert (a.vm.mode, b.vm.mode) == ("vmm-direct", "base")
    content = int(fresh(sim, 1)[0])
    for guest in (a, b):
        pages = resident(guest.vm)
        guest.vm.contents.put(pages, fresh(sim, pages.size))  # type: ignore[union-attr]
        hold(guest, 10, content)
    return sim, a, b, content


def test_under_a_vmm_segment_nothing_merges_every_refusal_is_counted_and_the_rest_merges() -> None:
    sim, a, b, _ = segments()
    full_scans(sim)
    assert counters(sim).refused_pinned_vmm == 0
    full_scans(sim)
    assert a.vm.merged_pages == 0
    assert b.vm.merged_pages == 10
    assert counters(sim).refused_pinned_vmm == 9 + 1  # nine of "a" meet the first, and so does the first of "b"
    full_scans(sim)
    assert counters(sim).refused_pinned_vmm == 10 + 10  # ten of "a" meet the node
    assert sim.sharing is not None
    sim.sharing.tell()
    refusals = [one for one in sim.recorder.last(99) if (one.actor, one.outcome) == ("ksm", "refused")]
    assert {one.why[:11] for one in refusals} == {"PINNED_VMM:"}
    assert sum(int(one.asked.split()[0]) for one in refusals) == 20


def test_pages_merge_once_their_segment_is_left_and_come_apart_before_it_is_built_again() -> None:
    sim, a, b, _ = segments()
    full_scans(sim, 2)
    doing(sim, sim.vm("a").want("base"))
    full_scans(sim, 2)
    assert (a.vm.merged_pages, b.vm.merged_pages) == (10, 10)
    before = counters(sim)
    doing(sim, sim.vm("a").want("vmm-direct"))
    assert a.vm.mode == "vmm-direct"
    assert (a.vm.merged_pages, b.vm.merged_pages) == (0, 10)
    assert counters(sim).pages_sharing == before.pages_sharing - 10
    full_scans(sim, 3)
    assert a.vm.merged_pages == 0


# Frames that move, and break


def test_who_moves_shared_frames_moves_them_for_all_who_map_them_and_ksm_finds_them_again() -> None:
    """As the compactor does, and the builder of a segment with what lies in its window."""
    sim, guests = host(3)
    held = fresh(sim, 50).tolist()
    for content in held:
        for guest in guests:
            hold(guest, 2, content)
    full_scans(sim, 2)
    old = np.flatnonzero((sim.host.frames["owner"] == SHARED) & (sim.host.frames["kind"] == Kind.USER))
    new = sim.vmm.take_unmapped(old.size)
    sim.host.assign(new, owner=SHARED, pages=sim.host.frames["page"][old].astype(np.int64))
    sim.compactor.carry_out(old, new)
    sim.host.give_back(old)
    check(sim)
    late = hold(guests[0], 1, held[0])
    full_scans(sim)
    assert is_merged(guests[0], late).all()
    assert np.isin(guests[0].vm.nested.translate(late), new).all()


def shared_frame(sim: Simulation, guests: list[Guest]) -> tuple[np.ndarray, list[int]]:
    content = int(fresh(sim, 1)[0])
    gfns = [int(hold(guest, 1, content)[0]) for guest in guests]
    full_scans(sim, 2)
    frame = guests[0].vm.nested.translate([gfns[0]])
    assert sim.host.frames["page"][frame] == len(guests)
    return frame, gfns


def test_a_correctable_fault_in_a_shared_frame_moves_it_once_for_all() -> None:
    sim, guests = host(3)
    frame, gfns = shared_frame(sim, guests)
    sim.faults.strike(frame, what="bit", correctable=True)
    check(sim)
    assert sim.host.kinds(frame)[0] == Kind.BAD
    now = {int(guest.vm.nested.translate([gfn])[0]) for guest, gfn in zip(guests, gfns, strict=True)}
    assert len(now) == 1
    assert counters(sim).pages_sharing == 2
    assert len(sim.guests) == 3


def test_an_uncorrectable_fault_in_a_shared_frame_fails_every_vm_that_maps_it_and_no_other() -> None:
    sim, guests = host(3)
    frame, _ = shared_frame(sim, guests[:2])
    sim.faults.strike(frame, what="bit", correctable=False)
    check(sim)
    assert sim.host.kinds(frame)[0] == Kind.BAD
    assert list(sim.guests) == ["c"]  # it was kernel memory of both
    assert counters(sim).pages_shared == 0


def test_what_a_vm_shared_is_private_to_the_others_once_it_is_gone() -> None:
    sim, guests = host(3)
    for content in fresh(sim, 20).tolist():
        hold(guests[0], 1, content)
        hold(guests[1 + content % 2], 1, content)
    full_scans(sim, 2)
    assert counters(sim).pages_sharing == 20
    doing(sim, sim.shutdown("a"))
    assert (counters(sim).pages_shared, counters(sim).pages_sharing) == (20, 0)
    full_scans(sim)
    doing(sim, sim.shutdown("b"))
    doing(sim, sim.shutdown("c"))
    assert (counters(sim).pages_shared, counters(sim).pages_volatile) == (0, 0)
