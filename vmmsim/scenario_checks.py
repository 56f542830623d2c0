"""What the parts of a scenario, each right in itself, do not allow together; and what would.

A check looks only at parts that could be read, so that one slip does not make others: what is wrong in itself was
said before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmmsim.addresses import write_bytes, write_duration
from vmmsim.errors import BadInput, Problem
from vmmsim.hints import shown
from vmmsim.scenario import VM, Host, Run, Scenario
from vmmsim.scenario.values import is_user_code
from vmmsim.scenario_draft import Draft, draft_of, single_names
from vmmsim.scenario_reach import out_of_reach
from vmmsim.scenario_timeline import timeline
from vmmsim.strict import Mistake, join

MOST_ROWS: Final = 1_000_000
"""Most rows of a time series, for each VM."""
_PAGEBLOCK_BYTES: Final = 2 << 20


def check_scenario(scenario: Scenario) -> None:
    """Raise ``BadInput`` with everything that the parts of ``scenario`` do not allow together."""
    problems = [Problem("", path, message) for path, message, _ in contradictions(draft_of(scenario))]
    if problems:
        raise BadInput.of(problems)


def contradictions(draft: Draft) -> Iterator[Mistake]:
    """Yield everything that the parts of ``draft`` do not allow together, in no order."""
    for check in (_not_modelled, _lifetime, _host, _names, _vms, _scale, _rows, timeline, _room):
        for path, message in check(draft):
            yield Mistake(path, message, path)


def _not_modelled(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse what files may say already, and the model does not do yet."""
    for n, cost in enumerate(draft.run.costs if draft.run else ()):
        if is_user_code(cost):
            yield f"run.costs[{n}]", 'cost models of your own are not called yet; write "linear" or "hierarchy"'


def _lifetime(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse what happens at every moment where only named things happen."""
    if draft.run is None or draft.run.detail != "lifetime":
        return
    if draft.host and draft.host.compaction and draft.host.compaction.proactiveness:
        yield (
            "host.compaction",
            'compaction wakes up every 500ms, and run.detail = "lifetime" has nothing periodic; '
            "write proactiveness = 0, which compacts on demand only",
        )
    if draft.host and draft.host.balloon:
        yield (
            "host.balloon",
            f"a policy decides every {write_duration(draft.host.balloon.every_ns)}, and "
            'run.detail = "lifetime" has nothing periodic; remove one of them',
        )
    if draft.measure and draft.measure.complete:
        yield (
            "measure.complete",
            'run.detail = "lifetime" translates only at changes; remove one of them',
        )


def _host(draft: Draft) -> Iterator[tuple[str, str]]:
    if draft.host and draft.host.faults and not draft.host.dimms:
        yield (
            "host.faults",
            "needs host.dimms, to know how many devices can fail; "
            'write e.g. dimms = { count = 16, ranks = 2, width = "x4" }',
        )
    if draft.host and draft.host.balloon and draft.host.balloon.reserve_bytes >= draft.host.memory_bytes:
        yield (
            "host.balloon.reserve",
            f"{write_bytes(draft.host.balloon.reserve_bytes)} is not less than the host has, "
            f"{write_bytes(draft.host.memory_bytes)} (host.memory)",
        )


def _names(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse two VMs of one name, which ``count`` can make."""
    taken: dict[str, str] = {}
    for name, vm in sorted(draft.vm.items(), key=lambda item: item[1] is not None and item[1].count is not None):
        for single in single_names(name, vm):
            if single in taken:
                yield join("vm", name), f"count makes {shown(single)}, which [vm.{taken[single]}] is called already"
                break
            taken[single] = name


def _vms(draft: Draft) -> Iterator[tuple[str, str]]:
    for name, vm in draft.vm.items():
        if vm is not None:
            for key, message in _one_vm(vm, draft.run, draft.host):
                yield f"{join('vm', name)}.{key}", message


def _one_vm(vm: VM, run: Run | None, host: Host | None) -> Iterator[tuple[str, str]]:
    """Yield key and message of all that is wrong with a VM on its host."""
    size = write_bytes(vm.memory_bytes)
    if host and vm.memory_bytes > host.memory_bytes:
        yield "memory", f"{size} is more than the host has, {write_bytes(host.memory_bytes)} (host.memory)"
    if vm.footprint_bytes > vm.program_bytes:
        and_swap = f" and swap space, {write_bytes(vm.program_bytes)}" if vm.swap else f", {size}"
        yield "workload.footprint", f"{write_bytes(vm.footprint_bytes)} is more than the VM's memory{and_swap}"
    if run and vm.boot_ns >= run.until_ns:
        yield "boot", f"{write_duration(vm.boot_ns)} is not before the end of the run, {_end(run)}"
    if vm.io_gap == "reclaim" and vm.low_bytes == vm.memory_bytes:
        yield "io_gap", f"with {vm.machine_type}, {size} of memory lie below the gap in one piece; remove this key"
    for message in out_of_reach(vm.mode, vm, host):
        yield "mode", message


def _scale(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse a scale that leaves part of a pageblock of some memory."""
    if draft.run is None:
        return
    sizes = {"host.memory": draft.host.memory_bytes} if draft.host else {}
    sizes |= {f"{join('vm', name)}.memory": vm.memory_bytes for name, vm in draft.vm.items() if vm}
    for path, size in sizes.items():
        if size % (draft.run.scale * _PAGEBLOCK_BYTES):
            yield "run.scale", f"{path} of {write_bytes(size)} divided by {draft.run.scale} is no multiple of 2MiB"


def _rows(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse a time series of more rows than anyone looks at."""
    if draft.run is None or draft.measure is None or draft.measure.every_ns is None:
        return
    rows = draft.run.until_ns // draft.measure.every_ns
    if rows > MOST_ROWS:
        yield (
            "measure.every",
            f"{write_duration(draft.measure.every_ns)} makes {rows:,} rows of each VM until "
            f"{write_duration(draft.run.until_ns)}, and {MOST_ROWS:,} is the most; "
            f"write at least {_rounded_up(-(-draft.run.until_ns // MOST_ROWS))}",
        )


def _rounded_up(ns: int) -> str:
    """Return a duration of at least ``ns``, in one unit."""
    unit = next(unit for unit in (86400 * 10**9, 3600 * 10**9, 60 * 10**9, 10**9, 10**6, 1000, 1) if unit <= ns)
    return write_duration(-(-ns // unit) * unit)


def _room(draft: Draft) -> Iterator[tuple[str, str]]:
    """Refuse a host that cannot hold even what the workloads running at once are said to use."""
    if draft.host is None or draft.run is None or None in draft.vm.values() or None in draft.event:
        return
    for at, running in _running(draft):
        used = [(name, min(vm.footprint_bytes, vm.memory_bytes)) for name, vm in running.items() if vm.footprint_bytes]
        total = sum(footprint for _, footprint in used)
        swap = draft.host.swap.size_bytes if draft.host.swap else 0
        if total > draft.host.memory_bytes + swap:
            and_swap = f" and {write_bytes(swap)} of swap space" if swap else ""
            yield (
                "host.memory",
                f"{write_bytes(draft.host.memory_bytes)}{and_swap} cannot hold the footprints of what runs at "
                f"{write_duration(at)}: {_listed(used)}, {write_bytes(total)} in all",
            )
            return


def _running(draft: Draft) -> Iterator[tuple[int, dict[str, VM]]]:
    """Yield, for each time at which VMs boot, those that run from then on."""
    singles = draft.singles()
    changes: list[tuple[int, str, VM | None]] = [(vm.boot_ns, single, vm) for single, (_, vm) in singles.items() if vm]
    for event in draft.event:
        if event is not None and event.do in ("boot", "shutdown"):
            for single in _selected(draft, getattr(event, "vm", "")):
                changes.append((event.at_ns, single, singles[single][1] if event.do == "boot" else None))
    running: dict[str, VM] = {}
    for at, single, vm in sorted(changes, key=lambda change: (change[0], change[2] is not None)):
        running.pop(single, None)
        if vm is not None:
            running[single] = vm
            yield at, running


def _selected(draft: Draft, pattern: str) -> list[str]:
    try:
        return draft.selected(pattern)
    except BadInput:
        return []


def _listed(used: list[tuple[str, int]]) -> str:
    """Return the largest of ``used`` as text: "db 36GiB, web-0 4GiB and 7 more"."""
    largest = sorted(used, key=lambda item: -item[1])
    few = ", ".join(f"{name} {write_bytes(size)}" for name, size in largest[:3])
    return few + (f" and {len(largest) - 3} more" if len(largest) > 3 else "")


def _end(run: Run) -> str:
    return f"{write_duration(run.until_ns)} (run.until)"
