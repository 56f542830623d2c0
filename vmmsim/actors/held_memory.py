"""Making reusable what guests gave up under their VMM segments: by escaping it, or by trimming the segment's end.

A gPA that was given up translates as long as the segment covers it, so its frame is *held*. There are three ways to
free it. A page that escapes the segment needs no frame: a few pages, at the price of the filter's budget. A segment
whose end is trimmed no longer covers what lies there: the balloon is asked to hold the pages at that end, a memory
block at a time, and the registers are written anew. And the segment can be left, which is for need (``host_survival``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.actors.vm import BLOCK_PAGES
from vmmsim.addresses import format_bytes
from vmmsim.translation.registers import Segment

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Event

    from vmmsim.actors.balloon import Balloon
    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder


@attrs.frozen(kw_only=True)
class Freed:
    """What came of an attempt to free held pages."""

    pages: int
    """Host pages that became free."""
    why: str = ""
    """What is in the way of more; "" if nothing is."""


class HeldMemory:
    """Frees held pages of VMs whose segments stay live."""

    def __init__(self, vmm: Vmm, recorder: Recorder) -> None:
        self.vmm = vmm
        self.recorder = recorder

    def freeing(self, balloon: Balloon, pages: int, *, cause: int = -1) -> Generator[Event, object, Freed]:
        """Free ``pages`` that are held, and more where a block has more; the cheapest way first."""
        freed = self.escape(balloon.vm, cause=cause)
        if freed.pages >= pages or not balloon.vm.held_pages:
            return freed
        return (yield from self.trimming(balloon, pages - freed.pages, cause=cause))

    def escape(self, vm: VirtualMachine, *, cause: int = -1) -> Freed:
        """Let all held pages escape, if the filter may hold them all: their frames are free at once."""
        segment = vm.vmm_segment
        if segment is None or vm.escapes is None or not 0 < vm.held_pages <= vm.escapes.room:
            return Freed(pages=0, why="more is held than may escape")
        gfns = vm.given_up(segment.base, segment.limit)
        gfns = gfns[vm.under_vmm_segment(gfns)]
        if not vm.escapes.fits(gfns.tolist()):
            return Freed(pages=0, why="too many other pages would escape with them")
        vm.escapes.insert(gfns.tolist())
        self.vmm.unpin(vm, gfns)
        self.vmm.reload_filter(vm)
        freed = self.vmm.release(vm, gfns)
        self.recorder.decide(
            "vmm", "escape", vm=vm.name, asked=f"{gfns.size} pages", got=f"{freed} pages", outcome="done",
            why="given up by the guest, and reusable now", cause=cause,
        )  # fmt: skip
        return Freed(pages=freed)

    def trimming(self, balloon: Balloon, pages: int, *, cause: int = -1) -> Generator[Event, object, Freed]:
        """Trim the segment's end, block by block as the balloon comes to hold them, until ``pages`` are free.

        Kernel memory at that end stays where it is, and is paged from then on.
        """
        vm, freed, why = balloon.vm, 0, ""
        segment = vm.vmm_segment
        limit = 0 if segment is None else segment.limit
        while freed < pages and not why:
            segment = vm.vmm_segment
            if segment is None:
                why = "the segment is gone"
                break
            start = (segment.limit - 1) // BLOCK_PAGES * BLOCK_PAGES
            if start <= segment.base:
                why = "less than a block of the segment is left"
                break
            end = segment.limit
            why = yield from balloon.gathering(start, end)
            if not why and vm.vmm_segment is segment:
                freed += self.trim(vm, start)
        if freed:
            assert vm.vmm_segment is not None or why
            left = (limit - vm.vmm_segment.limit) if vm.vmm_segment is not None else 0
            self.recorder.decide(
                "vmm", "trim", vm=vm.name, asked=f"{pages} pages", got=f"{freed} pages",
                outcome="done" if freed >= pages else "partial", cause=cause,
                why=f"{format_bytes(left << 12)} of gPA are paged from now on" + (f"; {why}" if why else ""),
            )  # fmt: skip
        return Freed(pages=freed, why=why)

    def trim(self, vm: VirtualMachine, limit: int) -> int:
        """Let the live segment end at ``limit``: a rendezvous; free what was held beyond. Return how many pages."""
        segment = vm.vmm_segment
        assert segment is not None
        assert vm.escapes is not None
        assert segment.base < limit < segment.limit, "a trimmed segment is shorter, and live"
        beyond = np.arange(limit, segment.limit)
        self.vmm.host.unpin(vm.nested.translate(beyond[vm.under_vmm_segment(beyond)]))
        gone = [member for member in vm.escapes.members if member >= limit]
        if gone:
            vm.escapes.remove(gone)
        vm.escapes.limit = limit
        vm.vmm_segment = Segment(base=segment.base, limit=limit, offset=segment.offset, filter=vm.escapes.filter)
        vm.held_pages = vm.held_now()
        self.vmm.flush(vm)
        vm.flushes += 1
        self.vmm.rendezvous(vm)
        freed = self.vmm.unback(vm, vm.given_up(limit, segment.limit))
        vm.changed("trim")
        return freed
