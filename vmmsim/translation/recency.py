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


@inlined
def touch(cells: Cells, at: int, ways: int, key: int) -> None:
    """Move ``key``, which is there, to the front of a set with values."""
    place = at
    carried, carried_value = cells[at], cells[at + ways]
    while carried != key:
        place += 1
        held, held_value = cells[place], cells[place + ways]
        cells[place], cells[place + ways] = carried, carried_value
        carried, carried_value = held, held_value
    cells[at], cells[at + ways] = carried, carried_value


@inlined
def put(cells: Cells, at: int, ways: int, key: int, value: int) -> tuple[int, int, int]:
    """Put ``key`` with ``value`` at the front of a set: moved there if it is in the set, else at the last way's cost.

    Return (way, key, value) of what gave way: ``key`` itself with its old value, or an empty way, or what was lost.

    One pass: each entry moves one place on until the gap that the key left, or an empty way, takes the last of them.
    A loop that ends on what it reads is also one that LLVM leaves as small as it is.
    """
    place = at
    last = at + ways - 1
    carried, carried_value = key, value
    while True:
        held, held_value = cells[place], cells[place + ways]
        cells[place], cells[place + ways] = carried, carried_value
        if held == key or held == EMPTY or place == last:
            return place - at, held, held_value
        carried, carried_value = held, held_value
        place += 1


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


@inlined
def note(core: Core, what: int, at: int, ways: int, old_key: int, old_value: int) -> None:
    """Write one line of the journal."""
    line = core.journal_length
    core.journal[line, 0] = what
    core.journal[line, 1] = at
    core.journal[line, 2] = ways
    core.journal[line, 3] = old_key
    core.journal[line, 4] = old_value
    core.journal_length = line + 1


@inlined
def touch_noted(core: Core, cells: Cells, at: int, ways: int, way: int) -> None:
    """``touch`` what is at ``way``, undoably. A touch of the front way changes nothing and needs no line."""
    if way > 0:
        note(core, TOUCHED, at, ways, way, 0)
        touch(cells, at, ways, cells[at + way])


@inlined
def put_noted(core: Core, cells: Cells, at: int, ways: int, key: int, value: int) -> None:
    """``put``, undoably."""
    way, old_key, old_value = put(cells, at, ways, key, value)
    if old_key == key:
        note(core, REPLACED, at, ways, way, old_value)
    else:
        note(core, FILLED, at, ways, old_key, old_value)


@kernel
def line_lookup_noted(core: Core, cells: Cells, at: int, ways: int, key: int, noted: bool) -> int:
    """Look a line up in one set of a cache and leave it at the front.

    Return 1 on a hit, 0 on a miss that dropped a line, -1 on a miss that filled an empty way (a cold one). Noted in
    the journal if ``noted``: a data access is over when it gets here, a walk is not.
    """
    apart()
    place = at
    last = at + ways - 1
    carried = key
    while True:
        held = cells[place]
        cells[place] = carried
        if held == key or held == EMPTY or place == last:
            break
        carried = held
        place += 1
    if noted and (held != key or place > at):
        note(core, LINE_TOUCHED if held == key else LINE_FILLED, at, ways, place - at, held)
    if held == key:
        return 1
    return -1 if held == EMPTY else 0
