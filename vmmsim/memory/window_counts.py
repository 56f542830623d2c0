"""What lies in a window of the host, and where the pages that are to fill it lie: the loops over pages of `window`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import inlined, kernel
from vmmsim.memory.frames import ISOLATED, PAGEBLOCK, PAGEBLOCK_ORDER, PINNED, Kind
from vmmsim.memory.survey import Column

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.memory.frames import Frames

IN_PLACE: Final = 0
WRONG_SLOT: Final = 1
OUTSIDE: Final = 2
ABSENT: Final = 3
OTHERS: Final = 4
FREE: Final = 5
ESCAPED: Final = 6
BUSY: Final = 7
REFUGES: Final = 8
"""Frames outside the window that escaped pages need: those absent, and those that must leave it."""
COUNTS: Final = 9
"""What ``count_window`` counts, by position."""

IMMOVABLE: Final = int(Column.IMMOVABLE)


@inlined
def _is_stuck(frames: Frames, survey: NDArray[np.int16], hfn: int) -> bool:
    """Tell whether a frame is immovable, bad or pinned. The records of a block that is a hole may say nothing."""
    if survey[hfn >> PAGEBLOCK_ORDER, IMMOVABLE] == PAGEBLOCK:
        return True
    kind = frames[hfn]["kind"]
    return (
        kind == Kind.HOLE
        or kind == Kind.KERNEL
        or kind == Kind.SLAB
        or kind == Kind.TABLE
        or kind == Kind.BAD
        or frames[hfn]["mark"] & PINNED != 0
    )


@kernel
def any_pinned(frames: Frames) -> bool:
    """Tell whether any frame is pinned."""
    for i in range(frames.size):
        if frames[i]["mark"] & PINNED:
            return True
    return False


@kernel
def tally_pinned(backing: NDArray[np.integer], frames: Frames, out: NDArray[np.int64]) -> None:
    """Count the pinned pages among ``backing`` by the pageblock that they lie in: ``out`` int64[blocks], added to."""
    for i in range(backing.size):
        if backing[i] >= 0 and frames[backing[i]]["mark"] & PINNED:
            out[backing[i] >> PAGEBLOCK_ORDER] += 1


@kernel
def tally(
    backing: NDArray[np.integer],
    base: int,
    lowest: int,
    near: NDArray[np.int64],
    aligned: NDArray[np.int64],
    own: NDArray[np.int64],
) -> None:
    """Count resident pages by their offset hfn - gfn, and by the pageblock that they lie in.

    near     int64[q], added to: pages whose offset is in [512 q, 512 q + 512), q from ``lowest``
    aligned  int64[q], added to: those whose offset is 512 q exactly
    own      int64[blocks of the host], added to
    """
    for i in range(backing.size):
        hfn = backing[i]
        if hfn < 0:
            continue
        own[hfn >> PAGEBLOCK_ORDER] += 1
        offset = hfn - base - i
        q = (offset >> PAGEBLOCK_ORDER) - lowest
        near[q] += 1
        if offset & (1 << PAGEBLOCK_ORDER) - 1 == 0:
            aligned[q] += 1


@kernel
def tally_within(
    backing: NDArray[np.integer], base: int, lowest: int, row: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Count pages by their exact offset, in the ranges of 512 offsets that ``row[q]`` (-1: none) gives a row of out."""
    mask = (1 << PAGEBLOCK_ORDER) - 1
    for i in range(backing.size):
        hfn = backing[i]
        if hfn < 0:
            continue
        offset = hfn - base - i
        place = row[(offset >> PAGEBLOCK_ORDER) - lowest]
        if place >= 0:
            out[place, offset & mask] += 1


@inlined
def _is_barred(frames: Frames, hfn: int, owner: int) -> bool:
    """Tell whether a frame holds mapped memory, movable by kind, of somebody else than ``owner``."""
    return frames[hfn]["kind"] == Kind.USER and frames[hfn]["owner"] != owner and frames[hfn]["mark"] & PINNED == 0


@kernel
def tally_barred(frames: Frames, owner: int, out: NDArray[np.int64]) -> None:
    """Count mapped pages of others than ``owner`` by the pageblock that they lie in, into ``out``, int64[blocks]."""
    for i in range(frames.size):
        if _is_barred(frames, i, owner):
            out[i >> PAGEBLOCK_ORDER] += 1


@kernel
def count_barred(
    frames: Frames, owner: int, sums: NDArray[np.int64], start: NDArray[np.int64], pages: int, out: NDArray[np.int64]
) -> None:
    """Write to ``out[k]`` how many mapped pages of others than ``owner`` the ``pages`` frames from ``start[k]`` hold.

    sums  int64[blocks + 1]: how many the pageblocks before each hold, all together
    """
    for k in range(start.size):
        total = 0
        for edge in range(2):
            hfn = start[k] + edge * pages
            block = hfn >> PAGEBLOCK_ORDER
            below = sums[block]
            for i in range(block << PAGEBLOCK_ORDER, hfn):
                if _is_barred(frames, i, owner):
                    below += 1
            total = below - total
        out[k] = total


@kernel
def mark_escaped(
    backing: NDArray[np.integer],
    frames: Frames,
    survey: NDArray[np.int16],
    start: int,
    pinned: bool,
    escaped: NDArray[np.uint8],
) -> int:
    """Mark (1) the pages of a segment that can have no slot in the window at hfn ``start``; return how many.

    These are pages whose slot is an immovable or bad frame, or holds a pinned page that is not they; and pages that
    are pinned elsewhere. ``pinned`` is False where no frame of the host is, which saves a look at each page's frame.
    """
    count = 0
    for i in range(backing.size):
        hfn = backing[i]
        mark = 0
        if hfn != start + i:
            is_pinned = pinned and hfn >= 0 and frames[hfn]["mark"] & PINNED
            mark = 1 if is_pinned or _is_stuck(frames, survey, start + i) else 0
        escaped[i] = mark
        count += mark
    return count


@kernel
def count_window(
    backing: NDArray[np.integer],
    frames: Frames,
    survey: NDArray[np.int16],
    start: int,
    escaped: NDArray[np.uint8],
    pinned: bool,
    counts: NDArray[np.int64],
) -> None:
    """Write to ``counts`` (int64[COUNTS]) what building a segment over the window at hfn ``start`` would meet."""
    counts[:] = 0
    pages = backing.size
    in_slots = 0  # our pages in slots that do not escape, and movable frames there: the difference is others' pages
    movable = 0
    for i in range(pages):
        hfn = backing[i]
        slot = hfn - start
        counts[ESCAPED] += escaped[i]
        if hfn < 0:
            counts[ABSENT] += 1
            counts[REFUGES] += escaped[i]
        elif not 0 <= slot < pages:
            if not escaped[i]:
                counts[OUTSIDE] += 1
        elif slot == i:
            counts[IN_PLACE] += 1
        elif escaped[i] and (escaped[slot] or (pinned and frames[hfn]["mark"] & PINNED)):
            pass  # it may stay: nobody else is to live there
        else:
            counts[WRONG_SLOT] += 1
            counts[REFUGES] += escaped[i]
        if 0 <= slot < pages and not escaped[slot]:
            in_slots += 1
        frame = frames[start + i]
        if frame["mark"] & ISOLATED:
            counts[BUSY] += 1
        if escaped[i]:
            counts[FREE] += frame["kind"] == Kind.FREE and not _is_stuck(frames, survey, start + i)
        elif frame["kind"] == Kind.FREE:
            counts[FREE] += 1
        else:
            movable += 1
    counts[OTHERS] = movable - in_slots
