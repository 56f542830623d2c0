"""Frozen descriptions: what a machine and a mode are. Data only; each is valid from birth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import attrs

from vmmsim.addresses import SIZE_NAMES, format_bytes
from vmmsim.errors import BadInput, Problem

Sureness = Literal["read", "derived", "recalled", "assumed"]
"""How sure a number is: read in its source, derived from one, recalled without re-reading, or assumed."""


_LARGEST_ARRAY: Final = 1 << 20
"""Most entries of one array: far above any hardware, and a slip of the pen still fits in memory."""
_LARGEST_CACHE_BYTES: Final = 1 << 32


def _power_of_two(count: int) -> bool:
    return count > 0 and count & (count - 1) == 0


def _check_sets(entries: int, ways: int) -> None:
    """Raise ``ValueError`` unless ``entries`` in ``ways`` make a power of two of sets."""
    if entries < 1 or ways < 1:
        raise ValueError("entries and ways must be at least 1")
    if entries > _LARGEST_ARRAY:
        raise ValueError(f"{entries} entries are more than one array may have, {_LARGEST_ARRAY}")
    if entries % ways or not _power_of_two(entries // ways):
        raise ValueError(f"{entries} entries in {ways} ways do not make a power of two of sets")


@attrs.frozen(kw_only=True)
class TlbPart:
    """One set-associative array of translations, true LRU within a set."""

    entries: int
    """Translations it holds; entries / ways must be a power of two."""
    ways: int
    """Associativity; ways = entries is fully associative."""
    pages: tuple[str, ...] = ("4K",)
    """Page sizes it holds, of "4K", "2M", "1G"; each size lies in at most one part of a level."""

    def __attrs_post_init__(self) -> None:
        _check_sets(self.entries, self.ways)
        if not self.pages or len(set(self.pages)) != len(self.pages) or set(self.pages) - set(SIZE_NAMES):
            raise ValueError('pages must name each page size at most once, of "4K", "2M", "1G"')


@attrs.frozen(kw_only=True)
class TableCache:
    """One level of a walk cache: which table comes next, for a prefix of the address."""

    entries: int
    """Prefixes it holds; entries / ways must be a power of two."""
    ways: int
    """Associativity; ways = entries is fully associative."""

    def __attrs_post_init__(self) -> None:
        _check_sets(self.entries, self.ways)


@attrs.frozen(kw_only=True)
class WalkCache:
    """Walk caches of one dimension, a part for each level of entry that leads to a further table.

    ``l2`` holds page-directory entries, each leading to a leaf table of 4 KiB pages; ``l5`` is of use with
    five levels only. A part that is absent caches nothing.
    """

    l2: TableCache | None = None
    """Page-directory entries (a prefix of 2 MiB)."""
    l3: TableCache | None = None
    """Page-directory-pointer entries (a prefix of 1 GiB)."""
    l4: TableCache | None = None
    """Level-4 entries (a prefix of 512 GiB)."""
    l5: TableCache | None = None
    """Level-5 entries (a prefix of 256 TiB)."""


@attrs.frozen(kw_only=True)
class DataCache:
    """One level of cache with 64-byte lines, true LRU within a set."""

    size_bytes: int
    """Capacity; size / 64 / ways must be a power of two."""
    ways: int
    """Associativity."""
    cycles: int
    """Latency of a hit, in cycles from the request."""

    def __attrs_post_init__(self) -> None:
        if self.size_bytes < 64 or self.ways < 1:
            raise ValueError("size must be at least one line of 64 bytes, and ways at least 1")
        if self.size_bytes > _LARGEST_CACHE_BYTES:
            raise ValueError(f"size must be at most {format_bytes(_LARGEST_CACHE_BYTES)}")
        lines = self.size_bytes // 64
        if self.size_bytes % 64 or lines % self.ways or not _power_of_two(lines // self.ways):
            raise ValueError(
                f"{format_bytes(self.size_bytes)} in {self.ways} ways do not make a power of two of sets "
                "of 64-byte lines"
            )
        if self.cycles < 0:
            raise ValueError("cycles must not be negative")


@attrs.frozen(kw_only=True)
class DataCaches:
    """The cache hierarchy that page-table references, data and instruction fetches go through."""

    l1_data: DataCache
    """First level for data."""
    l1_instruction: DataCache
    """First level for instruction fetches."""
    l2: DataCache
    """Second level, unified."""
    l3: DataCache | None = None
    """Last level: the share of it that one core may use."""
    memory_cycles: int
    """Latency of memory behind the last level, in cycles."""
    walker_enters: Literal["l1", "l2"] = "l1"
    """First level that the page walker's references look in."""

    def __attrs_post_init__(self) -> None:
        if self.memory_cycles < 0:
            raise ValueError("memory_cycles must not be negative")


@attrs.frozen(kw_only=True)
class Cycles:
    """Fixed costs of the translation hardware, in cycles."""

    l2_tlb_hit: int = 7
    """Beyond an L1 TLB hit; reported apart from walk cycles."""
    walk_cache_hit: int = 1
    """Each hit of a walk cache, in the hierarchy model."""
    nested_tlb_hit: int = 1
    """Each hit of the nested TLB, in the hierarchy model."""
    check: int = 1
    """Each base-bound check of a walk, in the hierarchy model."""

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Cycles):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must not be negative")


@attrs.frozen(kw_only=True)
class Switches:
    """Choices of the model where hardware could do either; the first value is the default."""

    segment_at: Literal["l1_miss", "l2_miss"] = "l1_miss"
    """Where the guest segment is compared: beside the L2 TLB, and it wins; or only after an L2 TLB miss."""
    segment_fills_l2: bool = False
    """Whether a translation that the guest segment took part in is put into the L2 TLB."""
    dd_fill: Literal["4K", "largest"] = "4K"
    """Size of the L1 entry when both segments translate: always 4K, or the largest page that lies in both."""
    vmm_invalidate: Literal["context", "precise"] = "context"
    """What the VMM drops when it changes a mapping: all of that VM, or only what overlaps the frames."""
    ntlb_data: bool = False
    """Whether the data page's gPA uses the nested TLB too, and not only the guest tables' gPAs."""
    ntlb_in_l2: bool = False
    """Whether nested entries live in the L2 TLB, where they compete with the others."""
    ept_accessed_dirty: bool = True
    """Whether nested leaves have accessed and dirty bits; then a read of a guest table counts as a write."""


@attrs.frozen(kw_only=True)
class Source:
    """Where numbers of a description come from, and how sure they are."""

    source: str
    """Document, section or measurement."""
    sure: Sureness
    """How sure: read, derived, recalled or assumed."""


@attrs.frozen(kw_only=True)
class Machine:
    """One core's address-translation hardware and the caches around it."""

    name: str
    """Short name, as on the command line."""
    title: str = ""
    """One line for people."""
    frequency_hz: int
    """Core clock, in cycles a second."""
    levels: int = 4
    """Levels of radix tables in both dimensions: 4 or 5."""
    l1_data_tlb: tuple[TlbPart, ...]
    """First-level TLB for data, split by page size or not."""
    l1_instruction_tlb: tuple[TlbPart, ...]
    """First-level TLB for instruction fetches."""
    l2_tlb: tuple[TlbPart, ...] = ()
    """Second-level TLB, for both; the page sizes it does not name are not held."""
    nested_tlb: tuple[TlbPart, ...] = ()
    """Nested TLB (gfn to hfn) of its own; absent when there is none or with ``switches.ntlb_in_l2``."""
    walk_cache: WalkCache = WalkCache()
    """Walk cache of the guest dimension: combined, from a gVA prefix to the hPA of the next guest table."""
    nested_walk_cache: WalkCache = WalkCache()
    """Walk cache of the nested dimension: from a gPA prefix to the hPA of the next nested table."""
    caches: DataCaches
    """Cache hierarchy for the hierarchy cost model."""
    cycles: Cycles = Cycles()
    """Fixed costs."""
    switches: Switches = Switches()
    """Choices of the model."""
    sources: dict[str, Source] = attrs.field(factory=dict, eq=False)
    """Where the numbers come from, by path of the key; a path stands for all below it."""

    def __attrs_post_init__(self) -> None:
        problems = [Problem("", path, message) for path, message in self._contradictions()]
        if problems:
            raise BadInput.of(problems)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield path and message of everything that the parts, each valid, do not allow together."""
        if self.frequency_hz < 1:
            yield "frequency", "must be at least 1 Hz"
        if self.levels not in (4, 5):
            yield "levels", f"must be 4 or 5, not {self.levels}"
        for where in ("l1_data_tlb", "l1_instruction_tlb", "l2_tlb", "nested_tlb"):
            held = [page for part in getattr(self, where) for page in part.pages]
            if len(held) != len(set(held)):
                yield where, "a page size lies in two parts"
            if where.startswith("l1_") and "4K" not in held:
                yield where, "some part must hold 4K pages"
        if self.nested_tlb and self.switches.ntlb_in_l2:
            yield (
                "nested_tlb",
                "switches.ntlb_in_l2 puts nested entries into the L2 TLB instead; use one of them",
            )
        if self.switches.ntlb_in_l2 and not self.l2_tlb:
            yield "switches.ntlb_in_l2", "there is no L2 TLB to put nested entries into"


Guest = Literal["walk", "segment"]
Nested = Literal["walk", "segment", "identity"]


@attrs.frozen(kw_only=True)
class Mode:
    """What each dimension of a translation uses. Modes are data: the engine has one path for all of them."""

    name: str
    """Name as on the command line."""
    guest: Guest
    """gVA to gPA: walk the guest table, or try the guest segment first."""
    nested: Nested
    """gPA to hPA: walk the nested table, try the VMM segment first, or nothing to translate (native)."""


MODES: Final[dict[str, Mode]] = {
    mode.name: mode
    for mode in (
        Mode(name="native", guest="walk", nested="identity"),
        Mode(name="native-direct", guest="segment", nested="identity"),
        Mode(name="base", guest="walk", nested="walk"),
        Mode(name="dual-direct", guest="segment", nested="segment"),
        Mode(name="vmm-direct", guest="walk", nested="segment"),
        Mode(name="guest-direct", guest="segment", nested="walk"),
    )
}
"""The modes that a user can name, in the order of their tables."""
