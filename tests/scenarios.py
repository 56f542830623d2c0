"""Scenarios for tests: strategies that make any description, and TOML to write what comes of one."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import strategies as st

from vmmsim.scenario import (
    EVENTS,
    PROGRAMS,
    VM,
    Actor,
    BalloonEvent,
    BalloonPolicy,
    Compaction,
    Dimms,
    Escape,
    Event,
    FaultEvent,
    Faults,
    Host,
    HotAddEvent,
    HotRemoveEvent,
    LoadEvent,
    LoadStep,
    Measure,
    ModeEvent,
    Run,
    Scenario,
    SelfBalloonEvent,
    Sharing,
    Swap,
    Sweep,
    Workload,
)
from vmmsim.scenario.host import SwapKind
from vmmsim.scenario.values import BLOCK_BYTES

MODES = st.sampled_from(["base", "vmm-direct", "guest-direct", "dual-direct"])
NAMES = st.text("abz09-_", min_size=1, max_size=6)
NS = st.integers(0, 10**18)
SHARES = st.floats(0, 1, allow_nan=False)
MEMORY = st.integers(1, 1 << 22).map(lambda blocks: blocks * (2 << 20))
PAGES = st.integers(1, 1 << 30).map(lambda pages: pages * 4096)
BLOCKS = st.integers(1, 1 << 12).map(lambda blocks: blocks * BLOCK_BYTES)
CODE = st.sampled_from(["mine.py:Thing", "some.package:Other"])
PARAMETERS = st.dictionaries(
    st.sampled_from(["keys", "z", "q1"]), st.integers(-5, 5) | st.text("ab \"'\\é", max_size=4) | st.booleans()
)


def workloads() -> st.SearchStrategy[Workload]:
    """Any workload."""
    load = st.lists(NS, unique=True, max_size=3).map(sorted).flatmap(_steps)
    footprint = st.none() | PAGES
    return st.one_of(
        st.builds(Workload, name=st.sampled_from(list(PROGRAMS)), footprint_bytes=footprint, load=load),
        st.builds(Workload, trace=st.just("t.parquet"), repeat=st.booleans(), load=load),
        st.builds(Workload, use=CODE, footprint_bytes=footprint, load=load, parameters=PARAMETERS),
    )


def _steps(times: list[int]) -> st.SearchStrategy[tuple[LoadStep, ...]]:
    return st.tuples(*(st.builds(LoadStep, at_ns=st.just(at), share=SHARES) for at in times))


def vms() -> st.SearchStrategy[VM]:
    """Any VM."""
    escape = st.builds(
        Escape, bits=st.sampled_from([0, 64, 256]), hashes=st.sampled_from([1, 2, 4]), members=st.integers(1, 256)
    )
    return st.builds(
        VM,
        memory_bytes=MEMORY,
        vcpus=st.integers(1, 1024),
        count=st.none() | st.integers(1, 4),
        boot_ns=NS,
        mode=MODES,
        mode_policy=st.just("paper") | CODE,
        age_ns=NS,
        io_gap=st.sampled_from(["keep", "reclaim"]),
        machine_type=st.sampled_from(["pc-1.4", "pc", "q35"]),
        thp=st.sampled_from(["always", "never"]),
        free_page_reporting=st.booleans(),
        escape_filter=escape,
        workload=st.none() | workloads(),
    )


def hosts() -> st.SearchStrategy[Host]:
    """Any host."""
    counts = st.integers(1, 64)
    compaction = st.builds(
        Compaction, bandwidth_bytes_per_second=st.integers(1, 1 << 40), proactiveness=st.integers(0, 100)
    )
    policy = st.builds(
        BalloonPolicy,
        policy=CODE,
        every_ns=NS.map(lambda ns: ns + 1),
        reserve_bytes=st.integers(0, 1 << 40),
        parameters=PARAMETERS,
    )
    rates = st.floats(0, 9, allow_nan=False)
    return st.builds(
        Host,
        memory_bytes=MEMORY,
        age_ns=NS,
        kernelcore_bytes=st.none() | st.just(2 << 20),
        thp=st.sampled_from(["always", "never"]),
        swap=st.none() | st.builds(Swap, device=st.sampled_from(get_args(SwapKind)), size_bytes=PAGES),
        sharing=st.none() | st.builds(Sharing, pages_to_scan=counts, sleep_ns=NS),
        balloon=st.none() | policy,
        compaction=st.none() | compaction,
        dimms=st.none() | st.builds(Dimms, count=counts, ranks=counts, width=st.sampled_from(["x4", "x8", "x16"])),
        faults=st.none()
        | st.builds(Faults, rates=st.just("jaguar-ddr2"), spread=rates, acceleration=counts.map(float)),
    )


def events() -> st.SearchStrategy[Event]:
    """Any event of any verb."""
    special: dict[type[Event], dict[str, st.SearchStrategy[Any]]] = {
        BalloonEvent: {"target_bytes": st.none() | PAGES},
        ModeEvent: {"mode": MODES},
        SelfBalloonEvent: {"size_bytes": BLOCKS},
        HotAddEvent: {"size_bytes": BLOCKS},
        HotRemoveEvent: {"size_bytes": BLOCKS},
        LoadEvent: {"share": SHARES},
        FaultEvent: {
            "fault": st.sampled_from(["bit", "word", "row", "column", "bank"]),
            "gfn": st.none() | st.integers(0, 1 << 30),
            "correctable": st.booleans(),
            "pages": st.integers(1, 9),
        },
    }
    return st.one_of(
        *(st.builds(kind, at_ns=NS, vm=NAMES, **special.get(kind, {})) for kind in EVENTS.values())  # type: ignore[arg-type]
    )


def scenarios() -> st.SearchStrategy[Scenario]:
    """Any scenario whose parts are right in themselves; they need not go together."""
    run = st.builds(
        Run,
        until_ns=NS.map(lambda ns: ns + 1),
        seed=st.integers(0, 1 << 62),
        detail=st.sampled_from(["full", "lifetime"]),
        scale=st.sampled_from([1, 16]),
        script=st.none() | CODE,
        costs=st.just(("linear", "mine.py:Cost")),
    )
    measure = st.builds(
        Measure,
        every_ns=st.none() | st.integers(1, 10**12),
        as_if=st.lists(MODES, unique=True).map(tuple),
        window=st.none() | st.integers(1000, 10**6),
        complete=st.booleans(),
        epoch_share=st.floats(0.001, 1),
    )
    sweep = st.builds(
        Sweep,
        replications=st.none() | st.integers(1, 9),
        show=st.just(("vm.db.overhead",)),
        vary=st.dictionaries(st.just("vm.db.memory"), st.just(("1GiB", 2, True)), max_size=1),
        arms=st.dictionaries(st.just("no filter"), st.just({"vm.db.escape_filter.bits": 0}), max_size=1),
    )
    return st.builds(
        Scenario,
        name=NAMES,
        run=run,
        host=hosts(),
        vm=st.dictionaries(NAMES, vms(), min_size=1, max_size=3),
        event=st.lists(events(), max_size=4).map(tuple),
        actor=st.lists(st.builds(Actor, use=CODE, parameters=PARAMETERS), max_size=2).map(tuple),
        measure=measure,
        sweep=st.none() | sweep,
    )


def toml(data: dict[str, Any]) -> str:
    """Return plain data as TOML, all of it inline."""
    return "\n".join(f"{_text(key)} = {_value(value)}" for key, value in data.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_text(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    return repr(value)


def _text(text: str) -> str:
    return json.dumps(text)
