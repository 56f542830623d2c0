"""The engine of one host: its cores, the page tables they walk, and the only hand that writes translation state."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.translation import audit, invalidate, state
from vmmsim.translation.escape_maps import EscapeMaps
from vmmsim.translation.page_table import PageTable, TablePool
from vmmsim.translation.run import run
from vmmsim.translation.spaces import Marks, Spaces
from vmmsim.translation.state import GUEST, KINDS, NESTED, Count, Exit, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from vmmsim.config import Machine
    from vmmsim.translation.registers import Registers, Segment

    Cores = Sequence[int] | None

Context = tuple[int, int | None, int]
"""(vpid, asid, eptp); asid None is the vpid's global one."""
_NOTHING: Final = np.empty(0, np.int64)


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
    """One core: its record and its structures, and the registers last loaded for each context."""

    def __init__(self, machine: Machine, *, hierarchy: bool, shadow: bool) -> None:
        self.record, self.cells, self.tlb_words = state.allocate(machine, hierarchy=hierarchy)
        self.record.shadow = shadow
        self.hierarchy, self.shadow = hierarchy, shadow
        self.registers: Registers | None = None
        self.own_loaded: dict[int, Registers] = {}

    def empty(self) -> None:
        """Empty every structure, caches too."""
        self.cells[:] = state.EMPTY
        self.record.present[:] = 0

    def unload(self, vpid: int, asid: int | None) -> None:
        """Forget registers of a VM, or of one process of it, and let go of their escape maps."""
        if self.registers is not None and self.registers.vpid == vpid and asid in (None, self.registers.asid):
            self.registers = None
            self.record.escape_map[:] = -1


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
        self._cores = {number: _Core(machine, hierarchy=hierarchy, shadow=False) for number in range(cores)}
        self._contexts: Spaces[Context] = Spaces()
        self._eptps: Spaces[int] = Spaces()
        self._loaded: dict[int, Registers] = {}
        self._escape_maps = EscapeMaps(self.tables)
        self._marks = Marks(3)

    def table(
        self,
        table_frames: Callable[[int], NDArray[np.int64]],
        *,
        levels: int | None = None,
        give_back_frames: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> PageTable:
        """Return a new empty page table.

        table_frames      gives int64[n], the frames of n tables (gfns or hfns)
        give_back_frames  takes int64[n], the frames of tables that are no more (see ``PageTable``)
        """
        return PageTable(self.tables, levels or self.machine.levels, table_frames, give_back_frames)

    # Cores

    @property
    def cores(self) -> tuple[int, ...]:
        """The numbers of the cores that there are."""
        return tuple(self._cores)

    def add_core(self, *, hierarchy: bool | None = None, shadow: bool = False) -> int:
        """Return the number of a new core, empty, all counters zero; numbers of dropped cores are used again.

        hierarchy  whether it models caches; None: as the engine does
        shadow     a core that looks on: what it runs sets no accessed or dirty bit and so leaves no trace, and its
                   registers are its own affair, whatever other cores load for the same context
        """
        with_caches = self.hierarchy if hierarchy is None else hierarchy
        number = next(number for number in itertools.count() if number not in self._cores)
        self._cores[number] = _Core(self.machine, hierarchy=with_caches, shadow=shadow)
        return number

    def drop_core(self, core: int) -> None:
        """Take a core away; its number may be given to another."""
        del self._cores[core]

    def empty_core(self, core: int, *, counters: bool = False) -> None:
        """Empty every structure of a core, caches too; with ``counters`` set its counters to zero. Registers stay."""
        held = self._cores[core]
        held.empty()
        if counters:
            held.record.count[:] = 0

    # Registers

    def load(self, registers: Registers, *, core: int = 0) -> None:
        """Enter a vCPU: load its registers. Nothing is flushed: entries are tagged."""
        held = self._cores[core]
        record = held.record
        record.kind[:] = KINDS[registers.mode.guest], KINDS[registers.mode.nested]
        self._load_table(record, GUEST, registers.guest_table)
        if registers.nested_table is not None:
            self._load_table(record, NESTED, registers.nested_table)
        record.eptp = self._eptps.number(registers.eptp)
        vpid, asid, eptp = registers.vpid, registers.asid, registers.eptp
        record.context = self._contexts.number((vpid, asid, eptp))
        record.global_context = self._contexts.number((vpid, None, eptp))
        self._load_segment(record, GUEST, registers.guest_segment)
        self._load_segment(record, NESTED, registers.vmm_segment)
        held.registers = registers
        (held.own_loaded if held.shadow else self._loaded)[int(record.context)] = registers

    def forget(self, vpid: int, asid: int | None = None) -> None:
        """Forget a VM that is gone, or one process of it: its tables are followed no more, and may be freed.

        Its entries are dropped (a process's global ones stay: they are the VM's), its registers unloaded, and its
        contexts' numbers are free again; likewise the eptps of a VM that no other VM uses.
        """
        names = self._contexts.numbers
        gone = [name for name in names if name[0] == vpid and asid in (None, name[1])]
        if asid is None:
            self.invalidate_vpid(vpid)
            for eptp in {name[2] for name in gone} - {name[2] for name in names if name[0] != vpid}:
                self.invalidate_eptp(eptp)
                self._eptps.forget(eptp)
        else:
            self.invalidate_context(vpid, asid)
        for held in self._cores.values():
            held.unload(vpid, asid)
        for name in gone:
            for loaded in (self._loaded, *(held.own_loaded for held in self._cores.values())):
                loaded.pop(names[name], None)
            self._contexts.forget(name)

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
                records = (held.record for held in self._cores.values())
                record.escape_map[dimension] = self._escape_maps.place(record, dimension, segment, records)

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

    # Invalidation: each call one batch, on the cores given (None: all; a VM's entries lie only where it ran)

    def invalidate_page(self, vpid: int, asid: int, gvpn: int, *, cores: Cores = None) -> int:
        """Drop what a guest's INVLPG drops: entries of the page, global ones too; return how many."""
        return self.invalidate_range(vpid, asid, gvpn, gvpn + 1, cores=cores)

    def invalidate_range(self, vpid: int, asid: int, start: int, end: int, *, cores: Cores = None) -> int:
        """Drop entries of a process, and the VM's global ones, that overlap gvpns [start, end)."""
        own = self._spaces(vpid=vpid, asids=(asid,))
        shared = self._spaces(vpid=vpid, asids=(asid, None))
        return self._drop(tlb_spaces=shared, walk_spaces=own, pages=(start, end), cores=cores)

    def invalidate_context(self, vpid: int, asid: int, *, cores: Cores = None) -> int:
        """Drop all non-global entries of a process, as a CR3 load without PCID does."""
        spaces = self._spaces(vpid=vpid, asids=(asid,))
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces, cores=cores)

    def invalidate_vpid(self, vpid: int, *, cores: Cores = None) -> int:
        """Drop all combined entries of a VM, global ones too (INVVPID)."""
        spaces = self._spaces(vpid=vpid)
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces, cores=cores)

    def invalidate_eptp(self, eptp: int, *, cores: Cores = None) -> int:
        """Drop all that depends on a nested table: combined and nested entries (INVEPT, single context)."""
        spaces = [number for name, number in self._contexts.numbers.items() if name[2] == eptp]
        nested = [self._eptps.numbers[eptp]] if eptp in self._eptps.numbers else []
        return self._drop(tlb_spaces=spaces, walk_spaces=spaces, nested_spaces=nested, cores=cores)

    def invalidate_frames(self, start: int, end: int, *, cores: Cores = None) -> int:
        """Drop entries whose hfns overlap [start, end), walk-cache entries of tables there, and their lines."""
        return self._drop(frames=(start, end), cores=cores)

    def invalidate_moved(self, eptp: int, start: int, end: int, *, cores: Cores = None) -> int:
        """Drop what a VMM must when it changes where frames [start, end) of a VM are: ``vmm_invalidate`` says how."""
        if self.machine.switches.vmm_invalidate == "context":
            dropped = self.invalidate_eptp(eptp, cores=cores)
            moved = np.array([start, end])
            return dropped + sum(
                invalidate.drop_lines(held.record, held.cells, moved) for held in self._some(cores) if held.hierarchy
            )
        return self.invalidate_frames(start, end, cores=cores)

    def invalidate_all(self) -> None:
        """Empty every TLB and walk cache; caches keep their lines."""
        for held in self._cores.values():
            held.cells[: held.tlb_words] = state.EMPTY
            held.record.present[:] = 0

    def empty(self) -> None:
        """Empty everything, caches too, and set all counters to zero: a machine just switched on."""
        for number in self._cores:
            self.empty_core(number, counters=True)

    def _some(self, cores: Cores) -> Iterable[_Core]:
        return self._cores.values() if cores is None else (self._cores[core] for core in cores)

    def _spaces(self, *, vpid: int, asids: tuple[int | None, ...] | None = None) -> list[int]:
        """Return the numbers of a vpid's contexts, of these asids or of all."""
        return [
            number
            for name, number in self._contexts.numbers.items()
            if name[0] == vpid and (asids is None or name[1] in asids)
        ]

    def _drop(
        self,
        *,
        tlb_spaces: Iterable[int] = (),
        walk_spaces: Iterable[int] = (),
        nested_spaces: Iterable[int] = (),
        pages: tuple[int, int] = (0, 1 << 45),
        frames: tuple[int, int] = (0, 0),
        cores: Cores = None,
    ) -> int:
        marks = self._marks.only(tlb_spaces, walk_spaces, nested_spaces)
        ranges = np.array((pages, frames), np.int64)
        dropped = 0
        for held in self._some(cores):
            dropped += invalidate.sweep(held.record, held.cells, marks, ranges)
        return int(dropped)

    def entries(self, group: int, size: int, *, core: int = 0) -> int:
        """Return how many entries of a page size a group of TLBs (state.L1_DATA, ..., state.L2) holds."""
        held = self._cores[core]
        return audit.entries_of_size(held.record, held.cells, group, size)

    # Audit

    def contents(self, *, core: int = 0) -> dict[str, dict[int, list[Any]]]:
        """Return what each structure of a core holds: {structure: {set: entries, most recent first}}."""
        held = self._cores[core]
        names = {number: name for name, number in self._contexts.numbers.items()}
        eptps = {number: name for name, number in self._eptps.numbers.items()}
        return audit.contents(self.machine, held.record, held.cells, names, eptps)

    def check(self, current: Iterable[Registers] = ()) -> None:
        """Recount from scratch and assert: tables are trees, sets are in order, entries true, counters reconciled.

        current  what is to be loaded from now on, in place of what was: entries must be true by that
        """
        now = {(one.vpid, one.asid, one.eptp): one for one in current}
        for registers in self._loaded.values():
            registers.guest_table.check()
            if registers.nested_table is not None:
                registers.nested_table.check()
        for core, held in self._cores.items():
            loaded = held.own_loaded if held.shadow else self._loaded
            names = self._contexts.numbers
            by_name = {name: loaded[number] for name, number in names.items() if number in loaded}
            if not held.shadow:
                by_name |= {name: now[name] for name in by_name if name in now}
            audit.check_counters(self.counters(core=core))
            audit.check_contents(self.contents(core=core), by_name, marks=not held.shadow)

    def contexts(self) -> Iterable[Context]:
        """Return (vpid, asid, eptp) of every context seen; asid None is a vpid's global one."""
        return self._contexts.numbers.keys()
