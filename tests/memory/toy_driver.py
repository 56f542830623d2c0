"""One life of a toy memory, action by action, against a dict of what each frame must be.

The dict knows nothing of lists, orders or pageblocks: only who was given what. Which frames the allocator picks is its
own business; that it picks what nobody has, is not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from vmmsim.memory.frames import NOBODY, PAGEBLOCK, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.tokens import Busy, Token

FREE, HOLE, BAD = Kind.FREE, Kind.HOLE, Kind.BAD
USED = (Kind.KERNEL, Kind.SLAB, Kind.TABLE, Kind.USER, Kind.CACHE, Kind.BALLOON)
UNMOVABLE = (Kind.KERNEL, Kind.SLAB, Kind.TABLE)


class ToyDriver:
    """A memory, the dict, and a count of what was exercised."""

    def __init__(self, pages: int = 4096, kernelcore: int | None = 2048) -> None:
        self.hole = (1200, 1600)
        self.memory = Memory(pages, name="toy", holes=[self.hole], kernelcore=kernelcore)
        self.kernelcore = pages if kernelcore is None else kernelcore
        self.pages = pages
        self.is_what: dict[int, tuple[Any, int, int]] = {
            frame: (HOLE if self.hole[0] <= frame < self.hole[1] else FREE, NOBODY, NOBODY) for frame in range(pages)
        }
        self.held: dict[int, Token] = {}
        self.leases: list[Token] = []
        self.leased_blocks: set[int] = set()
        self.met: Counter[str] = Counter()

    # what the dict says

    def kind(self, frame: int) -> Any:
        return self.is_what[frame][0]

    def leased(self, frame: int) -> bool:
        return frame // PAGEBLOCK in self.leased_blocks

    def used(self) -> list[int]:
        return [frame for frame, (kind, _, _) in self.is_what.items() if kind in USED]

    def available(self) -> int:
        return sum(
            kind == FREE and frame not in self.held and not self.leased(frame)
            for frame, (kind, _, _) in self.is_what.items()
        )

    # actions

    def take(self, count: int, order: int, kind: Kind, owner: int) -> None:
        pages = np.arange(count) * 1000
        before = self.available()
        got = self.memory.take(count, kind=kind, owner=owner, pages=pages, order=order, floor=0)
        self.met["take short" if len(got) < count else "take"] += 1
        self.met["large take"] += order >= 9 and len(got) > 0
        for index, first in enumerate(got.tolist()):
            assert first % (1 << order) == 0
            for offset in range(1 << order):
                frame = first + offset
                assert self.kind(frame) == FREE, f"frame {frame} was given twice"
                assert frame not in self.held
                assert not self.leased(frame)
                assert kind not in UNMOVABLE or frame < self.kernelcore
                self.is_what[frame] = (kind, owner, 1000 * index + offset)
        if order == 0 and len(got) < count and kind not in UNMOVABLE:
            assert len(got) == before, "movable pages were refused while memory was free"

    def give_back(self, frames: list[int]) -> None:
        bad = [frame in self.held or self.kind(frame) not in USED for frame in frames]
        if any(bad):
            first = frames[bad.index(True)]
            self.refused(lambda: self.memory.give_back(frames), Busy if first in self.held else ValueError)
        else:
            self.memory.give_back(frames)
            self.become(frames, FREE)
            self.met["give back"] += len(frames) > 0
            self.met["give back in lease"] += any(map(self.leased, frames))

    def give_back_twice(self, frame: int) -> None:
        """Name a frame that could be given back twice in one call."""
        if self.kind(frame) in USED and frame not in self.held:
            self.refused(lambda: self.memory.give_back([frame, frame]), ValueError)
            self.met["give back twice"] += 1

    def give_back_block(self, first: int, order: int) -> None:
        block = list(range(first, first + (1 << order)))
        if all(self.kind(frame) in USED and frame not in self.held for frame in block):
            self.memory.give_back(first, order=order)
            self.become(block, FREE)
            self.met["give back block"] += 1

    def assign(self, frames: list[int], owner: int) -> None:
        if all(self.kind(frame) in USED and frame not in self.held for frame in frames):
            self.memory.assign(frames, owner=owner, pages=np.arange(len(frames)))
            for page, frame in enumerate(frames):
                self.is_what[frame] = (self.kind(frame), owner, page)
            self.met["assign"] += 1

    def isolate(self, frames: list[int]) -> None:
        bad = any(
            frame in self.held or self.kind(frame) in (HOLE, BAD) or (self.kind(frame) == FREE and self.leased(frame))
            for frame in frames
        )
        if bad:
            self.refused(lambda: self.memory.isolate(frames, "toy"), Busy)
            return
        token = self.memory.isolate(frames, "toy")
        self.held.update(dict.fromkeys(frames, token))
        self.met["isolate free"] += any(self.kind(frame) == FREE for frame in frames)
        self.met["isolate used"] += any(self.kind(frame) != FREE for frame in frames)

    def lease(self, first: int, last: int) -> None:
        start, end = first * PAGEBLOCK, last * PAGEBLOCK
        if any(self.leased(block) for block in range(start, end, PAGEBLOCK)):
            self.refused(lambda: self.memory.isolate_range(start, end, "toy"), Busy)
        else:
            self.leases.append(self.memory.isolate_range(start, end, "toy"))
            self.leased_blocks |= set(range(first, last))
            self.met["lease"] += 1

    def take_leased(self, lease: Token, kind: Kind) -> None:
        assert lease.range is not None
        start, end = lease.range
        free = [frame for frame in range(start, end) if self.kind(frame) == FREE and frame not in self.held]
        self.refused(lambda: self.memory.take_range(start, end, kind=kind), Busy)
        got = self.memory.take_range(start, end, kind=kind, owner=5, pages=np.arange(start, end), token=lease)
        assert got.tolist() == free
        for frame in free:
            self.is_what[frame] = (kind, 5, frame)
        self.met["take leased"] += len(free) > 0

    def end_lease(self, lease: Token) -> None:
        self.memory.release(lease)
        self.leases.remove(lease)
        assert lease.range is not None
        self.leased_blocks -= set(range(lease.range[0] // PAGEBLOCK, lease.range[1] // PAGEBLOCK))
        self.met["end lease"] += 1

    def commit(self, token: Token, kind: Any, owner: int) -> None:
        frames = token.frames.tolist()
        if kind is None and any(self.kind(frame) == FREE for frame in frames):
            self.refused(lambda: self.memory.commit(token, owner=owner), ValueError)
            return
        self.memory.commit(token, kind=kind, owner=owner, pages=9)
        for frame in frames:
            del self.held[frame]
            self.is_what[frame] = (self.kind(frame) if kind is None else kind, owner, 9)
        self.met[f"commit {None if kind is None else Kind(kind).name}"] += 1

    def release(self, token: Token) -> None:
        self.memory.release(token)
        for frame in token.frames.tolist():
            del self.held[frame]
        self.met["release"] += 1

    def retire(self, frames: list[int]) -> None:
        clear = all(frame not in self.held and self.kind(frame) not in (HOLE, BAD) for frame in frames)
        if clear and not any(self.kind(frame) == FREE and self.leased(frame) for frame in frames):
            self.memory.retire(frames)
            self.become(frames, BAD)
            self.met["retire"] += 1
        else:
            self.refused(lambda: self.memory.retire(frames), Busy)

    def add(self, start: int, end: int) -> None:
        if any(map(self.leased, range(start, end))):
            self.refused(lambda: self.memory.add(start, end), Busy)
        elif any(self.kind(frame) != HOLE for frame in range(start, end)):
            self.refused(lambda: self.memory.add(start, end), ValueError)
        else:
            self.memory.add(start, end)
            self.become(list(range(start, end)), FREE)
            self.met["add"] += 1

    def remove(self, start: int, end: int) -> None:
        frames = range(start, end)
        if any(map(self.leased, frames)):
            self.refused(lambda: self.memory.remove(start, end), Busy)
        elif any(self.kind(frame) not in (FREE, BAD) or frame in self.held for frame in frames):
            self.refused(lambda: self.memory.remove(start, end), ValueError)
        else:
            self.memory.remove(start, end)
            self.become(list(frames), HOLE)
            self.met["remove"] += 1

    def drop_cache(self, count: int) -> None:
        cache = [frame for frame, (kind, _, _) in self.is_what.items() if kind == Kind.CACHE and frame not in self.held]
        assert self.memory.drop_cache(count) == min(count, len(cache))
        dropped = [frame for frame in cache if self.memory.kinds(frame)[0] == FREE]
        assert len(dropped) == min(count, len(cache))
        self.become(dropped, FREE)
        self.met["drop cache"] += len(dropped) > 0

    def run(self, pages: int, align: int) -> None:
        """Compare a search for free memory with a search of the dict."""
        free = [self.kind(at) == FREE and at not in self.held and not self.leased(at) for at in range(self.pages)]
        expected = next((at for at in range(0, self.pages - pages + 1, align) if all(free[at : at + pages])), -1)
        assert self.memory.find_free_run(pages, align=align) == expected
        self.met["run found" if expected >= 0 else "no run"] += 1
        longest, length = 0, 0
        for one in free:
            length = length + 1 if one else 0
            longest = max(longest, length)
        assert self.memory.largest_free_run() == longest

    # what must hold after each

    def become(self, frames: list[int], kind: Kind) -> None:
        self.is_what.update(dict.fromkeys(frames, (kind, NOBODY, NOBODY)))

    def refused(self, action: Any, error: type[Exception]) -> None:
        before = self.memory.words.copy(), self.memory.blocks.copy(), self.memory.zone.copy(), set(self.memory.tokens)
        try:
            action()
        except error:
            self.met[error.__name__] += 1
        else:
            raise AssertionError(f"{error.__name__} was not raised")
        assert (before[0] == self.memory.words).all(), "a refusal changed the book"
        assert (before[1] == self.memory.blocks).all(), "a refusal changed a pageblock"
        assert before[2] == self.memory.zone, "a refusal changed a count"
        assert before[3] == set(self.memory.tokens), "a refusal left a token"

    def check(self) -> None:
        """The book's own recount, and the book against the dict."""
        self.memory.check()
        frames = np.arange(self.pages)
        kinds = np.array([self.is_what[frame][0] for frame in range(self.pages)])
        assert (self.memory.kinds(frames) == kinds).all()
        used = np.isin(kinds, USED)
        for field, place in (("owner", 1), ("page", 2)):
            expected = np.array([self.is_what[frame][place] for frame in range(self.pages)])
            assert (self.memory.frames[field][used] == expected[used]).all(), f"{field} of a frame in use"
        assert self.memory.free_pages == self.available()
