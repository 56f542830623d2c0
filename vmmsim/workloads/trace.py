"""A trace: the accesses of a program that ran, as chunks for the engine, from any file that holds them.

``open_trace`` recognises the format from the content. Memory stays bounded however long a trace is: readers
decode about a megabyte at a time, and the sets of pages that ``counts`` keeps grow with the footprint, not
with the length.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import Accesses, Kinds, translations
from vmmsim.workloads.compact import folded, rechunk
from vmmsim.workloads.counts import Counts, Tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_RUNS = 1 << 20
"""Runs in a chunk unless the caller says otherwise: 8 MiB."""


class Trace(ABC):
    """A readable trace. A reader of a format defines ``blocks``; everything else follows from it."""

    format: ClassVar[str]
    """Name of the format: "lackey", "champsim", "champsim-cloudsuite", "drmemtrace", "perf-mem",
    "perf-script",
    "npy" or "vmmsim"."""
    weighted: bool = False
    """True for a sampler's records: a sample of the accesses, not all of them; results must say so."""
    notes: tuple[str, ...] = ()
    """What users must be told of this trace, a sentence each: that it is a sample, that it was filtered."""
    has_instructions: bool | None = None
    """Whether it holds instruction fetches; None where only a whole pass could tell."""

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        self.path = path
        self.levels = levels
        self._counts: Counts | None = None

    @abstractmethod
    def blocks(self) -> Iterator[Accesses]:
        """Yield the accesses as recorded, in order and from the start, about a megabyte at a time."""

    def chunks(self, kinds: Kinds = "data", size: int = CHUNK_RUNS) -> Iterator[NDArray[np.int64]]:
        """Yield the runs of the accesses of ``kinds`` in packed chunks of ``size``, the last one excepted.

        Reads the file again at each call. ``BadInput`` where the file is damaged, and if no access of these
        kinds is in it.
        """
        if size < 1:
            raise ValueError(f"size (={size}) must be at least 1")
        return rechunk(self.runs(kinds), size)

    def counts(self) -> Counts:
        """Return how much the trace holds; reads it all, unless its totals are known already."""
        if self._counts is None:
            tally = Tally(self.levels)
            for _ in self.runs("all", tally):
                pass
            self._counts = tally.counts()
        return self._counts

    def runs(self, kinds: Kinds, tally: Tally | None = None) -> Iterator[NDArray[np.int64]]:
        """Yield what ``chunks`` yields, in pieces as they come; count it in ``tally``, whole at the end."""
        yield from runs_of(self.blocks(), kinds, tally, levels=self.levels, file=self.path)


def runs_of(
    blocks: Iterable[Accesses],
    kinds: Kinds,
    tally: Tally | None = None,
    *,
    levels: int = 4,
    file: object = "",
) -> Iterator[NDArray[np.int64]]:
    """Yield the runs of a stream of accesses of ``kinds``; count them in ``tally``, whole at the end.

    ``BadInput``, naming ``file``, at an address that is not canonical and after a stream without such
    accesses.
    """
    seen = False

    def packed() -> Iterator[NDArray[np.int64]]:
        for block in blocks:
            wanted = block.only(kinds)
            if wanted.address.size:
                pieces, crossings = translations(wanted, levels=levels, file=file)
                if tally is not None:
                    tally.add_accesses(wanted, crossings)
                yield pieces

    for runs in folded(packed()):
        seen = True
        if tally is not None:
            tally.add_runs(runs)
        yield runs
    if not seen:
        raise nothing(kinds, file)


def nothing(kinds: Kinds, file: object) -> BadInput:
    """Return the error of a trace that holds no access of ``kinds``."""
    what = {"all": "accesses", "data": "data accesses", "instructions": "instruction fetches"}[kinds]
    return BadInput(f"holds no {what}; record a program that makes some", file=file)


def open_trace(path: str | os.PathLike[str], *, levels: int = 4, format: str | None = None) -> Trace:
    """Return the trace in the file at ``path``, in the format its content shows.

    ``levels`` is the depth of the page tables of the machine that ran the program: addresses must be
    canonical for it. ``format`` overrules recognition. ``BadInput`` if there is no such file, if it is
    empty, or if its content is of no known format.
    """
    from vmmsim.workloads.recognise import recognise

    place = Path(path)
    if not place.is_file():
        raise BadInput("is not a file; a trace is one" if place.exists() else "no such file", file=place)
    return recognise(place, format)(place, levels=levels)
