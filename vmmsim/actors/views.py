"""What policies see: a VM and its host at one moment, frozen, in bytes and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmmsim.memory.frames import Kind

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
    cache_bytes: int = 0
    """Of what is in use: page cache, which the guest drops when memory is short."""
    exchanged_bytes: int = 0
    """Given up for good, in exchange for memory that was added elsewhere; part of ``memory_bytes``."""
    reusable_bytes: int = 0
    """Of ``balloon_bytes``: what the host can use. The rest is held under the VMM segment."""
    active_bytes: int | None = None
    """Memory that it touches within a minute, as estimated by sampling; None: not known."""
    managed: bool = True
    """Whether the balloon policy sets its balloon: no event or script does."""


@attrs.frozen(kw_only=True)
class HostView:
    """The host as a policy sees it."""

    memory_bytes: int
    free_bytes: int
    largest_free_bytes: int
    """Longest run of free memory."""
    vms: tuple[str, ...]
    """Names of the VMs that run."""
    available_bytes: int = 0
    """Of ``free_bytes``: what guests can be given. The rest is kept for the kernel and for page tables."""
    reserve_bytes: int = 0
    """Memory that the host is to have available, for a balloon policy; 0: there is none."""
    state: str = "high"
    """How much of the reserve is available: high, clear, soft, hard or low."""
    guests: tuple[VmView, ...] = ()
    """Views of the VMs that run, for a balloon policy; empty: there is none."""


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
