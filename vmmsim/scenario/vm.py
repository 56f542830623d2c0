"""A VM of a scenario: what it is promised, what it wants, and what runs in it."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

import attrs

from vmmsim.addresses import write_duration
from vmmsim.errors import BadInput
from vmmsim.hints import did_you_mean, hint, shown
from vmmsim.scenario.host import Swap
from vmmsim.scenario.values import Thp, VmMode, check_known, check_memory, check_pages, check_share, is_user_code
from vmmsim.spelling import REST

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
POLICIES: Final = ("paper", "guest-compaction", "wait")
"""Mode policies that have names; anything else is code of one's own."""
LOW_BYTES: Final[dict[str, tuple[int, int]]] = {
    "pc-1.4": (0xE0000000, 0xE0000000),
    "pc": (0xE0000000, 0xC0000000),
    "q35": (0xB0000000, 0x80000000),
}
"""Per machine type: memory from which there is an I/O gap, and then how much lies below it (QEMU, pc_init1 and
pc_q35_init)."""
KEPT_LOW_BYTES: Final = 256 << 20
"""What stays below the gap when it is reclaimed (MICRO 2014)."""


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
    image: str = "linux"
    """What the guest was installed from: guests of one image hold some pages alike, for page sharing to find."""
    free_page_reporting: bool = False
    """Whether its balloon driver tells the VMM which blocks of 2 MiB and more are free, so that it takes them back."""
    swap: Swap | None = None
    """Swap space of its own, on a device of the host."""
    escape_filter: Escape = Escape()
    """Escape filter of its VMM segment."""
    workload: Workload | None = None
    """What runs in it; None is an idle guest."""

    def __attrs_post_init__(self) -> None:
        check_memory(self.memory_bytes, "memory")
        if not 1 <= self.vcpus <= 1024:
            raise BadInput(f"{self.vcpus} is not between 1 and 1024", path="vcpus")
        if self.count is not None and not 1 <= self.count <= 4096:
            raise BadInput(f"{self.count} is not between 1 and 4096", path="count")
        check_known(self.mode_policy, POLICIES, "mode_policy")

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
    def program_bytes(self) -> int:
        """Memory that its program may be said to use: its swap space counts where the footprint is given."""
        return self.memory_bytes + (self.swap.size_bytes if self.swap and self.footprint_bytes else 0)

    @property
    def footprint_bytes(self) -> int:
        """Memory that its workload is said to use; 0 if that is the program's own."""
        return (self.workload.footprint_bytes or 0) if self.workload else 0
