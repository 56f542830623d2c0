"""What policies see: a VM and its host at one moment, frozen, in bytes and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.memory.frames import Kind
from vmmsim.protocols import HostView, VmView

if TYPE_CHECKING:
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm


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
        cache_bytes=vm.guest.count(kind=Kind.CACHE) << 12,
        exchanged_bytes=vm.exchanged_pages << 12,
        reusable_bytes=(vm.ballooned_pages - min(vm.held_pages, vm.ballooned_pages)) << 12,
    )


def host_view(vmm: Vmm, *, contiguity: bool = True) -> HostView:
    """Return the host as it is now; without ``contiguity`` its longest free run, which takes a scan, is told as 0."""
    host = vmm.host
    return HostView(
        memory_bytes=host.present_pages << 12,
        free_bytes=host.free_pages << 12,
        available_bytes=host.spare_pages << 12,
        largest_free_bytes=host.largest_free_run() << 12 if contiguity else 0,
        vms=tuple(vm.name for vm in vmm.vms.values()),
    )
