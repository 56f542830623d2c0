"""Which modes a VM can never have, whatever is done, and which it could have instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmmsim.addresses import format_bytes
from vmmsim.hints import shown
from vmmsim.scenario import VM, Host

GUEST_MODES: Final = ("guest-direct", "dual-direct")
"""Modes with a guest segment."""
VMM_MODES: Final = ("vmm-direct", "dual-direct")
"""Modes with a VMM segment."""


def out_of_reach(mode: str, vm: VM, host: Host | None) -> Iterator[str]:
    """Say why ``vm`` can never have ``mode``, whatever is done, and what it could have."""
    guest = mode in GUEST_MODES and not (vm.workload and vm.workload.has_primary_region)
    room = None if host is None or vm.memory_bytes > host.memory_bytes else host.movable_bytes
    vmm = room is not None and vm.segment_bytes > room
    if guest:
        has = f"{shown(vm.workload.name)} has none" if vm.workload else "this VM has no workload"
        other = "base" if vmm else "vmm-direct"
        yield f"{shown(mode)} needs a workload with a primary region, and {has}; {shown(other)} can be reached"
    elif vmm and mode in VMM_MODES:
        assert host is not None
        assert room is not None
        primary = vm.workload and vm.workload.has_primary_region
        yield (
            f"{shown(mode)} needs {format_bytes(vm.segment_bytes)} of host memory in one piece, and beside its kernel "
            f"({format_bytes(host.unmovable_bytes)}, host.kernelcore) the host has {format_bytes(room)}; "
            f"{shown('guest-direct' if primary else 'base')} can be reached"
        )
