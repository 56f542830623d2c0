"""The cache hierarchy: what a page-table reference, a data access or an instruction fetch costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.recency import line_lookup_noted
from vmmsim.translation.state import CACHE_PART, Count

if TYPE_CHECKING:
    from vmmsim.translation.types import Cells, Core


@inlined
def _look_up_line(core: Core, cells: Cells, level: int, line: int, noted: bool) -> int:
    part = CACHE_PART + level
    at = core.part_start[part] + (line & core.part_mask[part]) * core.part_ways[part]
    # FAST PATH: the line used last in its set is where a look-up would put it.
    if cells[at] == line + 1:
        return 1
    return line_lookup_noted(core, cells, at, core.part_ways[part], line + 1, noted)


@kernel
def reference_cycles(core: Core, cells: Cells, line: int) -> int:
    """Read a page-table line (hPA >> 6) as the walker does; return its latency in cycles."""
    apart()
    answer = 0
    for level in range(core.walker_cache, 4):
        if level != 1 and core.part_ways[CACHE_PART + level]:
            answer = _look_up_line(core, cells, level, line, True)
            if answer == 1:
                return core.cache_cycles[level]
    core.count[Count.REFERENCES_FROM_MEMORY] += 1
    if answer == -1:
        core.count[Count.COLD_LINES] += 1
    return core.memory_cycles


@kernel
def data_cycles(core: Core, cells: Cells, line: int, is_fetch: int) -> int:
    """Access a line (hPA >> 6) as the core does, by its data or its instruction cache; return the latency."""
    apart()
    if _look_up_line(core, cells, is_fetch, line, False) == 1:
        return core.cache_cycles[is_fetch]
    for level in range(2, 4):
        if core.part_ways[CACHE_PART + level] and _look_up_line(core, cells, level, line, False) == 1:
            return core.cache_cycles[level]
    return core.memory_cycles
