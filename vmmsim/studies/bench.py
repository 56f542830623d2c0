"""How fast the engine translates: every mode on every stream, and beside it a C program doing the same work.

Before anything is timed, both programs translate the stream from the same state and must then agree on every counter,
every entry of every structure and every page-table entry: the same work. After that they take turns on the same page
tables, and the best turn of each counts. Time is the processor's, so that other programs' share of it is left out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import numpy as np

from vmmsim.config import MODES
from vmmsim.studies.bench_layout import laid_out
from vmmsim.translation.chunk import accesses_in
from vmmsim.translation.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vmmsim.config import Machine, Mode
    from vmmsim.studies.bench_streams import Stream
    from vmmsim.translation.engine import Engine

_NOTHING: Final = np.empty(0, np.int64)
_WARM_TURNS: Final = 1


class NotTheSame(Exception):
    """Raised when the C program and the kernels do not do the same work: a bug in one of them."""


class Program(Protocol):
    """What translates: the C program, or the kernels."""

    def translate(
        self, record: Any, cells: NDArray[np.int64], pool: NDArray[np.int64], chunk: NDArray[np.int64]
    ) -> int:
        """Translate ``chunk`` and return how many of its runs were."""


class Kernels:
    """The compiled kernels."""

    def translate(
        self, record: Any, cells: NDArray[np.int64], pool: NDArray[np.int64], chunk: NDArray[np.int64]
    ) -> int:
        """Translate ``chunk`` and return how many of its runs were."""
        return int(run(record, cells, pool, chunk, _NOTHING)[0])


@attrs.frozen(kw_only=True)
class Rate:
    """What was measured of one mode on one stream."""

    mode: str
    """Mode."""
    stream: str
    """Stream."""
    hierarchy: bool
    """Whether page-table references and data went through the model of the caches."""
    accesses_per_second: float
    """Accesses translated per second by the compiled kernels, in their best turn."""
    c_accesses_per_second: float | None
    """The same for the C program; None without it."""
    l1_misses: float
    """Share of accesses that missed the L1 TLB."""
    l2_misses: float
    """Share of accesses that both TLB levels missed."""

    @property
    def ratio(self) -> float | None:
        """The kernels' rate as a multiple of the C program's."""
        return self.accesses_per_second / self.c_accesses_per_second if self.c_accesses_per_second else None


class _Contender:
    """A program with a core of its own; page tables are shared."""

    def __init__(self, program: Program, engine: Engine) -> None:
        self._program = program
        record, self.cells = engine.state()
        self.record, self.cells = record.copy(), self.cells.copy()
        self.best = np.inf

    def translate(self, pool: NDArray[np.int64], chunk: NDArray[np.int64]) -> None:
        start = time.thread_time()
        done = self._program.translate(self.record, self.cells, pool, chunk)
        taken = time.thread_time() - start
        if done != chunk.size:
            raise NotTheSame(f"{type(self._program).__name__} translated {done} of {chunk.size} runs")
        self.best = min(self.best, taken / accesses_in(chunk))


def assert_same_work(engine: Engine, programs: Sequence[Program], stream: Stream) -> None:
    """Let all translate two turns of ``stream`` from the engine's state; ``NotTheSame`` if their states then differ."""
    ended = []
    for program in programs:
        contender, pool = _Contender(program, engine), engine.tables.entries.copy()
        for _, chunk in zip(range(2), stream.turns(), strict=False):
            contender.translate(pool, chunk)
        ended.append({"counters": contender.record.count, "structures": contender.cells, "page tables": pool})
    for what, first in ended[0].items():
        for other in ended[1:]:
            if not np.array_equal(first, other[what]):
                raise NotTheSame(f"{stream.name}: {what} differ: {first} and {other[what]}")


def measure(
    machine: Machine, mode: Mode, stream: Stream, rival: Program | None, *, hierarchy: bool, turns: int
) -> Rate:
    """Return the best rate of ``turns`` turns; the rival, if there is one, takes turns with the kernels."""
    engine = laid_out(machine, mode, stream.pages, hierarchy=hierarchy)
    programs = [Kernels()] if rival is None else [Kernels(), rival]
    assert_same_work(engine, programs, stream)
    contenders = [_Contender(program, engine) for program in programs]
    ours = contenders[0]
    for turn, chunk in zip(range(_WARM_TURNS + turns), stream.turns(), strict=False):
        for number in range(len(contenders)):
            contenders[(number + turn) % len(contenders)].translate(engine.tables.entries, chunk)
        if turn < _WARM_TURNS:
            before = ours.record.count.copy()
            for contender in contenders:
                contender.best = np.inf
    accesses, l1_hits, l2_hits = (ours.record.count - before)[:3].tolist()
    return Rate(
        mode=mode.name,
        stream=stream.name,
        hierarchy=hierarchy,
        accesses_per_second=1 / ours.best,
        c_accesses_per_second=1 / contenders[1].best if rival is not None else None,
        l1_misses=1 - l1_hits / accesses,
        l2_misses=1 - (l1_hits + l2_hits) / accesses,
    )


def measure_all(
    machine: Machine,
    streams: Sequence[Stream],
    rival: Program | None,
    *,
    hierarchy: bool,
    turns: int,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Rate]:
    """Yield the rate of each mode on each stream; ``say`` is told which comes next."""
    for mode in MODES.values():
        for stream in streams:
            say(f"{mode.name} on {stream.name}")
            yield measure(machine, mode, stream, rival, hierarchy=hierarchy, turns=turns)


def geometric_mean(rates: Sequence[Rate]) -> float | None:
    """Return the geometric mean of the ratios; None without a C program."""
    ratios = [rate.ratio for rate in rates if rate.ratio is not None]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else None


def smallest(rates: Sequence[Rate]) -> float | None:
    """Return the smallest ratio; None without a C program."""
    return min((rate.ratio for rate in rates if rate.ratio is not None), default=None)
