"""Self-ballooning: scattered free guest memory exchanged for one contiguous range of gPA, without copying anything.

Block by block of 128 MiB: the balloon takes as many pages as the block has, the VMM gets their frames back, the block
is added at the end of gPA and onlined. *Present minus ballooned* stays the same, to the byte; what the guest can use
falls by the new blocks' map of frames, and by nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmmsim.actors.vm import BLOCK_PAGES
from vmmsim.addresses import format_bytes
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Event

    from vmmsim.actors.balloon import Balloon
    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.hotplug import Hotplug
    from vmmsim.memory.tokens import Token


@attrs.frozen(kw_only=True)
class Exchanged:
    """What a self-ballooning came to. The new range is leased until ``SelfBalloon.hand_over``."""

    start: int = 0
    """First gfn of the new range."""
    end: int = 0
    """One past its last gfn; end = start if nothing was exchanged."""
    reclaimed_pages: int = 0
    """Page cache dropped to find enough free memory."""
    short: str = ""
    """Why it ended before its time; "" if it did not."""
    leases: tuple[Token, ...] = ()
    """What keeps the new blocks from being used before all of them are there."""


class SelfBalloon:
    """Exchanges memory of one guest."""

    def __init__(self, guest_os: GuestOs, balloon: Balloon, hotplug: Hotplug) -> None:
        self.guest_os = guest_os
        self.balloon = balloon
        self.hotplug = hotplug

    def obstacle(self, pages: int) -> str:
        """Return what is in the way of exchanging ``pages`` now; "" if nothing is known to be."""
        guest, wanted = self.guest_os.vm.guest, -(-pages // BLOCK_PAGES) * BLOCK_PAGES
        room = self.hotplug.room()
        if room < wanted:
            return f"gPA has room for {format_bytes(room << 12)} more, not {format_bytes(wanted << 12)}"
        spare = guest.free_pages - guest.watermarks.high + guest.count(kind=Kind.CACHE)
        if spare < wanted:
            return f"the guest can spare {format_bytes(max(spare, 0) << 12)}, not {format_bytes(wanted << 12)}"
        return ""

    def exchanging(self, pages: int) -> Generator[Event, object, Exchanged]:
        """Exchange ``pages``, rounded up to whole blocks, for one range at the end of gPA."""
        blocks = -(-pages // BLOCK_PAGES)
        short = self.obstacle(pages)
        if short:
            return Exchanged(short=short)
        start = self.hotplug.place(blocks * BLOCK_PAGES)
        done = Exchanged(start=start, end=start)
        while len(done.leases) < blocks and not short and self.guest_os.vm.running:
            freed, short = self._find_free()
            done = attrs.evolve(done, reclaimed_pages=done.reclaimed_pages + freed)
            if short:
                break
            given = yield from self.balloon.exchanging(BLOCK_PAGES)
            if given < BLOCK_PAGES:
                self.balloon.take_back(given)
                short = f"the balloon ran out of puff {BLOCK_PAGES - given} pages before a block was full"
                break
            first, end = yield from self.hotplug.adding(BLOCK_PAGES, at=done.end)
            if first == end:
                self.balloon.take_back(given)
                short = "the guest has no memory left to describe another block with"
                break
            # Leased in the same step: nobody may use the block before all of them are there.
            lease = self.guest_os.vm.guest.isolate_range(first, end, "self-ballooning")
            done = attrs.evolve(done, end=end, leases=(*done.leases, lease))
        self.hotplug.withdraw(start + blocks * BLOCK_PAGES)
        return attrs.evolve(done, short=short)

    def hand_over(self, done: Exchanged) -> None:
        """Let the new range be used: by whoever asked for it in the same step, or by anybody."""
        for lease in done.leases:
            self.guest_os.vm.guest.release(lease)

    def _find_free(self) -> tuple[int, str]:
        """See to it that a block above the high watermark is free; return pages reclaimed, and what is short."""
        guest = self.guest_os.vm.guest
        needed = BLOCK_PAGES + guest.watermarks.high
        freed = guest.drop_cache(needed - guest.free_pages) if guest.free_pages < needed else 0
        if guest.free_pages >= needed:
            return freed, ""
        return freed, f"only {guest.free_pages} pages are free in the guest, a block takes {needed}"
