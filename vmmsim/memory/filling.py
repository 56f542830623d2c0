"""Which page to copy where next, so that a window fills up: the loops over pages of `placement`.

Pages of a segment are numbered from 0, and so are the slots of its window: page i belongs in slot i. Arrays that all
of these kernels take:

backing   int32[n]  hfn of each page, or -1
occupant  int32[n]  the page in each slot, or VACANT, or FOREIGN
flags     uint8[n]  ESCAPED: the page is to live elsewhere, its slot stays empty; QUEUED: the slot is in ``queue``
leaves    uint8[b]  LEAF: the 512 pages of the block are to move together; LISTED: the block is in its queue
room      int16[b]  vacant slots of each block of slots

``start`` is the hfn of slot 0; blocks of 512 begin at slot ``lead``, and ``b`` is how many whole ones there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.jit import inlined, kernel
from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VACANT: Final = -1
"""Occupant of a slot whose frame is free."""
FOREIGN: Final = -2
"""Occupant of a slot whose frame is another's."""
ESCAPED: Final = 1
QUEUED: Final = 2
LEAF: Final = 1
LISTED: Final = 2


@inlined
def _block_of(slot: int, lead: int, blocks: int) -> int:
    """Return the block that ``slot`` is in, or -1: slots before the first and behind the last whole block."""
    if slot < lead or slot >= lead + blocks * PAGEBLOCK:
        return -1
    return (slot - lead) // PAGEBLOCK


@kernel
def settle(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    flags: NDArray[np.uint8],
    room: NDArray[np.int16],
    start: int,
    lead: int,
    free: NDArray[np.bool_],
) -> tuple[int, int, int]:
    """Write ``occupant`` and ``room``; return pages out of place, absent pages, and slots that are another's.

    ``free`` bool[n] says which slots' frames are free. Escaped pages and their slots count for nothing.
    """
    pages = backing.size
    misplaced = absent = foreign = 0
    for i in range(pages):
        occupant[i] = VACANT if free[i] else FOREIGN
    for i in range(pages):
        slot = backing[i] - start
        if backing[i] >= 0 and 0 <= slot < pages:
            occupant[slot] = i
        if not flags[i] & ESCAPED:
            absent += backing[i] < 0
            misplaced += backing[i] >= 0 and slot != i
    for i in range(pages):
        foreign += occupant[i] == FOREIGN and not flags[i] & ESCAPED
        block = _block_of(i, lead, room.size)
        if block >= 0:
            room[block] += occupant[i] == VACANT
    return misplaced, absent, foreign


@kernel
def is_leaf(backing: NDArray[np.int32], flags: NDArray[np.uint8], start: int, first: int) -> bool:
    """Tell whether the 512 pages from ``first`` lie in 512 frames that one 2 MiB leaf maps, and not in their slots."""
    hfn = backing[first]
    if hfn < 0 or hfn % PAGEBLOCK or hfn == start + first:
        return False
    for i in range(PAGEBLOCK):
        if backing[first + i] != hfn + i or flags[first + i] & ESCAPED:
            return False
    return True


@kernel
def find_leaves(
    backing: NDArray[np.int32], flags: NDArray[np.uint8], leaves: NDArray[np.uint8], start: int, lead: int
) -> None:
    """Set LEAF where a whole 2 MiB leaf is out of place."""
    for block in range(leaves.size):
        leaves[block] = LEAF if is_leaf(backing, flags, start, lead + block * PAGEBLOCK) else 0


@inlined
def _wants(backing: NDArray[np.int32], occupant: NDArray[np.int32], flags: NDArray[np.uint8], slot: int) -> bool:
    """Tell whether ``slot`` is vacant and its page is somewhere else."""
    return occupant[slot] == VACANT and backing[slot] >= 0 and not flags[slot] & ESCAPED


@inlined
def _held_back(leaves: NDArray[np.uint8], lead: int, slot: int) -> bool:
    """Tell whether the page of ``slot`` waits, to move with its leaf."""
    block = _block_of(slot, lead, leaves.size)
    return block >= 0 and leaves[block] & LEAF != 0


@kernel
def plan_pages(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    flags: NDArray[np.uint8],
    leaves: NDArray[np.uint8],
    start: int,
    lead: int,
    queue: NDArray[np.int32],
    queued: int,
    cursor: int,
    out: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Plan copies of single pages into vacant slots, following each chain: the frame left behind may be a slot too.

    Slots to look at are the last of ``queue[:queued]`` first, then those from ``cursor`` on. Writes lines
    (page, source hfn, target hfn) to ``out`` int64[most, 3], changes nothing else, and returns how many lines, how
    many of the queue it looked at, and the new cursor.
    """
    count = looked = 0
    while count < out.shape[0]:
        if looked < queued:
            looked += 1
            slot = queue[queued - looked]
        elif cursor < backing.size:
            slot = cursor
            cursor += 1
        else:
            break
        if not _wants(backing, occupant, flags, slot):
            continue
        while count < out.shape[0]:
            # The slot is vacant now, or will be when the line before has been done.
            if backing[slot] < 0 or flags[slot] & ESCAPED or _held_back(leaves, lead, slot):
                break
            source = backing[slot]
            out[count, 0], out[count, 1], out[count, 2] = slot, source, start + slot
            count += 1
            slot = source - start
            if not 0 <= slot < backing.size:
                break
    return count, looked, cursor


@kernel
def plan_cycles(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    flags: NDArray[np.uint8],
    leaves: NDArray[np.uint8],
    start: int,
    lead: int,
    cursor: int,
    spare: int,
    out: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Plan copies round closed cycles, each by way of the frame ``spare``: L + 1 copies for L pages.

    To be asked when every slot but escaped ones is held by one of our pages or belongs to an absent one, and no page
    can move into a vacant slot: then each page out of place is in a cycle. Leaves that are in one are taken apart
    (LEAF is cleared). A cycle that ``out`` ends in is left open, its first page in the spare frame: plan_pages goes
    on with it. Returns lines written, cycles begun, and the new cursor.
    """
    count = cycles = 0
    while count < out.shape[0] and cursor < backing.size:
        lifted = occupant[cursor]
        if lifted < 0 or lifted == cursor or flags[cursor] & ESCAPED or _is_planned(out, count, start + cursor):
            cursor += 1
            continue
        out[count, 0], out[count, 1], out[count, 2] = lifted, start + cursor, spare
        count += 1
        cycles += 1
        slot = cursor
        while count < out.shape[0] and 0 <= slot < backing.size:
            _take_apart(leaves, lead, slot)
            source = spare if slot == lifted else backing[slot]
            out[count, 0], out[count, 1], out[count, 2] = slot, source, start + slot
            count += 1
            if slot == lifted:
                break
            slot = source - start
        _take_apart(leaves, lead, lifted)
    return count, cycles, cursor


@inlined
def _take_apart(leaves: NDArray[np.uint8], lead: int, slot: int) -> None:
    block = _block_of(slot, lead, leaves.size)
    if block >= 0:
        leaves[block] &= LISTED


@inlined
def _is_planned(out: NDArray[np.int64], count: int, hfn: int) -> bool:
    found = False
    for line in range(count):
        found |= out[line, 2] == hfn
    return found


@kernel
def plan_leaves(
    backing: NDArray[np.int32],
    leaves: NDArray[np.uint8],
    room: NDArray[np.int16],
    start: int,
    lead: int,
    queue: NDArray[np.int32],
    queued: int,
    cursor: int,
    out: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Plan moves of whole leaves into vacant blocks, as plan_pages does pages; lines name their first pages."""
    count = looked = 0
    while count < out.shape[0]:
        if looked < queued:
            looked += 1
            block = queue[queued - looked]
        elif cursor < leaves.size:
            block = cursor
            cursor += 1
        else:
            break
        if room[block] < PAGEBLOCK:
            continue
        while count < out.shape[0] and leaves[block] & LEAF:
            first = lead + block * PAGEBLOCK
            source = backing[first]
            out[count, 0], out[count, 1], out[count, 2] = first, source, start + first
            count += 1
            block = _block_of(source - start, lead, leaves.size)
            if block < 0:
                break
    return count, looked, cursor


@kernel
def find_leaf_cycle(occupant: NDArray[np.int32], leaves: NDArray[np.uint8], lead: int, seen: NDArray[np.uint8]) -> int:
    """Return a block of slots that one leaf fills and that is part of a closed cycle of leaves, or -1.

    To be asked when no leaf can move. ``seen`` uint8[b] of zeros is written to.
    """
    for begin in range(leaves.size):
        block = begin
        while leaves[block] & LEAF and seen[block] == 0:
            seen[block] = 1
            page = occupant[lead + block * PAGEBLOCK]
            at = _block_of(page, lead, leaves.size) if page >= 0 else -1
            # A leaf lies in aligned frames: its first page in the first slot fills the block.
            if at < 0 or page != lead + at * PAGEBLOCK or not leaves[at] & LEAF:
                break
            block = at
            if block == begin:
                return begin
    return -1


@kernel
def find_split(leaves: NDArray[np.uint8], room: NDArray[np.int16], first: int) -> int:
    """Return the next block from ``first`` on, round to it, whose leaf has some vacant slots, but not all; or -1."""
    for i in range(leaves.size):
        block = (first + i) % leaves.size
        if leaves[block] & LEAF and room[block] > 0:
            return block
    return -1


@kernel
def carry_out(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    leaves: NDArray[np.uint8],
    room: NDArray[np.int16],
    start: int,
    lead: int,
    lines: NDArray[np.int64],
    each: int,
) -> int:
    """Write down that ``lines`` of ``each`` pages have been copied, in order; return pages that came into place."""
    settled = 0
    for line in range(lines.shape[0]):
        for i in range(each):
            page, source, target = lines[line, 0] + i, lines[line, 1] + i, lines[line, 2] + i
            move(backing, occupant, room, start, lead, page, source, target)
            settled += target == start + page
        if each > 1 and lines[line, 2] == start + lines[line, 0]:
            _take_apart(leaves, lead, lines[line, 0])
    return settled


@kernel
def move(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    room: NDArray[np.int16],
    start: int,
    lead: int,
    page: int,
    source: int,
    target: int,
) -> None:
    """Write down that ``page`` is at ``target`` now, and no more at ``source`` (-1: nowhere)."""
    backing[page] = target
    slot = source - start
    if source >= 0 and 0 <= slot < backing.size:
        occupant[slot] = VACANT
        block = _block_of(slot, lead, room.size)
        if block >= 0:
            room[block] += 1
    slot = target - start
    if target >= 0 and 0 <= slot < backing.size:
        occupant[slot] = page
        block = _block_of(slot, lead, room.size)
        if block >= 0:
            room[block] -= 1


@kernel
def enqueue(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    flags: NDArray[np.uint8],
    leaves: NDArray[np.uint8],
    room: NDArray[np.int16],
    lead: int,
    slots: NDArray[np.int64],
    cursors: NDArray[np.int64],
    queue: NDArray[np.int32],
    leaf_queue: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Queue those of ``slots`` (and their blocks) that a page (a leaf) can move into and that the cursors have passed.

    cursors  int64[2]: next slot and next block to be looked at
    counts   int64[2]: entries of ``queue`` and of ``leaf_queue``, written to; both have room for all of ``slots``
    """
    for slot in slots:
        if not 0 <= slot < backing.size:
            continue
        block = _block_of(slot, lead, leaves.size)
        if block >= 0 and leaves[block] == LEAF and room[block] == PAGEBLOCK and block < cursors[1]:
            leaves[block] |= LISTED
            leaf_queue[counts[1]] = block
            counts[1] += 1
        if slot < cursors[0] and not flags[slot] & QUEUED and _wants(backing, occupant, flags, slot):
            flags[slot] |= QUEUED
            queue[counts[0]] = slot
            counts[0] += 1


@kernel
def dequeue(marks: NDArray[np.uint8], queue: NDArray[np.int32], queued: int, looked: int, bit: int) -> int:
    """Take the last ``looked`` entries from a queue, and their mark ``bit``; return how many are left."""
    for i in range(queued - looked, queued):
        marks[queue[i]] &= ~bit & 255
    return queued - looked


@kernel
def absent_slots(
    backing: NDArray[np.int32],
    occupant: NDArray[np.int32],
    flags: NDArray[np.uint8],
    cursor: int,
    out: NDArray[np.int64],
) -> tuple[int, int]:
    """Write to ``out`` absent pages, from ``cursor`` on, whose slot is vacant; return how many, and the new cursor."""
    count = 0
    while cursor < backing.size and count < out.size:
        if backing[cursor] < 0 and occupant[cursor] == VACANT and not flags[cursor] & ESCAPED:
            out[count] = cursor
            count += 1
        cursor += 1
    return count, cursor
