"""A set of ways in recency order: find, touch, fill, drop. TLBs, walk caches and caches are made of these.

A set of a structure with values is ``ways`` keys followed by ``ways`` values; a cache's set is keys alone. The first
way is the most recently used; empty ways (key 0) come last. So LRU needs no stamps, and no search for a victim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.state import EMPTY

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core


@inlined
def find(cells: Cells, at: int, ways: int, key: int) -> int:
    """Return the way that holds ``key`` in the set at ``cells[at]``, or -1."""
    way = 0
    while way < ways:
        if cells[at + way] == key:
            return way
        way += 1
    return -1


@kernel
def shift_in(cells: Cells, at: int, last: int, item: int) -> None:
    """Move the items before ``last`` one place on and put ``item`` first; what was at ``last`` is lost."""
    apart()
    i = at + last
    while i > at:
        cells[i] = cells[i - 1]
        i -= 1
    cells[at] = item


@inlined
def touch(cells: Cells, at: int, ways: int, way: int) -> None:
    """Move ``way`` of a set with values to the front."""
    shift_in(cells, at, way, cells[at + way])
    shift_in(cells, at + ways, way, cells[at + ways + way])


@inlined
def push(cells: Cells, at: int, ways: int, key: int, value: int) -> None:
    """Put a key that is not there at the front of a set with values; the last way is lost."""
    shift_in(cells, at, ways - 1, key)
    shift_in(cells, at + ways, ways - 1, value)


@kernel
def drop(cells: Cells, at: int, ways: int, way: int) -> None:
    """Take ``way`` out of a set with values and close the gap."""
    apart()
    for i in range(way, ways - 1):
        cells[at + i] = cells[at + i + 1]
        cells[at + ways + i] = cells[at + ways + i + 1]
    cells[at + ways - 1] = EMPTY
    cells[at + 2 * ways - 1] = 0


# The same inside a walk, which may yet fail: each change leaves a line in the journal, so that it can be undone.
# A line is (position in cells, ways, way or -1 - ways, key, value): a way >= 0 was moved to the front; otherwise the
# key and value given are what was lost or overwritten. Caches (keys alone) journal 0 ways of values: see `roll_back`.

TOUCHED = 0
FILLED = 1
REPLACED = 2
LINE_TOUCHED = 3
LINE_FILLED = 4
TABLE_WRITTEN = 5


@kernel
def note(core: Core, what: int, at: int, ways: int, old_key: int, old_value: int) -> None:
    """Write one line of the journal."""
    apart()
    line = core.journal_length
    core.journal[line, 0] = what
    core.journal[line, 1] = at
    core.journal[line, 2] = ways
    core.journal[line, 3] = old_key
    core.journal[line, 4] = old_value
    core.journal_length = line + 1


@inlined
def touch_noted(core: Core, cells: Cells, at: int, ways: int, way: int) -> None:
    """``touch``, undoably. A touch of the front way changes nothing and needs no line."""
    if way > 0:
        note(core, TOUCHED, at, ways, way, 0)
        touch(cells, at, ways, way)


@kernel
def put_noted(core: Core, cells: Cells, at: int, ways: int, key: int, value: int) -> None:
    """Fill ``key`` undoably: update and touch it if it is there, push it if not."""
    apart()
    way = find(cells, at, ways, key)
    if way < 0:
        note(core, FILLED, at, ways, cells[at + ways - 1], cells[at + 2 * ways - 1])
        push(cells, at, ways, key, value)
    else:
        note(core, REPLACED, at, ways, way, cells[at + ways + way])
        shift_in(cells, at, way, key)
        shift_in(cells, at + ways, way, value)


@kernel
def line_lookup_noted(core: Core, cells: Cells, at: int, ways: int, key: int, noted: bool) -> int:
    """Look a line up in one set of a cache and leave it at the front.

    Return 1 on a hit, 0 on a miss that dropped a line, -1 on a miss that filled an empty way (a cold one). Noted in
    the journal if ``noted``: a data access is over when it gets here, a walk is not.
    """
    apart()
    if cells[at] == key:
        return 1
    way = find(cells, at, ways, key)
    last = way if way >= 0 else ways - 1
    lost = cells[at + last]
    shift_in(cells, at, last, key)
    if noted:
        note(core, LINE_TOUCHED if way >= 0 else LINE_FILLED, at, ways, last, lost)
    if way >= 0:
        return 1
    return -1 if lost == EMPTY else 0
