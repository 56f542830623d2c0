"""What a mode asked of the guest's kernel and of the VMM: registers, filters and calls that a life really used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.addresses import write_bytes
from vmmsim.memory.frames import PINNED

if TYPE_CHECKING:
    from vmmsim.decisions import Decision
    from vmmsim.studies.tradeoff_life import Life

NOTHING: Final = "none"
MINIMAL: Final = "minimal"
SOME: Final = "needed"

_CALLS: Final = {
    ("self_balloon", "exchange"): ("guest", "self-ballooning, {got} exchanged"),
    ("guest", "compact"): ("guest", "compaction for a contiguous range, {got} moved"),
    ("compactor", "build"): ("vmm", "host memory made contiguous, {got} moved"),
}
"""Calls that only segments need, by actor and verb in the decisions: whose code it is, and what it did."""


@attrs.frozen(kw_only=True)
class Changes:
    """What one side had to do that it does not do in a VM without segments."""

    verdict: str
    """none, minimal or needed."""
    used: tuple[str, ...]
    """Registers written and loaded, filters and calls."""


def changes(life: Life) -> dict[str, Changes]:
    """Return what guest and VMM had to be able to do in this life: {"guest": ..., "vmm": ...}."""
    vm = life.vm
    used: dict[str, list[str]] = {"guest": [], "vmm": []}
    carried: list[str] = []
    registers = vm.registers()
    if (guest := registers.guest_segment) is not None:
        used["guest"].append(f"writes BASE_G, LIMIT_G, OFFSET_G over {write_bytes((guest.limit - guest.base) << 12)}")
        pinned = int(np.count_nonzero(vm.guest.frames["mark"] & PINNED))
        used["guest"].append(f"keeps {write_bytes(pinned << 12)} in one contiguous range, pinned")
        carried.append("loads and saves the guest's BASE_G, LIMIT_G, OFFSET_G at entry and exit")
    if (vmm := registers.vmm_segment) is not None:
        used["vmm"].append(f"writes BASE_V, LIMIT_V, OFFSET_V over {write_bytes((vmm.limit - vmm.base) << 12)}")
        if vmm.filter is not None:
            used["vmm"].append(f"loads the escape filter, {len(vmm.filter.members)} members")
    for row in life.sim.recorder.last(len(life.sim.recorder)):
        if (row.actor, row.verb) in _CALLS and row.vm == vm.name and row.outcome in ("done", "partial"):
            side, words = _CALLS[row.actor, row.verb]
            used[side].append(words.format(got=_amount(row)))
    return {
        "guest": Changes(verdict=SOME if used["guest"] else NOTHING, used=tuple(used["guest"])),
        "vmm": Changes(verdict=SOME if used["vmm"] else MINIMAL if carried else NOTHING, used=(*used["vmm"], *carried)),
    }


def _amount(row: Decision) -> str:
    return row.got or "nothing"
