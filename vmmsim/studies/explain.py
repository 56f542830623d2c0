"""One cold walk, told reference by reference: a tiny VM on hardware that caches nothing, and the engine's own log.

The VM is the same for every mode: its tables and its segments say the same, and only who is asked differs. It has

* its primary region, the 1 GiB around the gVA, at gPA 5 GiB, and its guest tables scattered over the GiB below that;
* host memory behind both at gPA + 30 GiB: by the VMM segment [4 GiB, 6 GiB), and by leaves of the nested table;
* with ``tables_outside``, that many of the guest tables, from the root down, below the I/O gap, where tables that are
  made early lie and where no VMM segment reaches;
* with ``escaped``, a host frame behind the data page that is bad: the page is a member of the escape filter of the
  segment that leads to host memory, and its table has a 4K leaf of its own that leads to a healthy frame.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final, Literal

import attrs

from vmmsim import hints
from vmmsim.addresses import PAGE_BITS, PAGE_BYTES, SIZE_NAMES, page_number, size_number, size_pages, virtual_address
from vmmsim.config import MODES, DataCache, DataCaches, Machine, Mode, TlbPart
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.translation.engine import Engine, WalkStep
    from vmmsim.translation.registers import Registers, Segment

EXAMPLE_GVA: Final = 0x7F5A12345678

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

Dimension = Literal["guest", "nested"]
Outcome = Literal["covered", "outside", "escaped"]


@attrs.frozen(kw_only=True)
class Reference:
    """One page-table entry that the walk read."""

    kind: Literal["reference"] = attrs.field(default="reference", init=False, repr=False)
    number: int
    """Its place in the walk, from 1."""
    dimension: Dimension
    """Whose table was read."""
    level: int
    """Level of that table; 1 is the leaf level."""
    of: str
    """What was being translated: "gVA", "guest L4 table", "data page"."""
    address: int
    """hPA of the entry."""
    yields: int
    """What the entry says: the address of the next table or of the page. A gPA from guest entries, else an hPA."""
    to: str
    """What lies at that address: "nested L3 table", "guest L4 table", "data page"."""

    @property
    def leaf_page(self) -> str | None:
        """The size of the page that the entry maps, "4K", "2M" or "1G"; None if it leads to a table below."""
        goes_on = self.to == f"{self.dimension} L{self.level - 1} table"
        return None if goes_on else SIZE_NAMES[self.level - 1]


@attrs.frozen(kw_only=True)
class Check:
    """One compare of an address with a segment and its escape filter."""

    kind: Literal["check"] = attrs.field(default="check", init=False, repr=False)
    segment: Literal["guest", "vmm"]
    """Whose segment."""
    of: str
    """What was being translated, as in ``Reference``."""
    after: int
    """How many references the walk had made before."""
    address: int
    """The gVA or gPA that was compared."""
    outcome: Outcome
    """Covered; outside [BASE, LIMIT); or inside, but the filter sends it to paging."""
    yields: int | None
    """The address plus OFFSET if it is covered."""
    counted: bool
    """Whether it is one of the base-bound checks: it is covered, and not fused with the guest segment's."""


Step = Reference | Check
_OUTCOMES: Final[dict[str, Outcome]] = {"CHECK": "covered", "OUTSIDE": "outside", "ESCAPE": "escaped"}
"""How the engine's log names them."""


@attrs.frozen(kw_only=True)
class Row:
    """One line of the drawing: an address to be translated, and what that took."""

    name: str
    """ "gVA" (the guest segment's compare), "guest L4", ..., "data page"."""
    address: int | None
    """The gVA, or the gPA of the guest table or the data page (natively the hPA); None if it was never needed."""
    nested_levels: int
    """How many nested references its address takes where the nested table is walked."""
    steps: tuple[Step, ...]
    """In the order of the walk."""

    @property
    def is_table(self) -> bool:
        """Whether its address is that of a guest table, an entry of which is then read."""
        return self.name.startswith("guest")

    @property
    def nested(self) -> tuple[Reference, ...]:
        """The references to nested tables."""
        return tuple(step for step in self.steps if step.kind == "reference" and step.dimension == "nested")

    @property
    def guest(self) -> Reference | None:
        """The reference to the guest table."""
        found = (step for step in self.steps if step.kind == "reference" and step.dimension == "guest")
        return next(found, None)

    @property
    def check(self) -> Check | None:
        """The compare with a segment; a row has one at most."""
        return next((step for step in self.steps if step.kind == "check"), None)


@attrs.frozen(kw_only=True)
class Bounds:
    """A segment's registers, in bytes."""

    segment: Literal["guest", "vmm"]
    base: int
    limit: int
    offset: int


@attrs.frozen(kw_only=True)
class Kept:
    """What a mode leaves of the references of a base virtualized walk in the same VM."""

    mode: str
    numbers: tuple[int, ...]
    """The references it still makes, as the base walk numbers them."""
    of: int
    """How many the base walk makes."""
    checks: int
    """Base-bound checks it makes."""


@attrs.frozen(kw_only=True)
class Explanation:
    """One walk, with all caches empty."""

    gva: int
    mode: str
    guest_page: str
    host_page: str | None
    """None in native modes, which have no nested table."""
    levels: int
    escaped: bool
    tables_outside: int
    segments: tuple[Bounds, ...]
    """The guest segment first, as far as the mode has them."""
    rows: tuple[Row, ...]
    """One for each address that this walk or a walk without segments translates."""
    dimension: Literal["0D", "1D", "2D"]
    """By the class of the translation, which the data page alone decides."""
    total_references: int
    base_bound_checks: int
    hpa: int
    kept: tuple[Kept, ...] = ()
    """base: what VMM Direct and Guest Direct leave of it; another virtualized mode: what it leaves of base."""
    notes: tuple[str, ...] = ()
    """What was asked for and makes no difference, or differs from what one may expect."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """References and checks in the order of the walk."""
        return tuple(step for row in self.rows for step in row.steps)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, numbered from 1."""
        return tuple(step for step in self.steps if step.kind == "reference")

    @property
    def checks(self) -> tuple[Check, ...]:
        """The compares, those that failed too."""
        return tuple(step for step in self.steps if step.kind == "check")

    @property
    def native(self) -> bool:
        """Whether there is no nested dimension."""
        return MODES[self.mode].nested == "identity"


def explain(
    gva: int = EXAMPLE_GVA,
    *,
    mode: str = "base",
    guest_page: str = "4K",
    host_page: str = "4K",
    levels: int = 4,
    escaped: bool = False,
    tables_outside: int = 0,
) -> Explanation:
    """Return what one read of ``gva`` does when nothing is cached.

    mode            a name of ``config.MODES``
    guest_page      "4K", "2M" or "1G": the guest table's leaf (natively, the only table's)
    host_page       the same for the nested table's leaves
    levels          4 or 5, of both tables
    escaped         the data page escapes the segment that leads to host memory: the VMM segment, or natively the only
    tables_outside  how many of the guest tables, from the root down, lie outside the VMM segment

    ``BadInput``, with the parameter as its path, for what is not one of these or makes no sense in the mode.
    """
    return walk(
        plan(
            gva,
            mode=mode,
            guest_page=guest_page,
            host_page=host_page,
            levels=levels,
            escaped=escaped,
            tables_outside=tables_outside,
        )
    )


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Say of ``path`` what is refused inside."""
    try:
        yield
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, path=path) from None


def plan(
    gva: int, *, mode: str, guest_page: str, host_page: str, levels: int, escaped: bool, tables_outside: int
) -> Plan:
    """Return what ``walk`` is to do, checked; arguments and errors are those of ``explain``."""
    if levels not in (4, 5):
        raise BadInput(f"must be 4 or 5, not {levels}", path="levels")
    if mode not in MODES:
        raise BadInput(hints.unknown(mode, MODES), path="mode")
    with _about("gva"):
        gvpn = page_number(gva, levels)
    with _about("guest_page"):
        guest_size = size_number(guest_page)
    with _about("host_page"):
        host_size = size_number(host_page)
    planned = Plan(
        gva=gva % (1 << 64),
        mode=MODES[mode],
        gvpn=gvpn,
        line=gva >> 6 & 63,
        guest_size=guest_size,
        host_size=host_size,
        levels=levels,
        escaped=escaped,
        tables_outside=tables_outside,
    )
    _check_sense(planned)
    return planned


def walk(plan: Plan) -> Explanation:
    """Return the walk, and what other modes leave of it, or it of a base one."""
    walked = _walked(plan, plan.mode)
    if walked.native:
        kept: tuple[Kept, ...] = ()
    elif walked.mode == "base":
        kept = tuple(_kept(_walked(plan, MODES[other]), walked) for other in ("vmm-direct", "guest-direct"))
    else:
        kept = (_kept(walked, _walked(plan, MODES["base"])),)
    return attrs.evolve(walked, kept=kept, notes=tuple(_notes(plan, walked)))


def _check_sense(vm: Plan) -> None:
    """Refuse an escape, or tables outside, where the mode has nothing to be outside of."""
    mode = vm.mode
    if vm.escaped and mode.nested == "walk":
        raise BadInput(
            f"{mode.name} has no VMM segment to escape from: its nested table can put any page anywhere; "
            "use vmm-direct or dual-direct",
            path="escaped",
        )
    if vm.escaped and mode.guest == "walk" and mode.nested == "identity":
        raise BadInput(f"{mode.name} has no segment to escape from; use native-direct", path="escaped")
    if not vm.tables_outside:
        return
    tables = vm.levels - vm.guest_size
    if mode.nested != "segment":
        raise BadInput(f"{mode.name} has no VMM segment to be outside of; use vmm-direct", path="tables_outside")
    if mode.guest == "segment":
        raise BadInput(f"{mode.name} reads no guest table: its guest segment covers the page", path="tables_outside")
    if not 0 < vm.tables_outside <= tables:
        raise BadInput(
            f"{vm.tables_outside} is not 0 to {tables}: that many guest tables translate a "
            f"{SIZE_NAMES[vm.guest_size]} page",
            path="tables_outside",
        )


def _notes(vm: Plan, walk: Explanation) -> Iterator[str]:
    read = {reference.dimension for reference in walk.references}
    if vm.guest_size and "guest" not in read:
        yield f"guest pages of {walk.guest_page} make no difference: no guest table is read"
    if vm.host_size and "nested" not in read:
        yield f"host pages of {SIZE_NAMES[vm.host_size]} make no difference: no nested table is read"
    if vm.escaped and (vm.guest_size if walk.native else vm.host_size):
        yield "the escaped page has a 4K leaf of its own, whatever the size of the others"


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


def _bare(levels: int) -> Machine:
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


def _walked(vm: Plan, mode: Mode) -> Explanation:
    """Let the engine make the walk in ``mode`` and return its log as rows."""
    from vmmsim.translation.chunk import pack
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.state import Exit

    engine = Engine(_bare(vm.levels))
    registers = _registers(engine, vm, mode)
    engine.load(registers)
    outcome, log = engine.walk_log(int(pack(vm.gvpn, line=vm.line)[0]))
    assert outcome.exit is Exit.DONE, "the page is mapped at both levels"
    counters = engine.counters()
    rows = _Reader(vm, mode).rows(log)
    walk = Explanation(
        gva=vm.gva,
        mode=mode.name,
        guest_page=SIZE_NAMES[vm.guest_size],
        host_page=None if mode.nested == "identity" else SIZE_NAMES[vm.host_size],
        levels=vm.levels,
        escaped=vm.escaped,
        tables_outside=vm.tables_outside,
        segments=tuple(_bounds(vm, registers)),
        rows=rows,
        dimension="0D" if counters["segment_0d"] else "2D" if counters["walk_both"] else "1D",
        total_references=counters["references"],
        base_bound_checks=counters["base_bound_checks"],
        hpa=_byte(log[-1].result + _within(log[-1]), vm.gva),
    )
    assert len(walk.references) == walk.total_references
    assert sum(check.counted for check in walk.checks) == walk.base_bound_checks
    return walk


def _byte(frame: int, gva: int) -> int:
    return frame << PAGE_BITS | gva % PAGE_BYTES


def _within(line: WalkStep) -> int:
    """Return how many 4K pages into the leaf that a reference read its page lies; 0 for a check."""
    return line.page % size_pages(line.level - 1) if line.level else 0


def _registers(engine: Engine, vm: Plan, mode: Mode) -> Registers:
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


def _bounds(vm: Plan, registers: Registers) -> Iterator[Bounds]:
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


class _Reader:
    """Puts the lines of a log into rows."""

    def __init__(self, vm: Plan, mode: Mode) -> None:
        self._vm = vm
        self._gva = vm.gva
        self._native = mode.nested == "identity"
        self._leaf = vm.guest_leaf(mode)[0] + 1
        guest = [f"guest L{level}" for level in range(vm.levels, self._leaf - 1, -1)]
        before = ["gVA"] if mode.guest == "segment" else []
        self._names = [*before, *guest, *([] if self._native else ["data page"])]
        self._now = guest[0]
        self._references = 0
        self._guest_covers = False

    def rows(self, log: list[WalkStep]) -> tuple[Row, ...]:
        """Return all rows, those that the walk did not need too."""
        steps: dict[str, list[Step]] = {name: [] for name in self._names}
        addresses: dict[str, int] = {"gVA": self._gva}
        for line, following in itertools.pairwise((*log, None)):
            assert line is not None
            row, about, step = self._read(line, following)
            steps[row].append(step)
            addresses.setdefault(row, about)
        return tuple(
            Row(
                name=name,
                address=addresses.get(name),
                nested_levels=self._nested_levels(name),
                steps=tuple(steps[name]),
            )
            for name in self._names
        )

    def _nested_levels(self, name: str) -> int:
        if name == "gVA" or self._native:
            return 0
        return self._vm.levels - (0 if name == "data page" and self._vm.escaped else self._vm.host_size)

    def _read(self, line: WalkStep, following: WalkStep | None) -> tuple[str, int, Step]:
        """Return the row of one line, the address that this row is about, and what was done."""
        from vmmsim.translation.state import Step as Kind

        if line.step is Kind.GUEST_REFERENCE:
            return self._guest_reference(line)
        if line.step is Kind.NESTED_REFERENCE:
            goes_on = following is not None and following.step is line.step and following.level == line.level - 1
            return self._nested_reference(line, goes_on=goes_on)
        outcome, segment = line.step.name.split("_")[1], line.step.name.split("_")[0]
        return self._check(line, _OUTCOMES[outcome], is_guest=segment == "GUEST")

    def _guest_reference(self, line: WalkStep) -> tuple[str, int, Step]:
        row = f"guest L{line.level}"
        self._now = "data page" if line.level == self._leaf else f"guest L{line.level - 1}"
        return row, line.address & -PAGE_BYTES, self._reference(line, "guest", "gVA", _object(self._now))

    def _nested_reference(self, line: WalkStep, *, goes_on: bool) -> tuple[str, int, Step]:
        of = _object(self._now)
        to = f"nested L{line.level - 1} table" if goes_on else of
        return self._now, self._about(line), self._reference(line, "nested", of, to)

    def _reference(self, line: WalkStep, dimension: Dimension, of: str, to: str) -> Reference:
        self._references += 1
        return Reference(
            number=self._references,
            dimension=dimension,
            level=line.level,
            of=of,
            address=line.address,
            yields=line.result << PAGE_BITS,
            to=to,
        )

    def _check(self, line: WalkStep, outcome: Outcome, *, is_guest: bool) -> tuple[str, int, Step]:
        row = "gVA" if is_guest else self._now
        about = self._gva if is_guest else self._about(line)
        fused = self._guest_covers and not is_guest
        if is_guest and outcome == "covered":
            self._guest_covers, self._now = True, "data page"
        yields = None
        if outcome == "covered":
            yields = line.result << PAGE_BITS | about % PAGE_BYTES
        return (
            row,
            about,
            Check(
                segment="guest" if is_guest else "vmm",
                of=_object(row),
                after=self._references,
                address=about,
                outcome=outcome,
                yields=yields,
                counted=outcome == "covered" and not fused,
            ),
        )

    def _about(self, line: WalkStep) -> int:
        """Return the gPA that a nested step translates: a table's, or the data page's down to the byte."""
        return _byte(line.page, self._gva if self._now == "data page" else 0)


def _object(row: str) -> str:
    """Return what the address of a row points at."""
    return f"{row} table" if row.startswith("guest") else row


def _kept(walk: Explanation, base: Explanation) -> Kept:
    """Return which references of ``base`` are left in ``walk``, a walk of the same VM."""
    numbers = {(step.dimension, step.level, step.of): step.number for step in base.references}
    return Kept(
        mode=walk.mode,
        numbers=tuple(numbers[step.dimension, step.level, step.of] for step in walk.references),
        of=base.total_references,
        checks=walk.base_bound_checks,
    )
