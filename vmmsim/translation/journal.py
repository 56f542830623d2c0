"""What a walk did so far: the journal that can undo it, and the log that can tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.recency import (
    FILLED,
    REPLACED,
    TABLE_WRITTEN,
    TOUCHED,
    note,
)
from vmmsim.translation.state import END_OF_WALK, FIRST_OF_WALK, LOG

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core, Pool


@inlined
def begin(core: Core) -> None:
    """Start an access that may fail: an empty journal, and the counters as they are."""
    core.journal_length = 0
    for i in range(END_OF_WALK - FIRST_OF_WALK):
        core.before[i] = core.count[FIRST_OF_WALK + i]


@inlined
def counted(core: Core, counter: int) -> int:
    """Return how often the access that began last has counted one of a walk's counters."""
    return core.count[counter] - core.before[counter - FIRST_OF_WALK]


@inlined
def log(core: Core, kind: int, level: int, page: int, address: int, result: int) -> None:
    """Write one line of the log, if anyone wants it."""
    if core.log_on:
        _write_log(core, kind, level, page, address, result)


@kernel
def _write_log(core: Core, kind: int, level: int, page: int, address: int, result: int) -> None:
    apart()
    line = min(core.log_length, LOG - 1)
    core.log[line, 0] = kind
    core.log[line, 1] = level
    core.log[line, 2] = page
    core.log[line, 3] = address
    core.log[line, 4] = result
    core.log_length = line + 1


@kernel
def write_entry(core: Core, pool: Pool, place: int, entry: int) -> None:
    """Write a page-table entry, undoably; a core that only looks on writes none."""
    apart()
    if core.shadow:
        return
    note(core, TABLE_WRITTEN, place, 0, pool[place], 0)
    pool[place] = entry


@kernel
def _shift_back(cells: Cells, at: int, way: int) -> int:
    """Undo a move to the front from ``way``; return what was at the front."""
    apart()
    front = cells[at]
    for i in range(way):
        cells[at + i] = cells[at + i + 1]
    return front


@kernel
def roll_back(core: Core, cells: Cells, pool: Pool) -> None:
    """Undo every change in the journal, the last one first, and every count."""
    apart()
    for i in range(END_OF_WALK - FIRST_OF_WALK):
        core.count[FIRST_OF_WALK + i] = core.before[i]
    for line in range(core.journal_length - 1, -1, -1):
        what, at, ways = core.journal[line, 0], core.journal[line, 1], core.journal[line, 2]
        old, old_value = core.journal[line, 3], core.journal[line, 4]
        if what == TABLE_WRITTEN:
            pool[at] = old
        elif what == TOUCHED:
            cells[at + old] = _shift_back(cells, at, old)
            cells[at + ways + old] = _shift_back(cells, at + ways, old)
        elif what == REPLACED:
            cells[at + old] = _shift_back(cells, at, old)
            _shift_back(cells, at + ways, old)
            cells[at + ways + old] = old_value
        elif what == FILLED:
            _shift_back(cells, at, ways - 1)
            _shift_back(cells, at + ways, ways - 1)
            cells[at + ways - 1] = old
            cells[at + 2 * ways - 1] = old_value
        else:  # LINE_TOUCHED or LINE_FILLED
            _shift_back(cells, at, old)
            cells[at + old] = old_value
    core.journal_length = 0
