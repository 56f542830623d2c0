"""A program laid out: every page there once, segments and tables of one mind, bad pages out of the way."""

from __future__ import annotations

import itertools
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.studies.programs import CODE, DATA_PAGES, HEAP, HEAP_PAGES, LOW, NEAR, TOY, accesses, machine, plan, program
from vmmsim.addresses import format_bytes, size_pages
from vmmsim.config import MODES, Machine, Switches
from vmmsim.errors import BadInput
from vmmsim.jit import INTERPRETED
from vmmsim.spec import Entry, SpecCore, SpecSegment, SpecTable, spec_filter
from vmmsim.studies.layout import Layout, Plan, Program, lay_out, tables_needed
from vmmsim.studies.placement import PLACEMENTS
from vmmsim.translation import audit
from vmmsim.translation import page_table as pt
from vmmsim.translation.engine import Engine
from vmmsim.translation.page_table import PageTable
from vmmsim.translation.registers import Segment
from vmmsim.translation.state import Exit
from vmmsim.workloads.regions import REGION_GAP

SIZES = tuple(itertools.product((0, 1, 2), (0, 1, 2)))


def laid_out(
    mode: str, planned: Plan, *, what: Program | None = None, on: Machine = TOY, hierarchy: bool = False
) -> tuple[Engine, Layout]:
    engine = Engine(on, hierarchy=hierarchy)
    layout = lay_out(engine, MODES[mode], what or program(), planned)
    engine.load(layout.registers)
    return engine, layout


def translated(layout: Layout, pages: np.ndarray) -> list[int]:
    """Return the hfn of each page, by segments and page tables as the textbook has them."""
    truths = [audit.combined_truth(layout.registers, int(page)) for page in pages]
    assert all(truth is not None and all(truth[1:]) for truth in truths), "every page is mapped, with all rights"
    return [truth[0] for truth in truths if truth]


def table_frames(layout: Layout) -> list[int]:
    """Return the hfns of all page tables."""
    registers = layout.registers
    guest = registers.guest_table.table_frames.tolist()
    if registers.nested_table is None:
        return guest
    nested = [audit.nested_truth(registers, frame) for frame in guest]
    return [truth[0] for truth in nested if truth] + registers.nested_table.table_frames.tolist()


def assert_well_laid(layout: Layout, what: Program) -> None:
    """Every touched page and every table has a frame of its own, and tables agree with segments."""
    hfns = translated(layout, what.pages) + table_frames(layout)
    assert len(set(hfns)) == len(hfns)
    registers = layout.registers
    for segment, table in (
        (registers.guest_segment, registers.guest_table),
        (registers.vmm_segment, registers.nested_table),
    ):
        if segment is not None and table is not None:
            assert_table_follows(segment, table)
    registers.guest_table.check()
    if registers.nested_table is not None:
        registers.nested_table.check()


def assert_table_follows(segment: Segment, table: PageTable) -> None:
    """Below a segment the table says what the segment says, but for bad pages, which lie outside of it."""
    members = set(segment.filter.members) if segment.filter else set()
    pages, entries, sizes = table.leaves()
    for page, entry, size in zip(pages.tolist(), entries.tolist(), sizes.tolist(), strict=True):
        frame, end = entry >> pt.FRAME_SHIFT & pt.FRAME_MASK, page + size_pages(size)
        inside = page < segment.limit and end > segment.base
        if page in members and size == 0:
            assert not segment.base + segment.offset <= frame < segment.limit + segment.offset
        elif inside:
            assert frame == page + segment.offset
            assert not members & set(range(page, end)) or size == 0
        else:
            assert not (
                frame < segment.limit + segment.offset and frame + size_pages(size) > segment.base + segment.offset
            )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_page_lies_in_a_frame_of_its_own(mode, placement):
    for guest_page, host_page in SIZES:
        planned = plan(guest_page=guest_page, host_page=host_page, placement=placement)
        assert_well_laid(laid_out(mode, planned)[1], program())


@pytest.mark.parametrize(("guest_page", "host_page"), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)])
@pytest.mark.parametrize("mode", ["native-direct", "dual-direct", "vmm-direct"])
def test_bad_pages_are_mapped_to_healthy_frames(mode, guest_page, host_page):
    bad = 64
    planned = plan(guest_page=guest_page, host_page=host_page, bad_pages=bad)
    _, layout = laid_out(mode, planned)
    assert len(layout.bad_pages) == bad
    assert_well_laid(layout, program())
    segment = layout.registers.vmm_segment or layout.registers.guest_segment
    assert segment is not None
    assert segment.filter is not None
    assert sorted(segment.filter.members) == list(layout.bad_pages)
    table = layout.registers.nested_table
    if table is None:
        return
    frames = table.translate(np.array(layout.bad_pages))
    assert (frames >= 0).all()
    assert np.unique(frames).size == bad


@st.composite
def scattered(draw: st.DrawFn) -> Program:
    """Draw clusters of pages, near to each other or far, on both sides of the boundaries of large pages."""
    bases = draw(
        st.lists(st.sampled_from((0, 510, 1022, 1 << 18, (1 << 18) - 4, 1 << 27, (1 << 36) - 2601)), min_size=1)
    )
    touched, code = set(), set()
    for base in bases:
        pages = draw(st.sets(st.integers(0, 2600), min_size=1, max_size=12))
        touched |= {base + page for page in pages}
        code |= {base + page for page in draw(st.sets(st.sampled_from(sorted(pages)), max_size=2))}
    return Program(pages=np.array(sorted(touched), np.int64), code=np.array(sorted(code), np.int64))


@settings(max_examples=40 if INTERPRETED else 100)
@given(
    what=scattered(), mode=st.sampled_from(tuple(MODES)), sizes=st.sampled_from(SIZES),
    placement=st.sampled_from(PLACEMENTS), seed=st.integers(0, 3),
)  # fmt: skip
def test_any_program_is_laid_out_well(what, mode, sizes, placement, seed):
    planned = plan(guest_page=sizes[0], host_page=sizes[1], placement=placement, seed=seed)
    assert_well_laid(laid_out(mode, planned, what=what)[1], what)


# The primary region


def region(data, code=()):
    pages = np.union1d(np.array(data, np.int64), np.array(code, np.int64))
    return Program(pages=pages, code=np.array(sorted(code), np.int64)).primary_region()


def test_the_primary_region_is_the_one_with_most_data_pages():
    assert region([5, 6, 7, 100_000, 100_001]) == (5, 8)
    assert region([5, 6, 100_000, 100_001, 100_007]) == (100_000, 100_008)
    assert program().primary_region() == (HEAP, HEAP + HEAP_PAGES[-1] + 1)


def test_a_gap_of_16_mib_ends_a_region():
    assert region([0, REGION_GAP, 2 * REGION_GAP]) == (0, 2 * REGION_GAP + 1)
    assert region([0, 1, REGION_GAP + 2]) == (0, 2)


def test_code_ends_a_region_and_is_in_none():
    assert region([10, 11, 13, 14, 15], code=[12]) == (13, 16)
    assert region([10, 11, 12], code=[12]) == (10, 12)
    assert region([10, 11], code=[10, 11]) == (0, 0)


def test_code_that_is_not_replayed_ends_a_region_too():
    what = Program(pages=np.array([10, 11, 13, 14, 15]), code=np.array([12]))
    assert what.primary_region() == (13, 16)


@given(scattered())
def test_the_primary_region_holds_the_longest_stretch_of_data(what):
    base, limit = what.primary_region()
    data = sorted(set(what.pages.tolist()) - set(what.code.tolist()))
    stretches: list[list[int]] = []
    for page in data:
        before = stretches[-1][-1] if stretches else None
        if before is None or page - before > REGION_GAP or any(before < c < page for c in what.code.tolist()):
            stretches.append([])
        stretches[-1].append(page)
    if not data:
        assert base == limit
        return
    longest = max(stretches, key=len)
    assert (base, limit) == (longest[0], longest[-1] + 1)


def test_the_guest_segment_is_the_primary_region_and_the_vmm_segment_all_guest_memory():
    _, layout = laid_out("dual-direct", plan(guest_page=1, host_page=1))
    guest, vmm = layout.registers.guest_segment, layout.registers.vmm_segment
    assert guest is not None
    assert vmm is not None
    assert (guest.base, guest.limit) == program().primary_region()
    assert guest.offset % 512 == 0
    assert (vmm.base, vmm.limit) == (0, layout.guest_frames)
    assert vmm.offset % (1 << 18) == 0


def test_a_large_page_that_the_segment_cuts_is_mapped_by_small_leaves_outside_it():
    _, layout = laid_out("guest-direct", plan(guest_page=1, host_page=1))
    table = layout.registers.guest_table
    sizes = {page: leaf.size for page in program().pages.tolist() if (leaf := table.leaf(page))}
    assert {sizes[NEAR], sizes[HEAP], sizes[HEAP + 1500]} == {0}
    assert {sizes[CODE], sizes[LOW]} == {1}


# Memory


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("guest_page", "host_page"), [(0, 0), (1, 0), (0, 1), (2, 2)])
def test_the_least_guest_memory_is_enough_and_a_page_less_is_refused(mode, guest_page, host_page):
    def fits(frames: int) -> bool:
        try:
            laid_out(mode, plan(guest_page=guest_page, host_page=host_page, guest_frames=frames))
        except BadInput as bad:
            assert bad.problems[0].file == "--guest-memory"  # noqa: PT017
            return False
        return True

    least, most = 1, 1 << 22
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle + 1, most)
    assert least > program().pages.size
    message = f"guest memory of {format_bytes((least - 1) << 12)} is too small: the program in "
    with pytest.raises(BadInput, match=re.escape(message)):
        laid_out(mode, plan(guest_page=guest_page, host_page=host_page, guest_frames=least - 1))
    for placement in PLACEMENTS:
        planned = plan(guest_page=guest_page, host_page=host_page, guest_frames=least, placement=placement)
        _, layout = laid_out(mode, planned)
        assert layout.guest_frames == least
        assert_well_laid(layout, program())


def test_a_program_wider_than_any_guest_is_refused():
    pages = np.arange(5000, dtype=np.int64) << 18
    what = Program(pages=pages, code=pages[:0])
    with pytest.raises(
        BadInput, match=r"1G pages needs 4\.88 TiB, and a guest has at most 4 TiB; smaller pages need less"
    ):
        laid_out("base", plan(guest_page=2), what=what)
    wide = Program(pages=np.arange(0, 1_100_000_000, 4000, dtype=np.int64), code=pages[:0])
    with pytest.raises(BadInput, match="its accesses lie too far apart"):
        laid_out("guest-direct", plan(), what=wide)


@pytest.mark.parametrize("host_page", [0, 1, 2])
@pytest.mark.parametrize("mode", ["base", "dual-direct"])
def test_the_largest_guest_has_a_host(mode, host_page):
    planned = plan(guest_frames=1 << 30, host_page=host_page)
    assert_well_laid(laid_out(mode, planned)[1], program())


def test_tables_needed_is_what_a_table_takes():
    for size in (0, 1, 2):
        engine = Engine(TOY)
        supply = itertools.count(1)
        table = engine.table(lambda n, supply=supply: np.array([next(supply) for _ in range(n)]))
        pages = np.unique(program().pages >> 9 * size) << 9 * size
        table.map(pages, np.arange(pages.size, dtype=np.int64) << 9 * size, size=size)
        spare = engine.tables.nodes_in_use - tables_needed(pages, size, TOY.levels)
        assert 0 <= spare < TOY.levels


# Against the reference


def spec_table(table: PageTable) -> SpecTable:
    """Return the reference's copy of a page table, from its leaves and the places of its tables."""
    copy = SpecTable(levels=table.levels, root_frame=table.root_frame)
    for page, entry, size in zip(*(part.tolist() for part in table.leaves()), strict=True):
        flags = {"writable": pt.WRITABLE, "accessed": pt.ACCESSED, "dirty": pt.DIRTY, "executable": pt.EXECUTABLE}
        for level in range(size + 2, table.levels + 1):
            frame = table.table_at(page, level)
            assert frame is not None
            copy.entries.setdefault((level, page >> 9 * (level - 1)), Entry(frame, leaf=False))
        copy.entries[size + 1, page >> 9 * size] = Entry(
            entry >> pt.FRAME_SHIFT & pt.FRAME_MASK, leaf=True, size=size,
            **{name: bool(entry & bit) for name, bit in flags.items()},
        )  # fmt: skip
    return copy


def spec_segment(segment: Segment | None) -> SpecSegment | None:
    if segment is None:
        return None
    held = segment.filter
    members = frozenset(held.members) if held else frozenset()
    answer = spec_filter(held.rows, held.bits, members) if held else None
    return SpecSegment(segment.base, segment.limit, segment.offset, members, answer)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("guest_page", "host_page", "bad", "changes"),
    [
        (0, 0, 0, {}),
        (0, 0, 200, {}),
        (1, 1, 0, {"dd_fill": "largest"}),
        (1, 0, 0, {"segment_at": "l2_miss", "segment_fills_l2": True, "ntlb_data": True}),
        (0, 1, 0, {"ept_accessed_dirty": False}),
        (2, 1, 0, {}),
    ],
)
def test_the_reference_agrees_on_every_access_counter_and_entry(mode, guest_page, host_page, bad, changes):
    on = machine(switches=Switches(**changes))
    # As few pages as the program needs, so that accesses meet bad ones.
    planned = plan(guest_page=guest_page, host_page=host_page, bad_pages=bad, guest_frames=1800 if bad else None)
    engine, layout = laid_out(mode, planned, on=on, hierarchy=True)
    registers = layout.registers
    spec = SpecCore(on, hierarchy=True)
    spec.load(
        MODES[mode],
        spec_table(registers.guest_table),
        registers.nested_table and spec_table(registers.nested_table),
        vpid=registers.vpid, asid=registers.asid, eptp=registers.eptp,
        guest_segment=spec_segment(registers.guest_segment), vmm_segment=spec_segment(registers.vmm_segment),
    )  # fmt: skip
    chunk = accesses(300)
    for word in chunk.tolist():
        write, fetch, again = bool(word & 1), bool(word & 2), word >> 2 & 1023
        spec.access(word >> 18, line=word >> 12 & 63, write=write, fetch=fetch, again=again)
    assert engine.run(chunk).exit is Exit.DONE
    ours = engine.counters()
    assert {name: ours[name] for name in spec.counters} == spec.counters
    told = engine.contents()
    for structure, held in spec.contents().items():
        assert told[structure] == held, structure
    engine.check()
    assert ours["walk_cycles"] > 0
    assert ours["l1_hits"] > 0
    assert len(DATA_PAGES) > 0
    if bad and MODES[mode].nested == "segment":
        assert ours["escapes"] > ours["false_escapes"] > 0


@settings(max_examples=15 if INTERPRETED else 60)
@given(
    mode=st.sampled_from(tuple(MODES)), sizes=st.sampled_from(SIZES), placement=st.sampled_from(PLACEMENTS),
    bad=st.sampled_from((0, 5, 250)), seed=st.integers(0, 9),
)  # fmt: skip
def test_nothing_faults_and_all_is_true_after_a_run(mode, sizes, placement, bad, seed):
    bad = 0 if INTERPRETED and 2 in sizes else bad
    planned = plan(guest_page=sizes[0], host_page=sizes[1], placement=placement, bad_pages=bad, seed=seed)
    engine, _ = laid_out(mode, planned, hierarchy=True)
    chunk = accesses(400, seed)
    outcome = engine.run(chunk)
    assert (outcome.exit, outcome.done) == (Exit.DONE, chunk.size)
    engine.check()
