"""The state of one core: a structured record of registers, geometry and counters, and the cells of its structures.

A kernel takes the record ``core``, the flat array ``cells`` (contents of all TLBs, walk caches and caches of that
core) and the flat array ``pool`` (page tables of the whole host). Everything is int64. One record and two flat
arrays, whatever the machine: so there is one compiled kernel for all of them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.addresses import SIZE_NAMES
from vmmsim.config import DataCache, Machine, TableCache, TlbPart, WalkCache

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Exit(IntEnum):
    """Why a run stopped. On all but DONE, the state is as if the access named had not begun."""

    DONE = 0
    """The chunk is translated."""
    GUEST_FAULT = 1
    """The guest table does not map the page: the guest OS must."""
    NESTED_FAULT = 2
    """The nested table does not map the gfn: the VMM must."""
    GUEST_WRITE = 3
    """A write to a page that the guest table does not let be written."""
    NESTED_WRITE = 4
    """A write to a gfn that the nested table does not let be written."""
    PROTECTION = 5
    """An instruction fetch from a page that is not executable."""


class Count(IntEnum):
    """Counters; always counted. Their meaning, and the sums that must hold: docs/engine.md."""

    ACCESSES = 0
    L1_HITS = 1
    L2_HITS = 2
    DATA_L1_MISSES = 3
    INSTRUCTION_L1_MISSES = 4
    L2_MISSES = 5
    SEGMENT_0D = 6
    WALKS = 7
    WALK_GUEST = 8
    WALK_NESTED = 9
    WALK_BOTH = 10
    REWALKS = 11
    DIRTY_WALKS = 12
    GUEST_REFERENCES = 13
    NESTED_REFERENCES = 14
    BASE_BOUND_CHECKS = 15
    CHECKS_FAILED = 16
    ESCAPES = 17
    FALSE_ESCAPES = 18
    WALK_CACHE_HITS = 19
    NESTED_WALK_CACHE_HITS = 20
    NESTED_TLB_HITS = 21
    COLD_FILLS = 22
    COLD_LINES = 23
    REFERENCES_FROM_MEMORY = 24
    WALK_CYCLES = 25
    DATA_CYCLES = 26
    GUEST_FAULTS = 27
    NESTED_FAULTS = 28
    GUEST_WRITES = 29
    NESTED_WRITES = 30
    PROTECTIONS = 31


COUNTERS: Final = len(Count)
FIRST_OF_WALK: Final = int(Count.GUEST_REFERENCES)
END_OF_WALK: Final = int(Count.WALK_CYCLES) + 1
"""Counters [FIRST_OF_WALK, END_OF_WALK) change in the middle of a walk, which may yet fail."""
FAULT_COUNT: Final = int(Count.GUEST_FAULTS) - int(Exit.GUEST_FAULT)
"""Add to an Exit to get its counter."""

GUEST: Final = 0
"""The guest dimension, gVA to gPA."""
NESTED: Final = 1
"""The nested dimension, gPA to hPA."""

WALK: Final = 0
SEGMENT: Final = 1
IDENTITY: Final = 2
KINDS: Final = {"walk": WALK, "segment": SEGMENT, "identity": IDENTITY}
"""What a dimension uses; ``core.kind[dimension]`` holds one of them."""

# Groups of structures. A group of TLBs has a part for each page size (a part that holds several sizes stands in
# several places); a group of walk caches has a part for each level.
L1_DATA: Final = 0
L1_FETCH: Final = 1
L2: Final = 2
NESTED_TLB: Final = 3
TLB_GROUPS: Final = 4
WALK_PART: Final = 3 * TLB_GROUPS - 2
"""Part of the combined walk cache of level l: WALK_PART + l, for l from 2 to 5."""
NESTED_PART: Final = WALK_PART + 4
"""Part of the nested walk cache of level l: NESTED_PART + l."""
CACHE_PART: Final = NESTED_PART + 6
"""Caches: CACHE_PART + 0 L1 data, 1 L1 instruction, 2 L2, 3 L3."""
PARTS: Final = CACHE_PART + 4


class Step(IntEnum):
    """What one line of the walk log tells."""

    GUEST_REFERENCE = 0
    NESTED_REFERENCE = 1
    GUEST_CHECK = 2
    """The guest segment covers the page; so for the others."""
    VMM_CHECK = 3
    GUEST_OUTSIDE = 4
    VMM_OUTSIDE = 5
    GUEST_ESCAPE = 6
    VMM_ESCAPE = 7
    NESTED_TLB_HIT = 8
    WALK_CACHE_HIT = 9
    NESTED_WALK_CACHE_HIT = 10


LOG_COLUMNS: Final = 5
"""kind, level, page being translated (gvpn or gfn), address read (hPA; -1 if none), result (frame)"""

JOURNAL: Final = 256
"""Changes that one walk can make to structures and tables: 6 nested walks in 5-level tables, caches and all."""
LOG: Final = 128
MEMBERS: Final = 256
"""Pages that may be members of one escape filter; four banks of 64 bits are all ones long before."""
BANKS: Final = 4
"""Banks that a filter can have, one hash function each."""
BANK_WORDS: Final = 128
"""32-bit words of a bank, at most: 4096 bits."""
HASH_FIELD: Final = 15
"""Bits that one bank's hash takes in a packed word."""
HASH_BYTES: Final = 6
"""Bytes of a page number that the filter's hashes read: 45 bits need 6."""

CORE: Final = np.dtype(
    [
        # registers of the vCPU that runs
        ("kind", np.int64, (2,)),
        ("segment_base", np.int64, (2,)),
        ("segment_limit", np.int64, (2,)),
        ("segment_offset", np.int64, (2,)),
        ("root", np.int64, (2,)),
        ("root_frame", np.int64, (2,)),
        ("levels", np.int64, (2,)),
        ("context", np.int64),
        ("global_context", np.int64),
        ("eptp", np.int64),
        # escape filters: each bank's bits, 32 to a word, and the hashes of a byte, packed HASH_FIELD bits to a bank
        ("filter_banks", np.int64, (2,)),
        ("filter_bits", np.int64, (2, BANKS, BANK_WORDS)),
        ("filter_hash", np.int64, (2, HASH_BYTES, 256)),
        ("members", np.int64, (2, MEMBERS)),
        ("members_count", np.int64, (2,)),
        ("escape_map", np.int64, (2,)),
        # geometry, from the machine
        ("part_start", np.int64, (PARTS,)),
        ("part_mask", np.int64, (PARTS,)),
        ("part_ways", np.int64, (PARTS,)),
        ("cut", np.int64, (TLB_GROUPS, 3)),
        ("nested_group", np.int64),
        ("ntlb_data", np.int64),
        ("segment_after_l2", np.int64),
        ("segment_fills_l2", np.int64),
        ("dd_largest", np.int64),
        ("nested_dirty", np.int64),
        # a core that looks on and writes no accessed or dirty bit
        ("shadow", np.int64),
        # costs
        ("hierarchy", np.int64),
        ("walker_cache", np.int64),
        ("cache_cycles", np.int64, (4,)),
        ("memory_cycles", np.int64),
        ("check_cycles", np.int64),
        ("walk_cache_cycles", np.int64),
        ("nested_tlb_cycles", np.int64),
        # what structures hold, in outline: which kinds of entry were ever filled since they were empty
        ("present", np.int64, (TLB_GROUPS,)),
        # counters
        ("count", np.int64, (COUNTERS,)),
        # the walk in progress; its counters as they were when it began
        ("before", np.int64, (END_OF_WALK - FIRST_OF_WALK,)),
        ("fault", np.int64),
        ("fault_gvpn", np.int64),
        ("fault_gfn", np.int64),
        # a line: what, place in cells or pool, ways, old key or way, old value (see journal.roll_back)
        ("journal_length", np.int64),
        ("journal", np.int64, (JOURNAL, 5)),
        ("log_on", np.int64),
        ("log_length", np.int64),
        ("log", np.int64, (LOG, LOG_COLUMNS)),
    ],
    align=True,
)
"""The record of one core."""

EMPTY: Final = 0
"""Key of a way that holds nothing; every valid key is greater."""


class Layout:
    """Where the structures of a machine lie in ``cells``, filled in as they are placed."""

    def __init__(self) -> None:
        self.length = 0
        self.start = np.zeros(PARTS, np.int64)
        self.mask = np.zeros(PARTS, np.int64)
        self.ways = np.zeros(PARTS, np.int64)

    def place(self, parts: list[int], sets: int, ways: int, words: int) -> None:
        """Give ``sets`` x ``ways`` entries of ``words`` words to ``parts``, which are numbers of parts."""
        for part in parts:
            self.start[part], self.mask[part], self.ways[part] = self.length, sets - 1, ways
        self.length += sets * ways * words

    def place_tlb(self, group: int, tlb: tuple[TlbPart, ...]) -> None:
        """Place the parts of one TLB level."""
        for part in tlb:
            numbers = [3 * group + SIZE_NAMES.index(page) for page in part.pages]
            self.place(numbers, part.entries // part.ways, part.ways, 2)

    def place_walk_cache(self, first: int, cache: WalkCache) -> None:
        """Place the levels of a walk cache that are there."""
        for level, part in enumerate((cache.l2, cache.l3, cache.l4, cache.l5), start=2):
            if isinstance(part, TableCache):
                self.place([first + level], part.entries // part.ways, part.ways, 2)

    def place_cache(self, part: int, cache: DataCache | None) -> None:
        """Place one level of cache: keys only."""
        if cache is not None:
            self.place([part], cache.size_bytes // 64 // cache.ways, cache.ways, 1)


def _cuts(tlb: tuple[TlbPart, ...]) -> list[int]:
    """Return, for each page size, the largest size not above it that ``tlb`` holds; -1 if there is none."""
    held = {SIZE_NAMES.index(page) for part in tlb for page in part.pages}
    return [max((size for size in held if size <= wanted), default=-1) for wanted in range(3)]


def allocate(machine: Machine, *, hierarchy: bool) -> tuple[Any, NDArray[np.int64], int]:
    """Return the empty ``(core, cells, tlb_words)`` of ``machine``.

    core       one CORE record, registers of native mode with nothing mapped
    cells      int64[n]; the first ``tlb_words`` hold TLBs and walk caches, the rest the caches
    hierarchy  whether caches are modelled; without it they take no space and cost nothing
    """
    layout = Layout()
    nested = machine.l2_tlb if machine.switches.ntlb_in_l2 else machine.nested_tlb
    layout.place_tlb(L1_DATA, machine.l1_data_tlb)
    layout.place_tlb(L1_FETCH, machine.l1_instruction_tlb)
    layout.place_tlb(L2, machine.l2_tlb)
    layout.place_tlb(NESTED_TLB, machine.nested_tlb)
    layout.place_walk_cache(WALK_PART, machine.walk_cache)
    layout.place_walk_cache(NESTED_PART, machine.nested_walk_cache)
    tlb_words = layout.length
    caches = machine.caches
    levels = (caches.l1_data, caches.l1_instruction, caches.l2, caches.l3)
    if hierarchy:
        for number, cache in enumerate(levels):
            layout.place_cache(CACHE_PART + number, cache)

    core: Any = np.rec.array(np.zeros(1, CORE))[0]
    core.part_start[:], core.part_mask[:], core.part_ways[:] = layout.start, layout.mask, layout.ways
    tlbs = (machine.l1_data_tlb, machine.l1_instruction_tlb, machine.l2_tlb, nested)
    for group, tlb in enumerate(tlbs):
        core.cut[group] = _cuts(tlb)
    core.kind[:] = WALK, IDENTITY
    core.root[:] = -1
    core.levels[:] = machine.levels
    core.escape_map[:] = -1
    core.context = core.global_context = core.eptp = 1
    switches, cycles = machine.switches, machine.cycles
    core.nested_group = L2 if switches.ntlb_in_l2 else NESTED_TLB
    core.ntlb_data = switches.ntlb_data
    core.segment_after_l2 = switches.segment_at == "l2_miss"
    core.segment_fills_l2 = switches.segment_fills_l2
    core.dd_largest = switches.dd_fill == "largest"
    core.nested_dirty = switches.ept_accessed_dirty
    core.hierarchy = hierarchy
    core.walker_cache = 0 if caches.walker_enters == "l1" else 2
    core.cache_cycles[:] = [cache.cycles if cache else 0 for cache in levels]
    core.memory_cycles = caches.memory_cycles
    core.check_cycles, core.walk_cache_cycles = cycles.check, cycles.walk_cache_hit
    core.nested_tlb_cycles = cycles.nested_tlb_hit
    return core, np.zeros(max(layout.length, 1), np.int64), tlb_words
