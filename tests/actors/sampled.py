"""A small VM to be sampled: a toy machine, tables of some pages, and streams that are functions of position."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from tests.translation.worlds import ALL, CACHES
from vmmsim.actors.calibration import Prices, Published
from vmmsim.config import MODES, Machine, TlbPart
from vmmsim.translation.chunk import pack
from vmmsim.translation.engine import Engine
from vmmsim.translation.page_table import WRITABLE
from vmmsim.translation.registers import Registers, Segment
from vmmsim.translation.state import Exit

PAGE = 1 << 20
"""Gvpn of the region's first page."""
DATA = 1 << 13
"""Its gfn; guest tables lie below."""
SHIFT = 1 << 16
"""hfn - gfn."""
GIVEN = Published(Prices(native_cycles=30.0, virtual_cycles=100.0, label="given"))

MACHINE = Machine(
    name="sampled",
    frequency_hz=10**9,
    l1_data_tlb=(TlbPart(entries=1, ways=1),),
    l1_instruction_tlb=(TlbPart(entries=1, ways=1),),
    l2_tlb=(TlbPart(entries=32, ways=4),),
    caches=CACHES,
)
"""One L1 entry, so that the L2 TLB sees the same accesses whatever came before: its LRU is then exact."""


def mixed(*values: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """Return well mixed 64-bit words of some values (the finalizer of SplitMix64)."""
    word = np.uint64(0)
    with np.errstate(over="ignore"):
        for value in values:
            word = (word ^ np.asarray(value, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            word ^= word >> np.uint64(31)
    return np.asarray(word)


@attrs.frozen
class Phases:
    """Accesses spread evenly over some pages; how many they are, and which, changes every ``length`` accesses."""

    seed: int
    pages: int = 256
    sizes: tuple[int, ...] = (8, 24, 40, 120)
    length: int = 200

    def __call__(self, x: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        position = np.arange(x, x + n, dtype=np.uint64)
        phase = position // np.uint64(self.length)
        sizes = np.array(self.sizes)[(mixed(self.seed, 1, phase) % np.uint64(len(self.sizes))).astype(np.int64)]
        first = (mixed(self.seed, 2, phase) % np.uint64(self.pages)).astype(np.int64)
        within = (mixed(self.seed, 3, position) % np.uint64(1 << 32)).astype(np.int64) % sizes
        is_write = mixed(self.seed, 4, position) % np.uint64(3) == 0
        return PAGE + (first + within) % self.pages, is_write


class SmallVm:
    """A VM whose guest table maps ``pages`` 4K pages and whose nested table backs everything."""

    def __init__(self, *, pages: int = 256, mapped: bool = True, machine: Machine = MACHINE) -> None:
        self.engine = Engine(machine, cores=0)
        self.pages = pages
        self._tables = {"guest": 1, "nested": 1 << 18}
        self.guest = self.engine.table(lambda n: self._frames("guest", n))
        self.nested = self.engine.table(lambda n: self._frames("nested", n))
        self.nested.map(np.arange(64), np.arange(64) + SHIFT, flags=WRITABLE)
        self.asked: list[tuple[Exit, int, int, bool]] = []
        if mapped:
            for page in range(pages):
                self.mend(Exit.GUEST_FAULT, PAGE + page, -1, False)
                self.mend(Exit.NESTED_FAULT, PAGE + page, DATA + page, False)
            self.asked.clear()

    def _frames(self, whose: str, count: int) -> NDArray[np.int64]:
        first = self._tables[whose]
        self._tables[whose] += count
        return np.arange(first, first + count)

    def mend(self, exit_: Exit, gvpn: int, gfn: int, is_write: bool) -> None:
        """Map what is absent, and note it."""
        self.asked.append((exit_, gvpn, gfn, is_write))
        if exit_ is Exit.GUEST_FAULT:
            self.guest.map(gvpn, DATA + gvpn - PAGE, flags=ALL)
        else:
            assert exit_ is Exit.NESTED_FAULT
            self.nested.map(gfn, gfn + SHIFT, flags=WRITABLE)

    def registers(self, mode: str = "base", **changes: Any) -> Registers:
        """Return the VM's registers in a mode, its segments over the whole region and over all that is backed."""
        described = MODES[mode]
        nested = None if described.nested == "identity" else self.nested
        return attrs.evolve(
            Registers(
                mode=described,
                guest_table=self.guest,
                nested_table=nested,
                guest_segment=Segment(base=PAGE, limit=PAGE + self.pages, offset=DATA - PAGE),
                vmm_segment=Segment(base=0, limit=DATA + self.pages, offset=SHIFT),
            ),
            **changes,
        )

    def misses(self, stream: Any, start: int, end: int, *, mode: str = "base", flush_every: int | None = None) -> int:
        """Return the L2 TLB misses of accesses [start, end) of a run from 0, straight through the engine."""
        core = self.engine.add_core()
        self.engine.load(self.registers(mode), core=core)
        chunk = pack(*stream(0, end))
        before = 0
        step = flush_every or end
        for at in sorted({*range(0, end, step), start, end}):
            if at == start:
                before = self.engine.counters(core=core)["l2_misses"]
            if at < end:
                if flush_every and at and at % step == 0:
                    self.engine.invalidate_eptp(1, cores=(core,))
                stop = min(at - at % step + step, end if at >= start else start)
                assert self.engine.run(chunk[at:stop], core=core).exit is Exit.DONE
        after = self.engine.counters(core=core)["l2_misses"]
        self.engine.drop_core(core)
        return after - before
