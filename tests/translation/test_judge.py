"""The compiled engine and the reference in dicts, side by side, on toy machines: every translation, counter and entry.

A property that exercised too little proves nothing: what happened is counted, and too little of anything fails.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.translation.random_drive import live
from vmmsim.config import (
    MODES,
    Cycles,
    DataCache,
    DataCaches,
    Machine,
    Mode,
    Switches,
    TableCache,
    TlbPart,
    WalkCache,
)
from vmmsim.jit import INTERPRETED
from vmmsim.spec import SpecCore, SpecSegment, SpecTable, spec_filter
from vmmsim.translation import page_table as pt
from vmmsim.translation.chunk import pack
from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import random_filter
from vmmsim.translation.registers import Registers, Segment

SPLIT_1X2 = (TlbPart(entries=2, ways=2), TlbPart(entries=1, ways=1, pages=("2M",)))
SMALL = (TlbPart(entries=1, ways=1),)
UNIFIED = (TlbPart(entries=3, ways=3, pages=("4K", "2M", "1G")),)
L2S = (
    (),
    (TlbPart(entries=4, ways=2),),
    (TlbPart(entries=4, ways=2, pages=("4K", "2M")), TlbPart(entries=1, ways=1, pages=("1G",))),
)
WALKS = (
    WalkCache(),
    WalkCache(l2=TableCache(entries=2, ways=1), l3=TableCache(entries=1, ways=1), l4=TableCache(entries=2, ways=2)),
    WalkCache(l2=TableCache(entries=2, ways=2)),
)
CACHES = DataCaches(
    l1_data=DataCache(size_bytes=256, ways=2, cycles=4),
    l1_instruction=DataCache(size_bytes=128, ways=2, cycles=4),
    l2=DataCache(size_bytes=512, ways=2, cycles=14),
    memory_cycles=200,
)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    l2 = draw(st.sampled_from(L2S))
    in_l2 = bool(l2) and draw(st.booleans())
    own = () if in_l2 else draw(st.sampled_from(((), (TlbPart(entries=2, ways=2),), UNIFIED)))
    return Machine(
        name="toy",
        frequency_hz=1_000_000_000,
        levels=draw(st.sampled_from((4, 5))),
        l1_data_tlb=draw(st.sampled_from((SPLIT_1X2, SMALL, UNIFIED))),
        l1_instruction_tlb=draw(st.sampled_from((SMALL, SPLIT_1X2))),
        l2_tlb=l2,
        nested_tlb=own,
        walk_cache=draw(st.sampled_from(WALKS)),
        nested_walk_cache=draw(st.sampled_from(WALKS)),
        caches=draw(st.sampled_from((CACHES, DataCaches(**{**_fields(CACHES), "walker_enters": "l2"})))),
        cycles=Cycles(walk_cache_hit=2, nested_tlb_hit=3, check=5),
        switches=Switches(
            segment_at=draw(st.sampled_from(("l1_miss", "l2_miss"))),
            segment_fills_l2=draw(st.booleans()),
            dd_fill=draw(st.sampled_from(("4K", "largest"))),
            ntlb_data=draw(st.booleans()),
            ntlb_in_l2=in_l2,
            ept_accessed_dirty=draw(st.booleans()),
        ),
    )


def _fields(described: object) -> dict[str, object]:
    import attrs

    return {field.name: getattr(described, field.name) for field in attrs.fields(type(described))}


PAGES = (0, 1, 2, 3, 513, 1 << 18, (1 << 35) + 5)
"""Few pages, so that structures of two entries hit and miss about equally, in few tables."""
MAPPED_FIRST = (0, 1, 2, 513, 514, 1 << 18)
"""Pages that the first process begins with."""
GFNS = (0, 1, 5, 512, 1024, 1 << 18)
"""Where data pages may be in the guest; the guest's tables follow at 40."""
TABLE_GFN = 40
HUGE = () if INTERPRETED else (1 << 18, 1 << 19)
"""Segments in which 1G pages fit; interpreted, their escape maps would take longest of all."""
FLAG_NAMES = {"writable": pt.WRITABLE, "executable": pt.EXECUTABLE, "dirty": pt.DIRTY, "is_global": pt.GLOBAL}


class Twin:
    """A page table of the engine and one of the reference, changed alike."""

    def __init__(self, engine: Engine, first_frame: int) -> None:
        ours, theirs = itertools.count(first_frame), itertools.count(first_frame)
        self.ours = engine.table(lambda n: np.array([next(ours) for _ in range(n)], np.int64))
        self.theirs = SpecTable(levels=engine.machine.levels, root_frame=next(theirs))
        self._frames = theirs

    def map(self, page: int, frame: int, size: int, flags: dict[str, bool]) -> bool:
        flags = dict.fromkeys(FLAG_NAMES, False) | flags
        step = 1 << 9 * size
        page, frame = page & -step, frame & -step
        before = set(self.ours.table_frames.tolist())
        emptied = size and (size + 1, page >> 9 * size) in self.theirs.entries
        try:
            self.ours.map(page, frame, size=size, flags=sum(FLAG_NAMES[name] for name, on in flags.items() if on))
        except pt.AlreadyMapped:
            assert self.theirs.leaf(page) is not None or emptied
            return False
        assert emptied or before <= set(self.ours.table_frames.tolist())
        SEEN["tables pruned"] += bool(emptied)
        frames = (self.ours.table_at(page, level) for level in range(self.theirs.levels, size + 1, -1))
        missing = [
            frame
            for level, frame in zip(range(self.theirs.levels, size + 1, -1), frames, strict=True)
            if (level, page >> 9 * (level - 1)) not in self.theirs.entries
        ]
        self.theirs.map(page, frame, size, table_frames=iter(missing), **flags)
        return True

    def leaf(self, page: int) -> pt.Leaf | None:
        return self.ours.leaf(page)

    def unmap(self, page: int) -> pt.Leaf:
        self.theirs.unmap(page)
        return self.ours.unmap(page)

    def set_flags(self, page: int, flags: dict[str, bool]) -> None:
        on = sum(FLAG_NAMES[name] for name, value in flags.items() if value)
        off = sum(FLAG_NAMES[name] for name, value in flags.items() if not value)
        self.ours.protect(page, set_flags=on, clear_flags=off)
        self.theirs.protect(page, **flags)

    def split(self, page: int) -> None:
        size = self.ours.leaf(page).size
        self.ours.split(page)
        self.theirs.split(page, table_frames=iter([self.ours.table_at(page, size + 1)]))

    def leaves(self, node: int, level: int, prefix: int) -> Iterator[tuple[tuple[int, int], int]]:
        """Yield ((level, number of the page at that level's size), entry) of every leaf below a table."""
        row = self.ours.pool.entries[node << 9 : (node + 1) << 9]
        for index in np.flatnonzero(row & pt.PRESENT).tolist():
            entry = int(row[index])
            if entry & pt.LEAF:
                yield (level, prefix << 9 | index), entry
            else:
                yield from self.leaves(entry >> pt.NODE_SHIFT, level - 1, prefix << 9 | index)

    def assert_equal(self) -> None:
        ours = {
            key: (
                entry >> pt.FRAME_SHIFT & pt.FRAME_MASK,
                *(bool(entry & bit) for bit in (pt.WRITABLE, pt.ACCESSED, pt.DIRTY, pt.EXECUTABLE, pt.GLOBAL)),
            )
            for key, entry in self.leaves(self.ours.root, self.ours.levels, 0)
        }
        theirs = {
            key: (e.frame, e.writable, e.accessed, e.dirty, e.executable, e.is_global)
            for key, e in self.theirs.entries.items()
            if e.leaf
        }
        assert ours == theirs


SEEN: Counter[str] = Counter()
SIZES = st.sampled_from((0, 0, 0, 1, 2))
CONTEXTS = ((1, 1, 1), (1, 2, 1), (2, 1, 2))
"""(vpid, asid, eptp): two processes of one VM, and another VM."""


class Judge(RuleBasedStateMachine):
    """Whatever happens to tables, registers and TLBs, both machines agree and hold nothing stale."""

    @initialize(
        machine=machines(), hierarchy=st.booleans(), seed=st.integers(0, 3),
        mode=st.sampled_from(tuple(MODES.values())), large=st.booleans(), vmm_pages=st.sampled_from((512, 1024)),
    )  # fmt: skip
    def start(self, machine: Machine, hierarchy: bool, seed: int, mode: Mode, large: bool, vmm_pages: int) -> None:
        self.engine = Engine(machine, hierarchy=hierarchy)
        self.spec = SpecCore(machine, hierarchy=hierarchy)
        self.nested = {1: Twin(self.engine, 5000), 2: Twin(self.engine, 7000)}
        self.guests = {name: Twin(self.engine, TABLE_GFN + 100 * i) for i, name in enumerate(CONTEXTS)}
        self.random = np.random.default_rng(seed)
        self.modes = dict.fromkeys(CONTEXTS, mode)
        self.segments: dict[object, tuple[Segment | None, SpecSegment | None]] = {}
        self.hfns = itertools.count(20_000)
        self.current = CONTEXTS[0]
        flags = {"writable": True, "executable": True}
        for page, size in ((0, 0), (1, 0), (2, 0), (513, 1), (1 << 18, 2)):
            self.guests[self.current].map(page, page, size, {**flags, "is_global": page in (2, 513)})
        if large:  # data and tables of the guest in one leaf
            self.nested[1].map(0, 1 << 17, 1, flags)
        for gfn in () if large else (0, 1, 5, *range(TABLE_GFN, TABLE_GFN + 12)):
            self.nested[1].map(gfn, next(self.hfns), 0, flags)
        self.nested[1].map(512, 1 << 18, 1, flags)
        self.nested[1].map(1 << 18, 1 << 19, 2, flags)
        self.segments[self.current] = self._segment(0, 2, 0, {1})
        self.segments[1] = self._segment(0, vmm_pages, 1 << 19, {5})
        self._drop_large_leaves(self.current, self.guests[self.current])
        self._drop_large_leaves(1, self.nested[1])
        self._load()

    def _load(self) -> None:
        vpid, asid, eptp = self.current
        mode = self.modes[self.current]
        native = mode.nested == "identity"
        guest, spec_guest = self.segments.get(self.current, (None, None))
        vmm, spec_vmm = self.segments.get(eptp, (None, None))
        tables, nested = self.guests[self.current], self.nested[eptp]
        self.engine.load(
            Registers(
                mode=mode, guest_table=tables.ours, nested_table=None if native else nested.ours,
                guest_segment=guest, vmm_segment=vmm, vpid=vpid, asid=asid, eptp=eptp,
            )
        )  # fmt: skip
        self.spec.load(
            mode, tables.theirs, None if native else nested.theirs,
            vpid=vpid, asid=asid, eptp=eptp, guest_segment=spec_guest, vmm_segment=spec_vmm,
        )  # fmt: skip

    def _both(self, call: str, *arguments: int) -> None:
        getattr(self.engine, call)(*arguments)
        getattr(self.spec, call)(*arguments)

    @rule(
        pages=st.lists(st.tuples(st.sampled_from(PAGES), st.integers(0, 2)), min_size=4, max_size=16),
        line=st.integers(0, 3), again=st.integers(0, 2), serve=st.integers(0, 4), size=SIZES,
    )  # fmt: skip
    def access(self, pages: list[tuple[int, int]], line: int, again: int, serve: int, size: int) -> None:
        """Access pages; a fault is served or left."""
        for page, kind in pages:
            write, fetch = kind == 1, kind == 2
            theirs = self.spec.access(page, line=line, write=write, fetch=fetch, again=again)
            ours = self.engine.run(pack(page, write, is_fetch=fetch, line=line, again=again))
            assert ours.exit.name == theirs.exit.name
            SEEN[theirs.exit.name] += 1
            if ours.done:
                continue
            assert ours.gvpn == page
            assert ours.gfn == (-1 if theirs.gfn is None else theirs.gfn)
            which = self.current[2] if ours.exit.name == "NESTED_FAULT" else self.current
            if self._under_segment(which, ours.gfn if ours.gfn >= 0 else page, size):
                size = 0
            if serve and ours.exit.name == "NESTED_FAULT":
                frame = next(self.hfns) if size == 0 else (next(self.hfns) & 4095) << 18
                self.nested[self.current[2]].map(ours.gfn, frame, size, {"writable": True})
            if serve and ours.exit.name == "GUEST_FAULT":
                flags = {"writable": serve != 1, "executable": serve != 2, "is_global": serve == 3}
                self.guests[self.current].map(page, GFNS[serve], size, flags)

    @rule(
        pages=st.lists(st.tuples(st.sampled_from(MAPPED_FIRST), st.sampled_from((0, 1, 1))), min_size=8),
        line=st.integers(0, 3), size=SIZES,
    )  # fmt: skip
    def work(self, pages: list[tuple[int, int]], line: int, size: int) -> None:
        """Access pages that are mostly mapped, and serve every fault."""
        self.access(pages, line, 1, 4, size)

    @rule(pages=st.permutations((0, 1, 2, 513, 514)), first=st.sampled_from((0, 2)), then=st.sampled_from((0, 1, 1, 2)))
    def come_again(self, pages: list[int], first: int, then: int) -> None:
        """Access pages in one way and then in another: entries of the L2 TLB that do not permit it must not serve."""
        self.access([(page, kind) for kind in (first, then) for page in pages], 0, 0, 4, 0)

    @rule(
        in_guest=st.booleans(), page=st.sampled_from((0, 1, 2, 513)),
        name=st.sampled_from(("writable", "executable")), elsewhere=st.sampled_from((0, 2)),
    )  # fmt: skip
    def refuse_and_grant(self, in_guest: bool, page: int, name: str, elsewhere: int) -> None:
        """Take a right, meet the refusal, and give the right back while an entry without it is held."""
        which = self.current if in_guest else self.current[2]
        leaf = self.guests[self.current].leaf(page)
        place = page if in_guest or leaf is None else leaf.frame + page - leaf.page
        kind = 1 if name == "writable" else 2
        self.protect(which, place, name, False)
        self.access([(page, 0), (page, kind), (elsewhere, 0)], 0, 0, 0, 0)
        self.protect(which, place, name, True)
        self.access([(page, kind)], 0, 0, 0, 0)

    @rule(which=st.sampled_from(CONTEXTS), page=st.sampled_from(PAGES), how=st.integers(0, 3))
    def unmap_guest(self, which: tuple[int, int, int], page: int, how: int) -> None:
        leaf = self.guests[which].leaf(page)
        if leaf is None:
            return
        self.guests[which].unmap(page)
        self._forget_guest(which, leaf, how)

    def _forget_guest(self, which: tuple[int, int, int], leaf: pt.Leaf, how: int) -> None:
        vpid, asid, _ = which
        end = leaf.page + (1 << 9 * leaf.size)
        is_global = bool(leaf.flags & pt.GLOBAL)
        if how == 0:
            self._both("invalidate_page", vpid, asid, leaf.page + 1 if leaf.size else leaf.page)
            if leaf.size:  # its other pages may be in entries of 4K
                self.both_machines_agree()
                self._both("invalidate_range", vpid, asid, leaf.page, end)
        elif how == 1 and not is_global:
            self._both("invalidate_context", vpid, asid)
        elif how == 2:
            self._both("invalidate_vpid", vpid)
        else:
            self._both("invalidate_all")
        SEEN["guest invalidations"] += 1

    @rule(eptp=st.sampled_from((1, 2)), gfn=st.sampled_from((*GFNS, TABLE_GFN, TABLE_GFN + 1)), how=st.integers(0, 1))
    def unmap_nested(self, eptp: int, gfn: int, how: int) -> None:
        leaf = self.nested[eptp].leaf(gfn)
        if leaf is not None:
            self.nested[eptp].unmap(gfn)
            if how and leaf.frame < TABLE_GFN:
                self._both("invalidate_all")
            else:
                self._both("invalidate_eptp", eptp)
            SEEN["nested invalidations"] += 1

    @rule(eptp=st.sampled_from((1, 2)), gfn=st.sampled_from(GFNS))
    def move(self, eptp: int, gfn: int) -> None:
        """Migrate a page: another frame, and precise invalidation of the old one."""
        leaf = self.nested[eptp].leaf(gfn)
        if leaf is not None and leaf.size == 0:
            flags = {"writable": bool(leaf.flags & pt.WRITABLE)}
            self.nested[eptp].unmap(gfn)
            self.nested[eptp].map(gfn, next(self.hfns), 0, flags)
            self._both("invalidate_frames", leaf.frame, leaf.frame + 1)
            SEEN["moves"] += 1

    @rule(
        which=st.sampled_from((*CONTEXTS, 1, 1, 1)), page=st.sampled_from((0, 0, 1, 513, 1 << 18, TABLE_GFN)),
        name=st.sampled_from(("writable", "dirty", "executable")), value=st.sampled_from((True, False, False)),
    )  # fmt: skip
    def protect(self, which: object, page: int, name: str, value: bool) -> None:
        """Give or take a right; taking one invalidates."""
        twin = self.guests[which] if isinstance(which, tuple) else self.nested[which]
        leaf = twin.leaf(page)
        if leaf is None:
            return
        twin.set_flags(page, {name: value})
        SEEN["protections changed"] += 1
        if not value:
            if isinstance(which, tuple):
                self._forget_guest(which, leaf, 2)
            else:
                self._both("invalidate_eptp", which)

    @rule(gfn=st.sampled_from((0, 1)), page=st.sampled_from((0, 1)))
    def write_protect(self, gfn: int, page: int) -> None:
        """Write-protect a gfn, as page sharing does, write to it, and give the right back."""
        leaf = self.nested[self.current[2]].leaf(gfn)
        if leaf is not None:
            self.nested[self.current[2]].set_flags(gfn, {"writable": False})
            self._both("invalidate_eptp", self.current[2])
            self.access([(page, 1), (page, 0), (page, 1)], 0, 0, 0, 0)
            self.nested[self.current[2]].set_flags(gfn, {"writable": bool(leaf.flags & pt.WRITABLE)})

    @rule(which=st.sampled_from((CONTEXTS[0], 1)), page=st.sampled_from((512, 1 << 18)))
    def split(self, which: object, page: int) -> None:
        """Split a large leaf: nothing is invalidated, for no translation changes."""
        twin = self.guests[which] if isinstance(which, tuple) else self.nested[which]
        leaf = twin.leaf(page)
        if leaf is not None and leaf.size:
            twin.split(page)
            SEEN["splits"] += 1

    @rule(which=st.sampled_from((CONTEXTS[0], *CONTEXTS)))
    def switch(self, which: tuple[int, int, int]) -> None:
        """Switch to another process or VM: nothing is flushed."""
        self.current = which
        self._load()
        SEEN["switches"] += 1

    @rule(
        mode=st.sampled_from((*MODES.values(), MODES["dual-direct"], MODES["guest-direct"])),
        base=st.sampled_from((0, 1, 512)), pages=st.sampled_from((2, 3, 512, 1024, *HUGE[:1], 0)),
        offset=st.sampled_from((0, 1, 512, 1 << 18)), vmm_pages=st.sampled_from((3, 41, 512, 1024, *HUGE, 0)),
        members=st.sets(st.sampled_from((0, 1, 2, 5, 41)), max_size=2),
    )  # fmt: skip
    def change_mode(self, mode: Mode, base: int, pages: int, offset: int, vmm_pages: int, members: set[int]) -> None:
        """Write registers and filters, and flush what depends on them."""
        vpid, _, eptp = self.current
        for other in CONTEXTS:
            if other[2] == eptp:
                self.modes[other] = mode
        self.segments[self.current] = self._segment(base, base + pages, offset, members)
        self.segments[eptp] = self._segment(0, vmm_pages, 1 << 19, members)
        self._drop_large_leaves(self.current, self.guests[self.current])
        self._drop_large_leaves(eptp, self.nested[eptp])
        self._load_all(eptp)
        self._both("invalidate_eptp", eptp)
        self._both("invalidate_vpid", vpid)
        SEEN[f"mode {mode.name}"] += 1

    def _under_segment(self, which: object, page: int, size: int) -> bool:
        """Tell whether a leaf of ``size`` for ``page`` would lie partly in the live segment of a process or a VM."""
        segment = self.segments.get(which, (None, None))[0]
        if isinstance(which, tuple):
            live = self.modes[which].guest == "segment"
        else:
            live = any(self.modes[each].nested == "segment" for each in CONTEXTS if each[2] == which)
        if not live:
            return False
        first = page & -(1 << 9 * size)
        return segment is not None and first < segment.limit and first + (1 << 9 * size) > segment.base

    def _drop_large_leaves(self, which: object, twin: Twin) -> None:
        """Do an OS's duty: no large leaf under a segment, where it would translate more than the pages that escape."""
        for (level, number), _ in [*twin.leaves(twin.ours.root, twin.ours.levels, 0)]:
            page, size = number << 9 * (level - 1), level - 1
            if size and self._under_segment(which, page, size):
                twin.unmap(page)

    def _load_all(self, eptp: int) -> None:
        current = self.current
        for which in CONTEXTS:
            if which[2] == eptp:
                self.current = which
                self._load()
        self.current = current
        self._load()

    def _segment(self, base: int, limit: int, offset: int, members: set[int]) -> tuple[Segment, SpecSegment]:
        held = random_filter(self.random, bits=8, hashes=2).with_members(*sorted(members))
        answer = spec_filter(held.rows, held.bits, frozenset(members))
        return (
            Segment(base=base, limit=limit, offset=offset, filter=held),
            SpecSegment(base, limit, offset, frozenset(members), answer),
        )

    @rule(
        start=st.sampled_from((0, 5000, 20_000, (1 << 18) + 9, (1 << 19) + 9)), pages=st.sampled_from((1, 600, 10_000))
    )
    def forget_frames(self, start: int, pages: int) -> None:
        self._both("invalidate_frames", start, start + pages)

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def both_machines_agree(self) -> None:
        ours = self.engine.counters()
        assert {name: ours[name] for name in self.spec.counters} == self.spec.counters
        told, expected = self.engine.contents(), self.spec.contents()
        for structure, held in expected.items():
            if self.engine.hierarchy or structure not in ("l1_data", "l1_instruction", "l2", "l3"):
                assert told[structure] == held, structure
        for twin in (*self.guests.values(), *self.nested.values()):
            twin.assert_equal()

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def nothing_is_stale(self) -> None:
        self.engine.check()
        self.spec.check()

    def teardown(self) -> None:
        if hasattr(self, "spec"):
            for name, value in self.spec.counters.items():
                SEEN[name] += value
            n = self.spec.counters
            l1_misses = n["data_l1_misses"] + n["instruction_l1_misses"]
            SEEN["refused by the L2 TLB"] += l1_misses - n["l2_hits"] - n["l2_misses"]
            SEEN["refused a right"] += n["rewalks"] - n["dirty_walks"]


ENOUGH = {
    "DONE": 2000, "GUEST_FAULT": 100, "NESTED_FAULT": 100, "GUEST_WRITE": 10, "NESTED_WRITE": 5, "PROTECTION": 10,
    "l1_hits": 300, "l2_hits": 50, "segment_0d": 30, "walk_guest": 100, "walk_nested": 20, "walk_both": 100,
    "rewalks": 20, "dirty_walks": 10, "checks_failed": 100, "escapes": 20, "false_escapes": 3, "nested_tlb_hits": 50,
    "walk_cache_hits": 50, "nested_walk_cache_hits": 50, "guest invalidations": 20, "nested invalidations": 10,
    "refused by the L2 TLB": 20, "refused a right": 5, "moves": 5, "splits": 2, "switches": 50,
    "references_from_memory": 50,
}  # fmt: skip
"""What a full run must have exercised at the least."""


def test_kernels_and_reference_agree_on_every_translation_counter_and_entry() -> None:
    """Run the machine, in seeded lives and in hypothesis's, and then ask whether it met everything that can happen."""
    SEEN.clear()
    for seed in range(40):
        live(seed)
    examples = 60 if INTERPRETED else 140
    run_state_machine_as_test(
        Judge,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    scale = min(1, examples / 140)
    too_little = {name: (SEEN[name], least) for name, least in ENOUGH.items() if SEEN[name] < least * scale}
    assert not too_little, f"exercised too little: {too_little}"


if __name__ == "__main__":
    pytest.main([__file__])
