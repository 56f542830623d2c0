"""Reclaim of the I/O gap: memory below it is unplugged and as much is added at the end, where one segment covers it.

256 MiB stay below for the kernel. A block that holds a page which cannot move stays too, paged: that is what the VMM
segment does not cover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from vmmsim.actors.vm import ABOVE_GAP, BLOCK_PAGES
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Event

    from vmmsim.actors.hotplug import Hotplug

KEPT_PAGES: Final = 1 << 16
"""What stays below the gap: 256 MiB (MICRO 2014)."""


@attrs.frozen(kw_only=True)
class Reclaimed:
    """What became of the memory below the gap."""

    moved_pages: int
    """Unplugged below, and added at the end."""
    left_pages: int
    """Left below, beyond what is meant to stay."""
    why: str
    """What was in the way of the first block that stayed; "" if none did."""


def reclaiming(hotplug: Hotplug) -> Generator[Event, object, Reclaimed]:
    """Unplug what can be below the gap, then add as much at the end."""
    vm = hotplug.vm
    moved = left = 0
    why = ""
    for start in range(KEPT_PAGES, min(ABOVE_GAP, vm.memory_top), BLOCK_PAGES):
        if vm.guest.kinds(start)[0] == Kind.HOLE:
            continue
        refused = yield from hotplug.removing(start, start + BLOCK_PAGES)
        if refused:
            left += BLOCK_PAGES
            why = why or refused
        else:
            moved += BLOCK_PAGES
    if moved:
        yield from hotplug.adding(moved)
    return Reclaimed(moved_pages=moved, left_pages=left, why=why)
