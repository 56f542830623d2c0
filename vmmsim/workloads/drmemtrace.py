"""DynamoRIO's offline memory traces (drmemtrace), after raw2trace.

One file a thread: a .zip whose members are chunks in order, a .gz, .sz or .lz4, or plain. Records are
packed, 12 bytes (8 for 32-bit programs): type u16, size u16, address u64 (u32). Data references follow
their instruction. Encodings, prefetches and everything that is no access are skipped. A whole trace begins
with a header and ends with a footer.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import FETCH, READ, WRITE, Accesses
from vmmsim.workloads.stream import ZIP_MAGIC, Stream, opened, opened_member
from vmmsim.workloads.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WIDE: Final = np.dtype([("type", "<u2"), ("size", "<u2"), ("address", "<u8")])
_NARROW: Final = np.dtype([("type", "<u2"), ("size", "<u2"), ("address", "<u4")])
_RECORDS_A_BLOCK: Final = 1 << 16

_HEADER: Final = 25
_HEADER_VERSION: Final = 4
_FOOTER: Final = 26
_MARKER: Final = 28
_BUNDLE: Final = 17
_TYPE_END: Final = 50
"""One past the last type of record there is."""
_FILETYPE: Final = 9
_PREAMBLE: Final = 64
"""Records within which the marker of the file's type stands."""

_NONE: Final = 255
_KIND: Final = np.full(_TYPE_END, _NONE, dtype=np.uint8)
_KIND[0], _KIND[1] = READ, WRITE
_KIND[[10, 11, 12, 13, 14, 15, 16, 31, 48, 49]] = FETCH  # 30 is fetched only perhaps, 29 and 47 are not

_FILTERS: Final = (
    (0x01, "accesses that hit a first-level cache were filtered out when it was recorded"),
    (0x80, "instruction fetches were filtered when it was recorded"),
    (0x100, "data accesses were filtered when it was recorded"),
)


class DrMemTrace(Trace):
    """A trace of one thread that raw2trace has finished."""

    format = "drmemtrace"

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with self._streams() as streams:
            head = next(streams).read(_PREAMBLE * _WIDE.itemsize)
        if is_raw(head):
            raise BadInput(
                "is the raw output of one thread, unsorted and unfinished; run raw2trace on its directory",
                file=path,
            )
        record = _record_of(head)
        if record is None:
            raise BadInput("does not begin with drmemtrace's header; copy the trace again", file=path, path="byte 0")
        self._record = record
        kind = _file_type(np.frombuffer(head, record, count=len(head) // record.itemsize))
        self.notes = tuple(
            f"{what}, so that TLB results are not those of the program" for bit, what in _FILTERS if kind & bit
        )
        self.has_instructions = True

    @classmethod
    def matches(cls, head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, begins with a header."""
        return _record_of(head) is not None

    def blocks(self) -> Iterator[Accesses]:
        """Yield the accesses of the file, as the base class says."""
        last = _HEADER
        place = ""
        with self._streams() as streams:
            for stream in streams:
                for records, offset in self._records(stream):
                    yield self._accesses(records, offset, stream)
                    last = int(records["type"][-1])
                place = f"byte {stream.offset}"
        if last != _FOOTER:
            raise BadInput("ends without a footer: it is cut short; copy the trace again", file=self.path, path=place)

    def _records(self, stream: Stream) -> Iterator[tuple[NDArray[np.void], int]]:
        """Yield the records of one stream by the block, and the byte at which each block begins."""
        size = self._record.itemsize
        while text := stream.read(_RECORDS_A_BLOCK * size):
            offset = stream.offset - len(text)
            if left := len(text) % size:
                raise BadInput(
                    f"the last record has {left} of {size} bytes: it is cut short; copy the trace again",
                    file=stream.name,
                    path=f"byte {stream.offset - left}",
                )
            yield np.frombuffer(text, dtype=self._record), offset

    def _accesses(self, records: NDArray[np.void], offset: int, stream: Stream) -> Accesses:
        types, sizes = records["type"], records["size"]
        size = self._record.itemsize
        wrong = types >= _TYPE_END
        wrong |= types == _BUNDLE
        if wrong.any():
            first = int(wrong.argmax())
            raise BadInput(
                f"a record is of type {types[first]}, which no file has; it is corrupt, copy it again",
                file=stream.name,
                path=f"byte {offset + first * size}",
            )
        kinds = _KIND[types]
        which = np.flatnonzero(kinds != _NONE)
        return Accesses(
            records["address"][which].astype(np.uint64).view(np.int64),
            kinds[which],
            np.maximum(sizes[which], 1).astype(np.int64),
            lambda i: f"byte {offset + int(which[i]) * size}",
        )

    @contextmanager
    def _streams(self) -> Iterator[Iterator[Stream]]:
        """Give the file's streams in order: itself, or the members of the zip file that it is."""
        with self.path.open("rb") as file:
            zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        with ExitStack() as stack:
            if zipped:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                yield _members(archive, self.path)
            else:
                yield iter((stack.enter_context(opened(self.path)),))


def _members(archive: zipfile.ZipFile, path: Path) -> Iterator[Stream]:
    names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    if not names:
        raise BadInput("is an empty zip file", file=path)
    for name in names:
        with opened_member(archive, name, path) as stream:
            yield stream


def _record_of(head: bytes) -> np.dtype[np.void] | None:
    """Return the layout of the records that begin with a header, or None if there is no header."""
    for record in (_WIDE, _NARROW):
        if len(head) >= record.itemsize:
            first = np.frombuffer(head, record, count=1)[0]
            if first["type"] == _HEADER and first["address"] == _HEADER_VERSION:
                return record
    return None


def _file_type(records: NDArray[np.void]) -> int:
    """Return the bits of the marker that says what was recorded, 0 if there is none."""
    found = np.flatnonzero((records["type"] == _MARKER) & (records["size"] == _FILETYPE))
    return int(records["address"][found[0]]) if found.size else 0


def is_raw(head: bytes) -> bool:
    """Tell whether ``head`` begins as a thread's raw file: an extended entry (type 6), a small version."""
    if len(head) < 16:
        return False
    first = int.from_bytes(head[:8], "little")
    return first >> 61 == 6 and first & ((1 << 48) - 1) < 64
