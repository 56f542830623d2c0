"""A chunk of accesses as the engine takes it: one int64 per run of accesses to the same cache line.

::

    62            18 17      12 11        2 1  0
    +---------------+----------+-----------+--+--+
    | gvpn (45)     | line (6) | again (10)|X |W |
    +---------------+----------+-----------+--+--+

``W`` a write, ``X`` an instruction fetch, ``line`` the 64-byte line within the page, ``again`` how many further
accesses of the same kind to the same line follow at once. A run is exact and not a sample: those further accesses
hit the most recently used entry of the L1 TLB and of the L1 cache, and change neither. A write after reads starts a
run of its own, because a first write may have to set the dirty bit or be refused; a read after a write does not.
Data accesses and instruction fetches use separate L1 structures, so a run of one may span accesses of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

WRITE: Final = 1
FETCH: Final = 2
AGAIN_SHIFT: Final = 2
AGAIN_MAX: Final = 1023
LINE_SHIFT: Final = 12
GVPN_SHIFT: Final = 18
FIELD_MASK_LINE: Final = 63


def pack(
    gvpn: ArrayLike,
    is_write: ArrayLike = 0,
    *,
    is_fetch: ArrayLike = 0,
    line: ArrayLike = 0,
    again: ArrayLike = 0,
) -> NDArray[np.int64]:
    """Return the int64[n] chunk of n accesses; arguments are int or bool arrays of one shape, or scalars."""
    parts = (gvpn, line, again, is_fetch, is_write)
    page, row, more, fetch, write = (np.asarray(part, dtype=np.int64) for part in parts)
    return np.atleast_1d(page << GVPN_SHIFT | row << LINE_SHIFT | more << AGAIN_SHIFT | fetch << 1 | write)


def gvpn_of(chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the guest virtual page number of each run."""
    return chunk >> GVPN_SHIFT


def again_of(chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many further accesses each run stands for."""
    return chunk >> AGAIN_SHIFT & AGAIN_MAX


def accesses_in(chunk: NDArray[np.int64]) -> int:
    """Return how many accesses the runs of ``chunk`` stand for."""
    return int(chunk.size + again_of(chunk).sum())
