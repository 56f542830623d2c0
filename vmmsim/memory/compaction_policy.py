"""When compaction is tried, and when it is let be. L: mm/compaction.c. The actor does the waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmmsim.memory.fragmentation import extfrag, fragmentation_index
from vmmsim.memory.frames import PAGEBLOCK_ORDER
from vmmsim.memory.moves import Result
from vmmsim.rates import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.memory.measures import Measures
    from vmmsim.memory.zone import Zone


def _whole(path: str) -> int:
    return int(number(f"compaction.{path}"))


# Proactive compaction


@attrs.frozen
class Marks:
    """Scores between which proactive compaction works."""

    low: int
    """It ends at this score or below."""
    high: int
    """It begins above this score."""


def marks(proactiveness: int | None = None) -> Marks:
    """Return the marks for ``proactiveness`` (0..100; None: the default). L: fragmentation_score_wmark."""
    wanted = _whole("proactiveness") if proactiveness is None else proactiveness
    if not 0 <= wanted <= 100:
        raise ValueError(f"proactiveness(={wanted}) must be in 0..100")
    low = max(100 - wanted, _whole("least_low_mark"))
    return Marks(low=low, high=min(low + _whole("mark_distance"), 100))


def score(memory: Measures, part: int) -> int:
    """Return the score of one part: per cent of its free memory in blocks below 2 MiB."""
    return extfrag(free_blocks(memory, part), PAGEBLOCK_ORDER)


def free_blocks(memory: Measures, part: int) -> NDArray[np.int64]:
    """Return int64[ORDERS]: the free blocks of ``part``, leased ones left out."""
    blocks: NDArray[np.int64] = memory.zone.blocks[part, :, :3].sum(axis=1)
    return blocks


def should_begin(node_score: int, *, proactiveness: int | None = None, reclaiming: bool = False) -> bool:
    """Tell whether proactive compaction begins. L: should_proactive_compact_node.

    node_score  the score of ``Memory.fragmentation()``
    reclaiming  whether kswapd runs
    """
    wanted = _whole("proactiveness") if proactiveness is None else proactiveness
    return wanted > 0 and not reclaiming and node_score > marks(wanted).high


def check_interval_ns() -> int:
    """Return the time between two tests of the score."""
    return _whole("check_interval_ms") * 1_000_000


def next_check_ns(score_before: int, score_after: int) -> int:
    """Return when to test again after a run: much later if it made no progress. L: kcompactd."""
    if score_after < score_before:
        return check_interval_ns()
    return check_interval_ns() << _whole("defer_shift_max")


# Compaction for a request


def gap(order: int) -> int:
    """Return the free pages that compaction for ``order`` needs to work with. L: compact_gap."""
    return 2 << order


def suitable(memory: Measures, part: int, order: int) -> Result:
    """Return whether to compact for a request of ``order``: CONTINUE, or why not.

    SUCCESS: it can be served already. SKIPPED, NOT_SUITABLE_ZONE: reclaim instead. L: compaction_suitable.
    """
    zone, free = memory.zone, free_blocks(memory, part)
    least, low = int(zone.watermark[0, part]), int(zone.watermark[1, part])
    pages = int(zone.free[part])
    if pages - (1 << order) + 1 > least and free[order:].any():
        return Result.SUCCESS
    costly = order > _whole("costly_order")
    if pages <= (low if costly else least) + gap(order):
        return Result.SKIPPED
    index = fragmentation_index(free, order)
    if costly and 0 <= index <= _whole("extfrag_threshold"):
        return Result.NOT_SUITABLE_ZONE
    return Result.CONTINUE


# Deferral: after failures, skip ever more attempts


def deferred(zone: Zone, part: int, order: int) -> bool:
    """Count an attempt for ``order``; tell whether it is to be skipped. L: compaction_deferred."""
    if order < zone.order_failed[part]:
        return False
    limit = 1 << int(zone.defer_shift[part])
    zone.considered[part] = min(zone.considered[part] + 1, limit)
    return bool(zone.considered[part] < limit)


def defer(zone: Zone, part: int, order: int) -> None:
    """Note that a run for ``order`` ended without success. L: defer_compaction."""
    zone.considered[part] = 0
    zone.defer_shift[part] = min(zone.defer_shift[part] + 1, _whole("defer_shift_max"))
    zone.order_failed[part] = min(zone.order_failed[part], order)


def undefer(zone: Zone, part: int, order: int, *, allocated: bool) -> None:
    """Note success: a run for ``order``, or the allocation itself. L: compaction_defer_reset."""
    if allocated:
        zone.considered[part] = zone.defer_shift[part] = 0
    zone.order_failed[part] = max(zone.order_failed[part], order + 1)


def restarting(zone: Zone, part: int, order: int) -> bool:
    """Tell whether the longest deferral is over: everything is looked at anew. L: compaction_restarting."""
    shift = _whole("defer_shift_max")
    if order < zone.order_failed[part] or zone.defer_shift[part] < shift:
        return False
    return bool(zone.considered[part] >= 1 << shift)
