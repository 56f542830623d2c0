"""Recount a memory from scratch: what its book says, frame by frame, against its lists and counts.

Written with NumPy and plain Python, apart from the kernels that it checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmmsim.memory.frames import (
    HEAD,
    IMMOVABLE,
    ISOLATED,
    KINDS,
    MAX_ORDER,
    NOBODY,
    ORDERS,
    PAGEBLOCK,
    PAGEBLOCK_ORDER,
    TYPES,
    Kind,
    MigrateType,
)
from vmmsim.memory.zone import ABSENT, BLOCK_WORDS, FRESH, LEASED, NIL, PARTS, TOP, TYPE_MASK, part_bounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.memory.ledger import Memory

MOVABLE_KINDS = [Kind.USER, Kind.CACHE, Kind.BALLOON]


def audit(memory: Memory) -> None:
    """Check all that must hold; AssertionError says what does not."""
    book = Book(memory)
    owner_of_free = book.walk_lists()
    book.check_free(owner_of_free)
    book.check_merged()
    book.check_counts()
    book.check_places()
    book.check_tokens()


class Book:
    """The records of a memory, spread out for checking."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.zone = memory, memory.zone
        records = memory.words.reshape(-1, 3).view(np.uint8).reshape(-1, 12)
        self.heads, self.tails = np.asarray(self.zone.head), np.asarray(self.zone.tail)
        self.listed = np.asarray(self.zone.blocks)
        self.kind, self.order = records[:, 8].copy(), records[:, 9].copy()
        self.mark = records[:, 10].copy()
        words = memory.blocks.reshape(-1, BLOCK_WORDS)
        self.tag = words[:, 0]
        self.counts = words[:, 1:]
        self.type = np.where(self.tag & LEASED, int(MigrateType.ISOLATE), self.tag & TYPE_MASK)
        absent = np.repeat((self.tag & ABSENT) != 0, PAGEBLOCK)
        self.fresh = np.repeat((self.tag & FRESH) != 0, PAGEBLOCK)
        assert not self.mark[absent | self.fresh].any(), "a record that nobody should write was written"
        assert (self.kind[self.fresh] == Kind.FREE).all(), "a fresh pageblock is in use"
        self.kind[absent] = Kind.HOLE
        self.free = (self.kind == Kind.FREE) & (self.mark & ISOLATED == 0)

    def walk_lists(self) -> NDArray[np.int64]:
        """Follow every free list both ways; return the first frame of the block that each listed frame is in."""
        block_of = np.full(len(self.kind), NIL, np.int64)
        for part in range(PARTS):
            start, end = part_bounds(self.zone, part)
            for order in range(ORDERS):
                for kind in range(TYPES):
                    if self.is_empty(part, order, kind):
                        continue
                    self.walk_list(part, order, kind, (start, end), block_of)
        return block_of

    def is_empty(self, part: int, order: int, kind: int) -> bool:
        """Tell whether a list says of itself that it is empty, in every way it can; fresh blocks are counted too."""
        list_ = part, order, kind
        counted = self.listed[list_] or (order == MAX_ORDER and kind == MigrateType.MOVABLE)
        return not counted and self.heads[list_] == self.tails[list_] == NIL

    def walk_list(self, part: int, order: int, kind: int, bounds: tuple[int, int], block_of: NDArray[np.int64]) -> None:
        """Follow one list."""
        where = f"list of part {part}, order {order}, type {MigrateType(kind).name}"
        words = self.memory.words
        before, at, length = NIL, int(self.zone.head[part, order, kind]), 0
        while at != NIL:
            assert bounds[0] <= at < bounds[1], f"{where}: frame {at} is not of this part"
            assert at % (1 << order) == 0, f"{where}: no block can begin at frame {at}"
            block = slice(at, at + (1 << order))
            assert (self.mark[at], self.order[at]) == (HEAD, order), f"{where}: frame {at} heads no such block"
            assert (block_of[block] == NIL).all(), f"{where}: block {at} is in a list twice, or overlaps another"
            assert self.free[block].all(), f"{where}: block {at} holds a frame that is not free"
            assert not self.mark[at + 1 : at + (1 << order)].any(), f"{where}: a mark inside block {at}"
            types = self.type[at // PAGEBLOCK : (at + (1 << order) - 1) // PAGEBLOCK + 1]
            assert (types == kind).all(), f"{where}: pageblock of frame {at} is of type {types}"
            assert int(words[3 * at]) == before, f"{where}: link back from {at} is broken"
            block_of[block] = at
            before, at, length = at, int(words[3 * at + 1]), length + 1
        assert int(self.zone.tail[part, order, kind]) == before, f"{where}: tail"
        if order == MAX_ORDER and kind == MigrateType.MOVABLE:
            length += int(self.zone.fresh[part])
        assert int(self.zone.blocks[part, order, kind]) == length, f"{where}: holds {length} blocks"

    def check_free(self, block_of: NDArray[np.int64]) -> None:
        """Free frames are those in lists, and the fresh ones; fresh pageblocks come in pairs, and are counted."""
        lost = np.flatnonzero(self.free & ~self.fresh & (block_of == NIL))
        assert not lost.size, f"frame {lost[0]} is free, but in no list"
        assert not (self.fresh & (block_of != NIL)).any(), "a fresh block is in a list"
        pairs = (self.tag & FRESH != 0).reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all(), "half a block is fresh"
        numbers = np.flatnonzero(pairs[:, 0])
        upper = numbers * TOP >= int(self.zone.kernelcore)
        for part, mine in enumerate((numbers[~upper], numbers[upper])):
            assert len(mine) == int(self.zone.fresh[part]), f"part {part} has {len(mine)} fresh blocks"
            assert not mine.size or mine[0] >= int(self.zone.fresh_next[part]), "a fresh block was passed over"

    def check_merged(self) -> None:
        """No two free buddies are apart, but for pageblocks of which only one is leased."""
        heads = np.flatnonzero(self.mark & HEAD)
        for order in range(MAX_ORDER):
            mine = heads[self.order[heads] == order]
            buddies = mine ^ (1 << order)
            apart = (self.mark[buddies] & HEAD != 0) & (self.order[buddies] == order)
            if order == PAGEBLOCK_ORDER:
                leased = self.type == MigrateType.ISOLATE
                apart &= leased[mine // PAGEBLOCK] == leased[buddies // PAGEBLOCK]
            assert not apart.any(), f"frames {mine[apart][:1]} and its buddy are free, of order {order}, and apart"

    def check_counts(self) -> None:
        """Counts of kinds, of parts and of pageblocks."""
        kinds = np.bincount(self.kind, minlength=KINDS)
        assert (kinds == self.zone.kinds).all(), f"frames by kind: {kinds}, counted {self.zone.kinds}"
        leased = np.repeat(self.type == MigrateType.ISOLATE, PAGEBLOCK)
        for part in range(PARTS):
            mine: Any = slice(*part_bounds(self.zone, part))
            free, in_lease, holes = self.free[mine], leased[mine], self.kind[mine] == Kind.HOLE
            assert int((free & ~in_lease).sum()) == int(self.zone.free[part]), f"free pages of part {part}"
            assert int((free & in_lease).sum()) == int(self.zone.leased_free[part]), f"leased pages of part {part}"
            assert int((~holes).sum()) == int(self.zone.present[part]), f"present pages of part {part}"
        per_block = (self.free, np.isin(self.kind, MOVABLE_KINDS), self.kind == Kind.CACHE)
        for column, frames in enumerate(per_block):
            found = frames.reshape(-1, PAGEBLOCK).sum(axis=1)
            wrong = np.flatnonzero(found != self.counts[:, column])
            assert not wrong.size, f"pageblock {wrong[0]}, count {column}: {found[wrong[0]]} are there"

    def check_places(self) -> None:
        """Immovable kinds stay out of the movable part; marks are on frames that can have them."""
        upper = self.kind[int(self.zone.kernelcore) :]
        strangers = np.isin(upper, [kind for kind in IMMOVABLE if kind not in (Kind.HOLE, Kind.BAD)])
        assert not strangers.any(), "a frame that cannot move is in the movable part"
        beyond = self.kind[self.memory.pages :]
        assert (beyond == Kind.HOLE).all(), "a frame beyond the last one is in use"

    def check_tokens(self) -> None:
        """What tokens hold is marked, once; what is marked is held; leases are what is leased."""
        held = np.zeros(len(self.kind), np.int64)
        leased = np.zeros(len(self.tag), np.int64)
        for token in self.memory.tokens.values():
            np.add.at(held, token.frames, 1)
            if token.range is not None:
                leased[token.range[0] // PAGEBLOCK : token.range[1] // PAGEBLOCK] += 1
        isolated = (self.mark & ISOLATED != 0).astype(np.int64)
        wrong = np.flatnonzero(held != isolated)
        assert not wrong.size, f"frame {wrong[0]}: held {held[wrong[0]]} times, marked {isolated[wrong[0]]}"
        wrong = np.flatnonzero(leased != (self.tag & LEASED != 0))
        assert not wrong.size, f"pageblock {wrong[0]}: leased {leased[wrong[0]]} times, tagged {self.tag[wrong[0]]}"


assert NOBODY == NIL
