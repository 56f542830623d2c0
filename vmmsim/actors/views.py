"""What policies see: a VM and its host at one moment, frozen, in bytes and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm


@attrs.frozen(kw_only=True)
class VmView:
    """A VM as a policy sees it."""

    name: str
    memory_bytes: int
    """Present in the guest, the balloon's included."""
    used_bytes: int
    """In use in the guest: neither free nor given up."""
    resident_bytes: int
    """Host memory that backs it."""
    balloon_bytes: int
    """Given up to the balloon."""
    mode: str
    """The mode it has."""
    mode_wanted: str
    """The mode it wants."""
    overhead: float | None
    """Walk cycles over ideal cycles by the last sample; None before the first."""


@attrs.frozen(kw_only=True)
class HostView:
    """The host as a policy sees it."""

    memory_bytes: int
    free_bytes: int
    largest_free_bytes: int
    """Longest run of free memory."""
    vms: tuple[str, ...]
    """Names of the VMs that run."""


def vm_view(vm: VirtualMachine) -> VmView:
    """Return a VM as it is now."""
    return VmView(
        name=vm.name,
        memory_bytes=vm.memory_pages << 12,
        used_bytes=vm.used_pages() << 12,
        resident_bytes=vm.resident_pages << 12,
        balloon_bytes=vm.ballooned_pages << 12,
        mode=vm.mode,
        mode_wanted=vm.mode_wanted,
        overhead=vm.overhead,
    )


def host_view(vmm: Vmm) -> HostView:
    """Return the host as it is now."""
    host = vmm.host
    return HostView(
        memory_bytes=host.present_pages << 12,
        free_bytes=host.free_pages << 12,
        largest_free_bytes=host.largest_free_run() << 12,
        vms=tuple(vm.name for vm in vmm.vms.values()),
    )
