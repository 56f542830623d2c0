"""What can be read of a memory: counts, measures and searches. Nothing here changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.memory import ranges, survey
from vmmsim.memory.fragmentation import Fragmentation
from vmmsim.memory.frames import NOBODY, PAGEBLOCK, Frames, Kind
from vmmsim.memory.watermarks import Watermarks
from vmmsim.memory.zone import ABSENT, BLOCK_WORDS, FREE_FRAMES, LEASED, TAG, allocate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from vmmsim.memory.tokens import Token


def frame_list(frames: ArrayLike) -> NDArray[np.int64]:
    """Return one frame or many as int64[n]."""
    return np.ascontiguousarray(np.atleast_1d(frames), np.int64)


class Measures:
    """The state of a memory, and all that is read of it; ``ledger.Memory`` is this and what changes it."""

    def __init__(self, pages: int, *, name: str, kernelcore: int | None) -> None:
        if pages <= 0:
            raise ValueError(f"pages(={pages}) must be > 0")
        self.name = name
        self.pages = pages
        self.zone, self.records, self.blocks = allocate(pages, kernelcore)
        self.words = self.records.view(np.int32)
        self.tokens: dict[int, Token] = {}
        """Open tokens by number: what is left here at the end has leaked."""

    @property
    def frames(self) -> Frames:
        """FRAME[pages]: the records, to be read. Of free frames only kind and marks mean anything; see ``kinds``."""
        return self.records[: self.pages]

    @property
    def present_pages(self) -> int:
        """Frames that are no holes, retired ones included."""
        return int(self.zone.present.sum())

    @property
    def managed_pages(self) -> int:
        """Frames that the allocator has or may get back: present and not retired."""
        return self.present_pages - int(self.zone.kinds[Kind.BAD])

    @property
    def free_pages(self) -> int:
        """Frames that could be allocated: what is free in leased ranges does not count."""
        return int(self.zone.free.sum())

    @property
    def watermarks(self) -> Watermarks:
        """The watermarks of all parts together."""
        return Watermarks(*(int(mark.sum()) for mark in self.zone.watermark))

    def kinds(self, frames: ArrayLike) -> NDArray[np.uint8]:
        """Return the kind of each of ``frames``; HOLE also where no record was ever written."""
        wanted = frame_list(frames)
        absent = self.blocks[wanted // PAGEBLOCK * BLOCK_WORDS + TAG] & ABSENT
        return np.where(absent != 0, np.uint8(Kind.HOLE), self.records["kind"][wanted])

    def is_free(self, start: int, end: int) -> bool:
        """Tell whether all of [start, end) is free (in a lease or not)."""
        return bool(survey.free_between(self.words, self.blocks, start, end) == end - start)

    def count(self, kind: Kind | None = None, owner: int | None = None) -> int:
        """Return how many frames are of ``kind`` and belong to ``owner``; None: any (holes only if asked for)."""
        if owner is not None:
            found = self.owned(owner)
            return len(found) if kind is None else int((self.records["kind"][found] == kind).sum())
        if kind == Kind.HOLE:
            return self.pages - self.present_pages
        return self.present_pages if kind is None else int(self.zone.kinds[kind])

    def owned(self, owner: int) -> NDArray[np.int64]:
        """Return the frames in use that belong to ``owner``, in order."""
        return survey.owned(self.words, self.blocks, owner)

    def free_pageblocks(self) -> NDArray[np.bool_]:
        """Return bool[pageblocks]: which are free from end to end, and neither leased nor held by anybody."""
        blocks = self.blocks.reshape(-1, BLOCK_WORDS)[: self.pages // PAGEBLOCK]
        return np.asarray((blocks[:, FREE_FRAMES] == PAGEBLOCK) & (blocks[:, TAG] & (ABSENT | LEASED) == 0))

    def survey(self, owner: int = NOBODY) -> NDArray[np.int16]:
        """Return int16[pageblocks, len(Column)]: what the frames of each pageblock are, seen by ``owner``."""
        return survey.survey(self.words, self.blocks, owner)[: -(-self.pages // PAGEBLOCK)]

    def fragmentation(self) -> Fragmentation:
        """Return Linux's measures of the free memory that can be allocated."""
        nr_free = self.zone.blocks[:, :, :3].sum(axis=2)
        return Fragmentation.of(nr_free, self.zone.present)

    def largest_free_run(self) -> int:
        """Return the pages of the longest run of free frames, across pageblocks, outside leases. Scans memory."""
        return ranges.longest_free_run(self.zone, self.words, self.blocks)

    def find_free_run(self, pages: int, *, align: int = PAGEBLOCK, within: tuple[int, int] | None = None) -> int:
        """Return the first multiple of ``align`` where ``pages`` frames are free outside leases, or -1."""
        return ranges.first_free_run(self.zone, self.words, self.blocks, pages, align, within)

    def holder(self, start: int, end: int | None = None) -> str:
        """Return who holds a frame of [start, end), or leases its pageblock; "" if nobody does."""
        stop = start + 1 if end is None else end
        for token in self.tokens.values():
            if ((token.frames >= start) & (token.frames < stop)).any():
                return token.by
        for token in self.tokens.values():
            if token.range is not None and token.range[0] < stop and start < token.range[1]:
                return token.by
        return ""
