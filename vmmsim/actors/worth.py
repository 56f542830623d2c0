"""Whether a segment is worth entering: gain x expected dwell > 2 x (copies + stall), in CPU time on both sides.

*Gain* is what the VM's last sample says: walk cycles per access in the mode it has, less those of the same accesses as
if it had the mode it wants, as a share of all its cycles, for each of its vCPUs at full load. Every step towards a mode
is held against what that whole mode saves, for a first segment may save nothing before the second one is there. Samples
of a program's initial phase say nothing of what comes, and count as none. Without a sample there is nothing to weigh,
and the segment is entered: it is never cheaper than before the program has filled its memory.

*Expected dwell* is learned, for each VM and level: the time that segments were held, so far, over how often one was
lost or left, with one segment of ``mode.dwell_ns`` put before the first. (Of segments that are lost at random, by a
constant rate, that is the mean by maximum likelihood, one observation added; a segment that is held still counts
with the time that it has lasted.)

*Copies and stall* are those of the plan: pages to be moved and zeroed, the rendezvous; what the guest does to exchange
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import attrs

from vmmsim import rates
from vmmsim.actors.costs import rendezvous_ns
from vmmsim.addresses import format_duration

if TYPE_CHECKING:
    from vmmsim.actors.vm import VirtualMachine

Level = Literal["guest", "vmm"]
"""Which of the two segments."""
FACTOR: Final = 2
"""How many times its cost a segment must be expected to save."""


@attrs.frozen(kw_only=True)
class Sampled:
    """What the last sample of a VM says about modes: cycles per access."""

    ideal: float
    """Of the program, if translation cost nothing, and of hits of the L2 TLB."""
    walk: Mapping[str, float]
    """Of walks, in the mode had and as if it were others, by name."""

    def saved_share(self, had: str, wanted: str) -> float | None:
        """Return the share of all cycles that mode ``wanted`` saves over ``had``; None if one of them is not known."""
        if had not in self.walk or wanted not in self.walk:
            return None
        return (self.walk[had] - self.walk[wanted]) / (self.ideal + self.walk[had])


class Dwell:
    """How long segments of one level last, as learned from those that there were."""

    def __init__(self, first_ns: int) -> None:
        """first_ns: what is expected before anything is learned."""
        self._held_ns = first_ns
        self._ended = 1
        self._since_ns: int | None = None

    def entered(self, now_ns: int) -> None:
        """A segment was entered."""
        self._since_ns = now_ns

    def ended(self, now_ns: int) -> None:
        """It was lost, or left."""
        if self._since_ns is not None:
            self._held_ns += now_ns - self._since_ns
            self._ended += 1
            self._since_ns = None

    def expected_ns(self, now_ns: int) -> int:
        """Return how long a segment that is entered now will be held."""
        held_still = 0 if self._since_ns is None else now_ns - self._since_ns
        return (self._held_ns + held_still) // self._ended


@attrs.frozen(kw_only=True)
class Effort:
    """What entering a segment takes."""

    copied_pages: int = 0
    zeroed_pages: int = 0
    copies_ns: int = 0
    """CPU time of copying and zeroing them."""
    stall_ns: int = 0
    """CPU time that the guest loses besides: rendezvous, exchanging memory."""

    def __str__(self) -> str:
        """Say it in words, as a part of a sentence."""
        pages = ((self.copied_pages, "pages to move"), (self.zeroed_pages, "to zero"))
        said = " and ".join(f"{count} {what}" for count, what in pages if count) or "nothing to move"
        return f"copies ({said}) and stall take {format_duration(self.copies_ns + self.stall_ns)}"


class Worth:
    """Weighs the segments of one VM."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        first_ns = int(rates.number("mode.dwell_ns"))
        self.dwells: dict[Level, Dwell] = {"guest": Dwell(first_ns), "vmm": Dwell(first_ns)}

    def objection(self, level: Level, effort: Effort, now_ns: int) -> str:
        """Return why a segment is not worth its ``effort``, in numbers; "" if it is, or if nothing is known yet."""
        vm = self.vm
        share = None if vm.sampled is None else vm.sampled.saved_share(vm.mode, vm.mode_wanted)
        if share is None:
            return ""
        dwell_ns = self.dwells[level].expected_ns(now_ns)
        gain_ns = share * vm.description.vcpus * dwell_ns
        if gain_ns > FACTOR * (effort.copies_ns + effort.stall_ns):
            return ""
        saves = (
            f"saves {format_duration(round(gain_ns))} ({100 * share:.2g} % of its time) in an expected "
            f"{format_duration(dwell_ns)}"
            if share > 0
            else "saves nothing"
        )
        return f"not worth it: {vm.mode_wanted} {saves}; {effort}, and it must save {FACTOR} times that"

    def rendezvous(self) -> Effort:
        """Return what it takes to load the registers of all vCPUs."""
        vcpus = self.vm.description.vcpus
        return Effort(stall_ns=vcpus * rendezvous_ns(vcpus))


def guest_effort(copies: int, exchanged: int) -> Effort:
    """Return what a guest segment takes.

    copies     pages of the region that are mapped elsewhere
    exchanged  pages of memory that are exchanged for it, block by block; 0 if there is a contiguous range
    """
    page_ns = rates.number("balloon.inflate_page_ns") + rates.number("balloon.inflate_resident_page_ns")
    block_ns = rates.number("hotplug.plug_block_ns")
    return Effort(
        copied_pages=copies,
        copies_ns=round(copies * rates.number("guest.migrate_4k_ns")),
        stall_ns=round(exchanged * page_ns + exchanged / (1 << 15) * block_ns),
    )
