"""One page-table entry, as the hardware has it: 64 bits, 512 of them to a table.

::

    62            38 37            7   6   5   4   3   2   1   0
    +---------------+---------------+---+---+---+---+---+---+---+
    |   node (25)   |  frame (31)   | G | X | D | A | L | W | P |
    +---------------+---------------+---+---+---+---+---+---+---+

P present, W writable, L leaf, A accessed, D dirty, X executable, G global (guest leaves). ``frame`` is the frame of
the page mapped or of the table one level down: a gfn in a guest table, an hfn in a nested one. A real entry has no
more than that; ``node`` is where our pool keeps that table, so that the kernels need not look it up.

Level 1 is the leaf level. The entry of page p at level l is number (p >> 9 (l - 1)) mod 512 of its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import inlined, kernel

if TYPE_CHECKING:
    from vmmsim.translation.types import Pool

PRESENT: Final = 1
WRITABLE: Final = 2
LEAF: Final = 4
ACCESSED: Final = 8
DIRTY: Final = 16
EXECUTABLE: Final = 32
GLOBAL: Final = 64
FLAGS: Final = 127
FRAME_SHIFT: Final = 7
FRAME_MASK: Final = (1 << 31) - 1
NODE_SHIFT: Final = 38
RIGHTS_AND_MARKS: Final = WRITABLE | ACCESSED | DIRTY | EXECUTABLE | GLOBAL
"""Flags that a leaf may have beside being one."""


@inlined
def frame_of(entry: int) -> int:
    """Return the frame that an entry names."""
    return entry >> FRAME_SHIFT & FRAME_MASK


@inlined
def node_of(entry: int) -> int:
    """Return the pool's node of the table that an entry leads to."""
    return entry >> NODE_SHIFT


@inlined
def slot(node: int, page: int, level: int) -> int:
    """Return the place in the pool of the entry for ``page`` in a table of ``level``."""
    return (node << 9) + (page >> 9 * (level - 1) & 511)


@inlined
def is_leaf(entry: int, level: int) -> bool:
    """Tell whether an entry of ``level`` maps a page (rather than leading to a table)."""
    return level == 1 or entry & LEAF != 0


@kernel
def find_leaf(pool: Pool, root: int, levels: int, page: int) -> tuple[int, int]:
    """Return (place, level) of the entry that maps ``page``, or of the absent entry where the walk ends."""
    node = root
    for level in range(levels, 0, -1):
        place = slot(node, page, level)
        entry = pool[place]
        if entry & PRESENT == 0 or is_leaf(entry, level):
            return place, level
        node = node_of(entry)
    return -1, 0
