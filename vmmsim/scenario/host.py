"""The host of a scenario: its memory, and the services that run on it."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs

from vmmsim.addresses import write_bytes
from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown
from vmmsim.scenario.values import (
    PAGEBLOCK_BYTES,
    SECOND_NS,
    Thp,
    check_known,
    check_memory,
    check_pages,
    check_positive,
    is_user_code,
)
from vmmsim.spelling import REST

BALLOON_POLICIES: Final[dict[str, tuple[str, ...]]] = {
    "proportional": (),
    "thresholds": (),
    "idle-tax": ("tax",),
}
"""Balloon policies that are shipped, and the keys that each takes beside those of its table."""
DRAM_RATES: Final = ("jaguar-ddr2",)
"""Tables of DRAM fault rates (``[dram.NAME]`` in ``data/rates.toml``)."""
SwapKind = Literal["zram", "nvme", "sata-ssd", "hdd"]
"""Kinds of swap device (``[swap.NAME]`` in ``data/rates.toml``)."""


@attrs.frozen(kw_only=True)
class Compaction:
    """Compaction of host memory: in the background as Linux's kcompactd, and to build VMM segments."""

    bandwidth_bytes_per_second: int
    """How fast pages are moved, in bytes copied a second; the guests run meanwhile, and feel flushes only."""
    proactiveness: int = 20
    """Linux's vm.compaction_proactiveness, 0 (only on demand) to 100."""

    def __attrs_post_init__(self) -> None:
        check_positive(self.bandwidth_bytes_per_second, "bandwidth")
        if not 0 <= self.proactiveness <= 100:
            raise BadInput(f"{self.proactiveness} is not between 0 and 100", path="proactiveness")


@attrs.frozen(kw_only=True)
class Dimms:
    """The host's memory modules, which sets how many DRAM devices there are to fail."""

    count: int
    """Modules."""
    ranks: int
    """Ranks of a module."""
    width: Literal["x4", "x8", "x16"]
    """Data bits of one device."""

    def __attrs_post_init__(self) -> None:
        check_positive(self.count, "count")
        check_positive(self.ranks, "ranks")


@attrs.frozen(kw_only=True)
class Faults:
    """Permanent faults of DRAM, drawn from the rates of a field study."""

    rates: str
    """Table of rates for each kind of fault: "jaguar-ddr2"."""
    spread: float = 0.0
    """Standard deviation of the logarithm of a host's own factor on the rates; its mean is 1."""
    acceleration: float = 1.0
    """Factor on all rates, to see in a day what takes years; results say that it was accelerated."""

    def __attrs_post_init__(self) -> None:
        if self.rates not in DRAM_RATES:
            raise BadInput(f"{shown(self.rates)} is unknown{hint(self.rates, DRAM_RATES)}", path="rates")
        if self.spread < 0:
            raise BadInput("must not be negative", path="spread")
        check_positive(self.acceleration, "acceleration")


@attrs.frozen(kw_only=True)
class Swap:
    """Swap space, of the host or of one guest."""

    device: SwapKind
    """Kind of device. All swap space of a host on one kind lies on one device."""
    size_bytes: int
    """Capacity."""

    def __attrs_post_init__(self) -> None:
        check_pages(self.size_bytes, "size")


@attrs.frozen(kw_only=True)
class Sharing:
    """Page sharing by content, as Linux's KSM."""

    pages_to_scan: int = 100
    """Pages scanned at a wake-up."""
    sleep_ns: int = 20_000_000
    """Time between wake-ups."""


@attrs.frozen(kw_only=True)
class BalloonPolicy:
    """Who sets balloon targets, and how often."""

    policy: str
    """A policy's name, or code of one's own, ``file.py:Name``."""
    every_ns: int = 10 * SECOND_NS
    """Time between decisions."""
    reserve_bytes: int = 0
    """Memory that the host is to have free; 0 is what ESXi keeps, by the size of the host (minFree)."""
    parameters: dict[str, Any] = attrs.field(factory=dict, metadata=REST)
    """Arguments of the policy: all other keys of its table."""

    def __attrs_post_init__(self) -> None:
        check_known(self.policy, BALLOON_POLICIES, "policy")
        check_positive(self.every_ns, "every")
        if is_user_code(self.policy):
            return
        known = BALLOON_POLICIES[self.policy]
        for key, value in self.parameters.items():
            if key not in known:
                raise BadInput(f'unknown key "{key}" of policy {shown(self.policy)}{hint(key, known)}', path=key)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise BadInput(f"{value!r} is not a share of at least 0 and less than 1", path=key)


@attrs.frozen(kw_only=True)
class Host:
    """The machine, its memory, and the services that run on it. A service that is absent is off."""

    machine: str = "sandy-bridge-2012"
    """Translation hardware of every core: the name of a shipped machine, or a machine file."""
    memory_bytes: int
    """Memory, kernel included."""
    age_ns: int = 0
    """How long the memory has been lived in at time 0; 0 is a fresh boot."""
    kernelcore_bytes: int | None = None
    """Memory where pages that cannot move may lie; None is an eighth of memory, at least 1 GiB. As much as memory
    means anywhere."""
    thp: Thp = "always"
    """Whether VMs' memory is backed by huge pages."""
    swap: Swap | None = None
    """Swap space."""
    sharing: Sharing | None = None
    """Page sharing."""
    balloon: BalloonPolicy | None = None
    """Policy that sets balloon targets."""
    compaction: Compaction | None = None
    """Compaction, in the background and for segments."""
    dimms: Dimms | None = None
    """Memory modules, for faults."""
    faults: Faults | None = None
    """Permanent faults that strike at random."""

    def __attrs_post_init__(self) -> None:
        check_memory(self.memory_bytes, "memory")
        if self.kernelcore_bytes is not None:
            check_memory(self.kernelcore_bytes, "kernelcore")
            if self.kernelcore_bytes > self.memory_bytes:
                raise BadInput(
                    f"{write_bytes(self.kernelcore_bytes)} is more than the host has, {write_bytes(self.memory_bytes)}",
                    path="kernelcore",
                )

    @property
    def unmovable_bytes(self) -> int:
        """Bytes at the bottom of memory where pages that cannot move may lie: ``kernelcore_bytes``, or its default."""
        if self.kernelcore_bytes is not None:
            return self.kernelcore_bytes
        eighth = self.memory_bytes // 8 // PAGEBLOCK_BYTES * PAGEBLOCK_BYTES
        return min(self.memory_bytes, max(eighth, 1 << 30))

    @property
    def movable_bytes(self) -> int:
        """Bytes that a VMM segment can lie in: above ``unmovable_bytes``, or all if those are everywhere."""
        above = self.memory_bytes - self.unmovable_bytes
        return above or self.memory_bytes
