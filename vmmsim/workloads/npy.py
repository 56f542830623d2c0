"""A NumPy file of addresses: a one-dimensional array of integers, each a read of a byte at that gVA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import READ, Accesses
from vmmsim.workloads.stream import Stream, opened
from vmmsim.workloads.trace import Trace

MAGIC: Final = b"\x93NUMPY"
_ADDRESSES_A_BLOCK: Final = 1 << 17


class NpyTrace(Trace):
    """An array of addresses, compressed or not."""

    format = "npy"
    has_instructions = False

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with opened(path) as stream:
            self._length, self._type = self._header(stream)

    @staticmethod
    def matches(head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, is that of a NumPy file."""
        return head.startswith(MAGIC)

    def blocks(self) -> Iterator[Accesses]:
        """Yield the accesses of the file, as the base class says."""
        size = self._type.itemsize
        done = 0
        with opened(self.path) as stream:
            self._header(stream)
            start = stream.offset
            while done < self._length:
                text = stream.read(min(_ADDRESSES_A_BLOCK, self._length - done) * size)
                whole = len(text) // size
                if not text or len(text) % size:
                    raise BadInput(
                        f"ends after {done + whole} of {self._length} addresses; save the array again",
                        file=self.path,
                        path=f"byte {stream.offset}",
                    )
                yield self._accesses(np.frombuffer(text, self._type), start, done)
                done += whole
            if stream.read(1):
                raise BadInput("more follows the array", file=self.path, path=f"byte {stream.offset - 1}")

    def _accesses(self, values: Any, start: int, done: int) -> Accesses:
        address = values.astype(np.uint64 if self._type.kind == "u" else np.int64).view(np.int64)
        size = self._type.itemsize
        return Accesses(
            address,
            np.full(address.size, READ, dtype=np.uint8),
            None,
            lambda i: f"element {done + i}, byte {start + (done + i) * size}",
        )

    def _header(self, stream: Stream) -> tuple[int, np.dtype[Any]]:
        """Read the header; return how many addresses follow, and of which type."""
        reading = np.lib.format
        try:
            version = reading.read_magic(stream)
            read = reading.read_array_header_1_0 if version == (1, 0) else reading.read_array_header_2_0
            shape, _, kind = read(stream)
        except ValueError as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"its header is damaged ({error})", file=self.path, path=f"byte {stream.offset}") from None
        if len(shape) != 1 or kind.kind not in "iu":
            raise BadInput(
                f"holds {kind} of shape {shape}; a trace is a one-dimensional array of integers",
                file=self.path,
            )
        return int(shape[0]), kind
