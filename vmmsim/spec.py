"""The translation machine once more, in dicts and lists: slow, obvious, the judge of the compiled kernels.

It follows docs/engine.md rule by rule, under its headings, and shares no code with the kernels. Pages,
frames and ranges [start, end) count 4 KiB pages; a size is a number: 0, 1, 2 for 4K, 2M, 1G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple

import attrs

from vmmsim.addresses import LINE_BITS, PAGE_BITS, SIZE_1G, SIZE_4K, SIZE_NAMES, TABLE_BITS, size_pages
from vmmsim.config import DataCache, Machine, Mode, TableCache, TlbPart, WalkCache

Tag = tuple[Any, ...]
"""Whose an entry is: ("combined", vpid, asid, eptp), asid None if global; or ("nested", eptp)."""
TableFrames = Iterator[int] | Callable[[], int] | None
"""Where the frame of each new table comes from, from the root downwards."""

COUNTERS: Final = (  # noqa: SIM905  as a list it would be a page long
    """accesses l1_hits l2_hits data_l1_misses instruction_l1_misses l2_misses segment_0d
    walks walk_guest walk_nested walk_both rewalks dirty_walks guest_references nested_references
    base_bound_checks checks_failed escapes false_escapes
    walk_cache_hits nested_walk_cache_hits nested_tlb_hits cold_fills
    cold_lines references_from_memory walk_cycles data_cycles
    guest_faults nested_faults guest_writes nested_writes protections"""
).split()


class Exit(StrEnum):
    """How an access ended; all but ``DONE`` leave the machine as it was."""

    DONE = "done"
    GUEST_FAULT = "guest_fault"
    NESTED_FAULT = "nested_fault"
    GUEST_WRITE = "guest_write"
    NESTED_WRITE = "nested_write"
    PROTECTION = "protection"


@attrs.frozen
class Outcome:
    """What came of one access: ``hfn`` if done; ``gfn``, the one being translated, if the exit was nested."""

    exit: Exit
    gvpn: int
    hfn: int | None = None
    gfn: int | None = None


class _ExitError(Exception):
    def __init__(self, why: Exit, gfn: int | None = None) -> None:
        self.why, self.gfn = why, gfn


# Page tables and segments: the truth


@attrs.define
class Entry:
    """One page-table entry: a leaf of ``size``, or the way to the next table, which lies in ``frame``."""

    frame: int
    leaf: bool
    size: int = SIZE_4K
    writable: bool = True
    accessed: bool = False
    dirty: bool = False
    executable: bool = True
    is_global: bool = False


@attrs.define(eq=False)
class SpecTable:
    """A page table as one dict: all pages of a prefix go through ``entries[level, prefix]``."""

    levels: int = 4
    root_frame: int = 0
    entries: dict[tuple[int, int], Entry] = attrs.field(factory=dict)

    def leaf(self, page: int) -> Entry | None:
        """Return the leaf that maps ``page``, itself and not a copy; None if there is none."""
        for level in range(self.levels, 0, -1):
            entry = self.entries.get((level, _prefix(page, level)))
            if entry is None or entry.leaf:
                return entry
        raise AssertionError("an entry of level 1 is a leaf")

    def map(
        self,
        page: int,
        frame: int,
        size: int = SIZE_4K,
        *,
        writable: bool = True,
        executable: bool = True,
        accessed: bool = False,
        dirty: bool = False,
        is_global: bool = False,
        table_frames: TableFrames = None,
    ) -> None:
        """Map an absent page. A large leaf may replace a table that maps nothing, which then is gone."""
        if page % size_pages(size) or frame % size_pages(size):
            raise ValueError(f"page {page:#x} and frame {frame:#x} must be aligned to {SIZE_NAMES[size]}")
        below = [key for key in (self.entries if size else ()) if key[0] <= size and _under(key, size + 1, page)]
        if self.leaf(page) or any(self.entries[key].leaf for key in below):
            raise ValueError(f"page {page:#x} is mapped already, or part of it")
        for key in below:
            del self.entries[key]
        for level in range(self.levels, size + 1, -1):
            if (level, _prefix(page, level)) not in self.entries:
                self.entries[level, _prefix(page, level)] = Entry(_next_frame(table_frames), leaf=False)
        self.entries[size + 1, _prefix(page, size + 1)] = Entry(
            frame, True, size, writable, accessed, dirty, executable, is_global
        )

    def unmap(self, page: int) -> Entry:
        """Remove and return the leaf that maps ``page``; the tables stay."""
        size = self._leaf(page).size
        return self.entries.pop((size + 1, _prefix(page, size + 1)))

    def protect(self, page: int, **bits: bool) -> None:
        """Set the named bits of the leaf that maps ``page``: ``protect(7, writable=False, dirty=False)``."""
        for name, value in bits.items():
            setattr(self._leaf(page), name, value)

    def split(self, page: int, *, table_frames: TableFrames = None) -> None:
        """Replace the large leaf that maps ``page`` by a new table of 512 leaves that translate the same."""
        if self._leaf(page).size == SIZE_4K:
            raise ValueError(f"page {page:#x} is mapped by a 4K leaf")
        large = self.unmap(page)
        prefix = _prefix(page, large.size + 1)
        self.entries[large.size + 1, prefix] = Entry(_next_frame(table_frames), False, accessed=large.accessed)
        for index in range(1 << TABLE_BITS):
            frame = large.frame + index * size_pages(large.size - 1)
            small = attrs.evolve(large, frame=frame, size=large.size - 1)
            self.entries[large.size, (prefix << TABLE_BITS) + index] = small

    def _leaf(self, page: int) -> Entry:
        leaf = self.leaf(page)
        if leaf is None:
            raise ValueError(f"page {page:#x} is not mapped")
        return leaf


@attrs.frozen(eq=False)
class SpecSegment:
    """BASE, LIMIT, OFFSET in pages, and an escape filter ``page -> bool``; None hits exactly the members.

    A segment is a value: another filter makes another segment.
    """

    base: int
    limit: int
    offset: int
    members: frozenset[int] = frozenset()
    filter: Callable[[int], bool] | None = None
    _allowed: dict[tuple[int, int], bool] = attrs.field(factory=dict, init=False, repr=False)

    def in_range(self, page: int) -> bool:
        """Tell whether BASE <= page < LIMIT."""
        return self.base <= page < self.limit

    def covers(self, page: int) -> bool:
        """Tell whether the segment translates ``page``: in range, and the filter does not hit."""
        return self.in_range(page) and not (self.filter or self.members.__contains__)(page)

    def largest(self, page: int) -> int:
        """Return the largest size such that the segment translates the whole aligned page around ``page``."""
        size = SIZE_4K
        while size < SIZE_1G and self._allows(page, size + 1):
            size += 1
        return size

    def _allows(self, page: int, size: int) -> bool:
        start, end = _extent(page, size)
        if (start, size) not in self._allowed:  # asked once, because a filter may be slow
            fits = self.base <= start and end <= self.limit and self.offset % size_pages(size) == 0
            suspects = range(start, end) if self.filter else (page for page in self.members if start <= page < end)
            self._allowed[start, size] = fits and all(map(self.covers, suspects))
        return self._allowed[start, size]


def spec_filter(rows: Sequence[Sequence[int]], bits: int, members: frozenset[int]) -> Callable[[int], bool]:
    """Return an H3 Bloom filter that holds ``members``; each of ``rows`` has a bank of bits / len(rows) bits.

    Bit i of a page's index into a bank is the parity of page & rows[bank][i]. No bits: no page hits.
    """
    if not bits:
        return lambda page: False
    assert all(len(rows) << len(bank) == bits for bank in rows), "a bank has 2 ** len(its rows) bits"

    def places(page: int) -> set[tuple[int, int]]:
        return {
            (number, sum(((page & row).bit_count() % 2) << i for i, row in enumerate(bank)))
            for number, bank in enumerate(rows)
        }

    set_bits = {place for member in members for place in places(member)}
    return lambda page: places(page) <= set_bits


@attrs.frozen
class _Half:
    """What a dimension says of one page, by "walk", "segment" or "identity"; or what both say together."""

    by: str
    frame: int
    size: int = SIZE_1G
    writable: bool = True
    dirty: bool = True
    executable: bool = True
    is_global: bool = False

    def then(self, nested: _Half) -> _Half:
        """Compose a guest dimension with the nested one."""
        size = min(self.size, nested.size)
        writable, dirty = self.writable and nested.writable, self.dirty and nested.dirty
        return _Half(nested.by, nested.frame, size, writable, dirty, self.executable, self.is_global)


@attrs.frozen(eq=False)
class _Side:
    """What one dimension translates with; without ``dirty_bits`` a leaf counts as dirty."""

    use: str
    table: SpecTable | None
    segment: SpecSegment | None
    dirty_bits: bool = True

    def truth(self, page: int) -> _Half | None:
        """Translate without any structure, and without a trace; None for a fault."""
        if self.use == "identity":
            return _Half("identity", page)
        if self.use == "segment" and self.segment and self.segment.covers(page):
            return self.by_segment(page)
        leaf = self.table.leaf(page) if self.table else None
        return None if leaf is None else self.by_leaf(leaf, page)

    def by_segment(self, page: int) -> _Half:
        """Translate a page that the segment covers."""
        assert self.segment is not None, "no segment, nothing covered"
        return _Half("segment", page + self.segment.offset, self.segment.largest(page))

    def by_leaf(self, leaf: Entry, page: int) -> _Half:
        """Translate a page that ``leaf`` maps."""
        frame, dirty = leaf.frame + page % size_pages(leaf.size), leaf.dirty or not self.dirty_bits
        return _Half("walk", frame, leaf.size, leaf.writable, dirty, leaf.executable, leaf.is_global)


# Structures


class Translation(NamedTuple):
    """An entry of a TLB or nested TLB: ``page`` counts pages of ``size``; ``hfn`` is the page's start."""

    tag: Tag
    size: int
    page: int
    hfn: int
    writable: bool
    dirty: bool
    executable: bool

    @classmethod
    def of(cls, tag: Tag, page: int, half: _Half, size: int) -> Translation:
        """Return the entry of ``size``, not above the half's, that contains 4 KiB page ``page``."""
        hfn, number = half.frame - page % size_pages(size), page >> TABLE_BITS * size
        return cls(tag, size, number, hfn, half.writable, half.dirty, half.executable)

    def half(self, page: int) -> _Half:
        """Return what the entry says of a 4 KiB page that it contains."""
        frame = self.hfn + page % size_pages(self.size)
        return _Half("walk", frame, self.size, self.writable, self.dirty, self.executable)

    def permits(self, write: bool, fetch: bool = False) -> bool:
        """Tell whether an access may use the entry."""
        return not (write and not (self.writable and self.dirty)) and not (fetch and not self.executable)


class _Array:
    """A set-associative structure: each set a list, the most recently used entry first.

    An entry is a tuple whose first ``width`` fields are its key, the last of them choosing the set: a
    ``Translation``; (tag, prefix, hfn) in the walk cache of ``level``; (line,).
    """

    def __init__(self, part: TlbPart | TableCache | DataCache, width: int, undo: list[Any], level: int = 0) -> None:
        entries = part.size_bytes >> LINE_BITS if isinstance(part, DataCache) else part.entries
        self.ways, self.count, self.width, self.level, self.undo = (
            part.ways,
            entries // part.ways,
            width,
            level,
            undo,
        )
        self.sets: dict[int, list[Any]] = {}

    def find(self, *key: Any) -> Any:
        """Return the entry of a key, or None."""
        return next((entry for entry in self._set_of(key) if self.key(entry) == key), None)

    def drop(self, entry: tuple[Any, ...]) -> None:
        """Drop an entry; the others keep their order."""
        self._put(entry, [other for other in self._set_of(entry) if self.key(other) != self.key(entry)])

    def fill(self, entry: tuple[Any, ...]) -> bool:
        """Put an entry at the front and drop the last way; tell whether that was empty (a cold fill)."""
        cold = len(self._set_of(entry)) < self.ways and self.find(*self.key(entry)) is None
        self.drop(entry)
        self._put(entry, [entry, *self._set_of(entry)][: self.ways])
        return cold

    touch = fill
    """Filling with an entry that is present moves it to the front."""

    def drop_where(self, condition: Callable[[_Array, Any], bool]) -> None:
        """Drop all entries that satisfy a condition."""
        for index, held in self.sets.items():
            self.sets[index] = [entry for entry in held if not condition(self, entry)]

    def key(self, entry: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what a lookup compares."""
        return tuple(entry[: self.width])

    def pages(self, entry: tuple[Any, ...]) -> tuple[int, int]:
        """Return the pages [start, end) that a translation or a walk-cache entry is about."""
        shift = TABLE_BITS * ((self.level - 1) if self.level else entry[1])
        return entry[self.width - 1] << shift, (entry[self.width - 1] + 1) << shift

    def frames(self, entry: tuple[Any, ...]) -> tuple[int, int]:
        """Return the host frames [start, end) that an entry leads to."""
        if self.width == 1:
            return entry[0] >> (PAGE_BITS - LINE_BITS), (entry[0] >> (PAGE_BITS - LINE_BITS)) + 1
        return entry[self.width], entry[self.width] + (1 if self.level else size_pages(entry[1]))

    def _set_of(self, entry: tuple[Any, ...]) -> list[Any]:
        return self.sets.get(entry[self.width - 1] % self.count, [])

    def _put(self, entry: tuple[Any, ...], held: list[Any]) -> None:
        index = entry[self.width - 1] % self.count
        self.undo.append(partial(self.sets.__setitem__, index, self._set_of(entry)))
        self.sets[index] = held


class _Tlb:
    """A TLB level: one part, or several that split the page sizes."""

    def __init__(self, parts: Sequence[TlbPart], undo: list[Any]) -> None:
        self.parts = [_Array(part, 3, undo) for part in parts]
        by_name = {name: array for part, array in zip(parts, self.parts, strict=True) for name in part.pages}
        self.part_of = {size: by_name[name] for size, name in enumerate(SIZE_NAMES) if name in by_name}

    def find(self, tags: Sequence[Tag], page: int) -> Translation | None:
        """Look up 4K, then 2M, then 1G, at each size the tags in their order."""
        for size, part in self.part_of.items():
            for tag in tags:
                found: Translation | None = part.find(tag, size, page >> TABLE_BITS * size)
                if found is not None:
                    return found
        return None

    def fill(self, tag: Tag, page: int, half: _Half) -> int | None:
        """Fill with as large a part around ``page`` as it can hold; return its size, or None."""
        size = max((size for size in self.part_of if size <= half.size), default=None)
        if size is not None:
            self.part_of[size].fill(Translation.of(tag, page, half, size))
        return size

    def touch(self, entry: Translation) -> None:
        """Make an entry the most recently used of its set."""
        self.part_of[entry.size].touch(entry)


# The core


class SpecCore:
    """One core's translation hardware, judged by what it says, counts and holds after every access."""

    def __init__(self, machine: Machine, *, hierarchy: bool) -> None:
        self.machine, self.switches, self.hierarchy = machine, machine.switches, hierarchy
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        undo = self._undo = list[Callable[[], None]]()
        self.l1_data_tlb, self.l1_instruction_tlb, self.l2_tlb, self.nested_tlb = (
            _Tlb(parts, undo)
            for parts in (machine.l1_data_tlb, machine.l1_instruction_tlb, machine.l2_tlb, machine.nested_tlb)
        )
        tlbs = {name: getattr(self, name) for name in ("l1_data_tlb", "l1_instruction_tlb", "l2_tlb", "nested_tlb")}
        if self.switches.ntlb_in_l2:
            self.nested_tlb = self.l2_tlb
        self.walk_cache = _walk_arrays(machine.walk_cache, undo)
        self.nested_walk_cache = _walk_arrays(machine.nested_walk_cache, undo)
        self._caches = {
            name: (_Array(cache, 1, undo), cache.cycles)
            for name in ("l1_data", "l1_instruction", "l2", "l3")
            if (cache := getattr(machine.caches, name)) is not None
        }
        self._tagged: dict[str, _Array] = {
            name if len(tlb.parts) == 1 else f"{name}[{number}]": part
            for name, tlb in tlbs.items()
            for number, part in enumerate(tlb.parts)
        }
        for name in ("walk_cache", "nested_walk_cache"):
            self._tagged |= {f"{name}_l{level}": array for level, array in getattr(self, name).items()}
        self._guest_sides: dict[tuple[int, int], _Side] = {}
        self._nested_sides: dict[int, _Side] = {}

    def load(
        self,
        mode: Mode,
        guest_table: SpecTable | None,
        nested_table: SpecTable | None = None,
        *,
        vpid: int = 0,
        asid: int = 0,
        eptp: int = 0,
        guest_segment: SpecSegment | None = None,
        vmm_segment: SpecSegment | None = None,
    ) -> None:
        """Load the registers; a segment that the mode has and that is not given is off."""
        dirty_bits = self.switches.ept_accessed_dirty
        self.guest = self._guest_sides[vpid, asid] = _Side(mode.guest, guest_table, guest_segment)
        self.nested = self._nested_sides[eptp] = _Side(mode.nested, nested_table, vmm_segment, dirty_bits)
        self.own: Tag = ("combined", vpid, asid, eptp)
        self.tags: list[Tag] = [self.own, ("combined", vpid, None, eptp)]
        self.nested_tag: Tag = ("nested", eptp)

    def translate(self, gvpn: int) -> int | None:
        """Return the hfn that tables and segments say, without any structure; None if one faults."""
        half = _compose(self.guest, self.nested, gvpn)
        return None if half is None else half.frame

    # One access

    def access(self, gvpn: int, *, line: int = 0, write: bool = False, fetch: bool = False, again: int = 0) -> Outcome:
        """Do one access, and ``again`` more that find it in the L1 TLB."""
        self._undo.clear()
        before = dict(self.counters)
        try:
            hfn = self._translation(gvpn, write, fetch)
        except _ExitError as exited:
            for step in reversed(self._undo):
                step()
            self.counters = before
            self._count(f"{exited.why}s")
            return Outcome(exited.why, gvpn, gfn=exited.gfn)
        self._count("accesses", 1 + again)
        self._count("l1_hits", again)
        if self.hierarchy:
            # 9 Data
            address = (hfn << PAGE_BITS) + (line << LINE_BITS)
            cycles, *_ = self._line(address, ["l1_instruction" if fetch else "l1_data", "l2", "l3"])
            self._count("data_cycles", cycles)
        return Outcome(Exit.DONE, gvpn, hfn)

    def _translation(self, gvpn: int, write: bool, fetch: bool) -> int:
        l1 = self.l1_instruction_tlb if fetch else self.l1_data_tlb
        # 1 L1 TLB
        hit = l1.find(self.tags, gvpn)
        if hit and hit.permits(write, fetch):
            l1.touch(hit)
            self._count("l1_hits")
            return hit.half(gvpn).frame
        if hit:
            covered = self._compare(self.guest, gvpn)
            return self._miss(gvpn, write, fetch, covered=covered, refused=hit)
        self._count("instruction_l1_misses" if fetch else "data_l1_misses")
        # 2 Guest segment beside the L2 TLB
        beside = self.switches.segment_at == "l1_miss"
        covered = beside and self._compare(self.guest, gvpn)
        # 3 L2 TLB
        hit = None if covered else self.l2_tlb.find(self.tags, gvpn)
        if hit and hit.permits(write, fetch):
            self.l2_tlb.touch(hit)
            l1.fill(hit.tag, gvpn, hit.half(gvpn))
            self._count("l2_hits")
            return hit.half(gvpn).frame
        if not hit:
            self._count("l2_misses")
        if not beside:
            covered = self._compare(self.guest, gvpn)
        return self._miss(gvpn, write, fetch, covered=covered, refused=hit)

    def _miss(self, gvpn: int, write: bool, fetch: bool, *, covered: bool, refused: Translation | None) -> int:
        before = dict(self.counters)
        self._latency = 0
        # 4 Guest dimension
        self._count("base_bound_checks", covered)
        guest = self.guest.by_segment(gvpn) if covered else self._walk_guest(gvpn, write, fetch)
        # 5 Nested dimension
        nested = self._nested(guest.frame, write=write, in_tlb=self.switches.ntlb_data)
        both = guest.then(nested)
        # 6 Class
        if covered and nested.by != "walk":
            self._count("segment_0d")
            self.counters["base_bound_checks"] = before["base_bound_checks"] + 1
            if self.switches.dd_fill == "4K":
                both = attrs.evolve(both, size=SIZE_4K)
        else:
            self._count("walks")
            self._count("walk_nested" if covered else "walk_both" if nested.by == "walk" else "walk_guest")
            self._count_walk_cycles(before)
        # 7 Rewalks
        l1 = self.l1_instruction_tlb if fetch else self.l1_data_tlb
        if refused:
            self._count("rewalks")
            self._count("dirty_walks", refused._replace(dirty=True).permits(write, fetch))
            for tlb in (l1, self.l2_tlb):
                copy = tlb.find(self.tags, gvpn)
                if copy:
                    tlb.part_of[copy.size].drop(copy)
        # 8 Fill
        tag = self.tags[guest.is_global]
        size = l1.fill(tag, gvpn, both)
        assert size is not None, "an L1 TLB holds 4K pages"
        if size in self.l2_tlb.part_of and (not covered or self.switches.segment_fills_l2):
            cold = self.l2_tlb.part_of[size].fill(Translation.of(tag, gvpn, both, size))
            self._count("cold_fills", cold)
        return nested.frame

    # Walking the guest table

    def _walk_guest(self, gvpn: int, write: bool, fetch: bool) -> _Half:
        table = self.guest.table
        assert table is not None, "a walk needs a guest table"
        # 1 Combined walk cache
        level, gfn, hfn = table.levels, table.root_frame, None
        for above in range(2, table.levels + 1):
            if lead := self._find_lead(self.walk_cache, self.own, above, gvpn):
                self._count("walk_cache_hits")
                level, hfn = above - 1, lead[2]
                break
        while True:
            # 2 Where the table is
            if hfn is None:
                hfn = self._nested(gfn, write=self.switches.ept_accessed_dirty, in_tlb=True).frame
                if level < table.levels:
                    self._fill_lead(self.walk_cache, self.own, level + 1, gvpn, hfn)
            # 3 Its entry
            self._count("guest_references")
            self._reference(hfn, level, gvpn)
            entry = table.entries.get((level, _prefix(gvpn, level)))
            if entry is None:
                raise _ExitError(Exit.GUEST_FAULT)
            self._set_bit(entry, "accessed")
            # 4 A leaf
            if entry.leaf:
                break
            level, gfn, hfn = level - 1, entry.frame, None
        if write and not entry.writable:
            raise _ExitError(Exit.GUEST_WRITE)
        if fetch and not entry.executable:
            raise _ExitError(Exit.PROTECTION)
        if write:
            self._set_bit(entry, "dirty")
        return self.guest.by_leaf(entry, gvpn)

    # The nested dimension, for one gfn

    def _nested(self, gfn: int, *, write: bool, in_tlb: bool) -> _Half:
        # 1 Identity
        if self.nested.use == "identity":
            return _Half("identity", gfn)
        # 2 VMM segment
        if self._compare(self.nested, gfn):
            self._count("base_bound_checks")
            return self.nested.by_segment(gfn)
        # 3 Nested TLB
        hit = self.nested_tlb.find([self.nested_tag], gfn) if in_tlb else None
        if hit and hit.permits(write):
            self.nested_tlb.touch(hit)
            self._count("nested_tlb_hits")
            return hit.half(gfn)
        # 4 Nested walk
        half = self._walk_nested(gfn, write)
        # 5 Fill
        if in_tlb:
            self.nested_tlb.fill(self.nested_tag, gfn, attrs.evolve(half, executable=True))
        return half

    def _walk_nested(self, gfn: int, write: bool) -> _Half:
        table = self.nested.table
        assert table is not None, "a walk needs a nested table"
        level, hfn = table.levels, table.root_frame
        for above in range(2, table.levels + 1):
            if lead := self._find_lead(self.nested_walk_cache, self.nested_tag, above, gfn):
                self._count("nested_walk_cache_hits")
                level, hfn = above - 1, lead[2]
                break
        while True:
            self._count("nested_references")
            self._reference(hfn, level, gfn)
            entry = table.entries.get((level, _prefix(gfn, level)))
            if entry is None:
                raise _ExitError(Exit.NESTED_FAULT, gfn)
            if self.nested.dirty_bits:
                self._set_bit(entry, "accessed")
            if entry.leaf:
                break
            self._fill_lead(self.nested_walk_cache, self.nested_tag, level, gfn, entry.frame)
            level, hfn = level - 1, entry.frame
        if write and not entry.writable:
            raise _ExitError(Exit.NESTED_WRITE, gfn)
        if write and self.nested.dirty_bits:
            self._set_bit(entry, "dirty")
        return self.nested.by_leaf(entry, gfn)

    # Checks that fail

    def _compare(self, side: _Side, page: int) -> bool:
        """Compare with the segment of one dimension, if the mode has one and it is on."""
        segment = side.segment
        if side.use != "segment" or segment is None or segment.base >= segment.limit:
            return False
        if segment.covers(page):
            return True
        self._count("checks_failed")
        self._count("escapes", segment.in_range(page))
        self._count("false_escapes", segment.in_range(page) and page not in segment.members)
        return False

    # Caches and cycles

    def _reference(self, hfn: int, level: int, page: int) -> None:
        """Read the entry for ``page`` of the table of ``level`` in ``hfn``, through the caches."""
        if self.hierarchy:
            names = ["l1_data", "l2", "l3"] if self.machine.caches.walker_enters == "l1" else ["l2", "l3"]
            index = _prefix(page, level) % (1 << TABLE_BITS)
            cycles, from_memory, cold = self._line((hfn << PAGE_BITS) + 8 * index, names)
            self._latency += cycles
            self._count("references_from_memory", from_memory)
            self._count("cold_lines", cold)

    def _line(self, address: int, names: list[str]) -> tuple[int, bool, bool]:
        """Look an address up in each cache in turn; return the cycles, whether it came from memory, and coldly."""
        line = address >> LINE_BITS
        looked_up: list[_Array] = []
        for cache, cycles in (self._caches[name] for name in names if name in self._caches):
            found = cache.find(line) is not None
            looked_up.append(cache)
            if found:
                for each in looked_up:
                    each.fill((line,))
                return cycles, False, False
        cold = [each.fill((line,)) for each in looked_up]
        return self.machine.caches.memory_cycles, True, cold[-1]

    def _count_walk_cycles(self, before: dict[str, int]) -> None:
        if self.hierarchy:
            since = {name: count - before[name] for name, count in self.counters.items()}
            walk_cache_hits = since["walk_cache_hits"] + since["nested_walk_cache_hits"]
            costs = self.machine.cycles
            self._count("walk_cycles", self._latency)
            self._count("walk_cycles", since["base_bound_checks"] * costs.check)
            self._count("walk_cycles", walk_cache_hits * costs.walk_cache_hit)
            self._count("walk_cycles", since["nested_tlb_hits"] * costs.nested_tlb_hit)

    # Invalidation

    def invalidate_page(self, vpid: int, asid: int, gvpn: int) -> None:
        """Drop what the context, or the vpid globally, holds about one page."""
        self.invalidate_range(vpid, asid, gvpn, gvpn + 1)

    def invalidate_range(self, vpid: int, asid: int, start: int, end: int) -> None:
        """Drop what the context, or the vpid globally, holds about the pages [start, end)."""
        self._drop(
            lambda tag, pages: (
                tag[:2] == ("combined", vpid) and tag[2] in (asid, None) and _overlap(pages, (start, end))
            )
        )

    def invalidate_context(self, vpid: int, asid: int) -> None:
        """Drop all that the context holds, but not what is global."""
        self._drop(lambda tag, _: tag[:3] == ("combined", vpid, asid))

    def invalidate_vpid(self, vpid: int) -> None:
        """Drop all combined entries of the vpid, global ones too."""
        self._drop(lambda tag, _: tag[:2] == ("combined", vpid))

    def invalidate_eptp(self, eptp: int) -> None:
        """Drop all combined and nested entries of the eptp."""
        self._drop(lambda tag, _: tag[-1] == eptp)

    def invalidate_all(self) -> None:
        """Drop everything but the caches' lines."""
        self._drop(lambda tag, _: True)

    def invalidate_frames(self, start: int, end: int) -> None:
        """Drop all that leads to a frame of [start, end), and the caches' lines of these frames."""
        for array in (*self._tagged.values(), *(cache for cache, _ in self._caches.values())):
            array.drop_where(lambda here, entry: _overlap(here.frames(entry), (start, end)))

    def _drop(self, condition: Callable[[Tag, tuple[int, int]], bool]) -> None:
        for array in self._tagged.values():
            array.drop_where(lambda here, entry: condition(entry[0], here.pages(entry)))

    # What it holds

    def contents(self) -> dict[str, dict[int, list[Any]]]:
        """Return {structure: {set: entries, most recently used first}}, sets that hold nothing left out.

        All structures that the machine has are named, whether in use or not: ``l1_data_tlb``, or if it has
        several parts ``l1_data_tlb[0]`` ...; likewise ``l1_instruction_tlb``, ``l2_tlb``, ``nested_tlb`` (its
        own only); ``walk_cache_l2`` ..., ``nested_walk_cache_l2`` ...; ``l1_data``, ``l1_instruction``,
        ``l2``, ``l3``. Entries equal these tuples, hfn being where the page of that size starts::

            TLB         (("combined", vpid, asid, eptp), size, page at size, hfn, writable, dirty, executable)
            nested TLB  (("nested", eptp), size, page at size, hfn, writable, dirty, True)
            walk cache  (tag as above, prefix, hfn of the next table)
            cache       line

        asid is None in a global entry.
        """
        held = {name: array.sets for name, array in self._tagged.items()}
        for name, (cache, _) in self._caches.items():
            held[name] = {index: [line for (line,) in lines] for index, lines in cache.sets.items()}
        return {name: {index: list(one) for index, one in sets.items() if one} for name, sets in held.items()}

    def check(self) -> None:
        """Recount from scratch: the counters reconcile, the sets are in order, and no entry is stale.

        An entry may permit less than tables and segments do now, never more.
        """
        _check_counters(self.counters, self.hierarchy)
        arrays = self._tagged | {name: cache for name, (cache, _) in self._caches.items()}
        for name, array in arrays.items():
            for index, held in array.sets.items():
                keys = [array.key(entry) for entry in held]
                assert len(keys) <= array.ways, f"{name}: set {index} is over-full"
                assert len(set(keys)) == len(keys), f"{name}: set {index} holds a key twice"
                assert all(key[-1] % array.count == index for key in keys), f"{name}: wrong set {index}"
        for name, array in self._tagged.items():
            for entry in (entry for held in array.sets.values() for entry in held):
                sides = self._sides(entry[0])
                if array.level:
                    assert any(_leads(array.level, entry, *each) for each in sides), f"{name}: stale {entry}"
                else:
                    assert any(_is_true(entry, *array.pages(entry), *each) for each in sides), f"{name}: stale {entry}"

    def _sides(self, tag: Tag) -> list[tuple[_Side | None, _Side]]:
        """Return the dimensions that a tag stands for; a global entry may be of any asid of its vpid."""
        nested = self._nested_sides[tag[-1]]
        if tag[0] == "nested":
            return [(None, nested)]
        return [
            (guest, nested)
            for (vpid, asid), guest in self._guest_sides.items()
            if vpid == tag[1] and tag[2] in (asid, None)
        ]

    # Small parts

    def _count(self, name: str, by: int = 1) -> None:
        self.counters[name] += by

    def _set_bit(self, entry: Entry, name: str) -> None:
        self._undo.append(partial(setattr, entry, name, getattr(entry, name)))
        setattr(entry, name, True)

    def _find_lead(self, caches: dict[int, _Array], tag: Tag, level: int, page: int) -> Any:
        """Look up one level of a walk cache, and touch what is found."""
        lead = caches[level].find(tag, _prefix(page, level)) if level in caches else None
        if lead is not None:
            caches[level].touch(lead)
        return lead

    def _fill_lead(self, caches: dict[int, _Array], tag: Tag, level: int, page: int, hfn: int) -> None:
        if level in caches:
            caches[level].fill((tag, _prefix(page, level), hfn))


def _check_counters(n: dict[str, int], hierarchy: bool) -> None:
    refused_by_l2 = n["data_l1_misses"] + n["instruction_l1_misses"] - n["l2_hits"] - n["l2_misses"]
    assert all(count >= 0 for count in n.values()), "a counter is negative"
    assert n["accesses"] == n["l1_hits"] + n["l2_hits"] + n["segment_0d"] + n["walks"], "accesses"
    assert 0 <= refused_by_l2 <= n["rewalks"], "L1 misses are L2 hits, L2 misses or rewalks"
    assert n["l2_misses"] == n["segment_0d"] + n["walks"] - n["rewalks"], "l2_misses"
    assert n["walks"] == n["walk_guest"] + n["walk_nested"] + n["walk_both"], "walks"
    assert n["dirty_walks"] <= n["rewalks"], "dirty_walks"
    assert n["false_escapes"] <= n["escapes"] <= n["checks_failed"], "escapes"
    assert n["cold_fills"] <= n["segment_0d"] + n["walks"], "cold_fills"
    assert n["references_from_memory"] <= n["guest_references"] + n["nested_references"], "references"
    if not hierarchy:
        assert n["walk_cycles"] == n["data_cycles"] == n["cold_lines"] == 0, "cycles without a hierarchy"


def _compose(guest: _Side | None, nested: _Side, page: int) -> _Half | None:
    """Translate through both dimensions, or through the nested one alone, without any structure."""
    if guest is None:
        half = nested.truth(page)
        return half and attrs.evolve(half, executable=True)
    first = guest.truth(page)
    second = first and nested.truth(first.frame)
    return first.then(second) if first and second else None


def _is_true(entry: Translation, page: int, end: int, guest: _Side | None, nested: _Side) -> bool:
    """Tell whether the entry says of the pages [page, end) what the sides say, and permits no more."""
    while page < end:
        half = _compose(guest, nested, page)
        if half is None or half.frame != entry.half(page).frame or (guest and not half.is_global and None in entry[0]):
            return False
        if entry.writable > half.writable or entry.dirty > half.dirty or entry.executable > half.executable:
            return False
        _, page = _extent(page, half.size)
    return True


def _leads(level: int, entry: tuple[Any, ...], guest: _Side | None, nested: _Side) -> bool:
    """Tell whether a walk-cache entry of ``level`` leads to where its table is."""
    _, prefix, hfn = entry
    table = (guest or nested).table
    above = table.entries.get((level, prefix)) if table else None
    if above is None or above.leaf:
        return False
    half = nested.truth(above.frame) if guest else _Half("identity", above.frame)
    return half is not None and half.frame == hfn


def _walk_arrays(walk_cache: WalkCache, undo: list[Any]) -> dict[int, _Array]:
    parts = {level: getattr(walk_cache, f"l{level}") for level in (2, 3, 4, 5)}
    return {level: _Array(part, 2, undo, level) for level, part in parts.items() if part is not None}


def _prefix(page: int, level: int) -> int:
    """Return which entry of ``level`` translates ``page``, counted over all tables of that level."""
    return page >> TABLE_BITS * (level - 1)


def _extent(page: int, size: int) -> tuple[int, int]:
    """Return [start, end) of the aligned page of ``size`` that contains ``page``."""
    start = page - page % size_pages(size)
    return start, start + size_pages(size)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _under(key: tuple[int, int], level: int, page: int) -> bool:
    """Tell whether an entry at or below ``level`` lies under that level's entry for ``page``."""
    return key[1] >> TABLE_BITS * (level - key[0]) == _prefix(page, level)


def _next_frame(table_frames: TableFrames) -> int:
    if table_frames is None:
        raise ValueError("a new table needs a frame: give table_frames")
    return next(table_frames) if isinstance(table_frames, Iterator) else table_frames()
