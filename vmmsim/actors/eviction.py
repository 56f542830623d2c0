"""Others' pages in a window: which they are, and what their move to other frames means for who owns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.actors.vmm import VmLost
from vmmsim.memory.frames import ISOLATED, NOBODY, PINNED, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.vmm import Vmm
    from vmmsim.memory.ledger import Memory


def others(
    host: Memory, first: int, last: int, kind: Kind, *, but: tuple[int, int, int], busy: bool
) -> NDArray[np.bool_]:
    """Tell which frames of [first, last) are movable ones of others.

    but   (owner, base, limit): whose pages [base, limit) are none of others
    busy  those held now, too
    """
    book = host.frames[first:last]
    movable = (book["kind"] == kind) & (book["mark"] & (PINNED if busy else PINNED | ISOLATED) == 0)
    if kind == Kind.USER:
        owner, base, limit = but
        movable &= ~((book["owner"] == owner) & (book["page"] >= base) & (book["page"] < limit))
    return np.asarray(movable)


def hand_over(vmm: Vmm, old: NDArray[np.int64], new: NDArray[np.int64], *, batch: int) -> None:
    """Let the pages in ``old`` be in the frames ``new``, which are nobody's yet, and free the old ones.

    Leaves that are split for that take frames for tables: it may cost a VM, one of those moved or another.
    """
    book = vmm.host.frames
    owners, pages = book["owner"][old].copy(), book["page"][old].astype(np.int64)
    for owner in np.unique(owners).tolist():
        mine = owners == owner
        if owner != NOBODY and owner not in vmm.vms:  # ended meanwhile
            vmm.host.give_back(new[mine])
            continue
        vmm.host.assign(new[mine], owner=owner, pages=pages[mine])
        if owner in vmm.vms:
            vm = vmm.vms[owner]
            try:
                vmm.move(vm, pages[mine], new[mine])
            except VmLost:  # and with it all its frames, old and new
                continue
            vm.flushes += -(-int(mine.sum()) // batch)
        vmm.host.give_back(old[mine])
