"""Small worlds for tests of the engine: a machine, a guest table, a nested table, and segments that agree with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np

from vmmsim.config import MODES, DataCache, DataCaches, Machine, Switches, TableCache, TlbPart, WalkCache
from vmmsim.translation.chunk import pack
from vmmsim.translation.engine import Engine, Outcome
from vmmsim.translation.escape_filter import EscapeFilter
from vmmsim.translation.page_table import EXECUTABLE, WRITABLE, PageTable
from vmmsim.translation.registers import Registers, Segment
from vmmsim.translation.state import Exit

PAGE = 0x7_4000_0000
"""A gvpn that is 0 mod 1G."""
TABLES = 2048
"""Gfn of the guest's root table; the others follow."""
SHIFT = 1 << 20
"""hfn - gfn in the nested table."""
ALL = WRITABLE | EXECUTABLE

CACHES = DataCaches(
    l1_data=DataCache(size_bytes=256, ways=2, cycles=4),
    l1_instruction=DataCache(size_bytes=128, ways=2, cycles=3),
    l2=DataCache(size_bytes=512, ways=4, cycles=14),
    l3=DataCache(size_bytes=2048, ways=8, cycles=54),
    memory_cycles=200,
)
ALL_SIZES = (TlbPart(entries=2, ways=2, pages=("4K", "2M", "1G")),)
SMALL_WALK_CACHE = WalkCache(
    l2=TableCache(entries=2, ways=2), l3=TableCache(entries=2, ways=1), l4=TableCache(entries=1, ways=1)
)
OFF = Segment(base=0, limit=0, offset=0)


def toy(**changes: Any) -> Machine:
    """Return a machine with the smallest of TLBs and no walk caches, changed as told."""
    bare = Machine(name="toy", frequency_hz=1, l1_data_tlb=ALL_SIZES, l1_instruction_tlb=ALL_SIZES, caches=CACHES)
    return attrs.evolve(bare, **changes)


def busy(**switches: Any) -> Machine:
    """Return a machine that has every structure, each tiny."""
    return toy(
        l1_data_tlb=(TlbPart(entries=2, ways=1), TlbPart(entries=1, ways=1, pages=("2M", "1G"))),
        l2_tlb=(TlbPart(entries=4, ways=2, pages=("4K", "2M")),),
        nested_tlb=() if switches.get("ntlb_in_l2") else (TlbPart(entries=2, ways=2, pages=("4K", "2M")),),
        walk_cache=SMALL_WALK_CACHE,
        nested_walk_cache=SMALL_WALK_CACHE,
        switches=Switches(**switches),
    )


def exact_filter(*members: int) -> EscapeFilter:
    """Return a filter without false positives among pages near its members: each bank's hash is 12 bits of the page.

    A page hits if each of its fields of 12 bits is that field of some member.
    """
    rows = tuple(tuple(1 << 12 * bank + bit for bit in range(12) if 12 * bank + bit < 45) for bank in range(4))
    rows = (*rows[:3], (*rows[3], 1, 2, 4))  # 45 bits have 9 for the last bank
    return EscapeFilter(bits=1 << 14, hashes=4, rows=rows).with_members(*members)


class World:
    """One VM on one engine: the guest table maps PAGE to ``data``, the nested table gfn to gfn + SHIFT."""

    def __init__(
        self,
        machine: Machine | None = None,
        guest_size: int = 0,
        nested_size: int = 0,
        *,
        hierarchy: bool = False,
        cores: int = 1,
        data: int | None = None,
        table_gfns: Iterable[int] | None = None,
    ) -> None:
        machine = machine or toy()
        large = 2 in (guest_size, nested_size)
        self.engine = Engine(machine, hierarchy=hierarchy, cores=cores)
        self.data = data or (1 << 18 if large else 4096)
        self.nested_size = nested_size
        self.guest = self.engine.table(taker(table_gfns or itertools.count(TABLES)))
        self.nested = self.engine.table(taker(itertools.count(1)))
        size = 1 << 19 if large else 8192
        self.guest_segment = Segment(base=PAGE, limit=PAGE + size // 2, offset=self.data - PAGE)
        self.vmm_segment = Segment(base=0, limit=size, offset=SHIFT)
        self.map_guest(PAGE, self.data, guest_size)

    def map_guest(self, page: int, frame: int, size: int = 0, flags: int = ALL) -> None:
        """Map a guest page, and back it and all tables of the guest."""
        self.guest.map(page, frame, size=size, flags=flags)
        for gfn in (frame, *self.guest.table_frames.tolist()):
            self.back(gfn)

    def back(self, gfn: int, size: int | None = None) -> None:
        """Map a gfn in the nested table, unless it is."""
        size = self.nested_size if size is None else size
        start = gfn & -(1 << 9 * size)
        if self.nested.leaf(gfn) is None:
            self.nested.map(start, start + SHIFT, size=size, flags=WRITABLE)

    def tables(self, page: int = PAGE) -> list[int]:
        """Return the gfns of the guest tables that a walk for ``page`` reads, the root first."""
        levels = range(self.guest.levels, 1, -1)
        below = [self.guest.table_at(page, level) for level in levels]
        return [self.guest.root_frame, *(gfn for gfn in below if gfn is not None)]

    def load(
        self, mode: str, *, vpid: int = 1, asid: int = 1, eptp: int = 1, core: int = 0,
        guest: PageTable | None = None, nested: PageTable | None = None, **segments: Segment | None,
    ) -> World:  # fmt: skip
        """Load the registers of a mode, with this world's tables and segments unless others are given."""
        both: dict[str, Any] = {"guest_segment": self.guest_segment, "vmm_segment": self.vmm_segment} | segments
        described = MODES[mode]
        self.engine.load(
            Registers(
                mode=described,
                guest_table=guest or self.guest,
                nested_table=None if described.nested == "identity" else nested or self.nested,
                vpid=vpid, asid=asid, eptp=eptp, **both,
            ),
            core=core,
        )  # fmt: skip
        return self

    def access(
        self,
        page: int = PAGE,
        *,
        write: bool = False,
        fetch: bool = False,
        line: int = 0,
        again: int = 0,
        core: int = 0,
    ) -> Outcome:
        """Do one access."""
        return self.engine.run(pack(page, write, is_fetch=fetch, line=line, again=again), core=core)

    def counted(self, page: int = PAGE, *, core: int = 0, **how: Any) -> dict[str, int]:
        """Return what one access, which must succeed, counts; zeros left out."""
        before = self.engine.counters(core=core)
        assert self.access(page, core=core, **how).exit is Exit.DONE
        self.engine.check()
        return difference(before, self.engine.counters(core=core))

    def miss(self, mode: str, page: int = PAGE, **segments: Segment | None) -> dict[str, int]:
        """Return what one access on empty structures counts; its hPA must be what the tables say."""
        self.load(mode, **segments).engine.invalidate_all()
        counts = self.counted(page)
        native = MODES[mode].nested == "identity"
        gfn = self.guest.translate(page)[0]
        assert self.hfn(page) == (gfn if native else self.nested.translate(gfn)[0])
        return counts

    def entry(self, page: int = PAGE, structure: str = "l1_data_tlb", *, core: int = 0) -> tuple[Any, ...] | None:
        """Return the one TLB entry that contains a page: (owner, size, number, hfn, writable, dirty, executable)."""
        found = [
            entry
            for name, sets in self.engine.contents(core=core).items()
            for held in sets.values()
            for entry in held
            if name.split("[")[0] == structure and entry[0][0] == "combined" and entry[2] == page >> 9 * entry[1]
        ]
        assert len(found) <= 1, f"{structure} holds page {page:#x} twice"
        return found[0] if found else None

    def hfn(self, page: int = PAGE, *, core: int = 0) -> int:
        """Return the frame by which the data TLB translates a page."""
        entry = self.entry(page, core=core)
        assert entry is not None, "the data TLB does not hold the page"
        return int(entry[3]) + page % (1 << 9 * int(entry[1]))

    def hfn_of(self, gfn: int) -> int:
        """Return the frame that the nested table gives a gfn."""
        return int(self.nested.translate(gfn)[0])

    def size(self, page: int = PAGE) -> int:
        """Return the size of the data TLB's entry for a page."""
        entry = self.entry(page)
        assert entry is not None, "the data TLB does not hold the page"
        return int(entry[1])

    def held(self, structure: str, *, core: int = 0) -> list[Any]:
        """Return all entries of a structure, set by set."""
        return [entry for entries in self.engine.contents(core=core)[structure].values() for entry in entries]


def taker(numbers: Iterable[int]) -> Any:
    """Return what PageTable asks for the frames of new tables."""
    left = iter(numbers)
    return lambda n: np.array(list(itertools.islice(left, n)), np.int64)


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return what changed; ``references``, which is a sum, is left out."""
    return {name: after[name] - before[name] for name in after if after[name] != before[name] and name != "references"}


def cost(counted: dict[str, int]) -> tuple[int, int, str]:
    """Return references, checks and class."""
    classes = [name for name in ("segment_0d", "walk_guest", "walk_nested", "walk_both") if name in counted]
    assert len(classes) == 1
    references = counted.get("guest_references", 0) + counted.get("nested_references", 0)
    return references, counted.get("base_bound_checks", 0), classes[0]


def without(segment: Segment, *pages: int) -> Segment:
    """Return the segment with exactly these pages escaping."""
    return attrs.evolve(segment, filter=exact_filter(*pages) if pages else None)
