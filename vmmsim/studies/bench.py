"""How fast the engine translates: every mode on every stream, and beside it a C program doing the same work.

Pages are 4 KiB, frames random at both levels; segments cover the whole footprint but for 16 pages in their escape
filters. Before anything is timed, both programs translate the stream from the same empty state and must agree on
every counter, every entry of every structure and every page-table entry: the same work. Then they take turns on the
same arrays and tables, and the best turn of each counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import numpy as np

from vmmsim.config import MODES
from vmmsim.translation.chunk import GVPN_SHIFT, accesses_in, gvpn_of, pack
from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import random_filter
from vmmsim.translation.page_table import EXECUTABLE, WRITABLE
from vmmsim.translation.registers import Registers, Segment
from vmmsim.translation.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vmmsim.config import Machine, Mode

FOOTPRINT_PAGES: Final = 1 << 20
"""4 GiB."""
ESCAPES: Final = 16
"""Pages in each escape filter, the number that the MICRO 2014 paper plans for."""
_WRITES: Final = 0.25
_FIRST_PAGE: Final = 0x7F0000000
_TABLES: Final = 1 << 14
"""Frames set aside for page tables, among the pages' own."""
_NOTHING: Final = np.empty(0, np.int64)


@attrs.frozen(kw_only=True, eq=False)
class Stream:
    """A chunk of accesses, and the pages it needs mapped."""

    name: str
    """Name in the table."""
    chunk: NDArray[np.int64]
    """Packed accesses."""
    pages: NDArray[np.int64]
    """int64[n], ascending: every page that any chunk names."""
    advance_pages: int = 0
    """How far each turn's chunk lies beyond the one before, round the footprint."""

    def turns(self) -> Iterator[NDArray[np.int64]]:
        """Yield the chunk of one turn after the other, without end."""
        chunk, offset = self.chunk, 0
        while True:
            yield chunk
            if self.advance_pages:
                offset = (offset + self.advance_pages) % self.pages.size
                chunk = self.chunk + (offset << GVPN_SHIFT)


def streams(random: np.random.Generator, accesses: int) -> list[Stream]:
    """Return uniform, Zipf (exponent 1) and sequential (64-byte steps) streams over 4 GiB; a quarter are writes."""
    pages = np.arange(_FIRST_PAGE, _FIRST_PAGE + FOOTPRINT_PAGES)
    writes = random.random(accesses) < _WRITES
    lines = random.integers(0, 64, accesses)
    uniform = random.integers(0, FOOTPRINT_PAGES, accesses)
    total = np.cumsum(1.0 / np.arange(1, FOOTPRINT_PAGES + 1))
    ranks = np.searchsorted(total, random.random(accesses) * total[-1])
    zipf = random.permutation(FOOTPRINT_PAGES)[np.minimum(ranks, FOOTPRINT_PAGES - 1)]
    steps = np.arange(1 << (4 * accesses).bit_length() - 1)
    steps = steps[: FOOTPRINT_PAGES * 64]
    sequential = pack(_FIRST_PAGE + (steps >> 6), np.tile(writes, -(-steps.size // accesses))[: steps.size], line=steps & 63)
    return [
        Stream(name="uniform", chunk=pack(pages[uniform], writes, line=lines), pages=pages),
        Stream(name="zipf", chunk=pack(pages[zipf], writes, line=lines), pages=pages),
        Stream(name="sequential", chunk=sequential, pages=pages, advance_pages=steps.size >> 6),
    ]


def stream_of(name: str, chunk: NDArray[np.int64]) -> Stream:
    """Return the stream of one chunk, whatever its pages."""
    return Stream(name=name, chunk=chunk, pages=np.unique(gvpn_of(chunk)))


def _primary_region(pages: NDArray[np.int64]) -> tuple[int, int]:
    """Return [first, end) of the run of pages, with gaps of less than 1 GiB, that holds most of them."""
    cuts = np.flatnonzero(np.diff(pages) > 1 << 18) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, pages.size]
    largest = int(np.argmax(ends - starts))
    return int(pages[starts[largest]]), int(pages[ends[largest] - 1]) + 1


class Bench:
    """One engine with one mode's registers loaded and the pages of one stream mapped."""

    def __init__(self, machine: Machine, mode: Mode, pages: NDArray[np.int64], *, hierarchy: bool) -> None:
        random = np.random.default_rng(1)
        self.engine = Engine(machine, hierarchy=hierarchy)
        first, end = _primary_region(pages)
        span = end - first if mode.guest == "segment" else 0
        frames = span + pages.size + _TABLES
        gfns = span + random.permutation(frames - span)
        hfns = random.permutation(frames)
        page_gfns, table_gfns = gfns[: pages.size].copy(), iter(gfns[pages.size :])
        guest_segment = vmm_segment = None
        if mode.guest == "segment":
            # Pages outside the segment, and those that escape it, keep their random gfns.
            escaped = random.choice(pages[(pages >= first) & (pages < end)], ESCAPES)
            guest_segment = Segment(
                base=first, limit=end, offset=-first, filter=random_filter(random).with_members(*escaped.tolist())
            )
            inside = (pages >= first) & (pages < end) & ~np.isin(pages, escaped)
            page_gfns[inside] = pages[inside] - first
        if mode.nested == "segment":
            escaped = random.choice(page_gfns, ESCAPES)
            vmm_segment = Segment(
                base=0, limit=frames, offset=frames, filter=random_filter(random).with_members(*escaped.tolist())
            )
            hfns[np.setdiff1d(np.arange(frames), escaped)] = np.setdiff1d(np.arange(frames), escaped) + frames
        table_hfns = iter(range(2 * frames, 2 * frames + (1 << 20)))
        guest = self.engine.table(lambda count: _take(table_gfns, count))
        guest.map(pages, page_gfns, flags=WRITABLE | EXECUTABLE)
        nested = None
        if mode.nested != "identity":
            nested = self.engine.table(lambda count: _take(table_hfns, count))
            mapped = np.unique(np.r_[page_gfns, guest.table_frames])
            nested.map(mapped, hfns[mapped])
        self.engine.load(
            Registers(
                mode=mode,
                guest_table=guest,
                nested_table=nested,
                guest_segment=guest_segment,
                vmm_segment=vmm_segment,
            )
        )
        held = self.engine._cores[0]
        self.record, self.cells, self.pool = held.record, held.cells, self.engine.tables.entries

    def translate(self, chunk: NDArray[np.int64]) -> int:
        """Translate ``chunk`` by the compiled kernels; return how many accesses were."""
        return int(run(self.record, self.cells, self.pool, chunk, _NOTHING)[0])


def _take(frames: Iterator[int], count: int) -> NDArray[np.int64]:
    return np.fromiter((next(frames) for _ in range(count)), np.int64, count)


class Rival(Protocol):
    """Another program that does the same work on the same arrays."""

    def translate(self, record: Any, cells: NDArray[np.int64], pool: NDArray[np.int64], chunk: NDArray[np.int64]) -> int:
        """Translate ``chunk`` and return how many accesses were."""


@attrs.frozen(kw_only=True)
class Rate:
    """What was measured of one mode on one stream, without or with the hierarchy."""

    mode: str
    """Mode."""
    stream: str
    """Stream."""
    hierarchy: bool
    """Whether every reference and access went through the caches."""
    ours: float
    """Accesses translated per second by the compiled kernels, the best turn."""
    rival: float | None
    """The same for the C program; None if there is none."""
    l1_misses: float
    """Share of accesses that missed the L1 TLB."""
    l2_misses: float
    """Share of accesses that both TLB levels missed."""

    @property
    def ratio(self) -> float | None:
        """The kernels' rate as a multiple of the C program's."""
        return self.ours / self.rival if self.rival else None


class NotTheSame(Exception):
    """Raised when the C program and the kernels do not do the same work: a bug in one of them."""


def _assert_same_work(bench: Bench, rival: Rival, stream: Stream) -> None:
    """Let both translate the stream from the state as it is; leave it as both leave it."""
    record, cells, pool = bench.record.copy(), bench.cells.copy(), bench.pool.copy()
    turns = stream.turns()
    for chunk in (next(turns), next(turns)):
        theirs = rival.translate(record, cells, pool, chunk)
        ours = bench.translate(chunk)
        counts = bench.engine.counters()
        if ours != chunk.size or theirs != chunk.size:
            raise NotTheSame(f"{stream.name}: of {chunk.size} accesses, {ours} and {theirs} were translated")
        for what, mine, other in (
            (f"counters {counts}", bench.record.count, record.count),
            ("structures", bench.cells, cells),
            ("page tables", bench.pool, pool),
        ):
            if not np.array_equal(mine, other):
                raise NotTheSame(f"{stream.name}: {what} differ: {mine} and {other}")


def measure(
    machine: Machine, mode: Mode, stream: Stream, rival: Rival | None, *, hierarchy: bool, turns: int, warm_turns: int = 1
) -> Rate:
    """Return the best rate of ``turns`` turns; the rival, if there is one, takes turns with the kernels."""
    bench = Bench(machine, mode, stream.pages, hierarchy=hierarchy)
    if rival is None:
        bench.translate(stream.chunk)
    else:
        _assert_same_work(bench, rival, stream)
    before = bench.record.count.copy()
    record, cells = bench.record.copy(), bench.cells.copy()
    contenders: list[Callable[[NDArray[np.int64]], int]] = [bench.translate]
    if rival is not None:
        contenders.append(lambda chunk: rival.translate(record, cells, bench.pool, chunk))
    best = [np.inf] * len(contenders)
    for turn, chunk in zip(range(turns + warm_turns), stream.turns(), strict=False):
        accesses = accesses_in(chunk)
        for number in range(len(contenders)):
            contender = (number + turn) % len(contenders)
            start = time.thread_time()
            contenders[contender](chunk)
            taken = (time.thread_time() - start) / accesses
            best[contender] = min(best[contender], taken if turn >= warm_turns else np.inf)
    done = dict(zip(("accesses", "l1_hits", "l2_hits"), (bench.record.count - before)[:3].tolist(), strict=True))
    return Rate(
        mode=mode.name,
        stream=stream.name,
        hierarchy=hierarchy,
        ours=1 / best[0],
        rival=1 / best[1] if rival is not None else None,
        l1_misses=1 - done["l1_hits"] / done["accesses"],
        l2_misses=1 - (done["l1_hits"] + done["l2_hits"]) / done["accesses"],
    )


def measure_all(
    machine: Machine, chosen: list[Stream], rival: Rival | None, *, hierarchies: tuple[bool, ...], turns: int
) -> Iterator[Rate]:
    """Yield the rate of each mode on each stream."""
    for hierarchy in hierarchies:
        for mode in MODES.values():
            for stream in chosen:
                yield measure(machine, mode, stream, rival, hierarchy=hierarchy, turns=turns)
