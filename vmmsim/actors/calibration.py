"""Prices of a TLB miss for the linear model: given, or calibrated by a hierarchy run of the same workload."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import numpy as np

from vmmsim.addresses import size_pages
from vmmsim.config import MODES
from vmmsim.translation.chunk import pack
from vmmsim.translation.costs import Coverage, Linear, numbers
from vmmsim.translation.state import Count, Exit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.config import Mode
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.page_table import PageTable
    from vmmsim.translation.registers import Registers

Stream = Callable[[int, int], "tuple[NDArray[np.int64], NDArray[np.bool_]]"]
"""(x, n) -> (int64[n] gvpn, bool[n] is_write): the accesses x .. x + n of a workload, the same at every call."""

CALIBRATED: Final = "calibrated by a hierarchy run"
_LINE_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: the top bits of its multiples are spread evenly (Knuth, Fibonacci hashing)."""
_MOST_SKIPPED: Final = 4096


@attrs.frozen(kw_only=True)
class Prices:
    """Cycles of a TLB miss, and where they come from."""

    native_cycles: float
    """C_n, for a miss of a native run."""
    virtual_cycles: float
    """C_v, for a miss under base virtualization."""
    label: str = CALIBRATED
    """What a report says of them."""

    def walk_cycles(self, mode: Mode, cover: Coverage, *, native_misses: int, virtual_misses: int) -> float:
        """Return walk cycles by the linear model (costs.py) of misses whose coverage in ``mode`` is ``cover``."""
        vmm_extra, guest_extra = _extras()
        linear = Linear(
            native_misses=native_misses,
            virtual_misses=virtual_misses,
            native_cycles=self.native_cycles,
            virtual_cycles=self.virtual_cycles,
            vmm_direct_extra=vmm_extra,
            guest_direct_extra=guest_extra,
        )
        return linear.walk_cycles(mode, cover)


@functools.cache
def _extras() -> tuple[float, float]:
    """Return D_VD and D_GD."""
    known = numbers()
    return known["vmm_direct_extra_cycles"].value, known["guest_direct_extra_cycles"].value


class PriceSource(Protocol):
    """Who knows the prices of a VM's misses."""

    def prices(self, workload: Hashable, registers: Registers, stream: Stream, x_end: int) -> Prices:
        """Return the prices for a workload, known by its key, on the tables of ``registers``.

        stream  its accesses, of which those before ``x_end`` have happened
        """
        ...


@attrs.frozen
class Published:
    """Prices that are given once for all."""

    given: Prices

    def prices(self, workload: Hashable, registers: Registers, stream: Stream, x_end: int) -> Prices:
        """Return the prices given."""
        return self.given


class Calibrations:
    """Prices found by hierarchy runs, one for each workload and mix of leaf sizes; shared by the VMs of a host."""

    def __init__(self, engine: Engine, *, warm: int = 1 << 18, measured: int = 1 << 17) -> None:
        """Calibrate on ``engine``, with ``measured`` accesses after ``warm`` ones that fill TLBs and caches."""
        self._engine = engine
        self._warm, self._measured = warm, measured
        self._known: dict[tuple[Hashable, ...], Prices] = {}

    def prices(self, workload: Hashable, registers: Registers, stream: Stream, x_end: int) -> Prices:
        """Return the prices; a run is made if the workload, or a mix as far from those seen as a quarter, is new."""
        nested = None if registers.nested_table is None else leaf_mix(registers.nested_table)
        key = (workload, leaf_mix(registers.guest_table), nested)
        if key not in self._known:
            self._known[key] = self._calibrated(registers, stream, x_end)
        return self._known[key]

    def _calibrated(self, registers: Registers, stream: Stream, x_end: int) -> Prices:
        x = max(0, x_end - self._warm - self._measured)
        chunk = packed(stream, x, x_end - x)
        measured = min(self._measured, chunk.size)
        native = self._cycles_a_miss(native_twin(registers), chunk, measured)
        if registers.nested_table is None:
            return Prices(native_cycles=native, virtual_cycles=native)
        virtual = self._cycles_a_miss(attrs.evolve(registers, mode=MODES["base"]), chunk, measured)
        return Prices(native_cycles=native, virtual_cycles=virtual)

    def _cycles_a_miss(self, registers: Registers, chunk: NDArray[np.int64], measured: int) -> float:
        """Return walk cycles over L2 TLB misses of the last accesses of ``chunk``, or of all if those have none."""
        core = self._engine.add_core(hierarchy=True, shadow=True)
        try:
            self._engine.load(registers, core=core)
            count = self._engine.record(core=core).count
            run_skipping(self._engine, core, chunk[: chunk.size - measured])
            before = count.copy()
            run_skipping(self._engine, core, chunk[chunk.size - measured :])
            for since in (count - before, count):
                if since[Count.L2_MISSES]:
                    return float(since[Count.WALK_CYCLES] / since[Count.L2_MISSES])
            return 0.0
        finally:
            self._engine.drop_core(core)


def leaf_mix(table: PageTable) -> tuple[int, int, int]:
    """Return the shares of a table's pages that 4K, 2M and 1G leaves map, in quarters."""
    pages = [count * size_pages(size) for size, count in enumerate(table.leaf_counts)]
    small, large, huge = (round(4 * share / max(sum(pages), 1)) for share in pages)
    return small, large, huge


def native_twin(registers: Registers) -> Registers:
    """Return registers that walk the guest table alone: its gfns stand for host frames, and there are no segments."""
    return attrs.evolve(registers, mode=MODES["native"], nested_table=None, guest_segment=None, vmm_segment=None)


def packed(stream: Stream, x: int, n: int) -> NDArray[np.int64]:
    """Return accesses x .. x + n as the engine takes them.

    Workloads are about pages. Which line of its page an access is to, caches ask: spread over all 64, by position.
    """
    gvpn, is_write = stream(x, n)
    position = np.arange(x, x + n, dtype=np.uint64)
    return pack(gvpn, is_write, line=(position * _LINE_SPREAD >> np.uint64(58)).astype(np.int64))


def run_skipping(
    engine: Engine, core: int, chunk: NDArray[np.int64], missed: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Run a chunk and leave out each access that exits: nothing is mended for one that only looks on.

    missed  int64[chunk.size] or None
    Return the gvpns that both TLB levels missed, if ``missed`` is there to take them.
    """
    at, skipped = 0, 0
    found: list[NDArray[np.int64]] = []
    count = engine.record(core=core).count
    while at < chunk.size and skipped < _MOST_SKIPPED:
        before = int(count[Count.L2_MISSES])
        if missed is None:
            outcome = engine.run(chunk[at:], core=core)
        else:
            outcome = engine.run(chunk[at:], core=core, missed=missed[at:])
            found.append(missed[at : at + int(count[Count.L2_MISSES]) - before])
        at += outcome.done
        if outcome.exit is not Exit.DONE:
            at += 1
            skipped += 1
    return np.concatenate(found) if found else np.empty(0, np.int64)
