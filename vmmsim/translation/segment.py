"""Direct segments: one add and compare in place of a walk, and the filter of pages that must not use it.

A segment maps page p, BASE <= p < LIMIT, to p + OFFSET. Both dimensions may have one. BASE = LIMIT is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.escape_filter import filter_hits, is_member
from vmmsim.translation.journal import log
from vmmsim.translation.state import SEGMENT, Count, Step

if TYPE_CHECKING:
    from vmmsim.translation.types import Core, Pool

OFF = 0
COVERED = 1
OUTSIDE = 2
ESCAPED = 3


@inlined
def compare(core: Core, dimension: int, page: int) -> int:
    """Return what the segment of ``dimension`` says of ``page``: OFF, COVERED, OUTSIDE or ESCAPED."""
    if core.kind[dimension] != SEGMENT or core.segment_base[dimension] >= core.segment_limit[dimension]:
        return OFF
    if page < core.segment_base[dimension] or page >= core.segment_limit[dimension]:
        return OUTSIDE
    if core.filter_banks[dimension] > 0 and filter_hits(core, dimension, page):
        return ESCAPED
    return COVERED


@inlined
def covers(core: Core, dimension: int, page: int) -> bool:
    """Compare, and count a compare that fails. One that succeeds is counted where it is used."""
    said = compare(core, dimension, page)
    if said > COVERED:
        _count_failed(core, dimension, page, said)
    return said == COVERED


@kernel
def _count_failed(core: Core, dimension: int, page: int, said: int) -> None:
    """Count a compare that failed; a page in range was sent away by the filter, truly or falsely."""
    apart()
    core.count[Count.CHECKS_FAILED] += 1
    if said == ESCAPED:
        log(core, Step.GUEST_ESCAPE + dimension, 0, page, -1, -1)
        core.count[Count.ESCAPES] += 1
        if not is_member(core, dimension, page):
            core.count[Count.FALSE_ESCAPES] += 1
    else:
        log(core, Step.GUEST_OUTSIDE + dimension, 0, page, -1, -1)


@kernel
def largest_size(core: Core, pool: Pool, dimension: int, page: int, most: int) -> int:
    """Return the largest page size, at most ``most``, at which an entry for ``page`` may be filled.

    The aligned page must lie wholly in the segment, OFFSET must be a multiple of its size, and no page of it may
    escape, which the escape map of 2 MiB blocks says without looking at each page.
    """
    apart()
    for size in range(most, 0, -1):
        pages = 1 << 9 * size
        first = page & -pages
        if first < core.segment_base[dimension] or first + pages > core.segment_limit[dimension]:
            continue
        if core.segment_offset[dimension] & (pages - 1) == 0 and not _any_escape(core, pool, dimension, first, pages):
            return size
    return 0


@kernel
def _any_escape(core: Core, pool: Pool, dimension: int, first: int, pages: int) -> bool:
    """Tell whether the filter hits any page of [first, first + pages), whole blocks of 2 MiB."""
    apart()
    if core.filter_banks[dimension] == 0 or core.members_count[dimension] == 0:
        return False
    start = core.escape_map[dimension]
    origin = core.segment_base[dimension] >> 9
    for block in range((first >> 9) - origin, ((first + pages) >> 9) - origin):
        if pool[start + (block >> 5)] >> (block & 31) & 1:
            return True
    return False
