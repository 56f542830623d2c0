"""What the structures hold, told in plain tuples, and whether it is true: recounted, not reasoned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmmsim.translation.page_table import DIRTY, EXECUTABLE, WRITABLE, Leaf
from vmmsim.translation.state import (
    CACHE_PART,
    EMPTY,
    L1_DATA,
    L1_FETCH,
    L2,
    NESTED_PART,
    NESTED_TLB,
    WALK_PART,
)
from vmmsim.translation.tlb import (
    CAN_EXECUTE,
    CAN_WRITE,
    IS_DIRTY,
    NESTED_SHIFT,
    PAGE_BITS_OF_KEY,
    SIZE_SHIFT,
    SPACE_SHIFT,
    VALUE_SHIFT,
)
from vmmsim.translation.walk_cache import NODE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmmsim.config import Machine
    from vmmsim.translation.registers import Registers, Segment
    from vmmsim.translation.types import Cells, Core

Name = tuple[int, int | None, int]
Contents = dict[str, dict[int, list[Any]]]


def _sets(core: Core, cells: Cells, part: int, words: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield (set number, [(key, value)]) of a part's sets that hold something; a hole in a set is an error."""
    ways = int(core.part_ways[part])
    for number in range(int(core.part_mask[part]) + 1 if ways else 0):
        at = int(core.part_start[part]) + number * ways * words
        keys = [int(key) for key in cells[at : at + ways]]
        values = [int(value) for value in cells[at + ways : at + 2 * ways]] if words == 2 else keys
        used = sum(key != EMPTY for key in keys)
        assert all(key != EMPTY for key in keys[:used]), f"part {part} set {number} has a hole"
        assert len(set(keys[:used])) == used, f"part {part} set {number} holds a key twice"
        if used:
            yield number, list(zip(keys[:used], values[:used], strict=True))


def _translation(key: int, value: int, names: dict[int, Name], eptps: dict[int, int]) -> tuple[Any, ...]:
    space = key >> SPACE_SHIFT
    owner = ("nested", eptps[space]) if key >> NESTED_SHIFT & 1 else ("combined", *names[space])
    rights = (bool(value & CAN_WRITE), bool(value & IS_DIRTY), bool(value & CAN_EXECUTE))
    return (owner, key >> SIZE_SHIFT & 3, key & (1 << PAGE_BITS_OF_KEY) - 1, value >> VALUE_SHIFT, *rights)


def contents(machine: Machine, core: Core, cells: Cells, names: dict[int, Name], eptps: dict[int, int]) -> Contents:
    """Return {structure: {set: entries, most recent first}} of one core.

    A translation is (owner, size, page number at the size, hfn where it starts, writable, dirty, executable), where
    owner is ("combined", vpid, asid or None if global, eptp) or ("nested", eptp). A walk-cache entry is (owner,
    prefix, hfn of the next table). A cache's entry is the line's number.
    """
    told: Contents = {}
    groups = (
        ("l1_data_tlb", L1_DATA, machine.l1_data_tlb),
        ("l1_instruction_tlb", L1_FETCH, machine.l1_instruction_tlb),
        ("l2_tlb", L2, machine.l2_tlb),
        ("nested_tlb", NESTED_TLB, machine.nested_tlb),
    )
    for name, group, tlb in groups:
        for index, described in enumerate(tlb):
            part = 3 * group + ("4K", "2M", "1G").index(described.pages[0])
            told[name if len(tlb) == 1 else f"{name}[{index}]"] = {
                number: [_translation(key, value, names, eptps) for key, value in entries]
                for number, entries in _sets(core, cells, part, 2)
            }
    for name, first in (("walk_cache", WALK_PART), ("nested_walk_cache", NESTED_PART)):
        for level in range(2, 6):
            told[f"{name}_l{level}"] = {
                number: [_table(key, value, first, names, eptps) for key, value in entries]
                for number, entries in _sets(core, cells, first + level, 2)
            }
    for index, name in enumerate(("l1_data", "l1_instruction", "l2", "l3")):
        told[name] = {
            number: [key - 1 for key, _ in entries] for number, entries in _sets(core, cells, CACHE_PART + index, 1)
        }
    return told


def entries_of_size(core: Core, cells: Cells, group: int, size: int) -> int:
    """Return how many entries of ``size`` a group of TLBs holds, without looking at each in turn."""
    part = 3 * group + size
    start, ways = int(core.part_start[part]), int(core.part_ways[part])
    if ways == 0:
        return 0
    sets = cells[start : start + (int(core.part_mask[part]) + 1) * 2 * ways].reshape(-1, 2, ways)
    keys = sets[:, 0]
    return int(np.count_nonzero((keys != EMPTY) & (keys >> SIZE_SHIFT & 3 == size) & (keys >> NESTED_SHIFT & 1 == 0)))


def _table(key: int, value: int, first: int, names: dict[int, Name], eptps: dict[int, int]) -> tuple[Any, ...]:
    space = key >> SPACE_SHIFT
    owner = ("nested", eptps[space]) if first == NESTED_PART else ("combined", *names[space])
    return (owner, key & (1 << SPACE_SHIFT) - 1, value >> NODE_BITS)


def check_counters(counts: dict[str, int]) -> None:
    """Assert the sums that hold between counters (docs/engine.md)."""
    c = counts
    assert c["accesses"] == c["l1_hits"] + c["l2_hits"] + c["segment_0d"] + c["walks"]
    assert c["walks"] == c["walk_guest"] + c["walk_nested"] + c["walk_both"]
    assert c["l2_misses"] == c["segment_0d"] + c["walks"] - c["rewalks"]
    assert c["dirty_walks"] <= c["rewalks"]
    l1_misses = c["data_l1_misses"] + c["instruction_l1_misses"]
    assert c["l2_hits"] + c["l2_misses"] <= l1_misses <= c["l2_hits"] + c["l2_misses"] + c["rewalks"]
    assert c["false_escapes"] <= c["escapes"] <= c["checks_failed"]
    assert c["references"] == c["guest_references"] + c["nested_references"]
    assert c["references_from_memory"] <= c["references"]


def check_contents(told: Contents, registers: dict[Name, Registers], *, marks: bool = True) -> None:
    """Assert that every translation and every walk-cache entry is what segments and page tables say now.

    Registers are the last ones loaded for each context. A nested entry may serve any process of its VM, and a global
    one comes from any of them: it is enough that it is true for one. Without ``marks`` the core sets no dirty bits, and
    a dirty entry may come from a clean leaf.
    """
    for structure, sets in told.items():
        for entry in (entry for entries in sets.values() for entry in entries):
            if "tlb" in structure:
                wrong = [_wrong_translation(entry, loaded, marks) for loaded in _owners(entry[0], registers)]
            elif "walk_cache" in structure:
                wrong = [_wrong_table(entry, loaded, int(structure[-1])) for loaded in _owners(entry[0], registers)]
            else:
                wrong = []
            assert not all(wrong) or not wrong, f"{structure} holds {entry}, but {wrong[0]}"


def _owners(owner: tuple[Any, ...], registers: dict[Name, Registers]) -> list[Registers]:
    """Return the registers of the contexts that an entry's owner stands for."""
    if owner[0] == "nested":
        return [loaded for name, loaded in registers.items() if name[2] == owner[1]]
    _, vpid, asid, eptp = owner
    return [
        loaded for name, loaded in registers.items() if (name[0], name[2]) == (vpid, eptp) and asid in (None, name[1])
    ]


def _wrong_translation(entry: tuple[Any, ...], loaded: Registers, marks: bool) -> str:
    """Return what is wrong with a TLB entry for these registers, "" if nothing is."""
    owner, size, number, hfn, writable, dirty, executable = entry
    pages = 1 << 9 * size
    for page in {number * pages, number * pages + pages // 2, number * pages + pages - 1}:
        truth = nested_truth(loaded, page) if owner[0] == "nested" else combined_truth(loaded, page)
        if truth is None:
            return f"page {page:#x} is not mapped"
        frame, may_write, is_dirty, may_execute = truth
        if frame != hfn + page % pages:
            return f"page {page:#x} is at {frame:#x}"
        if (writable and not may_write) or (dirty and marks and not is_dirty):
            return f"page {page:#x} is {'clean' if may_write else 'read-only'}"
        if executable and not may_execute:
            return f"page {page:#x} is not executable"
    return ""


def covered_by(segment: Segment | None, page: int) -> bool:
    """Tell whether a segment translates a page, by the bounds and by H3 as the textbook has it."""
    if segment is None or not segment.base <= page < segment.limit:
        return False
    held = segment.filter
    if held is None or not held.members:
        return True
    for rows in held.rows:
        hashes = [[(row & key).bit_count() & 1 for row in rows] for key in (page, *held.members)]
        if hashes[0] not in hashes[1:]:
            return True
    return False


Truth = tuple[int, bool, bool, bool]


def _leaf_truth(leaf: Leaf | None, page: int) -> Truth | None:
    if leaf is None:
        return None
    flags = leaf.flags
    return (
        leaf.frame + page - leaf.page,
        bool(flags & WRITABLE),
        bool(flags & DIRTY),
        bool(flags & EXECUTABLE),
    )


def nested_truth(loaded: Registers, gfn: int) -> Truth | None:
    """Return (hfn, writable, dirty, executable) of a gfn by segment or table; None if neither maps it."""
    if loaded.mode.nested == "identity":
        return gfn, True, True, True
    if loaded.mode.nested == "segment" and loaded.vmm_segment is not None and covered_by(loaded.vmm_segment, gfn):
        return gfn + loaded.vmm_segment.offset, True, True, True
    assert loaded.nested_table is not None
    found = _leaf_truth(loaded.nested_table.leaf(gfn), gfn)
    return found and (found[0], found[1], True, True)


def combined_truth(loaded: Registers, gvpn: int) -> Truth | None:
    """Return (hfn, writable, dirty, executable) of a gvpn through both dimensions; None if one does not map it."""
    segment = loaded.guest_segment
    if loaded.mode.guest == "segment" and segment is not None and covered_by(segment, gvpn):
        guest: Truth | None = (gvpn + segment.offset, True, True, True)
    else:
        guest = _leaf_truth(loaded.guest_table.leaf(gvpn), gvpn)
    nested = guest and nested_truth(loaded, guest[0])
    if guest is None or nested is None:
        return None
    return nested[0], guest[1] and nested[1], guest[2] and nested[2], guest[3]


def _wrong_table(entry: tuple[Any, ...], loaded: Registers, level: int) -> str:
    """Return what is wrong with a walk-cache entry of ``level`` for these registers, "" if nothing is."""
    owner, prefix, hfn = entry
    table = loaded.nested_table if owner[0] == "nested" else loaded.guest_table
    frame = table.table_at(prefix << 9 * (level - 1), level) if table is not None else None
    if frame is not None and owner[0] != "nested":
        truth = nested_truth(loaded, frame)
        frame = truth[0] if truth else None
    if frame is None:
        return "there is no such table"
    return "" if frame == hfn else f"the table is at {frame:#x}"
