"""Frozen descriptions of a scenario: a host, its VMs, what runs in them, what happens when, and what is measured.

Data only, each part valid from birth; what the parts do not allow together is found by ``scenario_checks``. The keys
of scenario files are the fields' names without units (``strict``). Times count from the start of the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import attrs

from vmmsim.addresses import PAGE_BYTES, write_bytes, write_duration
from vmmsim.errors import BadInput
from vmmsim.hints import did_you_mean, hint, shown
from vmmsim.scenario_events import (
    EVENTS,
    BalloonEvent,
    BootEvent,
    CompactEvent,
    Event,
    FaultEvent,
    FaultKind,
    HotAddEvent,
    HotRemoveEvent,
    LoadEvent,
    ModeEvent,
    ReclaimIoGapEvent,
    SelfBalloonEvent,
    ShutdownEvent,
    VmMode,
    check_pages,
    check_share,
)
from vmmsim.spelling import NO_KEY, REST

__all__ = [
    "EVENTS",
    "PROGRAMS",
    "VM",
    "Actor",
    "BalloonEvent",
    "BalloonPolicy",
    "BootEvent",
    "CompactEvent",
    "Compaction",
    "Dimms",
    "Escape",
    "Event",
    "FaultEvent",
    "FaultKind",
    "Faults",
    "Host",
    "HotAddEvent",
    "HotRemoveEvent",
    "LoadEvent",
    "LoadStep",
    "Measure",
    "ModeEvent",
    "ReclaimIoGapEvent",
    "Run",
    "Scenario",
    "SelfBalloonEvent",
    "Sharing",
    "ShutdownEvent",
    "Swap",
    "Sweep",
    "VmMode",
    "Workload",
]

Thp = Literal["always", "never"]
"""Whether memory is mapped in huge pages wherever there are any."""
IoGap = Literal["keep", "reclaim"]
"""What happens at boot to the memory below the I/O gap."""
MachineType = Literal["pc-1.4", "pc", "q35"]
"""QEMU machine type, which sets where the I/O gap begins."""

PROGRAMS: Final[dict[str, bool]] = {
    "memcached": True,
    "web": False,
    "graph500": True,
    "kernel-build": False,
    "gups": True,
}
"""The programs that a workload can name, and whether each has a primary region: one large area to put under a
guest segment."""
POLICIES: Final = ("paper",)
"""Mode policies that have names; anything else is code of one's own."""
DRAM_RATES: Final = ("jaguar-ddr2",)
"""Tables of DRAM fault rates (``[dram.NAME]`` in ``data/rates.toml``)."""

LOW_BYTES: Final[dict[str, tuple[int, int]]] = {
    "pc-1.4": (0xE0000000, 0xE0000000),
    "pc": (0xE0000000, 0xC0000000),
    "q35": (0xB0000000, 0x80000000),
}
"""Per machine type: memory from which there is an I/O gap, and then how much lies below it (QEMU, pc_init1 and
pc_q35_init)."""
KEPT_LOW_BYTES: Final = 256 << 20
"""What stays below the gap when it is reclaimed (MICRO 2014)."""

_PAGEBLOCK_BYTES: Final = 2 << 20
_LARGEST_BYTES: Final = 8 << 40
"""2**31 frames: what int32 numbers of frames reach."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_USER_CODE: Final = re.compile(r"[^:\s]+:[A-Za-z_][A-Za-z0-9_.]*")
_SECOND_NS: Final = 10**9
_HOUR_NS: Final = 3600 * _SECOND_NS


def is_user_code(words: str) -> bool:
    """Tell whether ``words`` name code of a user: ``file.py:Name`` or ``package.module:Name``."""
    return _USER_CODE.fullmatch(words) is not None


def _check_known(words: str, known: Iterable[str], path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``words`` are one of ``known`` or name code of a user."""
    choices = list(known)
    if words not in choices and not is_user_code(words):
        raise BadInput(
            f'{shown(words)} is unknown{hint(words, choices)}; code of your own is "file.py:Name"', path=path
        )


def _check_memory(size_bytes: int, path: str) -> None:
    if size_bytes == 0 or size_bytes % _PAGEBLOCK_BYTES:
        raise BadInput(f"{write_bytes(size_bytes)} is not a multiple of 2MiB, at least one", path=path)
    if size_bytes > _LARGEST_BYTES:
        raise BadInput(f"{write_bytes(size_bytes)} is more than the largest memory modelled, 8TiB", path=path)


def _check_positive(count: float, path: str) -> None:
    if count <= 0:
        raise BadInput("must be more than 0", path=path)


@attrs.frozen(kw_only=True)
class Run:
    """How long a life is lived, and how closely it is looked at."""

    until_ns: int = _HOUR_NS
    """When the run ends, in nanoseconds of simulated time."""
    seed: int = 1
    """Seed of every stream of randomness."""
    detail: Literal["full", "lifetime"] = "full"
    """lifetime: only what the scenario names happens; no churn, no daemons; samples are taken on changes only."""
    scale: int = 1
    """Divides host, VMs, footprints and the reach of TLBs; a power of two. Results are marked as scaled."""
    stall_ns: int = _HOUR_NS
    """Simulated time after which a run in which no VM makes progress is ended."""
    script: str | None = None
    """A life written in Python, beside the tables: ``file.py:function``."""
    costs: tuple[str, ...] = ("linear",)
    """Cost models: linear, hierarchy, or code of one's own. The first one drives time."""

    def __attrs_post_init__(self) -> None:
        _check_positive(self.until_ns, "until")
        _check_positive(self.stall_ns, "stall")
        if self.seed < 0:
            raise BadInput("must not be negative", path="seed")
        if self.scale < 1 or self.scale & (self.scale - 1):
            raise BadInput(f"{self.scale} is not a power of two", path="scale")
        if self.script is not None and not is_user_code(self.script):
            raise BadInput(f'{shown(self.script)} does not name a function; write e.g. "life.py:life"', path="script")
        if not self.costs:
            raise BadInput("name at least one cost model", path="costs")
        for n, cost in enumerate(self.costs):
            _check_known(cost, ("linear", "hierarchy"), f"costs[{n}]")


@attrs.frozen(kw_only=True)
class Compaction:
    """Compaction of host memory: in the background as Linux's kcompactd, and to build VMM segments."""

    bandwidth_bytes_per_second: int
    """What moving pages may take from the guests, in bytes copied a second."""
    proactiveness: int = 20
    """Linux's vm.compaction_proactiveness, 0 (only on demand) to 100."""

    def __attrs_post_init__(self) -> None:
        _check_positive(self.bandwidth_bytes_per_second, "bandwidth")
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
        _check_positive(self.count, "count")
        _check_positive(self.ranks, "ranks")


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
        _check_positive(self.acceleration, "acceleration")


@attrs.frozen(kw_only=True)
class Swap:
    """Swap space of the host."""

    device: str
    """Kind of device, such as nvme."""
    size_bytes: int
    """Capacity."""


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
    every_ns: int = 10 * _SECOND_NS
    """Time between decisions."""
    reserve_bytes: int = 0
    """Memory that the host is to have free."""
    parameters: dict[str, Any] = attrs.field(factory=dict, metadata=REST)
    """Arguments of code of one's own: all other keys of its table."""


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
        _check_memory(self.memory_bytes, "memory")
        if self.kernelcore_bytes is not None:
            _check_memory(self.kernelcore_bytes, "kernelcore")
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
        eighth = self.memory_bytes // 8 // _PAGEBLOCK_BYTES * _PAGEBLOCK_BYTES
        return min(self.memory_bytes, max(eighth, 1 << 30))

    @property
    def movable_bytes(self) -> int:
        """Bytes that a VMM segment can lie in: above ``unmovable_bytes``, or all if those are everywhere."""
        above = self.memory_bytes - self.unmovable_bytes
        return above or self.memory_bytes


@attrs.frozen(kw_only=True)
class Escape:
    """The escape filter of a VM's VMM segment."""

    bits: int = 256
    """Bits of the filter; 0 is no filter."""
    hashes: int = 4
    """Hash functions, one to a bank of bits / hashes, which is a power of two from 2 to 4096."""
    members: int = 16
    """Bad pages put into the filter before the segment is given up: a budget of false positives."""

    def __attrs_post_init__(self) -> None:
        if self.bits == 0:
            return
        bank = self.bits // self.hashes if 0 < self.hashes <= 4 else 0
        if self.bits < 0 or not 2 <= bank <= 4096 or bank & (bank - 1) or self.bits % self.hashes:
            raise BadInput(
                f"{self.bits} bits for {self.hashes} hashes; hashes must be 1 to 4, and bits / hashes a power of two "
                "from 2 to 4096, or bits 0 for no filter",
                path="bits",
            )
        if not 1 <= self.members <= 256:
            raise BadInput(f"{self.members} is not between 1 and 256", path="members")


@attrs.frozen(kw_only=True)
class LoadStep:
    """From a time on, how busy a workload is. In a file a pair: ``["8h", 1.0]``."""

    _as_list: ClassVar[bool] = True

    at_ns: int
    """From when on."""
    share: float
    """Share of the vCPUs' time that the workload runs, 0 to 1."""

    def __attrs_post_init__(self) -> None:
        check_share(self.share, "share")


@attrs.frozen(kw_only=True)
class Workload:
    """What runs in a VM: one of ``name``, ``trace`` and ``use``."""

    name: str | None = None
    """A shipped program's model: memcached, web, graph500, kernel-build or gups."""
    trace: str | None = None
    """A recorded trace: a file beside the scenario, or a shipped trace."""
    use: str | None = None
    """Code of one's own: ``file.py:Name``."""
    footprint_bytes: int | None = None
    """Memory that the program uses; None is the program's own."""
    repeat: bool = False
    """Whether a trace begins anew at its end; otherwise the workload ends."""
    load: tuple[LoadStep, ...] = ()
    """How busy it is, by time; always fully before the first step, and without any."""
    parameters: dict[str, Any] = attrs.field(factory=dict, metadata=REST)
    """Arguments of the program or the code: all other keys of its table."""

    def __attrs_post_init__(self) -> None:
        given = [key for key in ("name", "trace", "use") if getattr(self, key) is not None]
        if len(given) != 1:
            raise BadInput("give one of name, trace and use" + (f", not {' and '.join(given)}" if given else ""))
        if self.name is not None and self.name not in PROGRAMS:
            raise BadInput(f"{shown(self.name)} is unknown{hint(self.name, PROGRAMS)}", path="name")
        if self.use is not None and not is_user_code(self.use):
            raise BadInput(f'{shown(self.use)} does not name a class; write e.g. "btree.py:BTree"', path="use")
        if self.footprint_bytes is not None:
            check_pages(self.footprint_bytes, "footprint")
        if self.trace is None and self.repeat:
            raise BadInput("only a trace ends and can be repeated", path="repeat")
        if self.trace is not None and self.footprint_bytes is not None:
            raise BadInput("a trace has the footprint that it was recorded with; remove this key", path="footprint")
        self._check_parameters()
        for n in range(1, len(self.load)):
            if self.load[n].at_ns <= self.load[n - 1].at_ns:
                at = write_duration(self.load[n].at_ns)
                raise BadInput(f"{at} does not come after the step before it", path=f"load[{n}]")

    def _check_parameters(self) -> None:
        """Refuse keys that were meant to be others; a user's own code may call its arguments what it likes."""
        known = ("trace", "repeat", "load") if self.trace else ("name", "footprint", "load")
        for key in self.parameters if self.use is None else ():
            if self.trace is not None or did_you_mean(key, known):
                raise BadInput(f"unknown key {shown(key)}{hint(key, known)}")

    @property
    def has_primary_region(self) -> bool:
        """Whether there is one large area to put under a guest segment; taken to be so for traces and users' code."""
        return self.name is None or PROGRAMS[self.name]


@attrs.frozen(kw_only=True)
class VM:
    """A virtual machine: what it is promised, what it wants, and what runs in it."""

    memory_bytes: int
    """Memory that it is promised, kernel included."""
    vcpus: int = 1
    """Virtual CPUs, each on a core of its own."""
    count: int | None = None
    """Make so many alike, NAME-0, NAME-1 and so on; None makes one, called NAME."""
    boot_ns: int = 0
    """When it boots."""
    mode: VmMode = "base"
    """The mode that it wants; which it has, and when, is the result."""
    mode_policy: str = "paper"
    """Who decides how to get there: the paper's table, or code of one's own, ``file.py:Name``."""
    age_ns: int = 0
    """How long the guest's memory has been lived in when it boots."""
    io_gap: IoGap = "keep"
    """reclaim: at boot, memory below the I/O gap is unplugged and added at the end, so that a segment covers it."""
    machine_type: MachineType = "pc-1.4"
    """QEMU machine type, which sets where the I/O gap begins."""
    thp: Thp = "always"
    """Whether the guest maps its programs in huge pages."""
    escape_filter: Escape = Escape()
    """Escape filter of its VMM segment."""
    workload: Workload | None = None
    """What runs in it; None is an idle guest."""

    def __attrs_post_init__(self) -> None:
        _check_memory(self.memory_bytes, "memory")
        if not 1 <= self.vcpus <= 1024:
            raise BadInput(f"{self.vcpus} is not between 1 and 1024", path="vcpus")
        if self.count is not None and not 1 <= self.count <= 4096:
            raise BadInput(f"{self.count} is not between 1 and 4096", path="count")
        _check_known(self.mode_policy, POLICIES, "mode_policy")

    @property
    def low_bytes(self) -> int:
        """Memory below the I/O gap at boot: all of it where there is no gap."""
        starts, low = LOW_BYTES[self.machine_type]
        return low if self.memory_bytes >= starts else self.memory_bytes

    @property
    def segment_bytes(self) -> int:
        """Memory that one VMM segment can cover: what lies above the I/O gap, or all where there is no gap."""
        if self.low_bytes == self.memory_bytes:
            return self.memory_bytes
        return self.memory_bytes - (KEPT_LOW_BYTES if self.io_gap == "reclaim" else self.low_bytes)

    @property
    def footprint_bytes(self) -> int:
        """Memory that its workload is said to use; 0 if that is the program's own."""
        return (self.workload.footprint_bytes or 0) if self.workload else 0


@attrs.frozen(kw_only=True)
class Actor:
    """An actor of one's own, started with the run."""

    use: str
    """Code: ``file.py:Name``."""
    parameters: dict[str, Any] = attrs.field(factory=dict, metadata=REST)
    """Its arguments: all other keys of its table."""

    def __attrs_post_init__(self) -> None:
        if not is_user_code(self.use):
            raise BadInput(f'{shown(self.use)} does not name a class; write e.g. "backup.py:Nightly"', path="use")


@attrs.frozen(kw_only=True)
class Measure:
    """What is measured, and how closely: sampling of translation, and time series."""

    every_ns: int | None = None
    """Time between rows of the time series beyond those at changes; None chooses by the length of the run."""
    as_if: tuple[VmMode, ...] = ()
    """Modes that the same accesses are also translated in, each on a copy of the hardware."""
    window: int | None = None
    """Accesses measured in a sample, at least 1,000; None is the model's own."""
    complete: bool = False
    """Translate every access instead of samples: exact, and very slow."""
    epoch_share: float = 0.01
    """Share of a VM's mapped pages that may change before its rates are sampled anew."""

    def __attrs_post_init__(self) -> None:
        if self.every_ns is not None:
            _check_positive(self.every_ns, "every")
        if len(set(self.as_if)) != len(self.as_if):
            raise BadInput("names a mode twice", path="as_if")
        if self.window is not None and self.window < 1000:
            raise BadInput(f"{self.window} accesses are too few for a sample; at least 1000", path="window")
        if not 0 < self.epoch_share <= 1:
            raise BadInput(f"{self.epoch_share:g} is not more than 0 and at most 1", path="epoch_share")


@attrs.frozen(kw_only=True)
class Sweep:
    """Runs of the same scenario with other values and seeds. ``vmmsim run`` runs the scenario itself only."""

    replications: int | None = None
    """Runs of each point, each with a seed of its own."""
    until_half_width: float | None = None
    """Instead: as many runs as make the confidence interval's half width this small."""
    show: tuple[str, ...] = ()
    """Results to be shown, such as ``vm.db.overhead``."""
    vary: dict[str, tuple[Any, ...]] = attrs.field(factory=dict)
    """Values for each path; all combinations are run."""
    arms: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    """Named alternatives: a value for each path."""

    def __attrs_post_init__(self) -> None:
        if self.replications is not None and self.until_half_width is not None:
            raise BadInput("replications says how many runs already; write one of them", path="until_half_width")
        if self.replications is not None:
            _check_positive(self.replications, "replications")
        if self.until_half_width is not None:
            _check_positive(self.until_half_width, "until_half_width")
        for path, values in self.vary.items():
            if not values:
                raise BadInput("an empty list has no value to run with", path=f"vary.{shown(path)}")


@attrs.frozen(kw_only=True)
class Scenario:
    """A whole scenario: a host, its VMs, what happens, and what is measured.

    One that was loaded from a file is checked, and has each VM that ``count`` makes and each event singly.
    """

    name: str = attrs.field(default="", metadata=NO_KEY)
    """What it is called: the file's name without ``.toml``."""
    folder: Path | None = attrs.field(default=None, metadata=NO_KEY, eq=False)
    """Folder that paths in the scenario are relative to: the file's own; None is the working directory."""
    run: Run = Run()
    """How long, and how closely."""
    host: Host
    """The machine."""
    vm: dict[str, VM]
    """Virtual machines by name."""
    event: tuple[Event, ...] = ()
    """What happens when, in any order; events of the same time happen in this order."""
    actor: tuple[Actor, ...] = ()
    """Actors of one's own."""
    measure: Measure = Measure()
    """What is measured."""
    sweep: Sweep | None = None
    """Runs with other values, for ``vmmsim sweep``."""

    def __attrs_post_init__(self) -> None:
        if not self.vm:
            raise BadInput("a scenario needs at least one VM; write e.g. [vm.db]", path="vm")
        for name in self.vm:
            check_vm_name(name)


def check_vm_name(name: str) -> None:
    """Raise ``BadInput`` unless a VM may be called ``name``."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"{shown(name)} is no name of a VM; use letters, digits, - and _", path="vm")


def pages_of(size_bytes: int) -> int:
    """Return how many 4 KiB pages ``size_bytes`` are."""
    return size_bytes // PAGE_BYTES
