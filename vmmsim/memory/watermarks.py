"""How much memory Linux keeps free: ``min_free_kbytes`` and the marks min, low and high of a zone.

L: calculate_min_free_kbytes, __setup_per_zone_wmarks (mm/page_alloc.c).
"""

from __future__ import annotations

import math

import attrs

from vmmsim.memory.frames import PAGEBLOCK
from vmmsim.rates import number


@attrs.frozen
class Watermarks:
    """Pages that stay free: below ``low`` reclaim begins, above ``high`` it ends, ``min`` is for emergencies."""

    min: int
    low: int
    high: int


def min_free_pages(managed: int) -> int:
    """Return Linux's ``min_free_kbytes`` for ``managed`` pages, in pages."""
    kib = math.isqrt(int(number("buddy.min_free_factor")) * managed * 4)
    return min(max(kib, int(number("buddy.min_free_least_kib"))), int(number("buddy.min_free_most_kib"))) // 4


def watermarks(managed: int, of: int | None = None) -> Watermarks:
    """Return the watermarks of a zone of ``managed`` pages in a memory that manages ``of`` pages (None: no more)."""
    total = managed if of is None else of
    least = min_free_pages(total) * managed // total if total else 0
    step = max(least // 4, managed * int(number("buddy.watermark_scale_factor")) // 10_000)
    return Watermarks(min=least, low=least + step, high=least + 2 * step)


def most_boost(high: int, managed: int) -> int:
    """Return the pages by which mixed pageblocks may raise the mark ``high`` of a zone. L: boost_watermark."""
    if managed < 4 * PAGEBLOCK:
        return 0
    return max(high * int(number("buddy.watermark_boost_factor")) // 10_000, PAGEBLOCK)
