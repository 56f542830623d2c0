"""Compaction: runs of the two scanners, how they begin, go on and end. L: compact_zone, mm/compaction.c.

    run = Compaction(memory, mode=Mode.SYNC, order=9)
    while len(moves := run.plan(pages=32)):
        ...                                  # copy, remap, invalidate: that takes time
        finish(memory, moves)                # or abandon(memory, moves)
    run.result

``compact(memory, pages=32, mode=...)`` is the same with the run kept by the memory.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.memory import compaction_policy as policy
from vmmsim.memory.evacuation import Blockers, evacuate
from vmmsim.memory.frames import MAX_ORDER, PAGEBLOCK, MigrateType
from vmmsim.memory.moves import Moves, Result, abandon, finish, hold
from vmmsim.memory.scanners import FREE_AT, FREE_BLOCK, MIGRATE, RUN_WORDS, clear_skip, plan_moves
from vmmsim.memory.zone import PARTS, part_bounds
from vmmsim.rates import number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.ledger import Memory

__all__ = ["Blockers", "Compaction", "Mode", "Moves", "Result", "abandon", "compact", "evacuate", "finish"]


class Mode(IntEnum):
    """How hard a run tries."""

    ASYNC = 0
    """For a page fault, at first: movable pageblocks only, heeds skip bits."""
    SYNC = 1
    """For a page fault, and kcompactd: all pageblocks, heeds skip bits."""
    PROACTIVE = 2
    """kcompactd's own: the whole memory, ignores skip bits, until the score is at the low mark."""
    ALL = 3
    """The administrator's compact_memory: the whole memory, ignores skip bits, until the scanners meet."""


WHOLE: Final = (Mode.PROACTIVE, Mode.ALL)


class Compaction:
    """One run over one memory, part by part. It holds nothing between its plans."""

    def __init__(
        self, memory: Memory, *, mode: Mode, order: int = MAX_ORDER - 1, proactiveness: int | None = None
    ) -> None:
        self.memory, self.mode, self.order = memory, mode, order
        self.low_mark = policy.marks(proactiveness).low
        self.result = Result.CONTINUE
        """CONTINUE while there is more to do; then the best end of any part, as Linux takes the largest number."""
        self._best = Result.NOT_SUITABLE_ZONE
        self._parts = [part for part in reversed(range(PARTS)) if memory.zone.present[part]]
        self._run = np.zeros(RUN_WORDS, np.int64)
        self._whole = False
        self._next_part()

    def plan(self, pages: int) -> Moves:
        """Plan up to ``pages`` moves. None are planned when the run has ended: ``result`` says how."""
        old, new = np.empty(pages, np.int64), np.empty(pages, np.int64)
        planned = 0
        while self.result == Result.CONTINUE and not planned:
            ended = self._ended()
            if ended == Result.CONTINUE:
                planned = self._scan(old, new)
            else:
                self._end_part(ended)
        whole = np.zeros(planned, np.bool_)
        return hold(self.memory, old[:planned], new[:planned], whole, by="compaction", result=self.result)

    def _next_part(self) -> None:
        """Begin with the next part where there is reason to; without one, the run is over. L: try_to_compact_pages."""
        zone = self.memory.zone
        while self._parts:
            part, reason = self._parts[0], Result.CONTINUE
            if self.mode not in WHOLE:
                reason = policy.suitable(self.memory, part, self.order)
                if reason == Result.CONTINUE and policy.deferred(zone, part, self.order):
                    reason = Result.DEFERRED
            if reason == Result.CONTINUE:
                self._place(part)
                return
            self._best = max(self._best, reason)
            self._parts = [] if reason == Result.SUCCESS else self._parts[1:]
        self.result = self._best

    def _place(self, part: int) -> None:
        """Place the scanners: at the ends of ``part``, or where the last run left them."""
        zone = self.memory.zone
        start, end = part_bounds(zone, part)
        if policy.restarting(zone, part, self.order) or zone.flush_skip[part]:
            self._forget(part)
        migrate, free = int(zone.migrate_next[part, min(self.mode, 1)]), int(zone.free_next[part])
        if self.mode in WHOLE or not start <= migrate < free <= end:
            migrate, free = start, end
        self._whole = migrate == start
        self._run[:] = 0
        self._run[MIGRATE] = migrate
        self._run[FREE_BLOCK] = self._run[FREE_AT] = free - PAGEBLOCK

    def _scan(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> int:
        memory, zone, part = self.memory, self.memory.zone, self._parts[0]
        batch = int(number("compaction.cluster_pages"))
        only_movable, heed = self.mode == Mode.ASYNC, self.mode not in WHOLE
        planned = plan_moves(zone, memory.words, memory.blocks, self._run, only_movable, heed, heed, batch, old, new)
        if self.mode not in WHOLE:
            zone.migrate_next[part, : 1 + int(self.mode)] = self._run[MIGRATE] & -PAGEBLOCK
            zone.free_next[part] = self._run[FREE_BLOCK] + PAGEBLOCK
        return int(planned)

    def _ended(self) -> Result:
        """Return how the part being scanned has ended; CONTINUE: it has not. L: __compact_finished."""
        part, zone = self._parts[0], self.memory.zone
        if self._run[MIGRATE] & -PAGEBLOCK >= self._run[FREE_BLOCK]:
            return Result.COMPLETE if self._whole else Result.PARTIAL_SKIPPED
        if self.mode == Mode.PROACTIVE:
            low = policy.score(self.memory, part) <= self.low_mark
            return Result.SUCCESS if low else Result.CONTINUE
        if self.mode == Mode.ALL or self._run[MIGRATE] % PAGEBLOCK:
            return Result.CONTINUE
        # A free block of any type is one that a movable request would be served with: it claims the pageblock.
        at_least = zone.blocks[part, self.order :, : int(MigrateType.ISOLATE)]
        return Result.SUCCESS if at_least.any() else Result.CONTINUE

    def _end_part(self, ended: Result) -> None:
        """Note how a part ended, and go on with the next one unless what was wanted is there."""
        part, zone = self._parts.pop(0), self.memory.zone
        if ended in (Result.COMPLETE, Result.PARTIAL_SKIPPED):
            zone.migrate_next[part], zone.free_next[part] = part_bounds(zone, part)
            zone.flush_skip[part] = 1
            if self.mode == Mode.SYNC:
                policy.defer(zone, part, self.order)
        elif self.mode not in WHOLE:
            policy.undefer(zone, part, self.order, allocated=False)
            self._parts = []
        self._best = max(self._best, ended)
        self._next_part()

    def _forget(self, part: int) -> None:
        """Clear the skip bits of ``part`` and begin at its ends. L: __reset_isolation_suitable."""
        zone = self.memory.zone
        start, end = part_bounds(zone, part)
        clear_skip(self.memory.blocks, start // PAGEBLOCK, end // PAGEBLOCK)
        zone.migrate_next[part], zone.free_next[part], zone.flush_skip[part] = start, end, 0


def compact(memory: Memory, *, pages: int, mode: Mode = Mode.SYNC, order: int = MAX_ORDER - 1) -> Moves:
    """Plan up to ``pages`` moves of the memory's run of this mode and order, begun anew if it has none.

    Without moves, ``result`` of what is returned says how the run ended.
    """
    run = memory.compaction
    if run is None or run.mode != mode or run.order != order:
        run = memory.compaction = Compaction(memory, mode=mode, order=order)
    moves = run.plan(pages)
    if run.result != Result.CONTINUE:
        memory.compaction = None
    return moves
