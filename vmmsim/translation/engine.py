"""The engine of one host: its cores, the page tables they walk, and the only hand that writes translation state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.addresses import TABLE_ENTRIES
from vmmsim.errors import BadInput
from vmmsim.translation import audit, invalidate, state
from vmmsim.translation.escape_filter import map_escapes
from vmmsim.translation.page_table import PageTable, TablePool
from vmmsim.translation.run import run
from vmmsim.translation.state import GUEST, KINDS, NESTED, Count, Exit, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from vmmsim.config import Machine
    from vmmsim.translation.registers import Registers, Segment

SPACES: Final = 1 << 15
"""Contexts, and eptps, that a host can tell apart."""
_NOTHING: Final = np.empty(0, np.int64)
_BLOCKS_A_NODE: Final = 32 * TABLE_ENTRIES


@attrs.frozen(kw_only=True)
class Outcome:
    """How a run ended."""

    done: int
    """Runs of the chunk that are translated; on an exit, the next one is what exited."""
    exit: Exit
    """DONE, or what is needed before the rest can go on."""
    gvpn: int = -1
    """The page of the access that exited."""
    gfn: int = -1
    """On a nested exit, the gfn that was being translated: the data page's or a guest table's."""


@attrs.frozen(kw_only=True)
class WalkStep:
    """One line of the log of a walk."""

    step: Step
    """What was done."""
    level: int
    """Level of the entry read, or of the cached one; 0 for checks."""
    page: int
    """What was being translated: a gvpn (guest steps) or a gfn (nested and VMM steps)."""
    address: int
    """hPA that a reference read; -1 for other steps."""
    result: int
    """Frame that it yielded: of the page, or of the next table; -1 if none."""


class _Core:
    """One core: its record and its structures."""

    def __init__(self, machine: Machine, *, hierarchy: bool) -> None:
        self.record, self.cells, self.tlb_words = state.allocate(machine, hierarchy=hierarchy)
        self.registers: Registers | None = None


class Engine:
    """Translates accesses on each core, shared by all VMs of a host.

    Page tables are made with ``table`` and changed through ``PageTable``; whoever takes a translation or a right away
    must invalidate it here in the same step.
    """

    def __init__(self, machine: Machine, *, cores: int = 1, hierarchy: bool = False) -> None:
        """Make the empty cores of ``machine``; ``hierarchy`` turns the model of caches on."""
        self.machine = machine
        self.hierarchy = hierarchy
        self.tables = TablePool()
        self._cores = [_Core(machine, hierarchy=hierarchy) for _ in range(cores)]
        self._contexts: dict[tuple[int, int | None, int], int] = {}
        self._eptps: dict[int, int] = {}
        self._loaded: dict[int, Registers] = {}
        self._escape_maps: dict[tuple[object, ...], tuple[int, int]] = {}

    def table(self, table_frames: Callable[[int], NDArray[np.int64]], *, levels: int | None = None) -> PageTable:
        """Return a new empty page table; ``table_frames(n)`` gives the frames of n tables (gfns or hfns)."""
        return PageTable(self.tables, levels or self.machine.levels, table_frames)

    # Registers

    def load(self, registers: Registers, *, core: int = 0) -> None:
        """Enter a vCPU: load its registers. Nothing is flushed: entries are tagged."""
        held = self._cores[core]
        record = held.record
        record.kind[:] = KINDS[registers.mode.guest], KINDS[registers.mode.nested]
        self._load_table(record, GUEST, registers.guest_table)
        if registers.nested_table is not None:
            self._load_table(record, NESTED, registers.nested_table)
        record.eptp = self._number(self._eptps, registers.eptp)
        vpid, asid, eptp = registers.vpid, registers.asid, registers.eptp
        record.context = self._number(self._contexts, (vpid, asid, eptp))
        record.global_context = self._number(self._contexts, (vpid, None, eptp))
        self._load_segment(record, GUEST, registers.guest_segment)
        self._load_segment(record, NESTED, registers.vmm_segment)
        held.registers = registers
        self._loaded[int(record.context)] = registers

    @staticmethod
    def _number(numbers: dict[Any, int], name: object) -> int:
        number = numbers.setdefault(name, len(numbers) + 1)
        if number >= SPACES:
            raise BadInput(f"more than {SPACES - 1} address spaces on one host")
        return number

    def _load_table(self, record: Any, dimension: int, table: PageTable) -> None:
        assert table.pool is self.tables, "the table is another engine's"
        record.root[dimension], record.root_frame[dimension] = table.root, table.root_frame
        record.levels[dimension] = table.levels

    def _load_segment(self, record: Any, dimension: int, segment: Segment | None) -> None:
        record.filter_banks[dimension] = record.members_count[dimension] = 0
        if segment is None:
            record.segment_base[dimension] = record.segment_limit[dimension] = record.segment_offset[dimension] = 0
            return
        record.segment_base[dimension], record.segment_limit[dimension] = segment.base, segment.limit
        record.segment_offset[dimension] = segment.offset
        if segment.filter is not None:
            segment.filter.load(record, dimension)
            if segment.filter.members:
                record.escape_map[dimension] = self._escape_map(record, dimension, segment)

    def _escape_map(self, record: Any, dimension: int, segment: Segment) -> int:
        """Return where the pool holds the escape map of a segment whose filter is loaded; made once for each."""
        key = (segment.base, segment.limit, segment.filter)
        if key not in self._escape_maps:
            if len(self._escape_maps) >= 64:
                self._forget_escape_map()
            blocks = ((segment.limit + 511) >> 9) - (segment.base >> 9)
            count = -(-blocks // _BLOCKS_A_NODE)
            node = self.tables.take_run(count)
            place = node * TABLE_ENTRIES
            map_escapes(record, self.tables.entries, dimension, place, segment.base, segment.limit)
            self._escape_maps[key] = (node, count)
        return self._escape_maps[key][0] * TABLE_ENTRIES

    def _forget_escape_map(self) -> None:
        """Give back the oldest escape map that no core has loaded."""
        loaded = {int(place) for held in self._cores for place in held.record.escape_map}
        for key, (node, count) in self._escape_maps.items():
            if node * TABLE_ENTRIES not in loaded:
                self.tables.give_back(np.arange(node, node + count))
                del self._escape_maps[key]
                return

    # Translation

    def run(self, chunk: NDArray[np.int64], *, core: int = 0, missed: NDArray[np.int64] = _NOTHING) -> Outcome:
        """Translate a chunk of packed accesses (chunk.pack) until it ends or something is needed.

        missed  int64[0], or int64[chunk.size] that receives the gvpns both TLB levels missed; how many there are is
                the change of the counter ``l2_misses``
        """
        held = self._cores[core]
        assert held.registers is not None, "no registers loaded"
        assert missed.size in (0, chunk.size), "missed has a place for each run"
        done, why, _ = run(held.record, held.cells, self.tables.entries, chunk, missed)
        record = held.record
        exit_ = Exit(int(why))
        if exit_ is Exit.DONE:
            return Outcome(done=int(done), exit=exit_)
        gfn = int(record.fault_gfn) if exit_ in (Exit.NESTED_FAULT, Exit.NESTED_WRITE) else -1
        return Outcome(done=int(done), exit=exit_, gvpn=int(record.fault_gvpn), gfn=gfn)

    def walk_log(self, word: int, *, core: int = 0) -> tuple[Outcome, list[WalkStep]]:
        """Translate one packed access and return what its walk did, step by step (none on a TLB hit)."""
        record = self._cores[core].record
        record.log_on, record.log_length = 1, 0
        try:
            outcome = self.run(np.array([word], np.int64), core=core)
        finally:
            record.log_on = 0
        lines = record.log[: record.log_length].tolist()
        names = ("level", "page", "address", "result")
        steps = [WalkStep(step=Step(kind), **dict(zip(names, rest, strict=True))) for kind, *rest in lines]
        return outcome, steps

    def counters(self, *, core: int = 0) -> dict[str, int]:
        """Return a copy of all counters of a core, by name. A phase is the difference of two of them."""
        values = self._cores[core].record.count
        counts = {count.name.lower(): int(values[count]) for count in Count}
        counts["references"] = counts["guest_references"] + counts["nested_references"]
        return counts

    def state(self, *, core: int = 0) -> tuple[Any, NDArray[np.int64]]:
        """Return the record and the cells of a core, for a benchmark that copies them."""
        return self._cores[core].record, self._cores[core].cells

    def record(self, *, core: int = 0) -> Any:
        """Return the record of a core, for kernels that only read it (and for tests that break it)."""
        return self._cores[core].record

    # Invalidation: on all cores, each call one batch

    def invalidate_page(self, vpid: int, asid: int, gvpn: int) -> int:
        """Drop what a guest's INVLPG drops: entries of the page, global ones too; return how many."""
        return self.invalidate_range(vpid, asid, gvpn, gvpn + 1)

    def invalidate_range(self, vpid: int, asid: int, start: int, end: int) -> int:
        """Drop entries of a process, and the VM's global ones, that overlap gvpns [start, end)."""
        own = self._marked(self._contexts, lambda name: name[:2] == (vpid, asid))
        shared = self._marked(self._contexts, lambda name: name[:2] in ((vpid, asid), (vpid, None)))
        return self._drop(tlb_spaces=shared, walk_spaces=own, pages=(start, end))

    def invalidate_context(self, vpid: int, asid: int) -> int:
        """Drop all non-global entries of a process, as a CR3 load without PCID does."""
        spaces = self._marked(self._contexts, lambda name: name[:2] == (vpid, asid))
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces)

    def invalidate_vpid(self, vpid: int) -> int:
        """Drop all combined entries of a VM, global ones too (INVVPID)."""
        spaces = self._marked(self._contexts, lambda name: name[0] == vpid)
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces)

    def invalidate_eptp(self, eptp: int) -> int:
        """Drop all that depends on a nested table: combined and nested entries (INVEPT, single context)."""
        spaces = self._marked(self._contexts, lambda name: name[2] == eptp)
        nested = self._marked(self._eptps, lambda name: name == eptp)
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces, nested_spaces=nested)

    def invalidate_frames(self, start: int, end: int) -> int:
        """Drop entries whose hfns overlap [start, end), walk-cache entries of tables there, and their lines."""
        return self._drop(frames=(start, end))

    def invalidate_moved(self, eptp: int, start: int, end: int) -> int:
        """Drop what a VMM must when it changes where frames [start, end) of a VM are: ``vmm_invalidate`` says how."""
        if self.machine.switches.vmm_invalidate == "context":
            dropped = self.invalidate_eptp(eptp)
            return dropped + sum(
                invalidate.drop_lines(held.record, held.cells, np.array([start, end])) for held in self._cores
            )
        return self.invalidate_frames(start, end)

    def invalidate_all(self) -> None:
        """Empty every TLB and walk cache; caches keep their lines."""
        for held in self._cores:
            held.cells[: held.tlb_words] = state.EMPTY
            held.record.present[:] = 0

    def empty(self) -> None:
        """Empty everything, caches too, and set all counters to zero: a machine just switched on."""
        self.invalidate_all()
        for held in self._cores:
            held.cells[:] = state.EMPTY
            held.record.count[:] = 0

    @staticmethod
    def _marked(numbers: dict[Any, int], wanted: Callable[[Any], bool]) -> NDArray[np.bool_]:
        marks = np.zeros(SPACES, np.bool_)
        marks[[number for name, number in numbers.items() if wanted(name)]] = True
        return marks

    def _drop(
        self,
        *,
        tlb_spaces: NDArray[np.bool_] | None = None,
        walk_spaces: NDArray[np.bool_] | None = None,
        nested_spaces: NDArray[np.bool_] | None = None,
        pages: tuple[int, int] = (0, 1 << 45),
        frames: tuple[int, int] = (0, 0),
    ) -> int:
        none = np.zeros(SPACES, np.bool_)
        tlb, walk, nested = (none if marks is None else marks for marks in (tlb_spaces, walk_spaces, nested_spaces))
        page_range, frame_range = np.array(pages, np.int64), np.array(frames, np.int64)
        dropped = 0
        for held in self._cores:
            core, cells = held.record, held.cells
            dropped += invalidate.drop_translations(core, cells, tlb, nested, page_range, frame_range)
            dropped += invalidate.drop_tables(core, cells, walk, nested, page_range, frame_range)
            if frames[0] < frames[1]:
                dropped += invalidate.drop_lines(core, cells, frame_range)
        return int(dropped)

    # Audit

    def contents(self, *, core: int = 0) -> dict[str, dict[int, list[Any]]]:
        """Return what each structure of a core holds: {structure: {set: entries, most recent first}}."""
        held = self._cores[core]
        names = {number: name for name, number in self._contexts.items()}
        eptps = {number: name for name, number in self._eptps.items()}
        return audit.contents(self.machine, held.record, held.cells, names, eptps)

    def check(self) -> None:
        """Recount from scratch and assert: tables are trees, sets are in order, entries true, counters reconciled."""
        for registers in self._loaded.values():
            registers.guest_table.check()
            if registers.nested_table is not None:
                registers.nested_table.check()
        by_name = {name: self._loaded[number] for name, number in self._contexts.items() if number in self._loaded}
        for core in range(len(self._cores)):
            audit.check_counters(self.counters(core=core))
            audit.check_contents(self.contents(core=core), by_name)

    def contexts(self) -> Iterable[tuple[int, int | None, int]]:
        """Return (vpid, asid, eptp) of every context seen; asid None is a vpid's global one."""
        return self._contexts.keys()
