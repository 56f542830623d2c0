"""Self-ballooning: scattered free guest memory exchanged for one contiguous range of gPA, without copying anything.

Block by block of 128 MiB: the balloon takes as many pages as the block has, the VMM gets their frames back, the block
is added at the end of gPA and onlined. *Present minus ballooned* stays the same, to the byte; what the guest can use
falls by the new blocks' map of frames, and by nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmmsim.actors.vm import BLOCK_PAGES

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Event

    from vmmsim.actors.balloon import Balloon
    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.hotplug import Hotplug


@attrs.frozen(kw_only=True)
class Exchanged:
    """What a self-ballooning came to."""

    start: int
    """First gfn of the new range."""
    end: int
    """One past its last gfn; end = start if nothing was exchanged."""
    reclaimed_pages: int
    """Page cache dropped to find enough free memory."""
    short: str
    """Why it ended before its time; "" if it did not."""


class SelfBalloon:
    """Exchanges memory of one guest."""

    def __init__(self, guest_os: GuestOs, balloon: Balloon, hotplug: Hotplug) -> None:
        self.guest_os = guest_os
        self.balloon = balloon
        self.hotplug = hotplug

    def exchanging(self, pages: int) -> Generator[Event, object, Exchanged]:
        """Exchange ``pages``, rounded up to whole blocks, for one range at the end of gPA."""
        blocks = -(-pages // BLOCK_PAGES)
        start = end = -1
        reclaimed, short = 0, ""
        if self.hotplug.room() < blocks * BLOCK_PAGES:
            short = f"gPA has room for {self.hotplug.room() // BLOCK_PAGES} more blocks, not {blocks}"
        while blocks and not short:
            freed, short = self._find_free()
            reclaimed += freed
            if short:
                break
            given = yield from self.balloon.exchanging(BLOCK_PAGES)
            if given < BLOCK_PAGES:
                short = f"the balloon ran out of puff {BLOCK_PAGES - given} pages before a block was full"
                break
            first, last = yield from self.hotplug.adding(BLOCK_PAGES)
            start, end = (first if start < 0 else start), last
            blocks -= 1
        return Exchanged(start=max(start, 0), end=max(end, 0), reclaimed_pages=reclaimed, short=short)

    def _find_free(self) -> tuple[int, str]:
        """See to it that a block above the high watermark is free; return pages reclaimed, and what is short."""
        guest = self.guest_os.vm.guest
        needed = BLOCK_PAGES + guest.watermarks.high
        freed = guest.drop_cache(needed - guest.free_pages) if guest.free_pages < needed else 0
        if guest.free_pages >= needed:
            return freed, ""
        return freed, f"only {guest.free_pages} pages are free in the guest, a block takes {needed}"
