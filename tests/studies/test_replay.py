"""A trace replayed: exact by hand where it is small, the same however it is cut, shared or ordered."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import pytest

from tests.studies.programs import TOY, accesses, lackey, machine, plan
from vmmsim.addresses import SIZE_NAMES
from vmmsim.config import MODES, Switches
from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED
from vmmsim.studies import replay as study
from vmmsim.studies.layout import lay_out
from vmmsim.studies.placement import PLACEMENTS
from vmmsim.studies.replay import Replay, Run, replay
from vmmsim.translation import audit
from vmmsim.translation.costs import Coverage
from vmmsim.translation.engine import Engine
from vmmsim.workloads.trace import open_trace

RUNS = 200 if INTERPRETED else 3000


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "small.lackey"
    path.write_text(lackey(accesses(RUNS)))
    return path


def told(run: Run) -> dict:
    """Return all of a run but the time it took."""
    return {name: value for name, value in attrs.asdict(run).items() if name != "kernel_seconds"}


def by_mode(done: Replay) -> dict[str, Run]:
    return {run.mode: run for run in done.runs}


# By hand


def write(tmp_path, text: str):
    path = tmp_path / "hand.lackey"
    path.write_text(text)
    return path


def test_an_access_that_crosses_a_page_is_two_translations(tmp_path):
    # Two pages, each met for the first time: two cold walks. Then both are in the L1 TLB of two entries.
    path = write(tmp_path, " L 10000ffc,8\n S 10000ff8,8\n L 10001000,8\n")
    done = replay(path, machine=TOY, modes=("native", "base", "dual-direct"), placement="contiguous")
    assert (done.counts.accesses, done.counts.page_crossings, done.counts.translations) == (3, 1, 4)
    native, base, dual = done.runs
    for run in done.runs:
        assert run.counters["accesses"] == 4
        assert (run.counters["l1_hits"], run.counters["l2_misses"]) == (2, 2)
    # Natively: 4 references, then 1 behind the walk cache (page-directory entry).
    assert (native.counters["walks"], native.counters["references"]) == (2, 4 + 1)
    # Base: 24 references cold, less what the toy's nested walk cache keeps. The guest's tables lie at the end of its
    # memory: the root's nested walk reads 4 entries, those of the three tables in the same 2 MiB one each; the data
    # page is in other 2 MiB of the same 1 GiB: 2. Second walk: the leaf table is known (walk cache); its entry, and
    # for the data page, in the same 2 MiB as the first, one nested entry.
    assert base.counters["guest_references"] == 4 + 1
    assert base.counters["nested_references"] == (4 + 1 + 1 + 1 + 2) + 1
    assert (dual.counters["segment_0d"], dual.counters["base_bound_checks"], dual.counters["walks"]) == (2, 2, 0)
    assert dual.references_per_walk is None
    # The hand's costs: 2.5 ideal cycles for each of 4 translations, no instructions being there.
    assert native.ideal_cycles == 10
    assert dual.overhead == 0
    assert dual.linear_walk_cycles == 0
    assert done.slowdown(native) == 1
    assert done.slowdown(dual) == pytest.approx(10 / (10 + native.walk_cycles))


def test_cycles_of_a_cold_walk_are_four_latencies_by_hand(tmp_path):
    done = replay(write(tmp_path, " L 10000000,8\n"), machine=TOY, modes=("native", "vmm-direct"))
    native, vmm = done.runs
    # 4 table entries, each the first of its line: 4 x 100 cycles from memory. VMM Direct adds 5 checks of 1 cycle.
    assert native.walk_cycles == 400
    assert vmm.walk_cycles == 405
    assert (vmm.counters["base_bound_checks"], vmm.counters["guest_references"]) == (5, 4)
    assert vmm.linear_walk_cycles == 405
    assert native.overhead == 400 / 2.5
    assert native.counters["data_cycles"] == 100


def test_instructions_set_the_ideal_cycles_where_there_are_any(tmp_path):
    path = write(tmp_path, "I  400000,4\n L 10000000,8\nI  400004,4\nI  400008,4\n")
    data, code, both = (replay(path, machine=TOY, modes=("base",), accesses=kind) for kind in study.KINDS)
    assert [done.runs[0].ideal_cycles for done in (data, code, both)] == [3, 3, 3]
    assert [done.runs[0].counters["accesses"] for done in (data, code, both)] == [1, 3, 4]
    assert both.runs[0].counters["instruction_l1_misses"] == 1
    assert both.runs[0].counters["data_l1_misses"] == 1


# Every mode, page size and placement


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("guest_page", "host_page"), [*itertools.product(SIZE_NAMES, SIZE_NAMES)])
def test_counters_reconcile_and_modes_keep_their_promises(trace, guest_page, host_page, placement):
    done = replay(trace, machine=TOY, guest_page=guest_page, host_page=host_page, placement=placement, accesses="all")
    runs = by_mode(done)
    assert list(runs) == list(MODES)
    for run in done.runs:
        counters = run.counters
        audit.check_counters(counters)
        assert counters["accesses"] == done.counts.translations
        assert run.coverage.total == done.native.counters["l2_misses"]
        assert sum(run.as_dict()["stack"].values()) == pytest.approx(1)
        faults = ("guest_faults", "nested_faults", "guest_writes", "nested_writes", "protections", "rewalks")
        assert not any(counters[name] for name in faults)
    native, base, vmm = runs["native"], runs["base"], runs["vmm-direct"]
    assert base.counters["walk_both"] == base.counters["walks"] > 0
    assert native.counters["walk_guest"] == native.counters["walks"] > 0
    assert vmm.counters["walk_guest"] == vmm.counters["walks"]
    in_region = runs["native-direct"].counters["segment_0d"]
    assert 0 < runs["guest-direct"].counters["walk_nested"] <= in_region
    if host_page == "4K":  # larger ones make larger TLB entries, which the paper's 4K emulation has not
        assert runs["guest-direct"].counters["walk_nested"] == in_region
    assert done.native is native


@pytest.mark.parametrize("guest_page", SIZE_NAMES)
def test_vmm_direct_is_native_and_its_checks(trace, guest_page):
    # The VMM segment stands in for identity: the same frames, 1 GiB further up, which no cache index sees. The toy
    # machine has a nested TLB of its own, so that nothing nested competes in the L2 TLB.
    for one, other in (("native", "vmm-direct"), ("native-direct", "dual-direct")):
        done = by_mode(replay(trace, machine=TOY, modes=(one, other), guest_page=guest_page, accesses="all"))
        native, vmm = done[one].counters, done[other].counters
        same = (
            "l1_hits",
            "l2_hits",
            "l2_misses",
            "segment_0d",
            "walks",
            "guest_references",
            "references",
            "cold_lines",
        )
        assert [vmm[name] for name in same] == [native[name] for name in same]
        walk_checks = vmm["base_bound_checks"] - vmm["segment_0d"]
        assert walk_checks > vmm["walks"] > 0
        assert vmm["walk_cycles"] == native["walk_cycles"] + walk_checks * TOY.cycles.check
        assert vmm["data_cycles"] == native["data_cycles"]


def test_nested_entries_in_the_l2_tlb_cost_base_misses_and_vmm_direct_none(trace):
    switched = machine(nested_tlb=(), switches=Switches(ntlb_in_l2=True))
    done = by_mode(replay(trace, machine=switched, modes=("native", "base", "vmm-direct"), accesses="all"))
    assert done["base"].counters["l2_misses"] > done["native"].counters["l2_misses"]
    assert done["vmm-direct"].counters["guest_references"] == done["native"].counters["guest_references"]


def test_dual_direct_translates_every_l1_miss_in_the_region_in_zero_dimensions(trace):
    opened = open_trace(trace)
    program, _ = study.survey(opened, "all", TOY)
    base, limit = program.primary_region()
    engine = Engine(TOY, hierarchy=True)
    engine.load(lay_out(engine, MODES["dual-direct"], program, plan()).registers)
    inside = outside = 0
    for chunk in opened.chunks("all"):
        for word in chunk.tolist():
            before = engine.counters()
            engine.run(np.array([word]))
            after = engine.counters()
            missed = sum(after[name] - before[name] for name in ("data_l1_misses", "instruction_l1_misses"))
            if base <= word >> 18 < limit:
                inside += missed
            else:
                outside += missed
    run = by_mode(replay(trace, machine=TOY, modes=("dual-direct",), accesses="all"))["dual-direct"]
    assert run.counters["segment_0d"] == inside > 30
    assert run.counters["walks"] + run.counters["l2_hits"] == outside > 30
    assert run.l1_misses == inside + outside


def test_coverage_classifies_the_native_misses(trace):
    done = replay(trace, machine=TOY, accesses="all")
    runs = by_mode(done)
    misses = done.native.counters["l2_misses"]
    in_region = runs["native-direct"].coverage.both
    assert 0 < in_region < misses
    assert runs["native"].coverage == runs["base"].coverage == Coverage(neither=misses)
    assert runs["vmm-direct"].coverage == Coverage(vmm_only=misses)
    assert runs["guest-direct"].coverage == Coverage(guest_only=in_region, neither=misses - in_region)
    assert runs["dual-direct"].coverage == Coverage(both=in_region, vmm_only=misses - in_region)
    # Full coverage: (C_n + 5) M_n.
    assert runs["vmm-direct"].linear_walk_cycles == pytest.approx(done.native.walk_cycles + 5 * misses)
    for mode in ("native", "base"):  # the runs that the model is calibrated by
        assert runs[mode].linear_walk_cycles == pytest.approx(runs[mode].walk_cycles)


# Bad pages


def test_bad_pages_escape_to_healthy_frames_and_others_by_accident(trace):
    options = {"machine": TOY, "accesses": "all", "guest_memory": 1800 << 12, "guest_page": "4K"}
    healthy = by_mode(replay(trace, modes=("vmm-direct",), **options))["vmm-direct"]
    assert (healthy.counters["escapes"], healthy.counters["checks_failed"]) == (0, 0)
    # 64 of 1800 pages; 4 banks of 64 bits then hit (1 - (63/64)^64)^4 = 0.16 of the others.
    sick = by_mode(replay(trace, modes=("vmm-direct", "native-direct"), bad_pages=64, **options))
    for mode in ("vmm-direct", "native-direct"):
        counters = sick[mode].counters
        assert sick[mode].bad_pages == 64
        assert 0 < counters["false_escapes"] <= counters["escapes"] <= counters["checks_failed"]
    counters = sick["vmm-direct"].counters
    assert counters["escapes"] == counters["checks_failed"]  # no gfn lies outside
    assert sick["vmm-direct"].counters["references"] > healthy.counters["references"]
    assert sick["vmm-direct"].counters["nested_references"] > 0
    assert sick["vmm-direct"].coverage.neither > 0


def test_true_members_escape(trace):
    # All of guest memory but a handful of pages cannot be bad; of 250 some are touched.
    options = {"machine": TOY, "accesses": "all", "guest_memory": 1800 << 12, "modes": ("vmm-direct",)}
    true = [
        run.counters["escapes"] - run.counters["false_escapes"]
        for seed in range(3)
        for run in replay(trace, bad_pages=250, seed=seed, **options).runs
    ]
    assert min(true) > 0


def test_modes_without_a_segment_over_bad_frames_have_no_bad_pages(trace):
    done = by_mode(replay(trace, machine=TOY, bad_pages=3))
    assert {mode: run.bad_pages for mode, run in done.items()} == {
        "native": 0, "native-direct": 3, "base": 0, "dual-direct": 3, "vmm-direct": 3, "guest-direct": 0,
    }  # fmt: skip


# The same, however it is done

VARIED = {"accesses": "all", "guest_page": "2M", "placement": "random", "bad_pages": 8, "seed": 3}


def test_results_equal_separate_runs(trace):
    together = by_mode(replay(trace, machine=TOY, **VARIED))
    for mode in MODES:
        (alone,) = replay(trace, machine=TOY, modes=(mode,), **VARIED).runs
        assert told(alone) == told(together[mode])


def test_results_do_not_depend_on_chunks_nor_on_cores(trace, monkeypatch):
    whole = [told(run) for run in replay(trace, machine=TOY, **VARIED).runs]
    for size in (1, 97):
        if size == 1 and INTERPRETED:
            continue
        monkeypatch.setattr(study, "CHUNK_RUNS", size)
        assert [told(run) for run in replay(trace, machine=TOY, **VARIED).runs] == whole
    monkeypatch.setattr(study.os, "cpu_count", lambda: None)
    assert [told(run) for run in replay(trace, machine=TOY, **VARIED).runs] == whole


def test_a_seed_is_a_result_and_another_seed_another(trace):
    one, same, other = (by_mode(replay(trace, machine=TOY, seed=seed))["base"] for seed in (1, 1, 2))
    assert told(one) == told(same)
    assert one.counters != other.counters


def test_modes_come_once_each_in_the_order_asked_for(trace):
    done = replay(trace, machine=TOY, modes=("guest-direct", "native", "guest-direct"))
    assert [run.mode for run in done.runs] == ["guest-direct", "native"]
    assert study.chosen_modes(("base", "all")) == ["base", *(mode for mode in MODES if mode != "base")]


def test_progress_is_told_up_to_the_end(trace, monkeypatch):
    monkeypatch.setattr(study, "CHUNK_RUNS", 50)
    heard: list[int] = []
    done = replay(trace, machine=TOY, modes=("native",), accesses="all", progress=heard.append)
    assert heard == sorted(heard)
    assert len(heard) > 2
    assert heard[-1] == done.counts.translations


def test_five_levels_of_tables_and_an_upper_half_address(tmp_path):
    path = write(tmp_path, " L ffff888000000000,8\n L 10000000,8\n")
    for levels in (4, 5):
        (run,) = replay(path, machine=machine(levels=levels), modes=("native",)).runs
        assert run.counters["references"] == 2 * levels


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"modes": ("bse",)}, '--mode: "bse" is unknown; did you mean "base"?'),
        ({"guest_memory": 1 << 43}, "--guest-memory: guest memory must lie between 4 KiB and 4 TiB"),
        ({"guest_memory": 4095}, "--guest-memory: guest memory must lie between 4 KiB and 4 TiB"),
        ({"guest_page": "3M"}, '"3M" is not a page size; write 4K, 2M or 1G'),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(trace, changes, problem):
    with pytest.raises(BadInput) as refused:
        replay(trace, machine=TOY, **changes)
    assert str(refused.value).startswith(problem)
