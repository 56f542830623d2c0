"""A recorded program through every mode: laid out in a guest on a host, translated, counted and priced.

All modes share one pass over the trace: each has an engine of its own, so that the result is that of separate runs,
and engines run side by side on the cores there are.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import numpy as np

from vmmsim.addresses import SIZE_NAMES, parse_bytes, size_number
from vmmsim.config import MODES, Machine, Mode
from vmmsim.errors import BadInput
from vmmsim.hints import unknown
from vmmsim.machine_file import load_machine
from vmmsim.scenarios_folder import trace_path
from vmmsim.studies.layout import LARGEST_GUEST, Layout, Plan, Program, lay_out
from vmmsim.studies.placement import PLACEMENTS, Placement
from vmmsim.translation.chunk import accesses_in
from vmmsim.translation.costs import Coverage, Linear, count_coverage, numbers, sources_of
from vmmsim.translation.engine import Engine
from vmmsim.translation.state import MEMBERS, Exit
from vmmsim.workloads.counts import Counts, Tally
from vmmsim.workloads.trace import Trace, nothing, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

Kinds = Literal["data", "instructions", "all"]
KINDS: Final = ("data", "instructions", "all")
TWINS: Final = ("native", "base")
"""Modes that always run: the linear model prices the others by their averages."""
CHUNK_RUNS: Final = 1 << 19


@attrs.frozen(kw_only=True)
class Run:
    """One mode's part of a replay."""

    mode: str
    """Name of the mode."""
    guest_page: str
    """Page size of the guest's table (natively: of the only one)."""
    host_page: str | None
    """Page size of the nested table; None natively."""
    counters: dict[str, int]
    """Every counter of the engine, by name (docs/engine.md)."""
    ideal_cycles: float
    """Cycles of the program if translation cost nothing."""
    l2_tlb_cycles: int
    """Cycles that hits of the L2 TLB cost; not part of walk cycles."""
    coverage: Coverage
    """Where the misses of the native twin would have gone in this mode."""
    linear_walk_cycles: float
    """Walk cycles by the linear model."""
    guest_frames: int
    """Guest memory (natively: memory), in pages of 4 KiB."""
    bad_pages: int
    """Pages that the escape filter sends to paging on purpose."""
    kernel_seconds: float
    """Wall-clock time inside the compiled engine."""

    @property
    def walk_cycles(self) -> int:
        """Walk cycles by the hierarchy model, the first of the two cost models in a replay."""
        return self.counters["walk_cycles"]

    @property
    def overhead(self) -> float:
        """Walk cycles over ideal cycles."""
        return self.walk_cycles / self.ideal_cycles

    @property
    def total_cycles(self) -> float:
        """Ideal, walk and L2 TLB cycles together."""
        return self.ideal_cycles + self.walk_cycles + self.l2_tlb_cycles

    @property
    def references_per_walk(self) -> float | None:
        """Page-table entries read by a walk, on average; None if nothing was walked."""
        walks = self.counters["walks"]
        return self.counters["references"] / walks if walks else None

    @property
    def l1_misses(self) -> int:
        """Misses of both first-level TLBs."""
        return self.counters["data_l1_misses"] + self.counters["instruction_l1_misses"]

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON: counters by their names, then what follows from them."""
        costs = {
            "hierarchy": _cost(self.walk_cycles, self.ideal_cycles, "upper bound: walks are serial, nothing overlaps"),
            "linear": _cost(
                self.linear_walk_cycles, self.ideal_cycles, "C_n and C_v calibrated by the hierarchy run of this replay"
            ),
        }
        stack = {"ideal": self.ideal_cycles, "walk": self.walk_cycles, "l2_tlb": self.l2_tlb_cycles}
        return {
            "mode": self.mode,
            "guest_page": self.guest_page,
            "host_page": self.host_page,
            **self.counters,
            "ideal_cycles": self.ideal_cycles,
            "l2_tlb_cycles": self.l2_tlb_cycles,
            "overhead": self.overhead,
            "references_per_walk": self.references_per_walk,
            "costs": costs,
            "stack": {part: cycles / self.total_cycles for part, cycles in stack.items()},
            "coverage": attrs.asdict(self.coverage),
            "guest_memory_bytes": self.guest_frames << 12,
            "bad_pages": self.bad_pages,
            "kernel_seconds": self.kernel_seconds,
        }


def _cost(walk_cycles: float, ideal_cycles: float, label: str) -> dict[str, Any]:
    return {"walk_cycles": walk_cycles, "overhead": walk_cycles / ideal_cycles, "label": label}


@attrs.frozen(kw_only=True)
class Replay:
    """A trace replayed: what it held, on which machine, and a run for each mode asked for."""

    trace: Trace
    counts: Counts
    kinds: Kinds
    machine: Machine
    plan: Plan
    ideal: str
    """Name of the number that ideal cycles come from (``costs.numbers``)."""
    runs: tuple[Run, ...]
    native: Run
    """The native run that the others are compared with, asked for or not."""

    def slowdown(self, run: Run) -> float:
        """Return the time of a run over the native one's, by the hierarchy model."""
        return run.total_cycles / self.native.total_cycles

    def as_dict(self) -> dict[str, Any]:
        """Return the replay as its JSON document has it."""
        trace = {
            "path": str(self.trace.path),
            "format": self.trace.format,
            "sample": self.trace.weighted,
            "notes": list(self.trace.notes),
            "replayed": self.kinds,
            **self.counts.as_dict(),
        }
        runs = [run.as_dict() | {"slowdown": self.slowdown(run)} for run in self.runs]
        return {
            "trace": trace,
            "machine": self.machine.name,
            "placement": self.plan.placement,
            "seed": self.plan.seed,
            "numbers": sources_of([self.ideal, "vmm_direct_extra_cycles", "guest_direct_extra_cycles"]),
            "runs": runs,
        }


def replay(
    trace: Trace | str | os.PathLike[str],
    *,
    machine: Machine | str = "sandy-bridge-2012",
    modes: Sequence[str] = ("all",),
    guest_page: str = "4K",
    host_page: str = "4K",
    accesses: Kinds = "data",
    guest_memory: int | str | None = None,
    placement: Placement = "fragmented",
    bad_pages: int = 0,
    seed: int = 1,
    surveying: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Replay:
    """Replay a trace through modes and return what each of them counts and costs.

    trace         a trace, the path of one in any format that is read, or the name of a shipped one
    machine       a machine, the name of a shipped one, or the path of a machine file
    modes         names of ``config.MODES``, or "all"
    guest_page    leaf size of the guest table, host_page of the nested one: "4K", "2M" or "1G"
    accesses      which of the trace's accesses to translate: "data", "instructions" or "all"
    guest_memory  bytes, or a size such as "2GiB"; None for twice what the program needs
    placement     how scattered frames are at each level: "contiguous", "random" or "fragmented"; memory under a
                  segment is contiguous whatever it says
    bad_pages     frames under the VMM segment (natively: under the segment) that have permanent faults
    seed          for placement, bad pages and filters
    surveying     told now and then how many accesses are read, in a first pass that looks at which pages there are
    progress      told now and then how many accesses are replayed, in the second

    ``BadInput`` for a trace, machine or option that cannot be used.
    """
    described = machine if isinstance(machine, Machine) else load_machine(machine)
    wanted = chosen_modes(modes)
    plan = _plan(guest_page, host_page, guest_memory, placement, bad_pages, seed)
    if accesses not in KINDS:
        raise BadInput(unknown(accesses, KINDS), file="--accesses")
    opened = trace if isinstance(trace, Trace) else open_trace(trace_path(os.fspath(trace)), levels=described.levels)
    program, counts = survey(opened, accesses, described, surveying)
    lanes = [_Lane(described, MODES[name], program, plan) for name in dict.fromkeys((*TWINS, *wanted))]
    done = _pass(opened.chunks(accesses, CHUNK_RUNS), lanes, progress)
    ideal, ideal_cycles = _ideal(counts, done)
    native, base = lanes[0], lanes[1]
    linear = _linear(native.counters, base.counters)
    runs = {lane.mode.name: lane.result(described, linear, ideal_cycles, plan) for lane in lanes}
    return Replay(
        trace=opened,
        counts=counts,
        kinds=accesses,
        machine=described,
        plan=plan,
        ideal=ideal,
        runs=tuple(runs[name] for name in wanted),
        native=runs["native"],
    )


def chosen_modes(names: Sequence[str]) -> list[str]:
    """Return the modes that ``names`` ask for, each once; ``BadInput`` for an unknown one."""
    chosen: dict[str, None] = {}
    for name in names:
        if name != "all" and name not in MODES:
            raise BadInput(unknown(name, ("all", *MODES)), file="--mode")
        chosen.update(dict.fromkeys(MODES if name == "all" else (name,)))
    return list(chosen)


def _plan(
    guest_page: str, host_page: str, guest_memory: int | str | None, placement: Placement, bad_pages: int, seed: int
) -> Plan:
    if placement not in PLACEMENTS:
        raise BadInput(unknown(placement, PLACEMENTS), file="--placement")
    if not 0 <= bad_pages <= MEMBERS:
        raise BadInput(f"{bad_pages} is not a number of bad pages from 0 to {MEMBERS}", file="--bad-pages")
    if seed < 0:
        raise BadInput(f"{seed} is not a seed; a whole number from 0 is", file="--seed")
    if isinstance(guest_memory, str):
        guest_memory = parse_bytes(guest_memory)
    if guest_memory is not None and not 1 <= guest_memory >> 12 <= LARGEST_GUEST:
        raise BadInput("guest memory must lie between 4 KiB and 4 TiB", file="--guest-memory")
    return Plan(
        guest_page=size_number(guest_page),
        host_page=size_number(host_page),
        guest_frames=None if guest_memory is None else guest_memory >> 12,
        placement=placement,
        bad_pages=bad_pages,
        seed=seed,
    )


def survey(
    trace: Trace, kinds: Kinds, machine: Machine, progress: Callable[[int], None] | None = None
) -> tuple[Program, Counts]:
    """Return the pages that a trace touches and its totals, in one pass."""
    tally = Tally(trace.levels)
    read = 0
    for runs in trace.runs("all", tally):
        read += accesses_in(runs)
        if progress is not None:
            progress(read)
    code = tally.instruction_pages
    touched = {"data": tally.data_pages, "instructions": code}
    pages = touched[kinds] if kinds != "all" else np.union1d(*touched.values())
    if pages.size == 0:
        raise nothing(kinds, trace.path)
    if int(pages[-1]) >> 9 * machine.levels:
        raise BadInput(
            f"its addresses need {trace.levels} levels of page tables; {machine.name} has {machine.levels}",
            file=trace.path,
        )
    return Program(pages=pages, code=code), tally.counts()


class _Lane:
    """One mode while the trace passes: its engine, and what its native twin's misses would have met."""

    def __init__(self, machine: Machine, mode: Mode, program: Program, plan: Plan) -> None:
        self.mode = mode
        self.engine = Engine(machine, hierarchy=True)
        self.layout: Layout = lay_out(self.engine, mode, program, plan)
        self.engine.load(self.layout.registers)
        self.seconds = 0.0
        self._coverage = np.zeros(4, np.int64)

    def run(self, chunk: NDArray[np.int64], missed: NDArray[np.int64]) -> None:
        """Translate a chunk; ``missed`` as for ``Engine.run``."""
        started = time.perf_counter()
        outcome = self.engine.run(chunk, missed=missed)
        self.seconds += time.perf_counter() - started
        assert outcome.exit is Exit.DONE, f"{self.mode.name}: {outcome} of a program that is mapped whole"

    def cover(self, missed: NDArray[np.int64]) -> None:
        """Count where pages that the native twin missed would go here."""
        count_coverage(self.engine.record(), self.engine.tables.entries, missed, self._coverage)

    @property
    def counters(self) -> dict[str, int]:
        return self.engine.counters()

    def result(self, machine: Machine, linear: Linear, ideal_cycles: float, plan: Plan) -> Run:
        """Return the finished run."""
        neither, vmm_only, guest_only, both = (int(count) for count in self._coverage)
        coverage = Coverage(neither=neither, vmm_only=vmm_only, guest_only=guest_only, both=both)
        counters = self.counters
        return Run(
            mode=self.mode.name,
            guest_page=SIZE_NAMES[plan.guest_page],
            host_page=None if self.mode.nested == "identity" else SIZE_NAMES[plan.host_page],
            counters=counters,
            ideal_cycles=ideal_cycles,
            l2_tlb_cycles=counters["l2_hits"] * machine.cycles.l2_tlb_hit,
            coverage=coverage,
            linear_walk_cycles=linear.walk_cycles(self.mode, coverage),
            guest_frames=self.layout.guest_frames,
            bad_pages=len(self.layout.bad_pages),
            kernel_seconds=self.seconds,
        )


def _pass(chunks: Iterable[NDArray[np.int64]], lanes: list[_Lane], progress: Callable[[int], None] | None) -> int:
    """Send every chunk down every lane, the first of which is the native twin; return the accesses done."""
    native, *others = lanes
    none = np.empty(0, np.int64)
    done = 0
    with ThreadPoolExecutor(max_workers=max((os.cpu_count() or 1), 1)) as pool:
        for chunk in chunks:
            missed = np.empty(chunk.size, np.int64)
            before = native.counters["l2_misses"]
            running = []
            if done:
                running.append(pool.submit(native.run, chunk, missed))
            else:  # compiles the kernel, which the others then find, in the thread that Ctrl-C reaches
                native.run(chunk, missed)
            running += [pool.submit(lane.run, chunk, none) for lane in others]
            for future in running:
                future.result()
            misses = missed[: native.counters["l2_misses"] - before]
            for lane in lanes:
                lane.cover(misses)
            done += accesses_in(chunk)
            if progress is not None:
                progress(done)
    return done


def _ideal(counts: Counts, done: int) -> tuple[str, float]:
    """Return the name of the number that ideal cycles come from, and the ideal cycles of the program."""
    known = numbers()
    if counts.fetches:
        name = "ideal_cycles_per_instruction"
        return name, known[name].value * counts.fetches
    name = "ideal_cycles_per_data_access"
    return name, known[name].value * done


def _linear(native: dict[str, int], base: dict[str, int]) -> Linear:
    known = numbers()
    return Linear(
        native_misses=native["l2_misses"],
        virtual_misses=base["l2_misses"],
        native_cycles=native["walk_cycles"] / max(native["l2_misses"], 1),
        virtual_cycles=base["walk_cycles"] / max(base["l2_misses"], 1),
        vmm_direct_extra=known["vmm_direct_extra_cycles"].value,
        guest_direct_extra=known["guest_direct_extra_cycles"].value,
    )
