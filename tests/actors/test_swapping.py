"""What is read and written, exactly, and that no page loses what it held, whoever swaps it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.actors.swapped import Reader, gfns, program, stand_still, swap_of
from vmmsim.actors.guest import Guest
from vmmsim.actors.guest_swap import GuestSwap
from vmmsim.actors.host_swap import HostSwap
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind
from vmmsim.simulation import Simulation
from vmmsim.testing import check

pytestmark = pytest.mark.skipif(INTERPRETED, reason="lives of programs take compiled kernels")

LONE = np.array([100, 200, 300])
"""Pages so far apart that none is read ahead with another."""


@pytest.fixture
def still() -> tuple[Simulation, Guest]:
    sim, (guest,) = stand_still("a", thp="never")
    return sim, guest


def done(sim: Simulation, guest: Guest, act: Callable[[], object]) -> tuple[int, int, int, int]:
    """Return what ``act`` made the VMM and the guest read and write: (VMM reads, VMM writes, guest reads, writes)."""
    assert guest.os.swap is not None
    devices = (swap_of(sim).device, guest.os.swap.device)
    before = [(device.reads, device.writes) for device in devices]
    act()
    check(sim)
    vmm, own = ((d.reads - r, d.writes - w) for d, (r, w) in zip(devices, before, strict=True))
    return (*vmm, *own)


def test_a_page_that_was_written_to_is_written_out_once(still):
    sim, guest = still
    assert done(sim, guest, lambda: swap_of(sim).swap_out(guest.vm, gfns(guest, LONE))) == (0, 3, 0, 0)


def test_what_comes_back_unchanged_needs_no_second_write(still):
    sim, guest = still
    pages = gfns(guest, LONE)
    swap_of(sim).swap_out(guest.vm, pages)
    assert done(sim, guest, lambda: sim.vmm.bring_in(guest.vm, pages)) == (3, 0, 0, 0)
    assert done(sim, guest, lambda: swap_of(sim).swap_out(guest.vm, pages)) == (0, 0, 0, 0)
    sim.vmm.bring_in(guest.vm, pages)
    guest.vm.contents.written(pages[:1])
    assert done(sim, guest, lambda: swap_of(sim).swap_out(guest.vm, pages)) == (0, 1, 0, 0)


def test_double_paging_a_guest_that_swaps_out_what_the_vmm_did_costs_a_read_and_a_write(still):
    sim, guest = still
    swap_of(sim).swap_out(guest.vm, gfns(guest, LONE))
    assert done(sim, guest, lambda: guest.os.swap.swap_out(LONE)) == (3, 0, 0, 3)


def test_a_page_that_the_guest_swapped_out_stays_resident(still):
    sim, guest = still
    pages, resident = gfns(guest, LONE), guest.vm.resident_pages
    assert done(sim, guest, lambda: guest.os.swap.swap_out(LONE)) == (0, 0, 0, 3)
    assert guest.vm.resident_pages == resident
    assert (guest.vm.guest.frames["kind"][pages] == Kind.FREE).all()
    assert (guest.vm.nested.translate(pages) >= 0).all()


def test_a_freed_page_is_written_out_though_nobody_needs_it(still):
    """Silent swap write, and then a false read: the guest zeroes what was read for it (VSwapper, ASPLOS 2014)."""
    sim, guest = still
    pages = gfns(guest, LONE)
    guest.os.swap.swap_out(LONE)
    free = pages[guest.vm.guest.frames["kind"][pages] == Kind.FREE]
    assert done(sim, guest, lambda: swap_of(sim).swap_out(guest.vm, free)) == (0, free.size, 0, 0)
    got = guest.vm.guest.take(guest.vm.guest.free_pages, kind=Kind.KERNEL)
    assert np.isin(free, got).all()
    assert done(sim, guest, lambda: sim.vmm.back(guest.vm, got)) == (free.size, 0, 0, 0)


@pytest.mark.parametrize("was_out", [True, False])
def test_what_comes_into_a_frame_that_the_vmm_swapped_out_reads_it_in_vain(still, monkeypatch, was_out):
    """One wasted read by the VMM, and its own: a swap-in reads from the guest's device, a page of zeros nothing."""
    sim, guest = still
    page, frame = LONE[:1], int(gfns(guest, LONE[:1])[0])
    guest.os.swap.swap_out(page)
    if not was_out:
        guest.os.swap.forget(page)
    assert done(sim, guest, lambda: swap_of(sim).swap_out(guest.vm, np.array([frame]))) == (0, 1, 0, 0)
    taken = guest.vm.guest.take_range
    monkeypatch.setattr(
        guest.vm.guest,
        "take",
        lambda count, *, kind, owner, pages, **_: taken(frame, frame + 1, kind=kind, owner=owner, pages=pages),
    )
    read = done(sim, guest, lambda: guest.os.touch(program(guest).gvpns(page), np.array([False])))
    assert read == (1, 0, int(was_out), 0)
    assert gfns(guest, page) == [frame]


def test_ballooning_a_page_that_the_vmm_swapped_out_costs_nothing(still):
    sim, guest = still
    guest.os.swap.swap_out(LONE)
    free = np.flatnonzero(guest.vm.guest.frames["kind"][: guest.vm.memory_top] == Kind.FREE)
    swap_of(sim).swap_out(guest.vm, free[guest.vm.nested.translate(free) >= 0])
    before = guest.vm.swapped_pages
    assert before
    run = sim.env.process(guest.balloon.resizing(free.size // 2, patience_ns=0))
    assert done(sim, guest, lambda: sim.env.run(until=run)) == (0, 0, 0, 0)
    assert guest.vm.ballooned_pages
    assert guest.vm.swapped_pages < before


def test_eight_are_read_at_once_where_slots_lie_in_a_row(still):
    """Linux: page-cluster 3, 2**3 pages."""
    sim, guest = still
    free = guest.vm.guest.frames["kind"]
    base = next(b for b in range(512, guest.vm.memory_top, 8) if (free[b : b + 16] == Kind.USER).all())
    row = np.arange(base, base + 16)
    device = swap_of(sim).device
    swap_of(sim).swap_out(guest.vm, row)
    requests = device.read_requests
    assert done(sim, guest, lambda: sim.vmm.bring_in(guest.vm, row[3:4])) == (8, 0, 0, 0)
    assert device.read_requests == requests + 1
    assert (guest.vm.nested.translate(row) >= 0).tolist() == [True] * 8 + [False] * 8
    numbers = np.arange(64, 80)
    guest.os.swap.swap_out(numbers)
    assert done(sim, guest, lambda: guest.os.touch(program(guest).gvpns(numbers[3:4]), np.array([False])))[2] == 8
    assert program(guest).mapped[numbers].tolist() == [True] * 8 + [False] * 8


def test_no_page_is_read_ahead_where_slots_do_not_lie_in_a_row(still):
    sim, guest = still
    numbers = np.arange(64, 72)
    for number in numbers[::-1]:
        guest.os.swap.swap_out(np.array([number]))
    assert done(sim, guest, lambda: guest.os.touch(program(guest).gvpns(numbers[3:4]), np.array([False])))[2] == 1


@pytest.mark.parametrize("seed", range(4))
def test_no_page_loses_what_was_written_to_it_whoever_swaps(seed: int):
    sim, guests = stand_still(thp="never" if seed % 2 else "always")
    random, did = np.random.default_rng(seed), Counter[str]()
    readers = [Reader(sim, guest) for guest in guests]
    for _ in range(40):
        which = int(random.integers(2))
        guest, reader = guests[which], readers[which]
        process, swap = program(guest), guest.os.swap
        some = np.sort(random.choice(process.pages, 24, replace=False))
        mapped = some[process.mapped[some]]
        act = str(
            random.choice(["host out", "host kswapd", "in", "guest out", "guest kswapd", "touch", "write", "cache"])
        )
        if act == "host out":
            swap_of(sim).swap_out(guest.vm, gfns(guest, mapped))
        elif act == "host kswapd":
            sim.swapper.reclaim(64)
        elif act == "in":
            sim.vmm.bring_in(guest.vm, gfns(guest, mapped))
        elif act == "guest out":
            swap.swap_out(mapped)
        elif act == "guest kswapd":
            guest.swapper.reclaim(48)
        elif act == "touch":
            guest.os.touch(process.gvpns(some), np.zeros(some.size, np.bool_))
        elif act == "write":
            absent = some[~process.mapped[some]]
            guest.os.touch(process.gvpns(absent), np.ones(absent.size, np.bool_))
            guest.os._serve(mapped, np.ones(mapped.size, np.bool_))
            now = reader.read()
            assert not np.any(now[some] == reader.held[some]), "a write leaves something new"
            reader.held[some] = now[some]
        else:
            guest.vm.guest.give_back(guest.os._allocate(32, kind=Kind.CACHE, owner=0))
        did[act] += 1
        check(sim)
        sim.swapper.lru.check()
        for each in guests:
            each.swapper.lru.check()
        assert not any(reader.lost().size for reader in readers), f"lost by {act}: {did}"
        sim.env.run(until=int(sim.env.now) + 1000)
    assert len(did) > 5, did
    assert sum(guest.os.swap.device.writes for guest in guests) > 40
    assert swap_of(sim).device.writes > 40


def forget_contents(monkeypatch):
    """The guest maps a page that it read, and copies nothing."""
    monkeypatch.setattr(GuestSwap, "bring_in", lambda self, numbers, gfns: None)


def free_twice(monkeypatch):
    """A slot is freed when the page is read in, and again when the page goes."""
    once = HostSwap.bring_in

    def twice(self, vm, gfns):
        once(self, vm, gfns)
        self.device.give_back(vm.swapped[gfns] - 1)

    monkeypatch.setattr(HostSwap, "bring_in", twice)


def lose_count(monkeypatch):
    """Nobody books which pages are out."""
    monkeypatch.setattr(HostSwap, "_book", lambda self, vm, gfns, change: None)


@pytest.mark.parametrize("plant", [forget_contents, free_twice, lose_count])
def test_a_planted_bug_is_caught(monkeypatch, plant):
    sim, (guest,) = stand_still("a", thp="never")
    reader = Reader(sim, guest)
    plant(monkeypatch)

    def life() -> None:
        swap_of(sim).swap_out(guest.vm, gfns(guest, LONE))
        check(sim)
        sim.vmm.bring_in(guest.vm, gfns(guest, LONE))
        check(sim)
        guest.os.swap.swap_out(LONE)
        guest.os.touch(program(guest).gvpns(LONE), np.zeros(3, np.bool_))
        check(sim)
        assert not reader.lost().size

    with pytest.raises(AssertionError):
        life()


def test_the_host_takes_nothing_that_is_in_use_at_this_instant():
    """A fault that makes room for its last pages must not lose its first ones: their contents are not there yet."""
    sim, (guest, other) = stand_still()
    vm = guest.vm
    mine = np.flatnonzero(vm.nested.translate(np.arange(vm.memory_top)) >= 0)
    sim.vmm.back(vm, mine)
    while sim.swapper.reclaim(512):
        pass
    assert vm.swapped_pages == 0
    assert other.vm.swapped_pages >= 512
    sim.env.run(until=int(sim.env.now) + 1)
    assert sim.swapper.reclaim(64) >= 64
    assert vm.swapped_pages >= 64


def test_what_a_segment_covers_is_refused_and_the_check_sees_it_if_it_is_not(monkeypatch):
    sim, (guest,) = stand_still("a", memory="16MiB", mode="dual-direct")
    assert guest.vm.mode == "dual-direct"
    pages = np.arange(program(guest).pages)
    before = swap_of(sim).device.writes, guest.os.swap.device.writes
    assert swap_of(sim).swap_out(guest.vm, gfns(guest, pages)) == (0, 0)
    assert guest.os.swap.swap_out(pages) == (0, 0)
    sim.swapper.reclaim(64)
    guest.swapper.lru.add(pages[::8])
    guest.swapper.lru.coldest(16, guest.swapper.look)
    assert (swap_of(sim).device.writes, guest.os.swap.device.writes) == before
    assert guest.swapper.refused == {"a": pages[::8].size}
    monkeypatch.setattr(GuestSwap, "may_go", lambda self, numbers: np.ones(numbers.size, np.bool_))
    guest.os.swap.swap_out(pages[:8])
    with pytest.raises((AssertionError, ValueError)):
        check(sim)
