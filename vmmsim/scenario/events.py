"""What a scenario makes happen: a time, one verb, and the verb's arguments. Verbs are named alike everywhere."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import attrs

from vmmsim.errors import BadInput
from vmmsim.scenario.values import VmMode, check_blocks, check_pages, check_positive, check_share
from vmmsim.spelling import or_word

FaultKind = Literal["bit", "word", "row", "column", "bank"]
"""Which part of a DRAM device fails."""
Logging = Literal["wp", "pml"]
"""How a VMM sees which pages are written to."""


@attrs.frozen(kw_only=True)
class Event:
    """Something that happens at a time, because the scenario says so. Each verb is a class of its own."""

    do: ClassVar[str] = ""
    """The verb, as in files and in the decisions table."""
    _tagged: ClassVar[tuple[str, dict[str, type[Event]]]]

    at_ns: int
    """When, in nanoseconds from time 0."""


@attrs.frozen(kw_only=True)
class BootEvent(Event):
    """Boot a VM that was shut down."""

    do: ClassVar[str] = "boot"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""


@attrs.frozen(kw_only=True)
class ShutdownEvent(Event):
    """Shut a VM down; its memory goes back to the host."""

    do: ClassVar[str] = "shutdown"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""


@attrs.frozen(kw_only=True)
class BalloonEvent(Event):
    """Ask the guest for memory, until it has no more than the target."""

    do: ClassVar[str] = "balloon"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    target_bytes: int | None = attrs.field(metadata=or_word("auto"))
    """Memory that the guest is to keep; holds until None, "auto" in a file: back to the policy, or all of it."""

    def __attrs_post_init__(self) -> None:
        if self.target_bytes is not None:
            check_pages(self.target_bytes, "target")


@attrs.frozen(kw_only=True)
class ModeEvent(Event):
    """Want another mode from now on."""

    do: ClassVar[str] = "mode"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    mode: VmMode
    """The mode wanted."""


@attrs.frozen(kw_only=True)
class CompactEvent(Event):
    """Compact all memory of the host, or of one guest, once."""

    do: ClassVar[str] = "compact"
    vm: str = ""
    """Name of the VM, or a pattern such as ``web-*``; "" is the host."""


@attrs.frozen(kw_only=True)
class SelfBalloonEvent(Event):
    """Turn scattered free guest memory into one contiguous range, by balloon and hot-add."""

    do: ClassVar[str] = "self_balloon"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    size_bytes: int
    """How much, in blocks of 128 MiB."""

    def __attrs_post_init__(self) -> None:
        check_blocks(self.size_bytes, "size")


@attrs.frozen(kw_only=True)
class HotAddEvent(Event):
    """Plug memory into a running VM, at the end of its guest-physical memory."""

    do: ClassVar[str] = "hot_add"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    size_bytes: int
    """How much, in blocks of 128 MiB."""

    def __attrs_post_init__(self) -> None:
        check_blocks(self.size_bytes, "size")


@attrs.frozen(kw_only=True)
class HotRemoveEvent(Event):
    """Unplug memory from the end of a VM's guest-physical memory; a block with a page that cannot move stays."""

    do: ClassVar[str] = "hot_remove"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    size_bytes: int
    """How much, in blocks of 128 MiB."""

    def __attrs_post_init__(self) -> None:
        check_blocks(self.size_bytes, "size")


@attrs.frozen(kw_only=True)
class ReclaimIoGapEvent(Event):
    """Unplug the memory below the I/O gap of a running VM, and add as much at the end."""

    do: ClassVar[str] = "reclaim_io_gap"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""


@attrs.frozen(kw_only=True)
class FaultEvent(Event):
    """A permanent fault of the host's DRAM."""

    do: ClassVar[str] = "fault"
    fault: FaultKind
    """Which part of a device fails."""
    vm: str = ""
    """Strike memory of this VM (a pattern strikes each); "" strikes anywhere on the host, or at ``hfn``."""
    gfn: int | None = None
    """Guest frame of ``vm`` whose host frame is struck; None draws one."""
    hfn: int | None = None
    """Host frame that is struck; None draws one."""
    correctable: bool = True
    """Whether ECC still gives the right content, so that it can be copied away."""
    pages: int = 1
    """As many such faults at once: upwards from ``gfn`` or ``hfn``, or each at a place of its own."""
    segment: bool = False
    """Draw only among frames under the VMM segment of ``vm``."""

    def __attrs_post_init__(self) -> None:
        if self.gfn is not None and self.hfn is not None:
            raise BadInput("gfn and hfn both say where; write one of them", path="hfn")
        if self.gfn is not None and not self.vm:
            raise BadInput("a guest frame needs its vm", path="gfn")
        if self.segment and not self.vm:
            raise BadInput("a segment is that of a vm; name it", path="segment")
        if self.segment and (self.gfn is not None or self.hfn is not None):
            raise BadInput("a frame is drawn from the segment; leave out gfn and hfn", path="segment")
        if self.hfn is not None and self.vm:
            raise BadInput("hfn is a frame of the host; leave out vm", path="hfn")
        for name in ("gfn", "hfn"):
            if (getattr(self, name) or 0) < 0:
                raise BadInput("must not be negative", path=name)
        if self.pages < 1:
            raise BadInput("must be at least 1", path="pages")


@attrs.frozen(kw_only=True)
class LoadEvent(Event):
    """Set how busy a VM's workload is, in place of the steps that its table gives."""

    do: ClassVar[str] = "load"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    share: float
    """Share of the vCPUs' time that the workload runs, 0 to 1."""

    def __attrs_post_init__(self) -> None:
        check_share(self.share, "share")


@attrs.frozen(kw_only=True)
class MigrateEvent(Event):
    """Migrate a VM while it runs: its memory is copied, what it writes meanwhile again, and at last it stands still."""

    do: ClassVar[str] = "migrate"
    vm: str
    """Name of the VM, or a pattern such as ``web-*``."""
    then: Literal["leave", "stay"] = "leave"
    """What becomes of it in the end: it leaves this host, or goes on here: a rehearsal."""
    bandwidth_bytes_per_second: int = 1_250_000_000
    """Bytes a second that are sent; by default those of 10 Gbit/s."""
    downtime_ns: int = 300_000_000
    """How long it may stand still: once the rest can be sent in that time, it is stopped."""
    logging: Logging = "wp"
    """How writes are seen: by write-protected pages, or by the processor's log of dirty bits (PML)."""
    auto_converge: bool = False
    """Whether its vCPUs are slowed down where it writes nearly as fast as is copied."""

    def __attrs_post_init__(self) -> None:
        check_positive(self.bandwidth_bytes_per_second, "bandwidth")


EVENTS: Final[dict[str, type[Event]]] = {
    kind.do: kind
    for kind in (
        BootEvent,
        ShutdownEvent,
        BalloonEvent,
        ModeEvent,
        CompactEvent,
        SelfBalloonEvent,
        HotAddEvent,
        HotRemoveEvent,
        ReclaimIoGapEvent,
        FaultEvent,
        LoadEvent,
        MigrateEvent,
    )
}
"""The class of each verb."""

Event._tagged = ("do", EVENTS)
