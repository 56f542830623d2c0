"""Switching a VMM segment on whose pages are all in their slots: what does not fit escapes, or prevents it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.actors.backing import FLAGS
from vmmsim.actors.escapes import Escapes
from vmmsim.memory.frames import PAGEBLOCK, PAGEBLOCK_ORDER, Kind

if TYPE_CHECKING:
    from vmmsim.actors.vm import Lease, VirtualMachine
    from vmmsim.actors.vmm import Vmm


def may_escape(vm: VirtualMachine, lease: Lease) -> Escapes:
    """Return the empty filter of the segment that ``lease`` is for: what is to escape must fit into it."""
    return Escapes(vm.empty_filter, base=lease.base, limit=lease.limit, members=vm.escape_budget)


def commit(vmm: Vmm, vm: VirtualMachine, lease: Lease) -> str:
    """Switch the segment on if the nested table says what it says; pages whose slots went bad escape too.

    Return "" or what is wrong. ``VmLost`` if the VM is ended for want of a frame for what escapes.
    """
    backing = vm.nested.translate_range(lease.base, lease.limit)
    slots = np.arange(lease.base + lease.offset, lease.limit + lease.offset, dtype=np.int32)
    wrong = lease.base + np.flatnonzero(backing != slots)
    bad = np.union1d(wrong[vmm.host.frames["kind"][wrong + lease.offset] == Kind.BAD], lease.escaped)
    if not np.all(np.isin(wrong, bad)):
        return f"{wrong.size} pages are not in their slots"
    escapes = may_escape(vm, lease)
    if bad.size and not escapes.fits(bad.tolist()):
        return f"{bad.size} pages would escape, the filter takes {vm.escape_budget}"
    vmm.back(vm, bad)
    if bad.size:
        escapes.insert(bad.tolist())
    vm.escapes = escapes
    _collapse(vmm, vm, lease)
    vmm.enter_segment(vm, lease.base, lease.limit, lease.offset)
    return ""


def _collapse(vmm: Vmm, vm: VirtualMachine, lease: Lease) -> None:
    """Keep the table below the segment small: whole blocks in place become 2M leaves, without copying."""
    if not vmm.thp or lease.offset % PAGEBLOCK:
        return
    blocks = np.arange(-(-lease.base // PAGEBLOCK), lease.limit // PAGEBLOCK) << PAGEBLOCK_ORDER
    small = blocks[vm.nested.mapped_sizes(blocks) == 0]
    for gfn in small.tolist():
        if not lease.escapes_between(gfn, gfn + PAGEBLOCK) and not _bad_in(vmm, gfn, lease):
            vm.nested.collapse(gfn, gfn + lease.offset, FLAGS)
            vm.remapped_pages += PAGEBLOCK
    if small.size:
        vmm.flush(vm)


def _bad_in(vmm: Vmm, gfn: int, lease: Lease) -> bool:
    kinds = vmm.host.frames["kind"][gfn + lease.offset : gfn + lease.offset + PAGEBLOCK]
    return bool(np.any(kinds != Kind.USER))
