"""Live migration: rounds by closed forms and by the program's own account, and no page is left behind unsent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.actors.scanning import Scan
from tests.actors.toys import MIB, S, checked, doing, lived, toy, toy_vm, until, whys, without_ksmd
from vmmsim import rates
from vmmsim.actors.costs import rendezvous_ns
from vmmsim.actors.dirty_log import DirtyLog
from vmmsim.actors.guest import Guest
from vmmsim.actors.migration import CHUNK_PAGES, Migrated, Migration
from vmmsim.actors.vmm import Vmm
from vmmsim.errors import BadInput, Refused
from vmmsim.memory.frames import Kind
from vmmsim.scenario import Compaction, MigrateEvent, Sharing, Swap
from vmmsim.scenario import Workload as Described
from vmmsim.simulation import Simulation
from vmmsim.testing import check

PAGES = 4096
"""Pages of the program that scans."""
SCAN = Described(use="tests.actors.scanning:Scan", parameters={"pages": PAGES})
FAST = {"bandwidth": 1_600_000_000}  # 390,625 pages a second: about four times as fast as the scan writes
PAGES_A_SECOND = 1_600_000_000 / 4096


def scanning(**vm: Any) -> tuple[Simulation, Guest]:
    """Return a VM that has written all its pages once and writes them again, about 100,000 a second."""
    return lived({"db": attrs.evolve(toy_vm(**vm), workload=SCAN)})


def migrate(sim: Simulation, **arguments: Any) -> Migrated:
    done: Migrated = doing(sim, sim.vm("db").migrate(**{"then": "stay", **arguments}))
    return done


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the program was at the end of each round, the beginning of the first included."""
    at: list[int] = []
    begin, collect = DirtyLog.begin, DirtyLog.collect

    def beginning(self: DirtyLog) -> None:
        at.append(self._position())
        begin(self)

    def collecting(self: DirtyLog) -> NDArray[np.int64]:
        at.append(self._position())
        return collect(self)

    monkeypatch.setattr(DirtyLog, "begin", beginning)
    monkeypatch.setattr(DirtyLog, "collect", collecting)
    return at


def idle(**told: Any) -> tuple[Simulation, Guest]:
    """Return a VM whose program has written its memory and stands still."""
    sim, guest = lived(**told)
    doing(sim, sim.vm("db").load(0.0))
    until(sim, int(sim.env.now) + S // 100)
    return sim, guest


# Rounds


@pytest.mark.parametrize("logging", ["wp", "pml"])
def test_each_round_copies_what_the_program_wrote_in_the_one_before(positions: list[int], logging: str) -> None:
    sim, guest = scanning()
    process = guest.vm.process
    assert process is not None
    tables = process.table.table_frames.size  # written in each round: walks set bits in them
    resident = guest.vm.resident_pages
    done = migrate(sim, logging=logging, downtime="200us", **FAST)
    scan = Scan(PAGES)
    wrote = [scan.touched(p, q)[1].size for p, q in itertools.pairwise(positions)]
    assert len(done.rounds) >= 3, "a life that shows how rounds shrink"
    assert [one.dirtied_pages for one in done.rounds] == [pages + tables for pages in wrote[: len(done.rounds)]]
    assert [one.sent_pages for one in done.rounds] == [resident, *(one.dirtied_pages for one in done.rounds[:-1])]


def test_rounds_shrink_as_pages_written_to_pages_copied(positions: list[int]) -> None:
    sim, guest = scanning()
    assert guest.vm.process is not None
    done = migrate(sim, logging="pml", downtime="200us", **FAST)
    tables = guest.vm.process.table.table_frames.size
    took_s = sum(one.ns for one in done.rounds) / 1e9
    ratio = (positions[len(done.rounds)] - positions[0]) / took_s / PAGES_A_SECOND
    assert 0.2 < ratio < 0.3
    assert done.rounds[0].dirtied_pages < PAGES, "no page is written twice in a round"
    for before, after in zip(done.rounds[:-1], done.rounds[1:], strict=True):
        assert after.sent_pages - tables == pytest.approx(before.sent_pages * ratio, rel=0.05, abs=2)


@pytest.mark.parametrize("logging", ["wp", "pml"])
def test_time_and_downtime_are_pages_over_bandwidth(logging: str) -> None:
    sim, _ = scanning()
    began = int(sim.env.now)
    done = migrate(sim, logging=logging, downtime="1ms", **FAST)
    chunks = sum(-(-one.sent_pages // CHUNK_PAGES) for one in done.rounds) + 1  # each is rounded down to a nanosecond
    assert done.total_ns == pytest.approx(done.sent_pages / PAGES_A_SECOND * 1e9, abs=chunks)
    assert done.downtime_ns == pytest.approx(done.last_pages / PAGES_A_SECOND * 1e9, abs=1)
    assert done.downtime_ns <= 1_000_000 < done.rounds[-2].dirtied_pages / PAGES_A_SECOND * 1e9, "not stopped before"
    assert int(sim.env.now) - began >= done.total_ns


def test_the_program_stands_still_for_the_downtime_and_no_longer() -> None:
    sim, guest = scanning()
    progress: list[tuple[int, int]] = []
    vcpus = guest.vcpus
    assert vcpus is not None
    halt, resume = vcpus.halt, vcpus.resume
    vcpus.halt = lambda: (halt(), progress.append((int(sim.env.now), vcpus.position())))[0]  # type: ignore[method-assign, func-returns-value]
    vcpus.resume = lambda: (progress.append((int(sim.env.now), vcpus.position())), resume())[1]  # type: ignore[method-assign, func-returns-value]
    done = migrate(sim, downtime="1ms", **FAST)
    (began, before), (ended, after) = progress
    assert before == after
    assert ended - began == done.downtime_ns > 0
    sim.env.run(until=int(sim.env.now) + S // 100)
    assert vcpus.position() > after


def test_an_idle_vm_takes_one_round_and_no_downtime() -> None:
    sim, guest = idle()
    done = migrate(sim, **FAST)
    assert [one.sent_pages for one in done.rounds] == [guest.vm.resident_pages]
    assert (done.last_pages, done.downtime_ns, done.exits) == (0, 0, 0)


def test_what_is_written_faster_than_copied_does_not_converge_and_the_vm_goes_on() -> None:
    sim, guest = scanning(mode="vmm-direct")
    done = migrate(sim, bandwidth=200_000_000, downtime="1ms")
    assert done.outcome == "failed"
    assert len(done.rounds) == rates.number("migration.max_rounds")
    assert guest.vm.dirty_log is None
    assert guest.vcpus is not None
    before = guest.vcpus.position()
    sim.env.run(until=int(sim.env.now) + S // 100)
    assert guest.vm.mode == "vmm-direct"
    assert guest.vcpus.position() > before
    assert "does not converge" in whys(sim, "migration", "migrate")[-1]


def test_auto_converge_slows_the_program_down_until_it_does() -> None:
    sim, guest = scanning()
    done = migrate(sim, bandwidth=200_000_000, downtime="1ms", auto_converge=True)
    assert done.outcome == "done"
    steps = len(whys(sim, "migration", "throttle"))
    assert done.throttled == pytest.approx(0.2 + 0.1 * (steps - 1))
    assert guest.vcpus is not None
    assert guest.vcpus._load() == 1.0, "at full speed again"


# The log


@pytest.mark.parametrize("kind", ["wp", "pml"])
def test_only_the_first_write_of_a_round_is_an_exit(kind: Any) -> None:
    sim, guest = idle()
    vm = guest.vm
    log = DirtyLog(sim.vmm, vm, kind, lambda: 0)
    log.begin()
    gfns = np.flatnonzero(vm.nested.translate(np.arange(vm.guest.pages)) >= 0)[:1300]
    assert gfns.size == 1300
    for _ in range(2):
        vm.stall_ns.clear()
        before = log.exits
        sim.vmm.back(vm, gfns[:700])
        sim.vmm.back(vm, gfns)
        check(sim)
        assert np.array_equal(log.collect(), gfns)
        exits = log.exits - before
        assert exits == (1300 if kind == "wp" else 3), "1300 first writes, or two full buffers of 512 and the rest"
        exit_ns, fault_ns = rates.number("vmm.exit_ns"), rates.number("migration.wp_fault_ns")
        each = (
            1300 * (exit_ns + fault_ns) if kind == "wp" else 3 * exit_ns + 1300 * rates.number("migration.pml_entry_ns")
        )
        assert vm.stall_ns["dirty logging"] == each
    assert not log.collect().size
    log.end()
    check(sim)


def test_exits_of_a_migration_are_the_first_writes_of_its_rounds() -> None:
    sim, _ = scanning()
    done = migrate(sim, downtime="1ms", **FAST)
    assert done.exits == sum(one.dirtied_pages for one in done.rounds) + done.last_pages - done.rounds[-1].dirtied_pages


def test_large_leaves_are_split_meanwhile_and_large_again_afterwards() -> None:
    sim, guest = scanning(mode="base")
    before = guest.vm.nested.leaf_counts
    assert before[1] > 0
    seen = []
    sim.vm("db").migrate(then="stay", downtime="1ms", **FAST)
    while guest.vm.dirty_log is None:
        sim.env.step()
    seen.append(guest.vm.nested.leaf_counts[1])
    until(sim, int(sim.env.now) + S)
    assert seen == [0]
    assert guest.vm.nested.leaf_counts == before


# Segments


@pytest.mark.parametrize(("mode", "meanwhile"), [("vmm-direct", "base"), ("dual-direct", "guest-direct")])
def test_the_vmm_segment_is_left_before_the_first_round_and_entered_again_after_the_last(
    mode: Any, meanwhile: str
) -> None:
    sim, guest = scanning(mode=mode)
    assert guest.vm.mode == mode
    segment, began, before = guest.vm.vmm_segment, int(sim.env.now), len(sim.recorder)
    done = migrate(sim, downtime="1ms", **FAST)
    until(sim, int(sim.env.now) + S // 10)
    modes = [one for one in map(sim.recorder.decision, range(before, len(sim.recorder))) if one.verb == "mode"]
    assert [(one.got, one.t_ns) for one in modes] == [(meanwhile, began), (mode, began + done.total_ns)]
    assert modes[0].cost_ns == rendezvous_ns(guest.vm.description.vcpus)
    assert all(sim.recorder.decision(one.cause).verb == "migrate" for one in modes)
    assert (guest.vm.vmm_segment.base, guest.vm.vmm_segment.offset) == (segment.base, segment.offset)  # type: ignore[union-attr]
    assert not any(one.verb == "build" for one in map(sim.recorder.decision, range(before, len(sim.recorder))))


def test_a_segment_is_built_anew_if_its_frames_were_moved_meanwhile() -> None:
    sim, guest = scanning(mode="vmm-direct")
    started = sim.vm("db").migrate(then="stay", downtime="1ms", **FAST)
    until(sim, int(sim.env.now) + S // 1000)
    assert guest.vm.mode == "base"
    doing(sim, sim.fault(fault="bit", vm="db", gfn=700))
    doing(sim, started)
    until(sim, int(sim.env.now) + 2 * S)
    assert guest.vm.mode == "vmm-direct"
    assert whys(sim, "compactor", "build")[-1].startswith("done")


def test_a_build_in_flight_is_given_up_and_begun_again_afterwards() -> None:
    told = {"compaction": Compaction(bandwidth_bytes_per_second=16 * MIB)}
    sim = checked({"db": attrs.evolve(toy_vm(mode="base"), workload=SCAN)}, host=told)
    until(sim, S)
    guest = sim.guests["db"]
    sim.vm("db").want("vmm-direct")
    while guest.vm.lease is None:
        sim.env.step()
    started = sim.vm("db").migrate(then="stay", downtime="1ms", **FAST)
    until(sim, int(sim.env.now) + S // 1000)
    assert guest.vm.lease is None
    assert guest.vm.dirty_log is not None
    doing(sim, started)
    until(sim, int(sim.env.now) + 40 * S)
    assert "aborted: given up: the VM is migrated" in whys(sim, "compactor", "build")
    assert guest.vm.mode == "vmm-direct"


# Ends


def test_a_vm_that_leaves_is_gone_with_all_it_had() -> None:
    sim, _ = scanning(mode="vmm-direct")
    migrate(sim, then="leave", downtime="1ms", **FAST)
    assert not sim.guests
    assert not sim.host.count(kind=Kind.USER)
    assert whys(sim, "vmm", "shutdown") == ["done: migrated to another host"]
    sim.boot("db")
    until(sim, int(sim.env.now) + S)
    assert "db" in sim.guests


@pytest.mark.parametrize("at_ms", [0, 2, 5, 10, 20])
def test_a_vm_shut_down_in_the_middle_leaves_nothing_behind(at_ms: int) -> None:
    sim, guest = scanning(mode="vmm-direct")
    started = sim.vm("db").migrate(downtime="10ms", **FAST)
    until(sim, int(sim.env.now) + at_ms * 1_000_000)
    assert started.is_alive, "it has not left yet"
    doing(sim, sim.shutdown("db"))
    assert doing(sim, started).outcome == "aborted"
    assert guest.vm.dirty_log is None
    assert not sim.host.count(kind=Kind.USER)
    assert whys(sim, "migration", "migrate")[-1] == "aborted: the VM is gone"


def test_a_second_migration_is_refused_while_the_first_lasts() -> None:
    sim, _ = scanning()
    first = sim.vm("db").migrate(then="stay", **FAST)
    until(sim, int(sim.env.now) + S // 1000)
    with pytest.raises(Refused, match="being migrated already"):
        doing(sim, sim.vm("db").migrate())
    assert doing(sim, first).outcome == "done"
    assert migrate(sim, **FAST).outcome == "done"


def test_a_vm_that_runs_nothing_can_be_migrated() -> None:
    sim, guest = lived({"db": toy_vm(footprint_bytes=None)})
    done = migrate(sim, **FAST)
    assert done.sent_pages == guest.vm.resident_pages > 0


def test_pml_needs_dirty_bits_in_nested_tables() -> None:
    from vmmsim.testing import toy_scenario

    sim = Simulation(toy_scenario({"db": toy_vm()}, machine="sandy-bridge-2012", detail="lifetime"))
    sim.start()
    until(sim, S)
    with pytest.raises(Refused, match="the machine lacks"):
        doing(sim, sim.vm("db").migrate(logging="pml"))
    assert migrate(sim, logging="wp", downtime="1s").outcome == "done"


def test_arguments_are_those_of_scenario_files_or_whole_numbers() -> None:
    sim, _ = idle()
    assert migrate(sim, bandwidth=10**9, downtime=10**6).outcome == "done"
    with pytest.raises(BadInput, match="then"):
        sim.vm("db").migrate(then="go")
    with pytest.raises(BadInput, match="more than 0"):
        sim.vm("db").migrate(bandwidth="0B/s")


def test_defaults_of_the_event_are_those_of_the_rates() -> None:
    event = MigrateEvent(at_ns=0, vm="db")
    assert event.bandwidth_bytes_per_second == rates.number("migration.bandwidth_bytes_per_s")
    assert event.downtime_ns == rates.number("migration.downtime_ns")


# What arrives


def held_by(guest: Guest, gfns: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return what pages hold: in the frame, or in the slot of swap space; -1: they are nowhere."""
    vm, vmm = guest.vm, guest.os.vmm
    assert vmm.contents is not None
    assert vmm.swap is not None
    assert vm.swapped is not None
    frames, slots = vm.nested.translate(gfns), vm.swapped[gfns] - 1
    swapped = np.where(slots >= 0, vmm.swap.device.content[slots], -1)
    return np.where(frames >= 0, vmm.contents.of_frame[frames], swapped)


def pause(sim: Simulation, ns: int) -> None:
    """Let time pass, checked; what is being copied may be held in the end."""
    end = int(sim.env.now) + ns
    while sim.env.peek() <= end:
        sim.env.step()
        check(sim)
    sim.env.run(until=end)


def arrives(logging: str, patch: pytest.MonkeyPatch, seed: int) -> None:
    """Migrate a VM amid sharing, swapping, compaction and guest copies; the destination must hold all it holds."""
    host = {
        "sharing": Sharing(), "swap": Swap(device="zram", size_bytes=32 * MIB),
        "compaction": Compaction(bandwidth_bytes_per_second=1 << 28),
    }  # fmt: skip
    sim = Simulation(toy({"db": toy_vm(footprint_bytes=6 * MIB), "web": toy_vm(16 * MIB)}, host=host), check=True)
    without_ksmd(sim).start()
    guest = until(sim, S).guests["db"]
    vm, vmm, random = guest.vm, sim.vmm, np.random.default_rng(seed)
    image = np.full(vm.guest.pages, -1, np.int32)
    compared: list[int] = []

    def sent(self: Migration, gfns: NDArray[np.int64]) -> None:
        image[gfns] = held_by(guest, gfns)

    def finish(self: Migration, *, leaves: bool) -> None:
        gfns = self._there(np.arange(vm.guest.pages))
        compared.append(gfns.size)
        wrong = gfns[image[gfns] != held_by(guest, gfns)]
        assert not wrong.size, f"{wrong.size} of {gfns.size} pages hold something else at the destination"
        real(self, leaves=leaves)

    real = Migration._finish
    patch.setattr(Migration, "sent", sent)
    patch.setattr(Migration, "_finish", finish)
    started = sim.vm("db").migrate(
        logging=logging, bandwidth=400_000_000, downtime="5ms", then="stay", auto_converge=True
    )
    while started.is_alive:
        pause(sim, 2_000_000)
        if not started.is_alive:
            break
        process = vm.process
        assert process is not None
        gfns = process.table.translate(process.gvpns(np.flatnonzero(process.mapped)))
        private = gfns[(vm.nested.translate(gfns) >= 0) & ~vm.merged[gfns]]  # type: ignore[index]
        act = int(random.integers(7))
        if act == 0:
            vmm.swap.swap_out(vm, random.choice(private, 30, replace=False))  # type: ignore[union-attr]
        elif act == 1:
            vmm.merging.share(vm, random.choice(private, 30, replace=False))  # type: ignore[union-attr]
        elif act == 2:
            vmm.bring_in(vm, gfns)
        elif act == 3:
            sim.compact()
        elif act == 4:
            sim.env.process(guest.compactor.compacting())
        elif act == 5 and guest.vcpus is not None and guest.vcpus._resumed is None:
            vm.guest.give_back(guest.os.take_kernel(20))
        else:
            sim.vm("db").balloon.target(int(random.integers(24, 33)) * MIB)
    assert compared
    pause(sim, S // 100)


@pytest.mark.parametrize("logging", ["wp", "pml"])
@pytest.mark.parametrize("seed", range(3))
def test_the_destination_holds_what_the_source_holds(logging: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrives(logging, monkeypatch, seed)


def forgets_what_is_allocated(patch: pytest.MonkeyPatch) -> None:
    back = Vmm.back

    def backed(self: Vmm, vm: Any, gfns: NDArray[np.int64]) -> None:
        log = vm.dirty_log
        if log is None:
            return back(self, vm, gfns)
        known = log.dirty.copy()
        back(self, vm, gfns)
        log.dirty[:] = known
        return None

    patch.setattr(Vmm, "back", backed)


def forgets_what_is_looked_up(patch: pytest.MonkeyPatch) -> None:
    look = DirtyLog.look

    def looked(self: DirtyLog) -> None:
        known = self.dirty.copy()
        look(self)
        self.dirty[:] = known

    patch.setattr(DirtyLog, "look", looked)


def forgets_every_thousandth(patch: pytest.MonkeyPatch) -> None:
    written = DirtyLog.written
    patch.setattr(DirtyLog, "written", lambda self, gfns: written(self, gfns[gfns % 1000 != 7]))


def reads_in_unprotected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DirtyLog, "read_in", lambda self, gfns: None)


def protects_nothing(patch: pytest.MonkeyPatch) -> None:
    begin = DirtyLog.begin

    def beginning(self: DirtyLog) -> None:
        self._mark = 0
        begin(self)

    patch.setattr(DirtyLog, "begin", beginning)


BUGS = [
    forgets_what_is_allocated, forgets_what_is_looked_up, forgets_every_thousandth,
    reads_in_unprotected, protects_nothing,
]  # fmt: skip


@pytest.mark.parametrize("plant", BUGS, ids=lambda bug: bug.__name__)
def test_a_write_that_is_not_logged_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(3):
        try:
            arrives("wp", monkeypatch, seed)
        except Exception as error:
            cause = error.__cause__ or error
            assert isinstance(cause, AssertionError)
            assert "destination" in str(cause) or "unseen" in str(cause)
            return
    pytest.fail("nobody noticed")


def test_a_migration_is_the_same_with_and_without_checks_and_again() -> None:
    digests = set()
    for check_it in (True, False, False):
        event = MigrateEvent(at_ns=S // 20, vm="db", then="stay", downtime_ns=1_000_000)
        sim = Simulation(toy({"db": toy_vm(mode="vmm-direct")}, event=[event], until_ns=S // 2), check=check_it)
        sim.run()
        assert "migrate" in {sim.recorder.decision(row).verb for row in range(len(sim.recorder))}
        digests.add(sim.recorder.digest())
    assert len(digests) == 1
