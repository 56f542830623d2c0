"""The plan of a scenario: what is promised, what happens when, how often, and what is refused as too much."""

from __future__ import annotations

import pytest

from tests.test_scenario_file import GIB, GOOD, HOUR, write
from vmmsim import rates
from vmmsim.errors import BadInput
from vmmsim.scenario import (
    VM,
    BootEvent,
    Compaction,
    Dimms,
    Faults,
    Host,
    HotAddEvent,
    Measure,
    Run,
    Scenario,
    ShutdownEvent,
    Workload,
)
from vmmsim.scenario_file import load_scenario
from vmmsim.studies.plan import Plan, plan, refuse_too_much


def planned(**parts: object) -> Plan:
    """Return the plan of a small scenario, with some parts given."""
    whole = {"host": Host(memory_bytes=16 * GIB), "vm": {"db": VM(memory_bytes=4 * GIB)}, **parts}
    return plan(Scenario(**whole))  # type: ignore[arg-type]


def ticks(told: Plan) -> dict[str, int]:
    return {one.actor: one.count for one in told.ticks}


def test_a_day_of_one_host_promises_what_its_title_says() -> None:
    day = plan(load_scenario("consolidated-day"))
    assert sum(vm.memory_bytes for vm in day.scenario.vm.values()) == 120 * GIB
    assert (day.promised_bytes, day.promised_at_ns) == (96 * GIB, 0)  # 48 + 8 x 6; batch boots when web is gone
    assert day.lives["web-0"].spans == ((0, 19 * HOUR),)
    assert day.lives["batch"].spans == ((20 * HOUR, 24 * HOUR),)
    # a tick of khugepaged each 10 s: 24 h of db, 19 h of eight, 4 h of batch
    assert ticks(day)["khugepaged"] == (24 + 8 * 19 + 4) * 360


def test_events_stand_in_the_order_of_time_with_boots_among_them() -> None:
    events = [(at // HOUR, do, vm, said) for at, do, vm, said in plan(load_scenario("consolidated-day")).events]
    assert [event for event in events if "web" not in event[2]] == [
        (0, "boot", "db", ""),
        (12, "balloon", "db", "target=40GiB"),
        (14, "balloon", "db", "target=auto"),
        (20, "boot", "batch", ""),
    ]
    assert sum(event[2].startswith("web-") for event in events) == 16


def test_a_vm_that_is_shut_down_and_booted_again_lives_twice() -> None:
    events = (ShutdownEvent(at_ns=HOUR, vm="db"), BootEvent(at_ns=2 * HOUR, vm="db"))
    told = planned(run=Run(until_ns=3 * HOUR), event=events)
    assert told.lives["db"].spans == ((0, HOUR), (2 * HOUR, 3 * HOUR))
    assert told.lives["db"].lived_ns == 2 * HOUR


def test_memory_that_is_added_is_promised_from_then_on() -> None:
    told = planned(run=Run(until_ns=3 * HOUR), event=(HotAddEvent(at_ns=HOUR, vm="db", size_bytes=GIB),))
    assert (told.promised_bytes, told.promised_at_ns) == (5 * GIB, HOUR)


def test_periodic_actors_are_counted_by_their_periods() -> None:
    host = Host(memory_bytes=16 * GIB, compaction=Compaction(bandwidth_bytes_per_second=GIB))
    told = planned(run=Run(until_ns=HOUR), host=host, measure=Measure(every_ns=10**9))
    assert rates.number("compaction.check_interval_ms") == 500
    assert ticks(told)["kcompactd"] == 7200
    assert ticks(told)["khugepaged"] == 360
    assert ticks(told)["time series"] == 3600


def test_lifetime_detail_has_nothing_periodic_and_samples_at_changes_only() -> None:
    told = plan(load_scenario("hard-faults"))
    assert told.ticks == ()
    assert sum(life.strata for life in told.lives.values()) < 10


def test_faults_are_expected_at_the_rates_of_the_study() -> None:
    # dynamics of a server with 16 dual-rank x4 modules, 576 devices: 0.334 faults of all kinds a year
    host = Host(memory_bytes=16 * GIB, dimms=Dimms(count=16, ranks=2, width="x4"), faults=Faults(rates="jaguar-ddr2"))
    year = planned(run=Run(until_ns=365 * 24 * HOUR, detail="lifetime"), host=host)
    assert year.faults == pytest.approx(0.334, rel=0.01)


def test_samples_are_dense_after_changes_and_sparse_in_between() -> None:
    quiet = planned(run=Run(until_ns=HOUR), vm={"db": VM(memory_bytes=GIB, workload=Workload(name="web"))})
    strata = quiet.lives["db"].strata
    assert 200 <= strata <= 220  # 200 a run, and those that double from 100 ms on
    busy = planned(
        run=Run(until_ns=HOUR),
        vm={"db": VM(memory_bytes=GIB, workload=Workload(name="web"))},
        measure=Measure(as_if=("base", "vmm-direct")),
    )
    assert busy.samples == 3 * strata


def test_a_complete_run_is_known_to_be_far_longer(tmp_path) -> None:
    file = write(tmp_path, GOOD)
    sampled, complete = plan(load_scenario(file)), plan(load_scenario(file, ["measure.complete=true"]))
    assert complete.wall_seconds > 100 * sampled.wall_seconds


def test_a_run_of_too_many_events_is_refused_with_what_is_to_blame() -> None:
    host = Host(memory_bytes=16 * GIB, compaction=Compaction(bandwidth_bytes_per_second=GIB))
    told = planned(run=Run(until_ns=365 * 24 * HOUR), host=host)
    refuse_too_much(told, most_steps=10**9, free_bytes=16 * GIB)
    with pytest.raises(
        BadInput, match=r"--max-events is 1,000; 63,072,000 of them are ticks of kcompactd, each 500ms;"
    ):
        refuse_too_much(told, most_steps=1000, free_bytes=16 * GIB)


def test_a_run_of_too_much_memory_is_refused_with_a_way_out() -> None:
    told = planned(host=Host(memory_bytes=1 << 40), vm={"db": VM(memory_bytes=1 << 39)})
    with pytest.raises(
        BadInput, match=r"2 GiB are free here; .* 1 TiB of host memory .* run.scale = 16, a smaller host"
    ):
        refuse_too_much(told, most_steps=10**9, free_bytes=2 * GIB)
