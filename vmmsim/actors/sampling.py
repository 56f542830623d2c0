"""One cold-start run gives a stratum's rate, a bound of its bias, and what a flush costs.

A VM's hardware state is sampled, not carried along: of each stratum [x0, x1) of accesses, W + M are run from empty
structures, at a place drawn at random. The last M give the rate. Transitions met on the way are mended, and kept out of
it. A stratum no longer than that is run whole, from the state in which the one before it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.actors.calibration import native_twin, packed, run_skipping
from vmmsim.actors.sample import Lengths, Sample, Span
from vmmsim.config import MODES, Mode
from vmmsim.randomness import stream as random_stream
from vmmsim.translation.chunk import WRITE
from vmmsim.translation.costs import Coverage, count_coverage
from vmmsim.translation.state import L1_DATA, L2, Count, Exit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.calibration import Prices, PriceSource, Stream
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.registers import Registers

Handle = Callable[[Exit, int, int, bool], "Registers | None"]
"""(exit, gvpn, gfn, is_write): mend what stopped the access; return the VM's registers if they are others now."""

FIRST_POINT: Final = 64
"""C(n) is kept at this many accesses after a flush, and at each power of two from there on."""
_MOST_TRIES: Final = 64
"""Exits of one access: five guest tables and a page, each absent, merged, logged in turn, and a margin."""
_NO_SPAN: Final = Span()
_MISSES: Final = int(Count.L2_MISSES)
_BASE: Final = MODES["base"]


@attrs.define
class _Job:
    """What is to be sampled."""

    registers: Registers
    stream: Stream
    handle: Handle
    workload: Hashable
    primary: Span
    vmm_range: Span
    exits: int = 0


@attrs.frozen(kw_only=True)
class _Told:
    """A run's counts, cumulative, a row for each of its ends; the accesses measured begin where row ``first`` ends."""

    ends: NDArray[np.int64]
    first: int
    real: NDArray[np.int64]
    twin: NDArray[np.int64]
    cover: NDArray[np.int64]
    """int64[rows, 4], of the twin's misses (costs.count_coverage)."""
    missed: NDArray[np.int64]
    """gvpns of the twin's misses among the accesses measured."""
    base_misses: int
    """Misses of as-if base among them."""
    grown: dict[int, int]
    """By core: entries, of sizes that only the L1 TLB holds, that it gained in the accesses measured."""

    def measured(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what was counted over the accesses measured."""
        change: NDArray[np.int64] = counts[-1] - counts[self.first]
        return change

    @property
    def accesses(self) -> int:
        """How many accesses were measured."""
        return int(self.measured(self.ends))


class Sampler:
    """One VM's sampler: a core for its real registers, one for its native twin, and one for as-if base.

    The latter two look on: they set no accessed or dirty bit, draw nothing and mend nothing.
    """

    def __init__(
        self,
        engine: Engine,
        prices: PriceSource,
        *,
        seed: int,
        vm: str,
        lengths: Lengths | None = None,
        hierarchy: bool = False,
        by_hierarchy: bool = False,
        as_if: tuple[str, ...] = (),
    ) -> None:
        """Take cores of ``engine``.

        prices     who knows C_n and C_v
        vm         the VM's name: its draws are keyed by it and by the number of the stratum, and by nothing else
        hierarchy  whether the real core models caches
        by_hierarchy  whether the rate is then the hierarchy model's; as-if modes are priced by the linear one always
        as_if      names of modes in which each sample is priced, too
        """
        self.engine = engine
        self.lengths = lengths or Lengths()
        self.warm = self.lengths.warm
        self.strata = 0
        self._prices, self._seed, self._vm = prices, seed, vm
        self._as_if = tuple(MODES[name] for name in as_if)
        self._hierarchy = hierarchy or by_hierarchy
        self._by_hierarchy = by_hierarchy
        self.real = engine.add_core(hierarchy=self._hierarchy)
        self.twin = engine.add_core(hierarchy=False, shadow=True)
        self.base = engine.add_core(hierarchy=False, shadow=True) if _BASE in self._as_if else None
        self._goes_on_at = 0

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores on which the VM's entries lie, for invalidation."""
        return (self.real, self.twin) if self.base is None else (self.real, self.twin, self.base)

    def close(self) -> None:
        """Give the cores back; the sampler is not to be used again."""
        for core in self.cores:
            self.engine.drop_core(core)

    def new_epoch(self) -> None:
        """Begin with the configured W again: what was hard to warm up may be gone."""
        self.warm = self.lengths.warm

    def sample(
        self,
        registers: Registers,
        stream: Stream,
        x0: int,
        x1: int,
        *,
        handle: Handle,
        workload: Hashable = None,
        primary: Span = _NO_SPAN,
        vmm_range: Span = _NO_SPAN,
    ) -> Sample:
        """Sample the stratum of accesses [x0, x1), whose touched pages are mapped.

        handle     mends what an access needs, each time with weight 1; what that costs is the caller's affair
        workload   key of the workload, for prices
        primary    gvpns that a guest segment would cover, vmm_range gfns that a VMM segment would: for as-if modes
        """
        draw = float(random_stream(self._seed, f"sample.{self._vm}.{self.strata}").random())
        self.strata += 1
        job = _Job(registers, stream, handle, workload, primary, vmm_range)
        measured = self.lengths.measured
        if x1 - x0 <= self.warm + measured:
            return self._whole(job, x0, x1)
        while True:
            room = x1 - x0 - self.warm - measured
            sample = self._sampled(job, x0 + int(draw * (room + 1)))
            longer = 2 * self.warm
            if self._warm_enough(sample) or longer > self.lengths.warm_most or x1 - x0 < longer + measured:
                return sample
            self.warm = longer

    def _warm_enough(self, sample: Sample) -> bool:
        return sample.bias_cycles <= max(self.lengths.bias * sample.walk_cycles, self.lengths.negligible_cycles)

    # The two kinds of sample

    def _sampled(self, job: _Job, x: int) -> Sample:
        """Run W + M accesses from empty structures."""
        warm, total = self.warm, self.warm + self.lengths.measured
        self._load(job)
        for core in self.cores:
            self.engine.empty_core(core, counters=True)
        powers = FIRST_POINT << np.arange((total // FIRST_POINT).bit_length(), dtype=np.int64)
        ends = np.unique(np.concatenate([powers, [warm, total]]))
        told = self._run(job, packed(job.stream, x, total), ends, int(np.searchsorted(ends, warm)))
        self._goes_on_at = -1
        return self._sample(job, told, x + warm, warm, whole=False)

    def _whole(self, job: _Job, x0: int, x1: int) -> Sample:
        """Run a stratum whole: on from where the last one ended, or warmed up by what came before it."""
        self._load(job)
        warm = 0
        if self._goes_on_at != x0:
            for core in self.cores:
                self.engine.empty_core(core)
            warm = min(self.warm, x0)
            before = packed(job.stream, x0 - warm, warm)
            for core in self.cores if warm else ():
                # What these accesses needed has been done, and may be undone since: nothing is mended.
                run_skipping(self.engine, core, before)
        told = self._run(job, packed(job.stream, x0, x1 - x0), np.array([0, x1 - x0]), 0)
        self._goes_on_at = x1
        return self._sample(job, told, x0, warm, whole=True)

    def _load(self, job: _Job) -> None:
        self.engine.load(job.registers, core=self.real)
        self.engine.load(native_twin(job.registers), core=self.twin)
        if self.base is not None and job.registers.nested_table is not None:
            self.engine.load(attrs.evolve(job.registers, mode=_BASE), core=self.base)

    # Running

    def _run(self, job: _Job, chunk: NDArray[np.int64], ends: NDArray[np.int64], first: int) -> _Told:
        """Run ``chunk`` on each core, the real one first; the accesses measured begin where row ``first`` ends."""
        real, twin = (np.zeros((ends.size, len(Count)), np.int64) for _ in range(2))
        cover = np.zeros((ends.size, 4), np.int64)
        pieces = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
        missed: list[NDArray[np.int64]] = []
        held = {}
        for row, (start, end) in enumerate(pieces):
            self._run_real(job, chunk[start:end])
            real[row] = self.engine.record(core=self.real).count
            if row == first:
                held[self.real] = self._held_by_l1_alone(self.real)
        registers = self.engine.record(core=self.real)
        for row, (start, end) in enumerate(pieces):
            missed.append(run_skipping(self.engine, self.twin, chunk[start:end], np.empty(end - start, np.int64)))
            count_coverage(registers, self.engine.tables.entries, missed[row], cover[row])
            twin[row] = self.engine.record(core=self.twin).count
            if row == first:
                held[self.twin] = self._held_by_l1_alone(self.twin)
        return _Told(
            ends=ends,
            first=first,
            real=real,
            twin=twin,
            cover=np.cumsum(cover, axis=0),
            missed=np.concatenate(missed[first + 1 :]),
            base_misses=self._run_base(job, chunk, int(ends[first])),
            grown={core: max(self._held_by_l1_alone(core) - before, 0) for core, before in held.items()},
        )

    def _run_real(self, job: _Job, chunk: NDArray[np.int64]) -> None:
        """Run a chunk, and mend whatever stops it."""
        at, tries = 0, 0
        while at < chunk.size:
            outcome = self.engine.run(chunk[at:], core=self.real)
            at += outcome.done
            if outcome.exit is Exit.DONE:
                return
            tries = 1 if outcome.done else tries + 1
            assert tries < _MOST_TRIES, f"{outcome} is not mended"
            changed = job.handle(outcome.exit, outcome.gvpn, outcome.gfn, bool(chunk[at] & WRITE))
            job.exits += 1
            if changed is not None:
                job.registers = changed
                self._load(job)

    def _run_base(self, job: _Job, chunk: NDArray[np.int64], measured_from: int) -> int:
        """Run a chunk as if in base mode; return its misses from there on."""
        if self.base is None or job.registers.nested_table is None or job.registers.mode == _BASE:
            return 0
        count = self.engine.record(core=self.base).count
        run_skipping(self.engine, self.base, chunk[:measured_from])
        before = int(count[Count.L2_MISSES])
        run_skipping(self.engine, self.base, chunk[measured_from:])
        return int(count[Count.L2_MISSES]) - before

    def _held_by_l1_alone(self, core: int) -> int:
        """Return how many entries of sizes that the L2 TLB lacks the L1 TLB holds: ``cold_fills`` leaves them out."""
        cut = self.engine.record(core=core).cut
        sizes = [size for size in range(3) if cut[L1_DATA, size] == size != cut[L2, size]]
        return sum(self.engine.entries(L1_DATA, size, core=core) for size in sizes)

    # What it says

    def _sample(self, job: _Job, told: _Told, x: int, warm: int, *, whole: bool) -> Sample:
        mode, n = job.registers.mode, told.accesses
        prices = self._prices.prices(job.workload, job.registers, job.stream, x + n)
        real, twin = told.measured(told.real), told.measured(told.twin)
        counted, core = (real, self.real) if mode == _BASE else (twin, self.twin)
        cover = _coverage(told.measured(told.cover))
        linear = prices.walk_cycles(mode, cover, native_misses=int(twin[_MISSES]), virtual_misses=int(real[_MISSES]))
        cached = float(real[Count.WALK_CYCLES]) if self._hierarchy else None
        driving = cached if cached is not None and self._by_hierarchy else linear
        counters = {count.name.lower(): int(real[count]) for count in Count}
        return Sample(
            mode=mode.name,
            x=x,
            accesses=n,
            warm=warm,
            whole=whole,
            walk_cycles=driving / n,
            linear_walk_cycles=linear / n,
            hierarchy_walk_cycles=None if cached is None else cached / n,
            hierarchy_bias_cycles=self._hierarchy_bias(real, told) / n if self._by_hierarchy else None,
            l2_tlb_cycles=int(real[Count.L2_HITS]) * self.engine.machine.cycles.l2_tlb_hit / n,
            misses=int(counted[_MISSES]),
            cold_misses=int(counted[Count.COLD_FILLS]) + told.grown[core],
            prices=prices,
            coverage=cover,
            counters=counters | {"references": counters["guest_references"] + counters["nested_references"]},
            points=told.ends[:0] if whole else told.ends,
            # A miss after a flush costs what others do: caches are not flushed, though a sample finds them empty.
            refill=np.empty(0) if whole else _refill(told, prices, mode) * (driving / linear if linear else 1.0),
            as_if={other.name: self._cycles_as_if(other, job, told, prices) / n for other in self._as_if},
            exits=job.exits,
        )

    def _hierarchy_bias(self, real: NDArray[np.int64], told: _Told) -> float:
        """Return the most walk cycles that would be none, had TLBs and caches been full when measuring began."""
        misses, cold = int(real[_MISSES]), int(real[Count.COLD_FILLS]) + told.grown[self.real]
        again = min(cold, misses) * float(real[Count.WALK_CYCLES]) / max(misses, 1)
        return again + int(real[Count.COLD_LINES]) * self.engine.machine.caches.memory_cycles

    @staticmethod
    def _cycles_as_if(mode: Mode, job: _Job, told: _Told, prices: Prices) -> float:
        """Return what the accesses measured would have cost in another mode."""
        own = job.registers.mode == _BASE
        virtual = int(told.measured(told.real)[_MISSES]) if own else told.base_misses
        return prices.walk_cycles(
            mode,
            _as_if_coverage(mode, job, told.missed),
            native_misses=int(told.measured(told.twin)[_MISSES]),
            virtual_misses=virtual,
        )


def _refill(told: _Told, prices: Prices, mode: Mode) -> NDArray[np.float64]:
    """Return float64[rows]: walk cycles from the first access to the end of each row."""
    rows = zip(told.cover, told.twin[:, _MISSES].tolist(), told.real[:, _MISSES].tolist(), strict=True)
    return np.array(
        [
            prices.walk_cycles(mode, _coverage(cover), native_misses=native, virtual_misses=virtual)
            for cover, native, virtual in rows
        ]
    )


def _coverage(counts: NDArray[np.int64]) -> Coverage:
    """Return what ``count_coverage`` counted, by name."""
    neither, vmm_only, guest_only, both = counts.tolist()
    return Coverage(neither=neither, vmm_only=vmm_only, guest_only=guest_only, both=both)


def _as_if_coverage(mode: Mode, job: _Job, missed: NDArray[np.int64]) -> Coverage:
    """Return where misses would go in a mode whose segments cover all that they are meant to."""
    guest = job.primary.holds(missed) if mode.guest == "segment" else np.zeros(missed.size, np.bool_)
    if mode.nested == "segment":
        vmm = job.vmm_range.holds(job.registers.guest_table.translate(missed))
    else:
        vmm = guest if mode.nested == "identity" else np.zeros(missed.size, np.bool_)
    return _coverage(np.bincount(2 * guest.astype(np.int64) + vmm, minlength=4))
