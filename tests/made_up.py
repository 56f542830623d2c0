"""Results made by hand: what a run could leave behind, written down row by row, for what reads results."""

from __future__ import annotations

from typing import Any

import numpy as np

from vmmsim.decisions import Recorder
from vmmsim.result import Result

S = 10**9
MIN = 60 * S
HOUR = 3600 * S
DAY = 24 * HOUR
MIB = 1 << 20
GIB = 1 << 30

VERSIONS = {"vmmsim": "0.1.0", "python": "3.11.7"}


class Writer:
    """A recorder with a clock that the test turns."""

    def __init__(self, as_if: tuple[str, ...] = ()) -> None:
        self.now = 0
        self.recorder = Recorder(lambda: self.now, as_if=as_if)

    def at(self, now: int) -> Recorder:
        self.now = now
        return self.recorder

    def result(self, end_ns: int, **fields: Any) -> Result:
        given = {
            "name": "made-up",
            "scenario": {"run": {"until": "4h"}, "host": {"machine": "sandy-bridge-2012", "memory": "96GiB"}},
            "seed": 1,
            "versions": VERSIONS,
            "again": "vmmsim run made-up --seed 1",
        }
        return Result.of(self.recorder, end_ns=end_ns, **{**given, **fields})


def counters(**given: int) -> dict[str, int]:
    """Return counters that reconcile: 1000 accesses, 900 L1 hits, 60 L2 hits, 40 walks through both dimensions."""
    made = {
        "accesses": 1000, "l1_hits": 900, "l2_hits": 60, "data_l1_misses": 100, "l2_misses": 40, "walks": 40,
        "walk_both": 40, "guest_references": 160, "nested_references": 800, "references_from_memory": 5,
    }  # fmt: skip
    return {**made, **given}


def two_rows() -> Result:
    """One VM in base for 10 s, then in Dual Direct for 10 s; as simple as a life can be.

    It wants Dual Direct from the start; does 100 accesses, then 200; overhead 0.5, then 0.1; as if 0.1 throughout.
    """
    writer = Writer(as_if=("dual-direct",))
    recorder = writer.at(0)
    begun = recorder.decide("mode", "mode", vm="db", asked="dual-direct", outcome="begun")
    recorder.vm_row(
        "db", mode="base", mode_wanted="dual-direct", overhead=0.5, overhead_low=0.4, overhead_high=0.7,
        as_if={"dual-direct": 0.1}, resident_bytes=GIB,
    )  # fmt: skip
    recorder.host_row(free_bytes=2 * GIB, largest_free_bytes=GIB, free_blocks=[0] * 10 + [512], unusable_2m=0.0)
    recorder = writer.at(10 * S)
    built = recorder.decide("compactor", "build", vm="db", asked="1GiB", outcome="done", cost_ns=2 * S, cause=begun)
    recorder.decide("mode", "mode", vm="db", asked="dual-direct", got="dual-direct", outcome="done", cause=built)
    recorder.vm_row("db", mode="dual-direct", progress=100, overhead=0.1, overhead_low=0.05, overhead_high=0.15)
    recorder = writer.at(20 * S)
    recorder.vm_row("db", progress=300)
    recorder.walks("db", "base", "vm", counters())
    recorder.walks("db", "base", "native twin", counters(nested_references=0, walk_both=0, walk_guest=40))
    return writer.result(20 * S)


def fragmented_database(*, gets_it: bool = True, complete: bool = True) -> Result:
    """A database that gets Dual Direct after 47 minutes, by self-ballooning and compaction; beside it, a build."""
    writer = Writer(as_if=("base", "guest-direct", "dual-direct"))
    until = 4 * HOUR
    draw = np.random.default_rng(7)
    begun = ballooned = -1
    for tick in range(0, until + 1, 10 * S):
        recorder = writer.at(tick)
        if tick == 0:
            begun = recorder.decide("mode controller", "mode", vm="db", asked="dual-direct", outcome="begun")
            recorder.decide(
                "guest segment", "reserve", vm="db", asked="40GiB", outcome="refused", cause=begun,
                why="the largest free run of the guest is 212MiB",
            )  # fmt: skip
        if tick == 12 * MIN:
            ballooned = recorder.decide(
                "self-balloon", "self_balloon", vm="db", asked="40GiB", got="40GiB", outcome="done", cause=begun,
                cost_ns=31 * S, why="320 blocks of 128MiB ballooned and added, ranges adjacent",
            )  # fmt: skip
            recorder.decide(
                "mode controller", "mode", vm="db", asked="guest-direct", got="guest-direct", outcome="done",
                cause=ballooned, why="the guest segment covers 40GiB; no free window of 64GiB in the host",
            )  # fmt: skip
        if tick in (20 * MIN, 30 * MIN):
            recorder.decide(
                "compactor", "build", vm="db", asked="64GiB", got="0B", outcome="refused", cause=begun,
                why="41 immovable frames in the best window, more than the filter's 16",
            )  # fmt: skip
        if tick == 47 * MIN and gets_it:
            built = recorder.decide(
                "compactor", "build", vm="db", asked="64GiB", got="64GiB", outcome="done", cause=begun,
                cost_ns=9 * S, why="7,340,032 pages moved, 3 escape",
            )  # fmt: skip
            recorder.decide(
                "mode controller", "mode", vm="db", asked="dual-direct", got="dual-direct", outcome="done", cause=built
            )
        mode, level = "base", 0.31
        if tick >= 12 * MIN:
            mode, level = "guest-direct", 0.12
        if tick >= 47 * MIN and gets_it:
            mode, level = "dual-direct", 0.002
        overhead = level * float(draw.uniform(0.9, 1.1))
        recorder.vm_row(
            "db", mode=mode, mode_wanted="dual-direct", overhead=overhead, overhead_low=overhead * 0.97,
            overhead_high=overhead * 1.03, progress=int(tick // 3 / (1 + level)), resident_bytes=64 * GIB,
            balloon_bytes=(40 * GIB if tick >= 12 * MIN else 0), segment_bytes=(64 * GIB if level < 0.01 else 0),
            escaped_pages=3 if level < 0.01 else 0,
            as_if={"base": 0.31, "guest-direct": 0.12, "dual-direct": 0.002},
        )  # fmt: skip
        share = tick / until
        recorder.vm_row(
            "build", mode="base", mode_wanted="base", overhead=0.06 + 0.02 * float(draw.random()),
            overhead_low=0.05, overhead_high=0.09, progress=tick // 5,
            resident_bytes=int((4 + 11 * min(1, 2 * share)) * GIB),
        )  # fmt: skip
        free = 96 * GIB - 64 * GIB - int((4 + 11 * min(1, 2 * share)) * GIB) - 3 * GIB
        blocks = [int(free // 4096 * w) >> order for order, w in enumerate([0.1, 0.05, 0.05, 0.05, 0.05, 0.05,
                  0.05, 0.05, 0.05, 0.1 + 0.4 * (1 - share), 0.4 * share])]  # fmt: skip
        recorder.host_row(
            free_bytes=free, largest_free_bytes=int(free * (0.5 - 0.45 * share)), free_blocks=blocks,
            unusable_2m=0.2 + 0.5 * share, page_table_bytes=180 * MIB, bad_frames=0,
            moved_bytes=28 * GIB if tick >= 47 * MIN else 0,
        )  # fmt: skip
    recorder = writer.recorder
    recorder.walks("db", "base", "vm", counters())
    scenario = {
        "run": {"until": "4h", "seed": 1},
        "host": {"machine": "sandy-bridge-2012", "memory": "96GiB", "age": "90d"},
        "vm": {"db": {"memory": "64GiB", "mode": "dual-direct"}, "build": {"memory": "16GiB"}},
    }
    return writer.result(
        until if complete else 2 * HOUR, name="fragmented-database", scenario=scenario, complete=complete
    )


def consolidated_day() -> Result:
    """Ten VMs for a day: a database that has VMM Direct and loses it, eight equal web servers, a late batch job."""
    writer = Writer(as_if=("vmm-direct",))
    for tick in range(0, DAY + 1, 5 * MIN):
        recorder = writer.at(tick)
        lost = 12.5 * HOUR <= tick < 15 * HOUR
        if tick == 12 * HOUR + 30 * MIN:
            event = recorder.decide("scenario", "balloon", vm="db", asked="40GiB", outcome="begun")
            recorder.decide(
                "mode controller", "mode", vm="db", asked="base", got="base", outcome="done", cause=event,
                why="the balloon asks for 8GiB under the VMM segment, and the host is short of memory", cost_ns=S,
            )  # fmt: skip
        if tick == 15 * HOUR:
            recorder.decide(
                "mode controller", "mode", vm="db", asked="vmm-direct", got="vmm-direct", outcome="done",
                cost_ns=2 * S, why="built again: 12,441 pages moved",
            )  # fmt: skip
        if tick == 20 * HOUR:
            recorder.decide("vmm", "boot", vm="batch", asked="24GiB", got="24GiB", outcome="done")
        if tick % (2 * HOUR) == 0:
            recorder.decide(
                "balloon", "balloon", vm=f"web-{tick // (2 * HOUR) % 8}", asked="1GiB", got="412MiB",
                outcome="partial", why="the guest is at its low watermark", cost_ns=3 * 10**6,
            )  # fmt: skip
        recorder.vm_row(
            "db", mode="base" if lost else "vmm-direct", mode_wanted="vmm-direct", overhead=0.14 if lost else 0.03,
            overhead_low=0.13 if lost else 0.029, overhead_high=0.15 if lost else 0.032, progress=tick // 4,
            resident_bytes=(40 if tick > 12 * HOUR else 36) * GIB, as_if={"vmm-direct": 0.03},
        )  # fmt: skip
        busy = 1.0 if 8 * HOUR <= tick < 19 * HOUR else 0.2
        for number in range(8):
            off = tick >= 19 * HOUR
            recorder.vm_row(
                f"web-{number}", mode="" if off else "base", mode_wanted="base", overhead=0.02 + 0.001 * number,
                overhead_low=0.019, overhead_high=0.03, progress=int(tick * busy) // 10,
                resident_bytes=0 if off else int((2 + 2 * busy) * GIB),
            )  # fmt: skip
        recorder.vm_row(
            "batch", mode="base" if tick >= 20 * HOUR else "", mode_wanted="base",
            overhead=0.22 if tick >= 20 * HOUR else None, progress=max(0, tick - 20 * HOUR) // 4,
            resident_bytes=20 * GIB if tick >= 20 * HOUR else 0,
        )  # fmt: skip
        free = (96 - 36 - (0 if tick >= 19 * HOUR else 8 * (2 + 2 * busy)) - (20 if tick >= 20 * HOUR else 0) - 4) * GIB
        recorder.host_row(
            free_bytes=int(free), largest_free_bytes=int(free * 0.1), free_blocks=[100] * 9 + [500, 4000],
            unusable_2m=0.05 + 0.3 * tick / DAY, page_table_bytes=300 * MIB,
        )  # fmt: skip
    memory = {"db": "48GiB", "batch": "24GiB"}
    scenario = {
        "run": {"until": "1d", "seed": 1},
        "host": {"machine": "sandy-bridge-2012", "memory": "96GiB", "age": "30d"},
        "vm": {**{vm: {"memory": size} for vm, size in memory.items()}, "web": {"memory": "6GiB", "count": 8}},
    }
    return writer.result(DAY, name="consolidated-day", scenario=scenario)


def hard_faults() -> Result:
    """Five years of faults: Dual Direct from the start, lost to a bank fault in the fourth year, and not got again."""
    writer = Writer()
    year = 365 * DAY
    recorder = writer.at(0)
    recorder.decide("mode controller", "mode", vm="db", asked="dual-direct", got="dual-direct", outcome="done")
    recorder.vm_row(
        "db", mode="dual-direct", mode_wanted="dual-direct", overhead=0.001, overhead_low=0.0009, overhead_high=0.0012,
        resident_bytes=80 * GIB,
    )  # fmt: skip
    recorder.host_row(free_bytes=14 * GIB, largest_free_bytes=12 * GIB, free_blocks=[0] * 10 + [3584], unusable_2m=0.0)
    bad = 0
    for number in range(1, 9):  # the last at 3.2 years
        recorder = writer.at(number * year * 2 // 5)
        pages = 16 if number % 3 == 0 else 1
        bad += pages
        fault = recorder.decide(
            "faults", "fault", vm="db", asked="row" if pages > 1 else "bit", got=f"{pages} frames",
            outcome="done", why="correctable",
        )  # fmt: skip
        recorder.decide("vmm", "escape", vm="db", asked=f"{pages}", got=f"{pages}", outcome="done", cause=fault)
        recorder.vm_row("db", escaped_pages=bad, progress=number * 10**15)
        recorder.host_row(bad_frames=bad)
    recorder = writer.at(3 * year + 200 * DAY)
    fault = recorder.decide("faults", "fault", vm="db", asked="bank", got="8192 frames", outcome="done", why="bank")
    recorder.decide(
        "mode controller", "mode", vm="db", asked="guest-direct", got="guest-direct", outcome="done", cause=fault,
        why="8,192 faulty frames are beyond the escape filter's 16",
    )  # fmt: skip
    recorder.decide(
        "compactor", "build", vm="db", asked="80GiB", outcome="refused", cause=fault,
        why="no window of 80GiB without the bad bank",
    )  # fmt: skip
    recorder.vm_row("db", mode="guest-direct", overhead=0.11, overhead_low=0.1, overhead_high=0.12)
    recorder.host_row(bad_frames=bad + 8192)
    recorder = writer.at(5 * year)
    recorder.vm_row("db", progress=14 * 10**15)
    scenario = {
        "run": {"until": "5y", "seed": 1, "detail": "lifetime"},
        "host": {"machine": "sandy-bridge-2012", "memory": "96GiB"},
        "vm": {"db": {"memory": "80GiB", "mode": "dual-direct"}},
    }
    return writer.result(5 * year, name="hard-faults", scenario=scenario)
