"""ChampSim's instruction traces: a bare sequence of records, usually compressed with xz.

A record is one instruction: where it is, and up to six memory operands. An instruction becomes a fetch,
then its loads, then its stores (the format does not order them; this is our choice). Sizes are not
recorded, so that no access crosses a page. Layouts: ``input_instr`` of 64 bytes, and ``cloudsuite_instr``
of 96 (the reader of "-c").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from vmmsim.addresses import PAGE_BYTES
from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import FETCH, READ, WRITE, Accesses
from vmmsim.workloads.stream import opened
from vmmsim.workloads.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RECORDS_A_BLOCK: Final = 1 << 15


class ChampSimTrace(Trace):
    """Records of 64 bytes."""

    format = "champsim"
    has_instructions = True
    record: ClassVar = np.dtype(
        [
            ("ip", "<u8"),
            ("is_branch", "u1"),
            ("taken", "u1"),
            ("written_registers", "u1", 2),
            ("read_registers", "u1", 4),
            ("stores", "<u8", 2),
            ("loads", "<u8", 4),
        ]
    )
    other: ClassVar = "champsim-cloudsuite"

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with opened(path) as stream:
            if not stream.codec:
                self._require_whole(path.stat().st_size)

    def blocks(self) -> Iterator[Accesses]:
        """Yield the accesses of the file, as the base class says."""
        size = self.record.itemsize
        with opened(self.path) as stream:
            while text := stream.read(_RECORDS_A_BLOCK * size):
                if len(text) % size:
                    self._require_whole(stream.offset)
                yield self._accesses(np.frombuffer(text, dtype=self.record), stream.offset - len(text))

    @classmethod
    def matches(cls, head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, reads as instructions; there is no header."""
        whole = len(head) // cls.record.itemsize
        records = np.frombuffer(head, dtype=cls.record, count=whole)
        if records.size == 0:
            return False
        flags = (records["is_branch"] <= 1).all() and (records["taken"] <= 1).all()
        operands = np.concatenate((records["loads"], records["stores"]), axis=1)
        return bool(
            flags and _is_code(records["ip"]) and _is_address(operands).all() and cls._padding_is_clear(records)
        )

    @classmethod
    def _padding_is_clear(cls, records: NDArray[np.void]) -> bool:
        """Tell whether the bytes that mean nothing are all 0; 64-byte records have none."""
        return True

    def _accesses(self, records: NDArray[np.void], offset: int) -> Accesses:
        """Return a fetch, the loads and the stores of each record; operands of 0 are none."""
        loads, stores = records["loads"], records["stores"]
        address = np.concatenate((records["ip"][:, None], loads, stores), axis=1)
        kind = np.array([FETCH] + [READ] * loads.shape[1] + [WRITE] * stores.shape[1], dtype=np.uint8)
        row, column = np.nonzero(address)
        size = self.record.itemsize
        return Accesses(
            address[row, column].view(np.int64),
            kind[column],
            None,
            lambda i: f"record {offset // size + row[i]}, byte {offset + int(row[i]) * size}",
        )

    def _require_whole(self, file_bytes: int) -> None:
        size = self.record.itemsize
        if file_bytes % size:
            hint = "" if file_bytes % (96 + 64 - size) else f', or read it as "{self.other}"'
            raise BadInput(
                f"the last record has {file_bytes % size} of {size} bytes; copy the trace again{hint}",
                file=self.path,
                path=f"byte {file_bytes // size * size}",
            )


class CloudSuiteTrace(ChampSimTrace):
    """Records of 96 bytes, with four stores and two address-space bytes, which are not used."""

    format = "champsim-cloudsuite"
    record: ClassVar = np.dtype(
        [
            ("ip", "<u8"),
            ("is_branch", "u1"),
            ("taken", "u1"),
            ("written_registers", "u1", 4),
            ("read_registers", "u1", 4),
            ("padding", "u1", 6),
            ("stores", "<u8", 4),
            ("loads", "<u8", 4),
            ("space", "u1", 2),
            ("tail", "u1", 6),
        ]
    )
    other: ClassVar = "champsim"

    @classmethod
    def _padding_is_clear(cls, records: NDArray[np.void]) -> bool:
        return not records["padding"].any() and not records["tail"].any()


def _is_address(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which values are canonical addresses of 57 bits, 0 included."""
    top = values.view(np.int64) >> 56
    canonical: NDArray[np.bool_] = (top == 0) | (top == -1)
    return canonical


def _is_code(values: NDArray[np.uint64]) -> bool:
    """Tell whether all values could be the addresses of instructions: canonical and above the first page."""
    return bool((_is_address(values) & (values >= PAGE_BYTES)).all())
