"""Writing traces in our own format: whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vmmsim.workloads.accesses import Kinds
from vmmsim.workloads.counts import Counts, Tally
from vmmsim.workloads.parquet import About, ParquetTrace, TraceWriter
from vmmsim.workloads.replacing import replacing, writing
from vmmsim.workloads.trace import Trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int], None]
"""Told now and then how many accesses are done."""


def save(
    runs: Iterable[NDArray[np.int64]],
    out: Path,
    tally: Tally,
    about: Callable[[], About],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Counts:
    """Write ``runs``, which are counted in ``tally`` as they come, to ``out`` and return their totals.

    ``about`` is asked once they have all come. ``BadInput`` if ``out`` exists and not ``force``, or cannot be
    written; nothing is left behind then, nor if ``runs`` raises.
    """
    with replacing(out, force=force) as temporary:
        with writing(out):
            writer = TraceWriter(temporary)
        try:
            for piece in runs:
                with writing(out):
                    writer.write(piece)
                if progress is not None:
                    progress(tally.accesses)
            counts = tally.counts()
            with writing(out):
                writer.finish(about(), counts)
        except BaseException:
            writer.abandon()
            raise
    return counts


def convert(
    trace: Trace,
    out: Path,
    *,
    kinds: Kinds = "all",
    force: bool = False,
    progress: Progress | None = None,
) -> Counts:
    """Write the accesses of ``kinds`` of ``trace`` to ``out`` in our own format and return their totals.

    Weights of samples are not kept, their being samples is. ``BadInput`` as ``save`` and the trace raise it.
    """
    tally = Tally(trace.levels)
    if isinstance(trace, ParquetTrace):
        about = attrs.evolve(trace.about, levels=trace.levels)
    else:
        about = About(recorded_as=trace.format, levels=trace.levels, weighted=trace.weighted, notes=trace.notes)
    return save(trace.runs(kinds, tally), out, tally, lambda: about, force=force, progress=progress)
