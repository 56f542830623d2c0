"""Our own trace file: the runs of a trace in Parquet, small on disk and fast to read.

One row a run, in order, in row groups of about a million, each of which is read by itself:

=========== ======= ==========================================================================
``step``    int64   gvpn less that of the previous run of the same sort (data, or fetch);
                    from 0 at the first of its sort in a row group
``line``    uint8   the 64-byte line within the page
``low``     uint16  the twelve lowest bits of the packed run: again, fetch, write
=========== ======= ==========================================================================

Each column of a row group is one page under zstd, with a checksum that readers verify: programs repeat
themselves over tens of thousands of accesses, and shorter pages would hide that from the compressor. The
file's metadata holds, under ``vmmsim.trace``, a JSON object: schema, how the trace came about, the totals,
and the SHA-256 of the packed runs as little-endian int64, which names the trace's content whatever
compressed it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.errors import BadInput
from vmmsim.translation.chunk import FETCH, GVPN_SHIFT, LINE_SHIFT, gvpn_of
from vmmsim.workloads.accesses import Accesses, Kinds
from vmmsim.workloads.compact import rechunk
from vmmsim.workloads.counts import Counts, Tally
from vmmsim.workloads.trace import Trace, nothing

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA: Final = "vmmsim/trace/1"
MAGIC: Final = b"PAR1"
ROW_GROUP_RUNS: Final = 1 << 20
_KEY: Final = b"vmmsim.trace"
_COLUMNS: Final = ("step", "line", "low")
_LOW: Final = (1 << LINE_SHIFT) - 1
_LEVEL: Final = 12
"""zstd's level: files 5 to 10 % smaller than at 9 and as fast to read; 15 takes ten times as long."""


@attrs.frozen(kw_only=True)
class About:
    """Where a trace comes from, as its file's metadata says."""

    recorded_as: str
    """Format of the records it was made from: "lackey", "champsim", ..."""
    command: str = ""
    """The program that ran, without its directory; "" if not known."""
    complete: bool = True
    """False if recording stopped before the program ended."""
    levels: int = 4
    """Levels of page tables its addresses are canonical for."""
    weighted: bool = False
    """True for a sample."""
    notes: tuple[str, ...] = ()
    """What users must be told, a sentence each."""


class TraceWriter:
    """Writes runs into a Parquet file, a row group at a time; a file without ``finish`` is no trace."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = zip(_COLUMNS, (pa.int64(), pa.uint8(), pa.uint16()), strict=True)
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
        options: dict[str, Any] = {"data_page_size": 1 << 30}
        if "max_rows_per_page" in inspect.signature(pq.ParquetWriter).parameters:
            options["max_rows_per_page"] = 1 << 30
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
            **options,
        )
        self._waiting: list[NDArray[np.int64]] = []
        self._waiting_runs = 0
        self._digest = hashlib.sha256()

    def write(self, runs: NDArray[np.int64]) -> None:
        """Append packed runs, int64[n]."""
        self._waiting.append(runs)
        self._waiting_runs += runs.size
        self._digest.update(np.ascontiguousarray(runs, dtype="<i8").data)
        if self._waiting_runs >= ROW_GROUP_RUNS:
            whole = list(rechunk(self._waiting, ROW_GROUP_RUNS))
            self._waiting = [whole.pop()] if whole[-1].size < ROW_GROUP_RUNS else []
            self._waiting_runs = sum(part.size for part in self._waiting)
            for group in whole:
                self._write_group(group)

    def finish(self, about: About, counts: Counts) -> str:
        """Write what waits and the metadata; return the trace's SHA-256. The file is whole after this."""
        for group in rechunk(self._waiting, ROW_GROUP_RUNS):
            self._write_group(group)
        digest = self._digest.hexdigest()
        meta = {"schema": SCHEMA, **attrs.asdict(about), "counts": attrs.asdict(counts), "sha256": digest}
        self._writer.add_key_value_metadata({_KEY: json.dumps(meta).encode()})
        self._writer.close()
        return digest

    def abandon(self) -> None:
        """Close the file however it is; to be called before it is removed."""
        with suppress(OSError):  # the disk is full or gone, which the caller is being told
            self._writer.close()

    def _write_group(self, runs: NDArray[np.int64]) -> None:
        import pyarrow as pa

        page = gvpn_of(runs)
        step = np.empty_like(page)
        fetch = (runs & FETCH) != 0
        for which in (np.flatnonzero(~fetch), np.flatnonzero(fetch)):
            step[which] = np.diff(page[which], prepend=0)
        columns = (step, (runs >> LINE_SHIFT & 63).astype(np.uint8), (runs & _LOW).astype(np.uint16))
        self._writer.write_table(pa.table(list(columns), schema=self._schema), row_group_size=ROW_GROUP_RUNS)


class ParquetTrace(Trace):
    """A trace in our own format; its totals are known without reading it."""

    format = "vmmsim"

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with _refusing(path, ""), self._opened() as file:
            meta = (file.metadata.metadata or {}).get(_KEY)
            names = tuple(file.schema_arrow.names)
            rows = file.metadata.num_rows
        if meta is None or names != _COLUMNS:
            raise BadInput("is a Parquet file but no trace of vmmsim; write one with: vmmsim trace convert", file=path)
        self.about, self._counts, self.sha256 = _described(meta, path)
        if rows != self._counts.runs:
            raise BadInput(f"holds {rows} runs but says {self._counts.runs}; record it again", file=path)
        if self.about.levels > levels:
            raise BadInput(f"was recorded with {self.about.levels} levels of page tables, not {levels}", file=path)
        self.weighted = self.about.weighted
        self.notes = self.about.notes
        self.has_instructions = self._counts.fetches > 0

    def blocks(self) -> Iterator[Accesses]:
        """Refuse: the accesses as recorded are not kept, only their runs and totals."""
        raise NotImplementedError("a trace of our own holds runs; use chunks")

    def runs(self, kinds: Kinds, tally: Tally | None = None) -> Iterator[NDArray[np.int64]]:
        """Yield the runs of ``kinds``, as the base class says."""
        assert self._counts is not None
        seen = False
        if tally is not None:
            tally.add_recorded(self._counts, kinds)
        for runs in self._groups(kinds):
            seen = True
            if tally is not None:
                tally.add_runs(runs)
            yield runs
        if not seen:
            raise nothing(kinds, self.path)

    def _groups(self, kinds: Kinds) -> Iterator[NDArray[np.int64]]:
        with self._opened() as file:
            for number in range(file.num_row_groups):
                start = file.metadata.row_group(number).column(0).data_page_offset
                with _refusing(self.path, f"row group {number}, byte {start}"):
                    table = file.read_row_group(number, use_threads=False)
                    runs = self._decoded(table, kinds)
                if runs.size:
                    yield runs

    def _decoded(self, table: Any, kinds: Kinds) -> NDArray[np.int64]:
        """Return the packed runs of one row group; ``ValueError`` if its numbers are out of range."""
        step, line, low = (_array(table.column(name)) for name in _COLUMNS)
        fetch = (low & FETCH) != 0
        if kinds != "all":
            wanted = np.flatnonzero(fetch == (kinds == "instructions"))
            page, line, low = np.cumsum(step[wanted]), line[wanted], low[wanted]
        else:
            fetched = step * fetch
            page = np.where(fetch, np.cumsum(fetched), np.cumsum(step - fetched))
        bits = 9 * self.about.levels
        if page.size and (page.min() < 0 or page.max() >> bits or line.max() > 63 or low.max() > _LOW):
            raise ValueError("a page, line or length is out of range")
        if self.levels > self.about.levels:  # the upper half of the address space lies further up
            page |= -(page >> (bits - 1)) << bits & ((1 << 9 * self.levels) - 1)
        page <<= GVPN_SHIFT
        page |= line.astype(np.int64) << LINE_SHIFT
        page |= low
        return page

    def _opened(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, page_checksum_verification=True)


def _array(column: Any) -> NDArray[Any]:
    """Return a column of one row group as the array it was; without a copy where it is in one piece."""
    if column.null_count:
        raise ValueError("a value is missing")
    array: NDArray[Any] = column.to_numpy()
    return array


def _described(meta: bytes, path: Path) -> tuple[About, Counts, str]:
    """Return what a file's metadata says; ``BadInput`` if it is not what this version writes."""
    try:
        said = json.loads(meta)
        if said["schema"] != SCHEMA:
            raise BadInput(f"its schema is {said['schema']!r}; this version of vmmsim reads {SCHEMA!r}", file=path)
        about = About(**{field.name: said[field.name] for field in attrs.fields(About)})
        return attrs.evolve(about, notes=tuple(about.notes)), Counts(**said["counts"]), str(said["sha256"])
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"its description is damaged ({error}); record it again", file=path) from None


class _refusing:  # noqa: N801 - reads as a word in a with statement
    """Turn what pyarrow raises on a damaged file into ``BadInput`` at a place."""

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, ValueError, OSError)) and not isinstance(error, BadInput):
            if isinstance(error, OSError) and error.errno is not None:
                return
            size = self._path.stat().st_size
            reason = str(error).splitlines()[0].rstrip(".")
            raise BadInput(
                f"the trace is cut short or corrupt ({reason}); copy or record it again",
                file=self._path,
                path=self._place or f"byte {size} (the end)",
            ) from None
