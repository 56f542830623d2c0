"""What a scenario will do and take, told before it runs: memory, events, periodic actors, samples, time.

Counts follow from the scenario; wall time and memory are rough estimates (``data/plan.toml``).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import pairwise

import attrs

from vmmsim import rates
from vmmsim.addresses import PAGE_BYTES, format_bytes, write_duration
from vmmsim.errors import BadInput
from vmmsim.scenario import VM, Event, Scenario

_MS: int = 10**6


@attrs.frozen(kw_only=True)
class Ticks:
    """How often something periodic happens in a run."""

    actor: str
    """Who wakes up."""
    every_ns: int
    """Time between two wake-ups."""
    where: int
    """In how many VMs; 0 is on the host."""
    count: int
    """Wake-ups expected, all VMs together."""


@attrs.frozen(kw_only=True)
class Life:
    """One VM of the plan."""

    vm: VM
    """What the scenario says of it."""
    spans: tuple[tuple[int, int], ...]
    """When it runs: (boot, end) in ns, half-open."""
    strata: int
    """Spans that its translation is sampled in."""

    @property
    def lived_ns(self) -> int:
        """Time that it runs, in all."""
        return sum(end - start for start, end in self.spans)


@attrs.frozen(kw_only=True)
class Plan:
    """What a scenario will do, and what running it takes."""

    scenario: Scenario
    """The scenario, each VM and event singly."""
    lives: dict[str, Life]
    """VMs by name."""
    promised_bytes: int
    """Most memory promised to VMs at one time."""
    promised_at_ns: int
    """When that is first so."""
    events: tuple[tuple[int, str, str, str], ...]
    """(at in ns, verb, VM or "", arguments) in the order of time, boots included."""
    ticks: tuple[Ticks, ...]
    """Periodic actors."""
    faults: float
    """DRAM faults expected from rates."""
    samples: int
    """Samples of translation: one a stratum, and one for each ``as_if`` mode."""
    accesses: int
    """Accesses translated."""
    wall_seconds: float
    """Rough estimate of what a run takes at least: copies, and what programs free and touch again, come on top."""
    process_bytes: int
    """Rough estimate of what the process holds."""

    @property
    def steps(self) -> int:
        """Events of all sorts that the run goes through, as far as can be told: what ``--max-events`` limits."""
        return sum(count for _, count in _parts(self))


def plan(scenario: Scenario) -> Plan:
    """Return the plan of a checked scenario that has each VM and event singly."""
    lives = {name: _life(name, vm, scenario) for name, vm in scenario.vm.items()}
    promised, at = max(((size, -at) for at, size in _promised(scenario, lives)), default=(0, 0))
    ticks = tuple(_ticks(scenario, lives))
    strata = sum(life.strata for life in lives.values())
    samples = strata * (1 + len(scenario.measure.as_if))
    accesses = _accesses(scenario, lives, samples)
    faults = _faults(scenario)
    return Plan(
        scenario=scenario,
        lives=lives,
        promised_bytes=promised,
        promised_at_ns=-at,
        events=tuple(sorted(_events(scenario), key=lambda event: event[0])),
        ticks=ticks,
        faults=faults,
        samples=samples,
        accesses=accesses,
        wall_seconds=_wall_ns(scenario, sum(one.count for one in ticks) + round(faults), accesses) / 1e9,
        process_bytes=_process_bytes(scenario),
    )


def refuse_too_much(plan: Plan, *, most_steps: int, free_bytes: int) -> None:
    """Raise ``BadInput`` that names what is to blame if a run would take more than ``most_steps`` events of all
    sorts, or more than 80 % of ``free_bytes`` of this machine's memory."""
    if plan.steps > most_steps:
        what, count = max(_parts(plan), key=lambda part: part[1])
        raise BadInput(
            f"about {plan.steps:,} events, and --max-events is {most_steps:,}; {count:,} of them are {what}; "
            "make the run shorter, or use --force"
        )
    if plan.process_bytes > free_bytes * 4 // 5:
        host, run = plan.scenario.host, plan.scenario.run
        raise BadInput(
            f"takes about {format_bytes(plan.process_bytes)} of memory, and {format_bytes(free_bytes)} are free here; "
            f"most of it is the book of {format_bytes(host.memory_bytes)} of host memory and of its guests; "
            f"use run.scale = {run.scale * 16}, a smaller host, or --force"
        )


def _parts(plan: Plan) -> Iterator[tuple[str, int]]:
    """Yield what the events of a run are, and how many there are of each sort."""
    yield "events of the scenario", len(plan.events)
    yield "strata of sampling", sum(life.strata for life in plan.lives.values())
    yield "DRAM faults (host.faults)", round(plan.faults)
    for ticks in plan.ticks:
        yield f"ticks of {ticks.actor}, each {write_duration(ticks.every_ns)}", ticks.count


@cache
def _rough(name: str) -> int:
    """Return a number of ``data/plan.toml``."""
    table = tomllib.loads(resources.files("vmmsim.data").joinpath("plan.toml").read_text("utf-8"))
    return int(table[name]["value"])


# --- who runs when ---


def _spans(name: str, vm: VM, scenario: Scenario) -> Iterator[tuple[int, int]]:
    """Yield when a VM runs, from its boots and shutdowns."""
    start: int | None = vm.boot_ns
    for event in sorted(scenario.event, key=lambda event: event.at_ns):
        if getattr(event, "vm", "") != name:
            continue
        if event.do == "shutdown" and start is not None:
            yield start, event.at_ns
            start = None
        elif event.do == "boot" and start is None:
            start = event.at_ns
    if start is not None:
        yield start, scenario.run.until_ns


def _promised(scenario: Scenario, lives: dict[str, Life]) -> Iterator[tuple[int, int]]:
    """Yield each time at which memory is promised, and how much all VMs together then have."""
    times = {start for life in lives.values() for start, _ in life.spans}
    times |= {event.at_ns for event in scenario.event if event.do == "hot_add"}
    for at in sorted(times):
        total = 0
        for name, life in lives.items():
            start = next((start for start, end in life.spans if start <= at < end), None)
            if start is not None:
                total += life.vm.memory_bytes + _plugged(name, scenario, start, at)
        yield at, total


def _plugged(name: str, scenario: Scenario, start: int, end: int) -> int:
    """Return the bytes plugged into a VM, less those to be unplugged, in [start, end]."""
    signs = {"hot_add": 1, "hot_remove": -1}
    return sum(
        signs[event.do] * getattr(event, "size_bytes", 0)
        for event in scenario.event
        if event.do in signs and getattr(event, "vm", "") == name and start <= event.at_ns <= end
    )


def _events(scenario: Scenario) -> Iterator[tuple[int, str, str, str]]:
    """Yield everything that happens because the scenario says so."""
    for name, vm in scenario.vm.items():
        yield vm.boot_ns, "boot", name, ""
    for event in scenario.event:
        yield event.at_ns, event.do, getattr(event, "vm", ""), _arguments(event)


def _arguments(event: Event) -> str:
    """Return what an event says beside time, verb and VM, as a file spells it: "target=40GiB"."""
    from vmmsim.hints import shown
    from vmmsim.strict import unstructure

    default = {field.name: field.default for field in attrs.fields(type(event))}
    told = {key: value for key, value in unstructure(event).items() if key not in ("at", "do", "vm")}
    return " ".join(
        f"{key}={value if isinstance(value, str) else shown(value)}"
        for key, value in told.items()
        if value != default.get(key, attrs.NOTHING)
    )


# --- how often ---


def _life(name: str, vm: VM, scenario: Scenario) -> Life:
    spans = tuple(_spans(name, vm, scenario))
    return Life(vm=vm, spans=spans, strata=_strata(name, vm, spans, scenario) if vm.workload else 0)


def _strata(name: str, vm: VM, spans: tuple[tuple[int, int], ...], scenario: Scenario) -> int:
    """Return how many spans of time a VM's translation is sampled in: short after each change, then ever longer."""
    changes = {event.at_ns for event in scenario.event if getattr(event, "vm", "") == name}
    changes |= {step.at_ns for step in (vm.workload.load if vm.workload else ())}
    unforeseen = _rough("mode_changes") if vm.mode != "base" else 0
    strata = 0
    for start, end in spans:
        times = sorted({start, end, *(at for at in changes if start < at < end)})
        strata += sum(_cuts(b - a, scenario) for a, b in pairwise(times))
        strata += unforeseen * _cuts((end - start) // (unforeseen + 1), scenario)
    return strata


def _cuts(span_ns: int, scenario: Scenario) -> int:
    """Return the strata of a span without changes; in lifetime detail there is one."""
    if scenario.run.detail == "lifetime":
        return 1
    length = int(rates.number("measure.first_stratum_ns"))
    longest = max(length, scenario.run.until_ns // int(rates.number("measure.strata_a_run")))
    count = 0
    while span_ns > 0 and length < longest:
        span_ns -= length
        length *= 2
        count += 1
    return count + max(0, -(-span_ns // longest))


def _ticks(scenario: Scenario, lives: dict[str, Life]) -> Iterator[Ticks]:
    """Yield the periodic actors that run; in lifetime detail, none but the time series."""
    if scenario.run.detail == "full":
        compaction = scenario.host.compaction
        if compaction and compaction.proactiveness:
            every = int(rates.number("compaction.check_interval_ms")) * _MS
            yield Ticks(actor="kcompactd", every_ns=every, where=0, count=scenario.run.until_ns // every)
        huge = [life for life in lives.values() if life.vm.thp == "always"]
        yield from _in_guests("khugepaged", int(rates.number("khugepaged.scan_sleep_ns")), huge)
        yield from _in_guests("guest kernel", int(rates.number("guest.churn_every_ns")), list(lives.values()))
    if scenario.measure.every_ns:
        yield from _in_guests("time series", scenario.measure.every_ns, list(lives.values()))


def _in_guests(actor: str, every_ns: int, lives: list[Life]) -> Iterator[Ticks]:
    count = sum(life.lived_ns // every_ns for life in lives)
    if count:
        yield Ticks(actor=actor, every_ns=every_ns, where=len(lives), count=count)


def _faults(scenario: Scenario) -> float:
    """Return the DRAM faults expected from rates, permanent and transient."""
    from vmmsim.actors import dram

    faults, dimms = scenario.host.faults, scenario.host.dimms
    if faults is None or dimms is None:
        return 0.0
    hours = scenario.run.until_ns / dram.NS_PER_HOUR
    return sum(dram.fit(faults.rates).values()) * 1e-9 * dram.devices(dimms) * hours * faults.acceleration


# --- what it takes ---


def _accesses(scenario: Scenario, lives: dict[str, Life], samples: int) -> int:
    """Return about how many accesses are translated."""
    if not scenario.measure.complete:
        return samples * _rough("accesses_per_sample")
    busy_seconds = sum(life.lived_ns * life.vm.vcpus for life in lives.values() if life.vm.workload) // 10**9
    return busy_seconds * _rough("accesses_per_second") * (1 + len(scenario.measure.as_if))


def _frames(scenario: Scenario) -> int:
    """Return the frames of the host and of all guests."""
    size = scenario.host.memory_bytes + sum(vm.memory_bytes for vm in scenario.vm.values())
    return size // PAGE_BYTES // scenario.run.scale


def _pages(scenario: Scenario) -> int:
    """Return the pages that workloads touch, at most: their footprints, or most of their VMs where none is said."""
    size = sum(vm.footprint_bytes or vm.memory_bytes * 3 // 4 for vm in scenario.vm.values() if vm.workload)
    return size // PAGE_BYTES // scenario.run.scale


def _wall_ns(scenario: Scenario, ticks: int, accesses: int) -> int:
    aged = [scenario.host.memory_bytes] if scenario.host.age_ns else []
    aged += [vm.memory_bytes for vm in scenario.vm.values() if vm.age_ns]
    return (
        _rough("start_ns")
        + _frames(scenario) * _rough("frame_made_ns")
        + sum(aged) // PAGE_BYTES // scenario.run.scale * _rough("frame_aged_ns")
        + _pages(scenario) * _rough("page_touched_ns")
        + ticks * _rough("tick_ns")
        + accesses * _rough("access_ns")
    )


def _process_bytes(scenario: Scenario) -> int:
    return _rough("process_bytes") + _frames(scenario) * _rough("frame_bytes") + _pages(scenario) * _rough("page_bytes")
