"""The table of trade-offs comes out as the MICRO 2014 poster has it, by measurement, and changes with the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vmmsim as vs
from tests.studies.small_tradeoffs import small_scenario
from vmmsim.actors.balloon import Balloon
from vmmsim.actors.guest_swap import GuestSwap
from vmmsim.actors.host_swap import HostSwap
from vmmsim.actors.invariants import check_all
from vmmsim.actors.merging import Merging
from vmmsim.actors.obstacles import Obstacle
from vmmsim.randomness import stream
from vmmsim.studies.snapshot import Snapshot
from vmmsim.studies.tradeoff_life import STUDIED, Life, live
from vmmsim.studies.tradeoff_pages import Page, Sample, draw
from vmmsim.studies.tradeoff_result import Cell, Tradeoffs
from vmmsim.studies.tradeoff_services import SERVICES, attempt, ready
from vmmsim.studies.tradeoffs import cells_of, live_all, try_all

pytestmark = pytest.mark.life

POSTER = {
    "base": (24, 0, "2D", "none", "none", "any", "unrestricted", "unrestricted", "unrestricted", "unrestricted"),
    "dual-direct": (0, 1, "0D", "needed", "needed", "big-memory", "limited", "limited", "limited", "limited"),
    "vmm-direct": (4, 5, "1D", "none", "needed", "any", "limited", "unrestricted", "unrestricted", "limited"),
    "guest-direct": (
        4, 1, "1D", "needed", "minimal", "big-memory", "unrestricted", "limited", "limited", "unrestricted",
    ),
}  # fmt: skip
"""MICRO 2014 poster, section 5, column by column: accesses, checks, dimension, guest and VMM modifications, category,
page sharing, ballooning, guest OS swapping, VMM swapping."""
SERVICES_OF_POSTER = ("page_sharing", "ballooning", "guest_swapping", "vmm_swapping")


def told(found: Tradeoffs) -> dict[str, tuple[Any, ...]]:
    return {
        mode: (
            it.walks.references, it.walks.checks, it.walks.dimension, it.guest.verdict, it.vmm.verdict, it.category,
            *(it.cells[service].verdict for service in SERVICES_OF_POSTER),
        )
        for mode, it in found.columns.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def lives() -> dict[str, Life]:
    return live_all(small_scenario(), lambda words: None)


@pytest.fixture(scope="module")
def sample(lives: dict[str, Life]) -> Sample:
    return draw(lives, 16, stream(1, "tradeoffs.sample"))


@pytest.fixture(scope="module")
def small() -> Tradeoffs:
    return vs.tradeoffs(small_scenario(), pages=16)


def tried(lives: dict[str, Life], sample: Sample) -> dict[str, dict[str, Cell]]:
    return cells_of({mode: try_all(life, sample) for mode, life in lives.items()}, sample)


@pytest.fixture(scope="module")
def right(lives: dict[str, Life], sample: Sample) -> dict[str, dict[str, Cell]]:
    return tried(lives, sample)


def test_a_small_vm_gives_the_posters_table(small: Tradeoffs) -> None:
    assert told(small) == POSTER
    assert small.errors == ()


def test_the_reference_vm_gives_the_posters_table() -> None:
    found = vs.tradeoffs(pages=16)
    assert told(found) == POSTER
    assert found.errors == ()
    # Of 8 GiB, 256 MiB stay below the I/O gap: what can be shared at most.
    share = found.columns["vmm-direct"].cells["page_sharing"].share
    assert share is not None
    assert 0 < share <= 256 / 8192 + 0.001
    # Three quarters of the program are its primary region, which does not swap.
    assert found.columns["dual-direct"].cells["guest_swapping"].share == pytest.approx(0.25)


def test_every_refusal_lies_under_the_segment_that_it_names_and_nothing_else_does(small: Tradeoffs) -> None:
    met = 0
    for mode, column in small.columns.items():
        for cell in column.cells.values():
            for one in cell.attempts:
                covered = small.sample.strata[one.page.stratum].covered
                if one.refused:
                    met += 1
                    kind = {"PINNED_GUEST": "guest", "PINNED_VMM": "VMM"}[one.outcome]
                    assert f"{mode}: {kind} segment" in covered
                    assert one.gfn >= 0
                else:
                    assert one.done
    assert met > 40


def test_frames_given_up_under_a_vmm_segment_are_held(small: Tradeoffs) -> None:
    base, vmm = (small.columns[mode].cells["ballooning"] for mode in ("base", "vmm-direct"))
    assert base.reusable == pytest.approx(1.0)
    assert vmm.share == pytest.approx(1.0)
    held = sum(
        weight
        for one, weight in zip(vmm.attempts, vmm.weights, strict=True)
        if "vmm-direct: VMM segment" in small.sample.strata[one.page.stratum].covered
    )
    assert vmm.reusable == pytest.approx(1 - held)
    assert held > 0.5


def test_walks_of_2m_pages_read_as_many_entries_as_their_levels_say(small: Tradeoffs) -> None:
    references = {mode: column.huge.references for mode, column in small.columns.items()}
    # (3 + 1) * (3 + 1) - 1 in two dimensions, 3 in one: a level less than with 4K pages.
    assert references == {"base": 15, "dual-direct": 0, "vmm-direct": 3, "guest-direct": 3}


def test_writes_under_a_vmm_segment_cannot_be_logged(small: Tradeoffs) -> None:
    verdicts = {mode: column.cells["dirty_logging"].verdict for mode, column in small.columns.items()}
    assert verdicts["base"] == verdicts["guest-direct"] == "unrestricted"
    assert verdicts["dual-direct"] != "unrestricted"
    assert verdicts["vmm-direct"] != "unrestricted"


def test_equal_seeds_give_equal_attempts(small: Tradeoffs, right: dict[str, dict[str, Cell]]) -> None:
    assert right == {mode: column.cells for mode, column in small.columns.items()}


def test_a_page_that_escapes_the_segment_can_be_shared_and_swapped_out() -> None:
    life = live(small_scenario(), "db", "vmm-direct")
    vm, process = life.vm, life.guest.os.process
    numbers = np.flatnonzero(vm.under_vmm_segment(process.table.translate(process.gvpns(np.arange(process.pages)))))
    escaped, beside = (Page(role="program", key=key, stratum=0) for key in numbers[[100, 101]].tolist())
    life.sim.faults.strike(vm.nested.translate([escaped.gfn(life)]), what="bit", correctable=True)
    assert vm.escapes is not None
    assert vm.escapes.members == (escaped.gfn(life),)
    core = ready(life, [escaped, beside])
    kept = Snapshot(life)
    for service in ("page_sharing", "vmm_swapping", "dirty_logging"):
        outcomes = []
        for page in (escaped, beside):
            outcomes.append(attempt(life, service, page, core).outcome)
            kept.restore()
        assert outcomes == ["DONE", "PINNED_VMM"], service


# Planted bugs: the rule is taken out of the mechanism, and the table says something else


def without(owner: type, pin: Obstacle) -> Callable[..., NDArray[np.uint8]]:
    """Return ``owner.obstacles`` blind to a pin."""
    right = owner.obstacles  # type: ignore[attr-defined]

    def obstacles(self: Any, *asked: Any) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = right(self, *asked)
        return np.where(found == pin, np.uint8(Obstacle.NONE), found)

    return obstacles


@pytest.mark.parametrize(
    ("owner", "pin", "service", "modes"),
    [
        (Merging, Obstacle.PINNED_VMM, "page_sharing", ("dual-direct", "vmm-direct")),
        (Balloon, Obstacle.PINNED_GUEST, "ballooning", ("dual-direct", "guest-direct")),
        (GuestSwap, Obstacle.PINNED_GUEST, "guest_swapping", ("dual-direct", "guest-direct")),
        (HostSwap, Obstacle.PINNED_VMM, "vmm_swapping", ("dual-direct", "vmm-direct")),
    ],
)
def test_a_mechanism_without_its_rule_changes_its_row_and_no_other(
    owner: type,
    pin: Obstacle,
    service: str,
    modes: tuple[str, ...],
    lives: dict[str, Life],
    sample: Sample,
    right: dict[str, dict[str, Cell]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, "obstacles", without(owner, pin))
        wrong = tried(lives, sample)
    for mode in STUDIED:
        for name in SERVICES:
            now, before = wrong[mode][name], right[mode][name]
            assert not before.errors
            if name == service and mode in modes:
                assert (before.verdict, now.verdict) == ("limited", "unrestricted")
                assert any("taken from under a live segment" in line for line in now.errors)
            else:
                assert (now.verdict, now.share, now.errors) == (before.verdict, before.share, ())


# Every attempt begins from the same state


def states(life: Life) -> list[bytes]:
    """Return what a life holds, read by other means than a snapshot's walk over its objects."""
    sim, vm = life.sim, life.vm
    process = life.guest.os.process
    assert vm.merged is not None
    assert vm.swapped is not None
    assert process.swapped is not None
    assert sim.vmm.contents is not None
    assert sim.vmm.swap is not None
    tables = [table.leaves() for table in (vm.nested, process.table)]
    ledgers = [(memory.records, memory.blocks, memory.zone) for memory in (sim.host, vm.guest)]
    arrays: list[Any] = [part for parts in (*tables, *ledgers) for part in parts]
    arrays += [sim.vmm.contents.of_frame, vm.merged, vm.swapped, vm.backed, process.mapped, process.swapped]
    arrays += [process.watched, sim.engine.state(core=vm.cores[0])[0], sim.engine.state(core=vm.cores[0])[1]]
    numbers = [vm.resident_pages, vm.merged_pages, vm.swapped_pages, vm.ballooned_pages, vm.held_pages, vm.flushes]
    numbers += [vm.remapped_pages, process.mapped_pages, sim.vmm.swap.device.free_pages, len(sim.recorder)]
    books = [sorted(vm.stall_ns.items()), vm.nested.leaf_counts, process.table.leaf_counts, sim.env.peek(), numbers]
    return [*(np.asarray(one).tobytes() for one in arrays), repr(books).encode()]


@pytest.mark.parametrize(
    ("mode", "service"), [*(("base", service) for service in SERVICES), ("dual-direct", "ballooning")]
)
def test_a_life_is_put_back_exactly_after_every_attempt(
    mode: str, service: str, lives: dict[str, Life], sample: Sample
) -> None:
    life = lives[mode]
    core = ready(life, sample.pages)
    kept, before = Snapshot(life), states(life)
    changed = refused = 0
    for page in {page.stratum: page for page in sample.pages}.values():
        one = attempt(life, service, page, core)
        after = states(life)
        if one.refused and service != "dirty_logging":
            refused += 1
            assert after == before, "an attempt that is refused changes nothing"
        changed += after != before
        kept.restore()
        assert states(life) == before
        assert kept.differences() == []
    check_all(life.sim.vmm, life.sim.engine, life.sim.guests.values())
    assert changed >= 2
    assert refused > 0 or mode == "base"


def test_a_snapshot_that_forgets_something_is_noticed(
    lives: dict[str, Life], sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = lives["base"]
    core = ready(life, sample.pages)
    whole = Snapshot(life)
    before = states(life)
    page = next(page for page in sample.pages if page.role == "program")
    for part in ("_arrays", "_records", "_dicts"):
        kept = Snapshot(life)
        getattr(kept, part).clear()
        attempt(life, "vmm_swapping", page, core)
        kept.restore()
        assert states(life) != before, part
        whole.restore()
        assert states(life) == before


# What cannot be measured


def test_a_program_without_a_primary_region_cannot_have_a_guest_segment() -> None:
    scenario = small_scenario(workload={"name": "web", "footprint": "64MiB"})
    with pytest.raises(vs.Refused, match="no primary region"):
        vs.tradeoffs(scenario)


def test_an_idle_vm_has_nothing_to_measure() -> None:
    with pytest.raises(vs.BadInput, match="no VM of it has a workload"):
        vs.tradeoffs(_idle())


def _idle() -> vs.Scenario:
    import attrs

    scenario = small_scenario()
    return attrs.evolve(scenario, vm={"db": attrs.evolve(scenario.vm["db"], workload=None)})
