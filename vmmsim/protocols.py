"""Contracts of what users may write themselves, and what the model relies on. Built-ins use the same door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import attrs

from vmmsim.addresses import TABLE_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GVPN_END: Final = 1 << 4 * TABLE_BITS
"""One past the last guest virtual page number of four-level tables: 2**36."""


@attrs.frozen
class Region:
    """A range of guest virtual pages that a program allocated in one piece: the gvpns [start, start + pages)."""

    name: str
    """What the program keeps there: "table", "heap", "job 3"."""
    start: int
    """First gvpn."""
    pages: int
    """Length in 4 KiB pages, at least 1."""
    primary: bool = False
    """Whether a guest segment is made for it. At most one region of a workload is primary."""

    def __attrs_post_init__(self) -> None:
        if self.pages < 1:
            raise ValueError(f"region {self.name}: pages (={self.pages}) must be at least 1")
        if self.start < 0 or self.end > GVPN_END:
            raise ValueError(f"region {self.name}: gvpns [{self.start}, {self.end}) must lie in [0, 2**36)")

    @property
    def end(self) -> int:
        """One past the last gvpn."""
        return self.start + self.pages


@attrs.frozen(kw_only=True)
class Churn:
    """What a program makes its guest's kernel do beside its own pages, while it runs at full load."""

    cache_pages_per_s: float = 0.0
    """Pages of files that enter the page cache each second: movable, kept until memory is short."""
    files_pages: int | None = None
    """Size of all its files together, which the page cache cannot exceed; None is without end."""
    unmovable_pages_per_s: float = 0.0
    """Pages of kernel memory that cannot move (slabs, tables, buffers) taken each second."""
    unmovable_life_ns: int = 10**9
    """Mean life of such a page, if it is given back at all."""
    unmovable_kept: float = 0.0
    """Share of such pages that are never given back while the program lives: 0 to 1."""

    def __attrs_post_init__(self) -> None:
        if min(self.cache_pages_per_s, self.unmovable_pages_per_s) < 0:
            raise ValueError("pages each second must not be negative")
        if self.unmovable_life_ns < 1 or not 0 <= self.unmovable_kept <= 1:
            raise ValueError("unmovable_life_ns must be at least 1, and unmovable_kept within 0 and 1")


@runtime_checkable
class UserWorkload(Protocol):
    """The least that a workload of one's own has; what it leaves out of ``Workload``, ``build`` adds.

    A workload is a pure function of *position*: the number of accesses that the VM has made since the workload
    began. Whoever simulates a long life asks for a few accesses here and there, in any order, and twice, so that

    * equal arguments give equal answers, always, and no call changes the answer of another;
    * a call costs time in proportion to what it returns, never to the position;
    * what is random is drawn from seed, VM, vCPU and position, by hashing them, not from a generator that is advanced.

    ``vmmsim.testing.check_workload`` tests all of it.
    """

    @property
    def regions(self) -> Sequence[Region]:
        """All memory the workload ever touches, as disjoint regions in ascending order."""
        ...

    def stream(self, x: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the accesses x .. x + n: gvpns, int64[n], and whether each is a write, bool[n].

        A read-modify-write of one instruction is one access, a write. Fewer than n only at a workload's end.
        A parameter ``vcpu`` may be taken too, see ``Workload``.
        """
        ...

    def touched(self, x0: int, x1: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pages read and the pages written by the accesses [x0, x1).

        Each page occurs at most once in either array (a page that is read and written stands in both), and both
        are in the order of first touch within the span. Two ways to be right:

        * exactly the pages of ``stream``: scans, traces, anything that touches pages for the first time;
        * for accesses drawn independently, page i with probability p_i of being the next access: page i with
          probability 1 - exp(-p_i (x1 - x0)), independently of all others.

        A first touch happens once, and must not be missed: pages that a workload has at all should be touched for
        the first time by the exact kind.
        """
        ...


class Workload(Protocol):
    """A program as the model runs it, a function of position: ``UserWorkload`` says what that means.

    Positions count the accesses of all vCPUs of the VM together, from 0.
    """

    @property
    def regions(self) -> Sequence[Region]:
        """All memory the workload ever touches, as disjoint regions in ascending order; at most one is primary."""
        ...

    @property
    def ideal_cycles(self) -> float:
        """Cycles an access would take, all of the program's work included, if translation and faults were free."""
        ...

    @property
    def begins(self) -> int:
        """Accesses of the initial phase, which touches pages for the first time, in order; 0 if there is none.

        While it lasts ``stream`` and ``touched`` agree exactly and a scan in strata of any size meets each page once.
        """
        ...

    @property
    def length(self) -> int | None:
        """Accesses after which the workload is finished; None if it never is."""
        ...

    @property
    def churn(self) -> Churn:
        """What its guest's kernel does on its behalf."""
        ...

    def stream(self, x: int, n: int, vcpu: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return n accesses that ``vcpu`` makes as the VM passes x: gvpns, int64[n], and is-write, bool[n].

        They are the accesses x .. x + n as they would be if this vCPU made them all. Parts of the program that are
        ordered (scans, traces) are the same for all vCPUs, random parts are drawn for each. Fewer than n only where
        ``length`` ends it; the vCPU whose accesses ``touched`` must agree with is 0.
        """
        ...

    def touched(self, x0: int, x1: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pages read and the pages written by the accesses [x0, x1), each once, in first-touch order.

        As ``UserWorkload.touched`` says. If a region is freed within (x0, x1), its lives are put together: cut
        spans where ``frees`` says, to keep them apart.
        """
        ...

    def touched_among(self, pages: NDArray[np.int64], x0: int, x1: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tell which of ``pages``, gvpns int64[n], are read and which written: bool[n] each.

        The same answer as ``touched(x0, x1)`` gives, at a cost that grows with ``pages`` and not with the footprint.
        """
        ...

    def frees(self, x0: int, x1: int) -> list[tuple[int, int]]:
        """Return what is freed in [x0, x1): (x, number of the region), ascending.

        Before access x the program gives back all memory of the region; pages touched in it from x on are touched
        for the first time again. A process that ends and is followed by another is such a free.
        """
        ...


@attrs.frozen(kw_only=True)
class VmView:
    """A VM as a policy sees it."""

    name: str
    memory_bytes: int
    """Present in the guest, the balloon's included."""
    used_bytes: int
    """In use in the guest: neither free nor given up."""
    resident_bytes: int
    """Host memory that backs it."""
    balloon_bytes: int
    """Given up to the balloon."""
    mode: str
    """The mode it has."""
    mode_wanted: str
    """The mode it wants."""
    overhead: float | None
    """Walk cycles over ideal cycles by the last sample; None before the first."""
    cache_bytes: int = 0
    """Of what is in use: page cache, which the guest drops when memory is short."""
    exchanged_bytes: int = 0
    """Given up for good, in exchange for memory that was added elsewhere; part of ``memory_bytes``."""
    reusable_bytes: int = 0
    """Of ``balloon_bytes``: what the host can use. The rest is held under the VMM segment."""
    active_bytes: int | None = None
    """Memory that it touches within a minute, as estimated by sampling; None: not known."""
    managed: bool = True
    """Whether the balloon policy sets its balloon: no event or script does."""


@attrs.frozen(kw_only=True)
class HostView:
    """The host as a policy sees it."""

    memory_bytes: int
    free_bytes: int
    largest_free_bytes: int
    """Longest run of free memory."""
    vms: tuple[str, ...]
    """Names of the VMs that run."""
    available_bytes: int = 0
    """Of ``free_bytes``: what guests can be given. The rest is kept for the kernel and for page tables."""
    reserve_bytes: int = 0
    """Memory that the host is to have available, for a balloon policy; 0: there is none."""
    state: str = "high"
    """How much of the reserve is available: high, clear, soft, hard or low."""
    guests: tuple[VmView, ...] = ()
    """Views of the VMs that run, for a balloon policy; empty: there is none."""


class ModePolicy(Protocol):
    """A mode policy: says which mode a VM should want now.

    It is asked when its VM boots, after each change, and after each wait, which is longer the longer nothing changes:
    how often is not its affair. So it is a pure function: equal views give equal answers, always, and no call changes
    the answer of another. What it must remember stands in the views: ``mode`` and ``mode_wanted``.

    A mode that is wanted may be refused, and not be had for a long time, or at all; and it may be lost. The policy sees
    that, and is asked again.

    ``vmmsim.testing.check_mode_policy`` tests all of it.
    """

    def wanted(self, vm: VmView, host: HostView) -> str:
        """Return the mode that ``vm`` should want: "base", "guest-direct", "vmm-direct" or "dual-direct"."""
        ...


@runtime_checkable
class BalloonPolicy(Protocol):
    """Who says how much memory each guest is to keep: the least that a balloon policy of one's own has.

    It is asked about every VM at each look of the host's memory manager, and must be a pure function of what it is
    shown: no clock, no memory of its own, nothing random, and the views stay as they are. ``host.guests`` holds those
    of all VMs that run.

    ``vmmsim.testing.check_balloon_policy`` tests all of it.
    """

    def target_bytes(self, vm: VmView, host: HostView) -> int:
        """Return how many bytes ``vm`` is to keep: its memory, less what it is to give up.

        From 0 to its memory less what it exchanged. What it cannot give up it keeps, whatever is said; it is never
        asked for more than ESXi's balloon takes, 65 % of its memory.
        """
        ...
