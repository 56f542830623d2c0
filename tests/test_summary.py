"""What a run comes down to, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from tests.made_up import GIB, HOUR, MIN, S, Writer, counters, fragmented_database, two_rows
from vmmsim.lives import Span, lives


def vm(result, name="db"):
    return result.summary["vm"][name]


def test_a_life_is_cut_into_rows_that_hold_and_work_done_meanwhile():
    life = lives(two_rows()["vms"], 20 * S)["db"]
    assert life.start_ns.tolist() == [0, 10 * S, 20 * S]
    assert life.end_ns.tolist() == [10 * S, 20 * S, 20 * S]
    assert life.work.tolist() == [100, 200, 0]
    assert list(life.spans()) == [
        Span(0, 10 * S, "base", "dual-direct"),
        Span(10 * S, 20 * S, "dual-direct", "dual-direct"),
    ]


def test_time_in_each_mode_and_the_wait_for_the_mode_wanted():
    found = vm(two_rows())
    assert found["time_in_mode_ns"] == {"base": 10 * S, "dual-direct": 10 * S}
    assert (found["mode_wanted"], found["booted_ns"], found["had_from_ns"]) == ("dual-direct", 0, 10 * S)
    assert (found["waited_ns"], found["without_ns"], found["in_mode"]) == (10 * S, 10 * S, 0.5)
    assert found["lost_ns"] == []
    assert (found["running_ns"], found["work"]) == (20 * S, 300)


def test_overhead_is_weighted_by_work():
    found = vm(two_rows())  # 100 accesses at 0.5 (0.4 to 0.7), 200 at 0.1 (0.05 to 0.15)
    assert found["overhead"]["mean"] == pytest.approx((100 * 0.5 + 200 * 0.1) / 300)
    assert found["overhead"]["low"] == pytest.approx((100 * 0.4 + 200 * 0.05) / 300)
    assert found["overhead"]["high"] == pytest.approx((100 * 0.7 + 200 * 0.15) / 300)
    assert found["overhead_by_mode"] == {"base": 0.5, "dual-direct": 0.1}
    assert found["as_if"] == {"dual-direct": pytest.approx(0.1)}


@pytest.mark.parametrize(("work", "bounded"), [(1000, False), (10**6, True)])
def test_bounds_are_not_told_where_rows_without_an_interval_matter(work, bounded):
    writer = Writer()
    writer.at(0).vm_row("db", mode="guest-direct", mode_wanted="base", overhead=0.5)  # 10 accesses, no interval
    writer.at(S).vm_row("db", mode="base", overhead=0.1, overhead_low=0.05, overhead_high=0.15, progress=10)
    writer.at(2 * S).vm_row("db", progress=10 + work)
    found = vm(writer.result(2 * S))["overhead"]
    assert (found["low"] is not None, found["high"] is not None) == (bounded, bounded)


def test_rows_without_an_interval_are_within_the_next_one():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="base", overhead=0.5)
    writer.at(S).vm_row("db", overhead=0.2, overhead_low=0.15, overhead_high=0.22, progress=10)
    writer.at(2 * S).vm_row("db", overhead=0.3, overhead_low=None, overhead_high=None, progress=40)
    writer.at(3 * S).vm_row("db", overhead=0.2, overhead_low=0.15, overhead_high=0.22, progress=60)
    writer.at(4 * S).vm_row("db", progress=60)
    found = vm(writer.result(4 * S))["overhead"]  # 10 accesses at 0.5, 30 at 0.2, 20 at 0.3: at 75 to 110 % of that
    mean = (10 * 0.5 + 30 * 0.2 + 20 * 0.3) / 60
    assert found == {
        "mean": pytest.approx(mean), "low": pytest.approx(0.75 * mean), "high": pytest.approx(1.1 * mean)
    }  # fmt: skip


def test_waiting_costs_what_the_overhead_was_beyond_that_of_the_mode_wanted():
    waiting = vm(two_rows())["waiting"]
    assert waiting["basis"] == "as if"
    assert waiting["share"] == pytest.approx(0.5 - 0.1)
    assert waiting["time_ns"] == pytest.approx((0.5 - 0.1) * 10 * S / (1 + 0.5), abs=1)


def test_without_as_if_the_mode_wanted_is_taken_as_it_was_once_had():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="dual-direct", overhead=0.5)
    writer.at(S).vm_row("db", mode="dual-direct", overhead=0.2, progress=10)
    writer.at(2 * S).vm_row("db", progress=20)
    waiting = vm(writer.result(2 * S))["waiting"]
    assert waiting["basis"] == "once had"
    assert waiting["share"] == pytest.approx(0.3)


def test_what_waiting_cost_is_unknown_if_the_mode_was_never_had_nor_measured():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="dual-direct", overhead=0.5)
    writer.at(S).vm_row("db", progress=10)
    found = vm(writer.result(S))
    assert found["waiting"] == {"share": None, "time_ns": None, "basis": None}
    assert (found["had_from_ns"], found["waited_ns"], found["in_mode"]) == (None, S, 0.0)
    assert (found["getting_there_ns"], found["repaid_at_ns"]) == (None, None)


def test_getting_there_is_repaid_when_the_gain_since_exceeds_the_stalls():
    found = vm(two_rows())
    assert found["getting_there_ns"] == 2 * S  # the compactor's
    gain_a_second = (0.5 - 0.1) / (1 + 0.1)
    assert found["repaid_at_ns"] == pytest.approx(10 * S + 2 * S / gain_a_second, abs=2)


def test_the_gain_is_what_base_would_have_cost_meanwhile_not_what_it_cost_before_anything_was_touched():
    writer = Writer(as_if=("base", "dual-direct"))
    writer.at(0).vm_row("db", mode="base", mode_wanted="dual-direct", overhead=0.0, as_if={"base": 0.0})
    writer.at(S).decide("compactor", "build", vm="db", outcome="done", cost_ns=2 * S)
    writer.recorder.vm_row("db", mode="dual-direct", overhead=0.0, as_if={"base": 0.5}, progress=5)
    writer.at(11 * S).vm_row("db", progress=9)
    found = vm(writer.result(11 * S))
    assert found["repaid_at_ns"] == pytest.approx(S + 2 * S / 0.5, abs=2)


def test_what_a_mode_on_the_way_saves_repays_too_but_nothing_is_repaid_before_it_was_got():
    writer = Writer(as_if=("base",))
    writer.at(0).decide("self_balloon", "exchange", vm="db", outcome="done", cost_ns=2 * S)
    writer.recorder.vm_row(
        "db", mode="guest-direct", mode_wanted="dual-direct", overhead=0.25, as_if={"base": 0.5}
    )  # 0.2 of the time
    writer.at(20 * S).vm_row("db", mode="dual-direct", overhead=0.0, as_if={"base": 0.5}, progress=5)
    writer.at(30 * S).vm_row("db", progress=9)
    assert vm(writer.result(30 * S))["repaid_at_ns"] == 20 * S, "4 s were saved by then"


def test_where_base_was_not_measured_the_mode_before_counts_as_it_was_last():
    writer = Writer()
    for now, overhead in ((0, 0.0), (S, 0.5)):
        writer.at(now).vm_row("db", mode="base", mode_wanted="dual-direct", overhead=overhead, progress=now)
    writer.at(2 * S).decide("compactor", "build", vm="db", outcome="done", cost_ns=S)
    writer.recorder.vm_row("db", mode="dual-direct", overhead=0.0, progress=2 * S)
    writer.at(12 * S).vm_row("db", progress=20 * S)
    assert vm(writer.result(12 * S))["repaid_at_ns"] == pytest.approx(2 * S + S / 0.5, abs=2)


def test_getting_there_is_not_repaid_by_too_short_a_stay():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="dual-direct", overhead=0.5)
    writer.at(S).decide("compactor", "build", vm="db", outcome="done", cost_ns=10 * S)
    writer.recorder.vm_row("db", mode="dual-direct", overhead=0.1, progress=5)
    writer.at(3 * S).vm_row("db", progress=9)
    found = vm(writer.result(3 * S))
    assert (found["getting_there_ns"], found["repaid_at_ns"]) == (10 * S, None)


def test_stalls_after_the_switch_are_no_cost_of_getting_there_and_others_of_the_same_cause_are():
    writer = Writer()
    begun = writer.at(0).decide("mode", "mode", vm="db", outcome="begun")
    writer.recorder.vm_row("db", mode="base", mode_wanted="dual-direct", overhead=0.5)
    writer.at(S).decide("compactor", "evict", vm="web", outcome="done", cost_ns=7, cause=begun)
    writer.recorder.decide("balloon", "balloon", vm="web", outcome="done", cost_ns=100)
    writer.at(2 * S).vm_row("db", mode="dual-direct", overhead=0.1)
    writer.at(3 * S).decide("compactor", "build", vm="db", outcome="done", cost_ns=1000)
    assert vm(writer.result(4 * S))["getting_there_ns"] == 7


def test_a_mode_had_from_the_start_was_not_waited_for():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="base", overhead=0.5)
    found = vm(writer.result(S))
    assert (found["had_from_ns"], found["waited_ns"], found["in_mode"], found["lost_ns"]) == (0, 0, 1.0, [])
    assert found["getting_there_ns"] is None


def test_what_was_lost_is_counted_and_what_is_no_longer_wanted_is_not_lost():
    writer = Writer()
    steps = [
        ("dual-direct", "dual-direct"), ("base", "dual-direct"), ("dual-direct", "dual-direct"),
        ("base", "base"), ("base", "dual-direct"),
    ]  # fmt: skip
    for number, (mode, wanted) in enumerate(steps):
        writer.at(number * MIN).vm_row("db", mode=mode, mode_wanted=wanted)
    found = vm(writer.result(len(steps) * MIN))
    assert found["lost_ns"] == [MIN]
    assert (found["waited_ns"], found["without_ns"]) == (0, 2 * MIN)


def test_a_vm_that_is_off_neither_runs_nor_waits():
    writer = Writer()
    writer.at(0).vm_row("db", mode_wanted="dual-direct")
    writer.at(MIN).vm_row("db", mode="base")
    writer.at(3 * MIN).vm_row("db", mode="")
    found = vm(writer.result(10 * MIN))
    assert (found["booted_ns"], found["running_ns"], found["waited_ns"]) == (MIN, 2 * MIN, 2 * MIN)
    assert found["time_in_mode_ns"] == {"base": 2 * MIN}


def test_a_vm_that_never_ran_has_a_summary_too():
    writer = Writer()
    writer.at(0).vm_row("db", mode_wanted="dual-direct")
    found = vm(writer.result(MIN))
    assert (found["booted_ns"], found["running_ns"], found["in_mode"]) == (None, 0, None)
    assert found["overhead"] == {"mean": None, "low": None, "high": None}


def test_work_counts_anew_after_a_boot():
    writer = Writer()
    for now, mode, progress in ((0, "base", 0), (1, "", 50), (2, "base", 0), (3, "base", 30)):
        writer.at(now).vm_row("db", mode=mode, mode_wanted="base", progress=progress)
    assert vm(writer.result(4))["work"] == 80


def test_stalls_are_told_by_verb_as_shares_of_running_time():
    found = vm(two_rows())
    assert found["stall_ns"] == {"build": 2 * S}
    assert found["stall_share"] == {"build": 0.1}


def test_references_and_escapes_come_from_the_vms_own_hardware():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="base", escaped_pages=2)
    writer.at(1).vm_row("db", escaped_pages=5)
    writer.at(2).vm_row("db", escaped_pages=3)
    writer.recorder.walks("db", "base", "vm", counters(escapes=4, false_escapes=1, checks_failed=9))
    writer.recorder.walks("db", "base", "as if base", counters(escapes=100))
    found = vm(writer.result(3))
    assert found["refs_per_walk"] == {"base": 24.0}  # 160 + 800 references of 40 walks
    assert (found["escapes"], found["false_escapes"], found["escaped_pages_most"]) == (4, 1, 5)


def test_the_host_from_start_to_end():
    writer = Writer()
    for now, free, unusable, moved in ((0, 5 * GIB, 0.2, 0), (1, GIB, 0.9, 7), (2, 3 * GIB, 0.4, 8)):
        writer.at(now).host_row(free_bytes=free, unusable_2m=unusable, moved_bytes=moved, bad_frames=now)
    first = writer.recorder.decide("scenario", "fault", outcome="begun")
    writer.recorder.decide("faults", "fault", outcome="done", cause=first)
    host = writer.result(3).summary["host"]
    assert host["free_bytes"] == {"start": 5 * GIB, "end": 3 * GIB, "least": GIB, "most": 5 * GIB}
    assert host["unusable_2m"] == {"start": 0.2, "end": 0.4, "least": 0.2, "most": 0.9}
    assert (host["moved_bytes"], host["bad_frames"], host["faults"]) == (8, 2, 1)


def test_page_sharing_is_told_where_it_was_on():
    writer = Writer()
    writer.at(0).host_row(free_bytes=GIB)
    assert writer.result(1).summary["host"]["sharing"] is None
    for now, sharing in ((1, 5), (2, 9), (3, 7)):
        writer.at(now).host_row(pages_sharing=sharing, full_scans=now, ksmd_ns=now * 100, refused_pinned_vmm=4)
    found = writer.result(4).summary["host"]["sharing"]
    assert found["saved_bytes"] == {"start": 0, "end": 7 * 4096, "least": 0, "most": 9 * 4096}
    assert (found["full_scans"], found["ksmd_ns"], found["refused_pinned_vmm"]) == (3, 300, 4)


def test_decisions_are_counted_and_refusals_are_told_once():
    found = fragmented_database().summary["decisions"]
    assert found["count"] == 8
    assert found["outcomes"] == {"begun": 1, "refused": 3, "done": 4}
    assert [(one["verb"], one["count"], one["first_ns"]) for one in found["refusals"]] == [
        ("build", 2, 20 * MIN),
        ("reserve", 1, 0),
    ]
    assert found["failures"] == []


def test_the_database_waits_47_minutes():
    found = vm(fragmented_database())
    assert found["waited_ns"] == 47 * MIN
    assert found["time_in_mode_ns"] == {
        "base": 12 * MIN, "guest-direct": 35 * MIN, "dual-direct": 4 * HOUR - 47 * MIN
    }  # fmt: skip
    assert found["getting_there_ns"] == 40 * S


def test_a_run_without_anything_has_a_summary():
    assert Writer().result(0).summary["vm"] == {}
