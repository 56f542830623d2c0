"""One cold walk: the published counts, the formula, and addresses that agree with tables and segments."""

from __future__ import annotations

import itertools

import pytest

from vmmsim.addresses import SIZE_NAMES
from vmmsim.config import MODES
from vmmsim.errors import BadInput
from vmmsim.studies.explain import EXAMPLE_GVA, explain
from vmmsim.studies.explanation import Explanation

EXAMPLE_HPA = 0x8D2345678


@pytest.mark.parametrize(
    ("mode", "references", "checks", "dimension"),
    [
        ("base", 24, 0, "2D"),
        ("dual-direct", 0, 1, "0D"),
        ("vmm-direct", 4, 5, "1D"),
        ("guest-direct", 4, 1, "1D"),
        ("native", 4, 0, "1D"),
        ("native-direct", 0, 1, "0D"),
    ],
)
def test_the_posters_table_comes_out_of_the_walk(mode: str, references: int, checks: int, dimension: str) -> None:
    walk = explain(mode=mode)
    assert (walk.total_references, walk.base_bound_checks, walk.dimension) == (references, checks, dimension)


@pytest.mark.parametrize(("guest_page", "host_page", "levels"), list(itertools.product(SIZE_NAMES, SIZE_NAMES, (4, 5))))
def test_every_mix_of_pages_follows_the_formula(guest_page: str, host_page: str, levels: int) -> None:
    g, h = levels - SIZE_NAMES.index(guest_page), levels - SIZE_NAMES.index(host_page)
    mix = {"guest_page": guest_page, "host_page": host_page, "levels": levels}
    base, vmm, guest, dual = (
        explain(mode=mode, **mix) for mode in ("base", "vmm-direct", "guest-direct", "dual-direct")
    )  # type: ignore[arg-type]
    assert (base.total_references, base.base_bound_checks) == ((g + 1) * (h + 1) - 1, 0)
    assert (vmm.total_references, vmm.base_bound_checks) == (g, g + 1)
    assert (guest.total_references, guest.base_bound_checks) == (h, 1)
    assert (dual.total_references, dual.base_bound_checks) == (0, 1)
    assert [kept.numbers for kept in base.kept] == [
        tuple((h + 1) * row for row in range(1, g + 1)),
        tuple(range((h + 1) * g + 1, (h + 1) * (g + 1))),
    ]


def test_published_counts_of_mixes_are_met() -> None:
    counts = [
        explain(guest_page=g, host_page=h).total_references
        for g, h in (("4K", "2M"), ("4K", "1G"), ("2M", "2M"), ("2M", "1G"), ("1G", "1G"))
    ]
    assert counts == [19, 14, 15, 11, 8]
    assert explain(levels=5).total_references == 35
    assert [explain(mode="native", guest_page=page).total_references for page in SIZE_NAMES] == [4, 3, 2]


@pytest.mark.parametrize("outside", range(5))
def test_each_table_outside_the_vmm_segment_costs_a_nested_walk(outside: int) -> None:
    walk = explain(mode="vmm-direct", tables_outside=outside)
    assert (walk.total_references, walk.base_bound_checks) == (4 + 4 * outside, 5 - outside)
    assert walk.dimension == "1D", "the data page alone decides the class"
    assert [check.outcome for check in walk.checks] == ["outside"] * outside + ["covered"] * (5 - outside)


def test_an_escaped_page_is_walked_and_nothing_else_is() -> None:
    vmm, dual = explain(mode="vmm-direct", escaped=True), explain(mode="dual-direct", escaped=True)
    assert (vmm.total_references, vmm.base_bound_checks, vmm.dimension) == (8, 4, "2D")
    assert (dual.total_references, dual.base_bound_checks, dual.dimension) == (4, 1, "1D")
    assert vmm.checks[-1].outcome == dual.checks[-1].outcome == "escaped"
    assert vmm.hpa == dual.hpa != EXAMPLE_HPA, "it lies in a healthy frame elsewhere"
    native = explain(mode="native-direct", escaped=True)
    assert (native.total_references, native.base_bound_checks, native.dimension) == (4, 0, "1D")


def test_all_five_outside_is_a_base_walk() -> None:
    walk = explain(mode="vmm-direct", tables_outside=4, escaped=True)
    assert (walk.total_references, walk.base_bound_checks, walk.dimension) == (24, 0, "2D")
    assert walk.kept[0].numbers == tuple(range(1, 25))


def test_an_escaped_page_has_a_small_leaf_among_large_ones() -> None:
    walk = explain(mode="vmm-direct", escaped=True, host_page="2M", tables_outside=1)
    assert walk.total_references == (3 + 1) + 3 + 4
    assert [reference.leaf_page for reference in walk.references if reference.leaf_page] == ["2M"] + ["4K"] * 2
    assert "4K leaf of its own" in walk.notes[0]


def test_all_virtualized_modes_find_the_page_in_the_same_place() -> None:
    pages = itertools.product([mode for mode in MODES if "native" not in mode], SIZE_NAMES, SIZE_NAMES)
    assert {explain(mode=m, guest_page=g, host_page=h).hpa for m, g, h in pages} == {EXAMPLE_HPA}


def chained(walk: Explanation) -> int:
    """Follow the walk by hand, entry by entry; return how many entries were where the one before said."""
    guest_table = hpa = None
    linked = 0
    for row in walk.rows:
        table = None
        for step in row.steps:
            if step.kind == "check":
                hpa = step.yields if step.yields is not None else hpa
            elif step.dimension == "nested":
                if table is not None:
                    assert step.address & -4096 == table
                    linked += 1
                shift = 12 + 9 * (step.level - 1)
                assert row.address is not None
                assert step.address % 4096 == (row.address >> shift & 511) * 8
                table, hpa = step.yields, step.yields | row.address % (1 << shift)
            else:
                assert hpa is not None or walk.native
                assert row.address == (guest_table if guest_table is not None else row.address)
                assert step.address & -4096 == (row.address if walk.native else (hpa or 0) & -4096)
                assert step.address % 4096 == (walk.gva >> 12 + 9 * (step.level - 1) & 511) * 8
                guest_table = (
                    step.yields if step.leaf_page is None else step.yields | walk.gva % (1 << 12 + 9 * (step.level - 1))
                )
                linked += 1
    end = guest_table if walk.native and walk.references else hpa
    assert end == walk.hpa
    return linked


@pytest.mark.parametrize(
    "gva", [EXAMPLE_GVA, 0, 0xFFF, 0x0000_7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, (1 << 64) - 1, 0x40000000]
)
def test_every_entry_lies_where_the_one_before_says(gva: int) -> None:
    linked = 0
    for mode, guest_page, host_page in itertools.product(MODES, SIZE_NAMES, SIZE_NAMES):
        walk = explain(gva, mode=mode, guest_page=guest_page, host_page=host_page)
        assert walk.gva == gva
        linked += chained(walk)
    g = h = (4, 3, 2)
    base = sum((b - 1) * (a + 1) + a for a, b in itertools.product(g, h))
    vmm_and_native, guest = 2 * 3 * sum(g), 3 * sum(b - 1 for b in h)
    assert linked == base + vmm_and_native + guest == 171


@pytest.mark.parametrize("levels", [4, 5])
def test_segments_add_up_to_the_result(levels: int) -> None:
    for gva in (EXAMPLE_GVA, (1 << 64) - 4096):
        walk = explain(gva, mode="dual-direct", levels=levels)
        guest, vmm = walk.segments
        assert guest.base <= gva < guest.limit
        assert vmm.base <= gva + guest.offset < vmm.limit
        assert gva + guest.offset + vmm.offset == walk.hpa


def test_the_fused_check_of_dual_direct_counts_once() -> None:
    walk = explain(mode="dual-direct")
    assert [(check.segment, check.outcome, check.counted) for check in walk.checks] == [
        ("guest", "covered", True),
        ("vmm", "covered", False),
    ]


def test_sizes_that_make_no_difference_are_noted() -> None:
    assert explain(mode="native", host_page="2M").notes == (
        "host pages of 2M make no difference: no nested table is read",
    )
    assert explain(mode="guest-direct", guest_page="1G").notes == (
        "guest pages of 1G make no difference: no guest table is read",
    )
    assert explain(guest_page="2M", host_page="1G").notes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "bsae"}, 'mode: "bsae" is unknown; did you mean "base"?'),
        ({"guest_page": "4M"}, 'guest_page: "4M" is not a page size; write 4K, 2M or 1G'),
        ({"host_page": ""}, 'host_page: "" is not a page size; write 4K, 2M or 1G'),
        ({"levels": 6}, "levels: must be 4 or 5, not 6"),
        (
            {"gva": 1 << 47},
            "gva: 0x800000000000 is not a canonical address of 4-level tables; bits 63 to 47 must be equal",
        ),
        (
            {"escaped": True},
            "escaped: base has no VMM segment to escape from: its nested table can put any page anywhere; "
            "use vmm-direct or dual-direct",
        ),
        (
            {"escaped": True, "mode": "guest-direct"},
            "escaped: guest-direct has no VMM segment to escape from: its nested table can put any page anywhere; "
            "use vmm-direct or dual-direct",
        ),
        ({"escaped": True, "mode": "native"}, "escaped: native has no segment to escape from; use native-direct"),
        (
            {"tables_outside": 1},
            "tables_outside: base has no VMM segment to be outside of; use vmm-direct",
        ),
        (
            {"tables_outside": 1, "mode": "dual-direct"},
            "tables_outside: dual-direct reads no guest table: its guest segment covers the page",
        ),
        (
            {"tables_outside": 4, "mode": "vmm-direct", "guest_page": "2M"},
            "tables_outside: 4 is not 0 to 3: that many guest tables translate a 2M page",
        ),
        (
            {"tables_outside": -1, "mode": "vmm-direct"},
            "tables_outside: -1 is not 0 to 4: that many guest tables translate a 4K page",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        explain(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
