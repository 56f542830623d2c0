"""A recorded trace as a workload: its data accesses held in memory, to be looked at from anywhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.errors import BadInput
from vmmsim.jit import kernel
from vmmsim.protocols import Churn, Region
from vmmsim.translation.chunk import AGAIN_MAX, AGAIN_SHIFT, FETCH, WRITE, again_of, gvpn_of
from vmmsim.translation.costs import numbers
from vmmsim.workloads.counts import Tally
from vmmsim.workloads.regions import regions_of
from vmmsim.workloads.trace import nothing, open_trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.workloads.trace import Trace

    Pages = NDArray[np.int64]
    Flags = NDArray[np.bool_]

LONGEST: Final = 1 << 28
"""Runs that are held in memory at most: 5 GiB."""
_KEPT: Final = 4
"""Traces kept in memory for workloads to come: VMs that run the same trace share it."""


@attrs.frozen(kw_only=True, eq=False)
class Held:
    """A trace's data accesses in memory, never to be written to."""

    runs: NDArray[np.int64]
    """int64[r]: the runs, packed as ``translation.chunk`` says."""
    ends: NDArray[np.int64]
    """int64[r]: accesses up to and with each run."""
    number: NDArray[np.int32]
    """int32[r]: position of each run's page in ``pages``."""
    pages: Pages
    """int64[p], ascending: all gvpns touched."""
    regions: tuple[Region, ...]
    """What holds them."""
    ideal_cycles: float
    """Cycles an access would take if translation were free."""
    notes: tuple[str, ...]
    """What users must be told of the trace."""

    @property
    def accesses(self) -> int:
        """Accesses in one pass."""
        return int(self.ends[-1])

    def run_of(self, x: int) -> int:
        """Return the position of the run that access x of a pass is in."""
        return int(np.searchsorted(self.ends, x, side="right"))


class TraceWorkload:
    """The accesses of a trace in their order, once, or again and again; every vCPU makes the same.

    ``protocols.Workload`` says what each attribute and method means. A run of accesses to one line counts as writes if
    its first is one, since reads that follow a write of their line are not told apart (``translation.chunk``).
    """

    begins: int = 0
    churn: Churn = Churn()

    def __init__(self, trace: Trace | Held, *, repeat: bool = False) -> None:
        """Take a trace, reading all of it, or what ``held`` has read; ``BadInput`` if it is damaged or too long."""
        self.held = trace if isinstance(trace, Held) else hold(trace)
        self.repeat = repeat
        self.length = None if repeat else self.held.accesses
        self.regions = self.held.regions
        self.ideal_cycles = self.held.ideal_cycles

    def stream(self, x: int, n: int, vcpu: int = 0) -> tuple[Pages, Flags]:
        runs = self.chunk(x, n, vcpu)
        counts = again_of(runs) + 1
        return np.repeat(gvpn_of(runs), counts), np.repeat((runs & WRITE) != 0, counts)

    def chunk(self, x: int, n: int, vcpu: int = 0) -> NDArray[np.int64]:
        """Return the accesses x .. x + n packed as the engine takes them, cache lines and all."""
        parts = [self._between(start, end) for start, end in self._passes(x, x + n)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def touched(self, x0: int, x1: int) -> tuple[Pages, Pages]:
        held = self.held
        passes = self._passes(x0, min(x1, x0 + held.accesses))
        seen = np.zeros((2, held.pages.size), np.bool_)
        found = np.empty((2, held.pages.size), np.int64)
        reads = writes = 0
        for start, end in passes:
            first, last = held.run_of(start), held.run_of(end - 1)
            reads, writes = _touch(
                held.runs[first : last + 1], held.number[first : last + 1], seen, found, reads, writes
            )
        return held.pages[found[0, :reads]], held.pages[found[1, :writes]]

    def touched_among(self, pages: Pages, x0: int, x1: int) -> tuple[Flags, Flags]:
        read, written = self.touched(x0, x1)
        return np.isin(pages, read), np.isin(pages, written)

    def frees(self, x0: int, x1: int) -> list[tuple[int, int]]:
        return []

    def _passes(self, x0: int, x1: int) -> list[tuple[int, int]]:
        """Return the spans within a pass that [x0, x1) consists of."""
        size = self.held.accesses
        if not self.repeat:
            x1 = min(x1, size)
        spans = []
        while x0 < x1:
            start = x0 % size
            end = min(size, start + x1 - x0)
            spans.append((start, end))
            x0 += end - start
        return spans

    def _between(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the runs of the accesses [start, end) of a pass; the first and the last may be parts of runs."""
        ends = self.held.ends
        first, last = self.held.run_of(start), self.held.run_of(end - 1)
        runs = self.held.runs[first : last + 1].copy()
        _shorten(runs, 0, start - (int(ends[first - 1]) if first else 0))
        _shorten(runs, -1, int(ends[last]) - end)
        return runs


def _shorten(runs: NDArray[np.int64], which: int, accesses: int) -> None:
    runs[which] -= accesses << AGAIN_SHIFT


def hold(trace: Trace) -> Held:
    """Return all of a trace's data accesses; ``BadInput`` if it is damaged, too long or has none."""
    tally = Tally(trace.levels)
    parts, total = [], 0
    for runs in trace.runs("all", tally):
        parts.append(runs[(runs & FETCH) == 0])
        total += parts[-1].size
        if total > LONGEST:
            raise BadInput(f"has over {LONGEST:,} runs, too many to hold in memory; record fewer", file=trace.path)
    if total == 0:
        raise nothing("data", trace.path)
    runs = np.concatenate(parts)
    pages, code = tally.data_pages, tally.instruction_pages
    counts = tally.counts()
    data = counts.translations - counts.fetches - counts.fetch_crossings
    cycles = {name: number.value for name, number in numbers().items()}
    ideal = cycles["ideal_cycles_per_data_access"]
    if counts.fetches:
        ideal = cycles["ideal_cycles_per_instruction"] * counts.fetches / data
    held = Held(
        runs=runs,
        ends=np.cumsum((runs >> AGAIN_SHIFT & AGAIN_MAX) + 1),
        number=np.searchsorted(pages, gvpn_of(runs)).astype(np.int32),
        pages=pages,
        regions=regions_of(pages, code),
        ideal_cycles=ideal,
        notes=trace.notes,
    )
    assert held.accesses == data, "folding loses no access"
    for array in (held.runs, held.ends, held.number, held.pages):
        array.flags.writeable = False
    return held


def held(path: Path) -> Held:
    """Return the data accesses of the trace at ``path``, read once for all workloads; ``BadInput`` as ``hold``."""
    place = path.resolve()
    try:
        state = place.stat()
    except OSError:
        raise BadInput("no such file", file=path) from None
    return _held(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=_KEPT)
def _held(path: Path, changed_ns: int, size: int) -> Held:
    return hold(open_trace(path))


def warm() -> None:
    """Compile what looks at held traces."""
    flags, pages = np.zeros((2, 1), np.bool_), np.zeros((2, 1), np.int64)
    runs, number = np.zeros(1, np.int64), np.zeros(1, np.int32)
    for array in (runs, number):
        array.flags.writeable = False
    _touch(runs, number, flags, pages, 0, 0)


@kernel
def _touch(
    runs: NDArray[np.int64], number: NDArray[np.int32], seen: Flags, found: Pages, reads: int, writes: int
) -> tuple[int, int]:
    """Append to ``found`` the pages that runs are the first to read, and the first to write.

    runs    int64[n], number int32[n]: the runs and the numbers of their pages
    seen    bool[2, p]: whether each page was read, written before; written to
    found   int64[2, p]: page numbers in first-touch order, ``reads`` and ``writes`` of them so far; written to

    Return how many there are then.
    """
    for i in range(runs.size):
        page = number[i]
        if runs[i] & WRITE:
            if not seen[1, page]:
                seen[1, page] = True
                found[1, writes] = page
                writes += 1
        elif not seen[0, page]:
            seen[0, page] = True
            found[0, reads] = page
            reads += 1
    return reads, writes
