"""A scenario scaled down: host, VMs, footprints and the reach of TLBs divided by ``run.scale``, all else as it is.

For looking at a large host on a small machine. Time, rates, caches and the 128 MiB grain of hot-plug are not scaled,
and a VM that becomes small enough loses its I/O gap: results say "scaled 1:16", and are to be read so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from vmmsim.config import TableCache, TlbPart
from vmmsim.scenario.values import BLOCK_BYTES

if TYPE_CHECKING:
    from vmmsim.config import Machine, WalkCache
    from vmmsim.scenario import VM, Event, Scenario
    from vmmsim.scenario.host import Swap

PAGE_BYTES = 4096


def scaled(scenario: Scenario) -> Scenario:
    """Return ``scenario`` with all memory divided by its scale; ``run.scale`` stays, for results to say."""
    scale = scenario.run.scale
    if scale == 1:
        return scenario
    host = scenario.host
    core = None if host.kernelcore_bytes is None else host.kernelcore_bytes // scale
    return attrs.evolve(
        scenario,
        host=attrs.evolve(
            host,
            memory_bytes=host.memory_bytes // scale,
            kernelcore_bytes=core or host.unmovable_bytes // scale,
            swap=_swap(host.swap, scale),
            balloon=host.balloon
            and attrs.evolve(
                host.balloon, reserve_bytes=host.balloon.reserve_bytes // scale // PAGE_BYTES * PAGE_BYTES
            ),
        ),
        vm={name: _vm(vm, scale) for name, vm in scenario.vm.items()},
        event=tuple(_event(event, scale) for event in scenario.event),
    )


def _vm(vm: VM, scale: int) -> VM:
    workload = vm.workload
    if workload is not None and workload.footprint_bytes is not None:
        workload = attrs.evolve(workload, footprint_bytes=_pages(workload.footprint_bytes, scale))
    return attrs.evolve(vm, memory_bytes=vm.memory_bytes // scale, workload=workload, swap=_swap(vm.swap, scale))


def _swap(swap: Swap | None, scale: int) -> Swap | None:
    return None if swap is None else attrs.evolve(swap, size_bytes=_pages(swap.size_bytes, scale))


def _event(event: Event, scale: int) -> Event:
    changed: dict[str, Any] = {}
    for name in ("target_bytes", "size_bytes"):
        size = getattr(event, name, None)
        if size is not None:
            blocks = max(round(size / scale / BLOCK_BYTES), 1) * BLOCK_BYTES
            changed[name] = _pages(size, scale) if name == "target_bytes" else blocks
    return attrs.evolve(event, **changed) if changed else event


def _pages(size_bytes: int, scale: int) -> int:
    return max(size_bytes // scale // PAGE_BYTES, 1) * PAGE_BYTES


def scaled_machine(machine: Machine, scale: int) -> Machine:
    """Return ``machine`` with TLBs and walk caches of a ``scale``-th of their entries, one set or one way at least."""
    if scale == 1:
        return machine
    return attrs.evolve(
        machine,
        l1_data_tlb=tuple(_smaller(part, scale) for part in machine.l1_data_tlb),
        l1_instruction_tlb=tuple(_smaller(part, scale) for part in machine.l1_instruction_tlb),
        l2_tlb=tuple(_smaller(part, scale) for part in machine.l2_tlb),
        nested_tlb=tuple(_smaller(part, scale) for part in machine.nested_tlb),
        walk_cache=_walk_cache(machine.walk_cache, scale),
        nested_walk_cache=_walk_cache(machine.nested_walk_cache, scale),
    )


def _walk_cache(cache: WalkCache, scale: int) -> WalkCache:
    smaller: dict[str, TableCache] = {
        level: _smaller(part, scale)
        for level in ("l2", "l3", "l4", "l5")
        if isinstance(part := getattr(cache, level), TableCache)
    }
    return attrs.evolve(cache, **smaller)


Part = TypeVar("Part", TlbPart, TableCache)


def _smaller(part: Part, scale: int) -> Part:
    """Return an array of a ``scale``-th of the entries: fewer sets, and when one is left, fewer ways."""
    sets = part.entries // part.ways
    kept = max(sets // scale, 1)
    ways = part.ways if sets >= scale else max(part.ways * sets // scale, 1)
    return attrs.evolve(part, entries=kept * ways, ways=ways)
