"""A block of accesses as a trace records them, and how it becomes translations at cache-line granularity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from vmmsim.addresses import LINE_BITS, PAGE_BITS, PAGE_BYTES, address_bits
from vmmsim.errors import BadInput
from vmmsim.translation.chunk import FETCH as FETCH_FLAG
from vmmsim.translation.chunk import LINE_SHIFT
from vmmsim.translation.chunk import WRITE as WRITE_FLAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kinds = Literal["data", "instructions", "all"]
"""Which accesses a reader is asked for."""

READ: Final = 0
WRITE: Final = 1
MODIFY: Final = 2
"""A load and a store of one instruction: one translation, a write, since that is what permissions check."""
FETCH: Final = 3

_FLAGS: Final = np.array([0, WRITE_FLAG, WRITE_FLAG, FETCH_FLAG], dtype=np.int64)


class Accesses(NamedTuple):
    """Consecutive accesses of a trace, one array element each, in program order."""

    address: NDArray[np.int64]
    """First byte; the 64 bits as they were recorded, so that kernel addresses are negative."""
    kind: NDArray[np.uint8]
    """READ, WRITE, MODIFY or FETCH."""
    size: NDArray[np.int64] | None
    """Bytes, at least 1; None where the format does not say (then no access crosses a page)."""
    where: Callable[[int], str]
    """Say where in the file element i stands, as an error's ``path``: "byte 640"."""
    weight: NDArray[np.int64] | None = None
    """What a sampler says of each access (load latency in cycles); None for full streams."""

    def only(self, kinds: Kinds) -> Accesses:
        """Return the accesses of the kinds asked for, in the same order."""
        if kinds == "all":
            return self
        return self._at(np.flatnonzero((self.kind == FETCH) == (kinds == "instructions")))

    def between(self, start: int, end: int | None) -> Accesses:
        """Return the accesses [start, end), to the last if ``end`` is None or beyond it."""
        if start == 0 and (end is None or end >= self.address.size):
            return self
        return self._at(np.arange(self.address.size)[start:end])

    def _at(self, which: NDArray[np.intp]) -> Accesses:
        return Accesses(
            self.address[which],
            self.kind[which],
            None if self.size is None else self.size[which],
            lambda i: self.where(int(which[i])),
            None if self.weight is None else self.weight[which],
        )


def translations(block: Accesses, *, levels: int, file: object) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Return the packed accesses of ``block``, and its page crossings: of data accesses, and of fetches.

    An access that crosses a page boundary is a second access, to line 0 of the next page; one that crosses
    only a cache line touches its first line only, since both lines lie in the same page. ``BadInput`` at
    the first address that is not canonical for ``levels`` levels of page tables.
    """
    address, flags = block.address, _FLAGS[block.kind]
    _require_canonical(address, block.where, levels, file)
    crossings = (0, 0)
    if block.size is not None:
        more = ((address & (PAGE_BYTES - 1)) + block.size - 1) >> PAGE_BITS
        if more.any():
            fetched = int(more[block.kind == FETCH].sum())
            crossings = (int(more.sum()) - fetched, fetched)
            address, flags = _with_next_pages(block, more, levels, file)
    lines = (address >> LINE_BITS) & ((1 << (address_bits(levels) - LINE_BITS)) - 1)
    return lines << LINE_SHIFT | flags, crossings


def _with_next_pages(
    block: Accesses, more: NDArray[np.int64], levels: int, file: object
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return addresses and flags, access i followed by ``more[i]`` accesses to the pages it goes on in."""
    pieces = more + 1
    origin = np.repeat(np.arange(pieces.size), pieces)
    step = np.arange(origin.size) - (np.cumsum(pieces) - pieces)[origin]
    address = block.address[origin]
    np.copyto(address, (address & -PAGE_BYTES) + (step << PAGE_BITS), where=step > 0)
    _require_canonical(address, lambda i: block.where(int(origin[i])), levels, file)
    return address, _FLAGS[block.kind[origin]]


def _require_canonical(address: NDArray[np.int64], where: Callable[[int], str], levels: int, file: object) -> None:
    bits = address_bits(levels)
    top = address >> (bits - 1)
    wrong = (top != 0) & (top != -1)
    if wrong.any():
        first = int(wrong.argmax())
        raise BadInput(
            f"{int(address[first]) & ((1 << 64) - 1):#x} is not a canonical address of {levels}-level tables "
            f"(bits 63 to {bits - 1} must be equal)"
            + ("; a trace of a machine with 5 levels needs levels = 5" if levels == 4 else ""),
            file=file,
            path=where(first),
        )
