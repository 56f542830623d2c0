"""The VM of an explained walk: one data page, its tables at both levels, and segments that say the same.

The VM is the same for every mode: its tables and its segments say the same, and only who is asked differs. It has

* its primary region, the 1 GiB around the gVA, at gPA 5 GiB, and its guest tables scattered over the GiB below that;
* host memory behind both at gPA + 30 GiB: by the VMM segment [4 GiB, 6 GiB), and by leaves of the nested table;
* with ``tables_outside``, that many of the guest tables, from the root down, below the I/O gap, where tables that are
  made early lie and where no VMM segment reaches;
* with ``escaped``, a host frame behind the data page that is bad: the page is a member of the escape filter of the
  segment that leads to host memory, and its table has a 4K leaf of its own that leads to a healthy frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from vmmsim.addresses import PAGE_BITS, size_pages, virtual_address
from vmmsim.config import DataCache, DataCaches, Machine, Mode, TlbPart
from vmmsim.studies.explanation import Bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.translation.engine import Engine
    from vmmsim.translation.registers import Registers, Segment

_GIB: Final = size_pages(2)
_REGION_GFN: Final = 5 * _GIB
_VMM_BASE: Final = 4 * _GIB
_VMM_LIMIT: Final = 6 * _GIB
_VMM_OFFSET: Final = 30 * _GIB
_LOW_OFFSET: Final = 10 * _GIB
_HEALTHY_HFN: Final = 0x5F3C1E
_INSIDE: Final = (0x10B3FE, 0x11C7A1, 0x126D05, 0x139F42, 0x104E8B)
"""Frames of guest tables, from the root down."""
_OUTSIDE: Final = (0x9A3F7, 0xA1C52, 0x8D6E9, 0xB0B34, 0x93F08)
"""The same, below the I/O gap."""
_FILTER_SEED: Final = 2014


@attrs.frozen(kw_only=True)
class Plan:
    """The tiny VM: what is where, and what is to be translated in which mode."""

    gva: int
    mode: Mode
    gvpn: int
    line: int
    guest_size: int
    host_size: int
    levels: int
    escaped: bool
    tables_outside: int

    @property
    def data_gfn(self) -> int:
        """The data page's place in guest memory: as deep in the primary region as in the virtual one."""
        return _REGION_GFN + self.gvpn % _GIB

    @property
    def table_gfns(self) -> tuple[int, ...]:
        """The guest tables' frames, from the root down."""
        outside = self.tables_outside
        return _OUTSIDE[:outside] + _INSIDE[outside : self.levels]

    def guest_leaf(self, mode: Mode) -> tuple[int, int]:
        """Return the size of the data page's guest leaf, and the frame of its first page."""
        if self.escaped and mode.nested == "identity":
            return 0, _HEALTHY_HFN
        return self.guest_size, self.data_gfn & -size_pages(self.guest_size)

    def nested_leaves(self) -> set[tuple[int, int, int]]:
        """Return (size, first gfn, first hfn) of the leaves that the walk may need."""
        size, pages = self.host_size, size_pages(self.host_size)
        leaves = {(size, gfn & -pages, (gfn & -pages) + _behind(gfn)) for gfn in (*self.table_gfns, self.data_gfn)}
        if self.escaped:
            leaves.discard((size, self.data_gfn & -pages, (self.data_gfn & -pages) + _VMM_OFFSET))
            leaves.add((0, self.data_gfn, _HEALTHY_HFN))
        return leaves


def _behind(gfn: int) -> int:
    """Return what to add to a gfn to get its hfn."""
    return _LOW_OFFSET if gfn < _VMM_BASE else _VMM_OFFSET


def bare_machine(levels: int) -> Machine:
    """Return a machine that caches nothing: one L1 TLB entry, empty when the walk begins, and no more."""
    tlb = (TlbPart(entries=1, ways=1),)
    unused = DataCache(size_bytes=64, ways=1, cycles=0)
    return Machine(
        name="bare",
        frequency_hz=1,
        levels=levels,
        l1_data_tlb=tlb,
        l1_instruction_tlb=tlb,
        caches=DataCaches(l1_data=unused, l1_instruction=unused, l2=unused, memory_cycles=0),
    )


def registers(engine: Engine, vm: Plan, mode: Mode) -> Registers:
    """Build the tables and segments of the VM and return the registers that hold them."""
    from vmmsim.translation.registers import Registers, Segment

    guest_table = engine.table(_supply(vm.table_gfns), levels=vm.levels)
    size, frame = vm.guest_leaf(mode)
    guest_table.map(vm.gvpn & -size_pages(size), frame, size=size)
    nested_table = None
    if mode.nested != "identity":
        nested_table = engine.table(_supply(_nested_frames()), levels=vm.levels)
        for leaf_size, gfn, hfn in sorted(vm.nested_leaves()):
            nested_table.map(gfn, hfn, size=leaf_size)
    guest_segment = vmm_segment = None
    if mode.guest == "segment":
        base = vm.gvpn - vm.gvpn % _GIB
        guest_segment = Segment(base=base, limit=base + _GIB, offset=_REGION_GFN - base)
    if mode.nested == "segment":
        vmm_segment = Segment(base=_VMM_BASE, limit=_VMM_LIMIT, offset=_VMM_OFFSET)
    if vm.escaped and vmm_segment is not None:
        vmm_segment = _letting_escape(vmm_segment, vm.data_gfn)
    elif vm.escaped and guest_segment is not None and nested_table is None:
        guest_segment = _letting_escape(guest_segment, vm.gvpn)
    return Registers(
        mode=mode,
        guest_table=guest_table,
        nested_table=nested_table,
        guest_segment=guest_segment,
        vmm_segment=vmm_segment,
    )


def _letting_escape(segment: Segment, page: int) -> Segment:
    import numpy as np

    from vmmsim.translation.escape_filter import random_filter

    empty = random_filter(np.random.default_rng(_FILTER_SEED))
    return attrs.evolve(segment, filter=empty.with_members(page))


def _nested_frames() -> Iterator[int]:
    """Yield host frames for nested tables, scattered as a busy host's are."""
    for number in range(1, 1 << 16):
        yield 0x2C0000 + number * 0x6A5D % 0x1FFFF


def _supply(frames: Iterator[int] | tuple[int, ...]) -> Callable[[int], NDArray[np.int64]]:
    import numpy as np

    rest = iter(frames)
    return lambda count: np.array([next(rest) for _ in range(count)], np.int64)


def bounds(vm: Plan, registers: Registers) -> Iterator[Bounds]:
    """Yield the segments in bytes; gVAs as the programmer writes them, with the sign extended."""
    if (guest := registers.guest_segment) is not None:
        base = virtual_address(guest.base, vm.levels)
        size = (guest.limit - guest.base) << PAGE_BITS
        physical = (guest.base + guest.offset) << PAGE_BITS
        yield Bounds(segment="guest", base=base, limit=base + size, offset=physical - base)
    if (vmm := registers.vmm_segment) is not None:
        yield Bounds(
            segment="vmm",
            base=vmm.base << PAGE_BITS,
            limit=vmm.limit << PAGE_BITS,
            offset=vmm.offset << PAGE_BITS,
        )
