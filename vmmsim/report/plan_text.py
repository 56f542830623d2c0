"""A plan as people read it, and as a JSON document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vmmsim.addresses import format_bytes, write_duration

if TYPE_CHECKING:
    from vmmsim.scenario import VM
    from vmmsim.studies.plan import Life, Plan, Ticks

_MOST_EVENTS = 40
"""Events listed for people; the document has all."""


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the plan line by line, its VMs and events as tables."""
    run = plan.scenario.run
    scaled = f", scaled 1:{run.scale}" if run.scale > 1 else ""
    yield f"{plan.scenario.name}: {write_duration(run.until_ns)}, {run.detail} detail, seed {run.seed}{scaled}"
    yield from _fact("host", _host(plan))
    yield from _fact("promised", _promised(plan))
    if run.script:
        yield from _fact("script", f"{run.script}; what it does is not in this plan")
    yield ""
    if plan.lives:
        yield from _table(["VM", "memory", "vCPUs", "boots", "wants", "workload"], _vm_rows(plan))
        yield ""
    if plan.events:
        yield from _table(["at", "event", "VM", ""], _event_rows(plan))
        yield ""
    for ticks in plan.ticks:
        yield from _fact("periodic", _periodic(ticks))
    if plan.faults:
        yield from _fact("faults", f"{_count(plan.faults)} expected from rates, permanent and transient")
    yield from _fact("measured", _measured(plan))
    if plan.scenario.sweep:
        yield from _fact("sweep", "run takes the scenario itself; its other values and replications are not run")
    yield from _fact("estimate", _estimate(plan))


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON: times in ns, sizes in bytes."""
    run, host = plan.scenario.run, plan.scenario.host
    return {
        "name": plan.scenario.name,
        "until_ns": run.until_ns,
        "detail": run.detail,
        "seed": run.seed,
        "scale": run.scale,
        "host": {"machine": host.machine, "memory_bytes": host.memory_bytes, "movable_bytes": host.movable_bytes},
        "promised_bytes": plan.promised_bytes,
        "promised_at_ns": plan.promised_at_ns,
        "vms": [_vm_document(name, life) for name, life in plan.lives.items()],
        "events": [{"at_ns": at, "do": do, "vm": vm, "arguments": said} for at, do, vm, said in plan.events],
        "periodic": [
            {"actor": ticks.actor, "every_ns": ticks.every_ns, "vms": ticks.where, "ticks": ticks.count}
            for ticks in plan.ticks
        ],
        "faults_expected": plan.faults,
        "strata": sum(life.strata for life in plan.lives.values()),
        "samples": plan.samples,
        "accesses": plan.accesses,
        "steps": plan.steps,
        "script": run.script,
        "has_sweep": plan.scenario.sweep is not None,
        "estimates": {"wall_seconds": round(plan.wall_seconds, 1), "process_bytes": plan.process_bytes},
    }


def _vm_document(name: str, life: Life) -> dict[str, Any]:
    return {
        "name": name,
        "memory_bytes": life.vm.memory_bytes,
        "vcpus": life.vm.vcpus,
        "mode": life.vm.mode,
        "footprint_bytes": life.vm.footprint_bytes,
        "runs_ns": [list(span) for span in life.spans],
        "strata": life.strata,
    }


def _fact(name: str, text: str) -> Iterator[str]:
    yield f"{name:10}{text}"


def _host(plan: Plan) -> str:
    host = plan.scenario.host
    age = f", lived in for {write_duration(host.age_ns)}" if host.age_ns else ", freshly booted"
    above = f"; {format_bytes(host.movable_bytes)} movable" if host.movable_bytes < host.memory_bytes else ""
    return f"{host.machine}, {format_bytes(host.memory_bytes)}{age}{above}"


def _promised(plan: Plan) -> str:
    all_promises = sum(vm.memory_bytes for vm in plan.scenario.vm.values())
    memory = plan.scenario.host.memory_bytes
    text = f"{format_bytes(plan.promised_bytes)} at one time (from {write_duration(plan.promised_at_ns)})"
    text += f", {format_bytes(all_promises)} in all" if all_promises > plan.promised_bytes else ""
    text += f", of {format_bytes(memory)}"
    return text + ("; overcommitted" if plan.promised_bytes > memory else "")


def _vm_rows(plan: Plan) -> Iterator[list[str]]:
    """Yield a row for each VM; a row stands for all that differ in name only and follow each other."""
    for vm, group in groupby(plan.scenario.vm.items(), key=lambda item: item[1]):
        names = [name for name, _ in group]
        size = format_bytes(vm.memory_bytes)
        yield [together(names), size, str(vm.vcpus), write_duration(vm.boot_ns), vm.mode, _workload(vm)]


def _workload(vm: VM) -> str:
    if vm.workload is None:
        return "none"
    what = vm.workload.name or vm.workload.trace or vm.workload.use or ""
    footprint = f", {format_bytes(vm.footprint_bytes)}" if vm.footprint_bytes else ""
    return what + footprint + (", repeated" if vm.workload.repeat else "")


def _event_rows(plan: Plan) -> Iterator[list[str]]:
    """Yield a row for each event; a row stands for all of a time that differ in their VM only."""
    groups = groupby(plan.events, key=lambda event: (event[0], event[1], event[3]))
    for n, ((at, do, said), group) in enumerate(groups):
        if n == _MOST_EVENTS:
            yield ["...", f"{len(plan.events)} events in all", "", ""]
            return
        yield [write_duration(at), do, together([vm for _, _, vm, _ in group]) or "host", said]


def _periodic(ticks: Ticks) -> str:
    where = f" in {ticks.where} VM{'s' if ticks.where > 1 else ''}" if ticks.where else ""
    return f"{ticks.actor}, each {write_duration(ticks.every_ns)}{where}: {ticks.count:,} ticks"


def _measured(plan: Plan) -> str:
    if plan.scenario.measure.complete:
        return f"every access, about {_count(plan.accesses)} of them"
    strata = sum(life.strata for life in plan.lives.values())
    beside = len(plan.scenario.measure.as_if)
    modes = f", {beside} mode{'s' if beside > 1 else ''} beside the VM's own" if beside else ""
    return f"about {strata:,} strata, {plan.samples:,} samples{modes}"


def _estimate(plan: Plan) -> str:
    return (
        f"at least {_seconds(plan.wall_seconds)} and about {format_bytes(plan.process_bytes)} of this machine's memory"
        ", with kernels compiled; both are guesses, without what moves or is freed and touched again"
        + (", and without the script's doings" if plan.scenario.run.script else "")
    )


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60):,} min" if seconds < 7200 else f"{round(seconds / 3600):,} h"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def together(names: list[str]) -> str:
    """Return names in short, those that follow each other by number as one: "db, web-0 to web-7"."""
    parts: list[list[str]] = []
    for name in names:
        if parts and _next(parts[-1][-1]) == name:
            parts[-1].append(name)
        else:
            parts.append([name])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in parts)


def _next(name: str) -> str | None:
    """Return the name that counts on from ``name``: web-8 after web-7; None if it has no number."""
    match = re.fullmatch(r"(.*-)(\d+)", name)
    return match and f"{match[1]}{int(match[2]) + 1}"


def _table(header: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield rows with their columns aligned."""
    cells = [header, *rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
    for row in cells:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
