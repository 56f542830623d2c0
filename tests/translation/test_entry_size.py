"""How large a TLB entry is: the smaller of what the two dimensions contribute, cut to what the TLB holds."""

from __future__ import annotations

import itertools

import attrs
import pytest

from tests.translation.worlds import ALL_SIZES, PAGE, SHIFT, World, toy, without
from vmmsim.config import Switches, TlbPart
from vmmsim.translation.registers import Segment

SIZES = [*itertools.product(range(3), repeat=2)]


@pytest.mark.parametrize(("guest", "nested"), SIZES)
def test_an_entry_is_as_large_as_both_dimensions_allow(guest: int, nested: int) -> None:
    world = World(toy(), guest, nested)
    whole = attrs.evolve(world.guest_segment, limit=PAGE + (1 << 18))
    for mode, size in (
        ("base", min(guest, nested)), ("native", guest), ("vmm-direct", guest), ("guest-direct", nested),
        ("dual-direct", 0), ("native-direct", 0),
    ):  # fmt: skip
        world.miss(mode, guest_segment=whole)
        assert world.size() == size, mode


LARGE = 1 << 18


@pytest.mark.parametrize(
    ("base", "limit", "offset", "escaping", "size"),
    [
        (0, 2 * LARGE, 0, None, 2),
        (LARGE, 2 * LARGE, 0, None, 2),
        (LARGE, 2 * LARGE - 1, 0, None, 1),
        (LARGE - 1, 2 * LARGE, 0, None, 2),
        (LARGE, LARGE + 512, 0, None, 1),
        (LARGE, LARGE + 511, 0, None, 0),
        (LARGE + 1, 2 * LARGE, 0, None, 0),
        (0, 2 * LARGE, 512, None, 1),
        (0, 2 * LARGE, 1, None, 0),
        (0, 2 * LARGE, LARGE, None, 2),
        (LARGE, LARGE + 1024, 0, 512, 1),
        (LARGE, LARGE + 1024, 0, 511, 0),
        (LARGE, LARGE + 1024, 0, 1023, 1),
    ],
)
@pytest.mark.parametrize("dimension", ["guest", "vmm"])
def test_a_segment_contributes_the_largest_aligned_page_inside_it_free_of_escapes(
    dimension: str, base: int, limit: int, offset: int, escaping: int | None, size: int
) -> None:
    """Bounds are those of a VMM segment around gfn LARGE; a guest segment has the same ones around PAGE."""
    world = World(toy(), 2, 2)
    shift = 0 if dimension == "vmm" else PAGE - LARGE
    segment = Segment(base=base + shift, limit=limit + shift, offset=offset + (SHIFT if dimension == "vmm" else -shift))
    if escaping is not None:
        segment = without(segment, LARGE + shift + escaping)
    page = PAGE if base <= LARGE else PAGE + 1
    if dimension == "vmm":
        world.load("vmm-direct", vmm_segment=segment)
    else:
        world.load("guest-direct", guest_segment=segment)
        world.back(LARGE + offset)
    world.access(page)
    assert world.size(page) == size
    assert world.hfn(page) == LARGE + page - PAGE + offset + SHIFT


def test_no_page_of_a_large_entry_escapes_from_a_segment_not_aligned_to_2m() -> None:
    world = World(toy(), 1, 1)
    for member in (world.data, world.data + 100, world.data + 511, world.data + 512, world.data - 1):
        for base in (world.data - 3, world.data - 512, world.data - 700):
            segment = without(Segment(base=base, limit=world.data + 1500, offset=SHIFT), member)
            world.load("vmm-direct", vmm_segment=segment).engine.invalidate_all()
            page = PAGE + (member == world.data)
            world.access(page)
            inside = world.data <= member < world.data + 512
            assert world.size(page) == (0 if inside else 1), (member, base)


def test_dual_direct_fills_the_largest_page_that_lies_in_both_if_told() -> None:
    world = World(toy(switches=Switches(dd_fill="largest")), 2, 2)
    guest = attrs.evolve(world.guest_segment, limit=PAGE + LARGE)
    for vmm, guest_segment, size in (
        (world.vmm_segment, guest, 2),
        (attrs.evolve(world.vmm_segment, limit=LARGE + 512), guest, 1),
        (without(attrs.evolve(world.vmm_segment, base=LARGE, limit=LARGE + 1024), LARGE + 1), guest, 0),
        (world.vmm_segment, without(attrs.evolve(guest, limit=PAGE + 1024), PAGE + 1), 0),
        (world.vmm_segment, attrs.evolve(guest, limit=PAGE + 1024), 1),
    ):
        world.load("dual-direct", vmm_segment=vmm, guest_segment=guest_segment).engine.invalidate_all()
        world.access()
        assert world.size() == size
    world.load("native-direct", guest_segment=guest).engine.invalidate_all()
    world.access()
    assert world.size() == 2


def test_each_level_is_filled_with_the_size_that_the_l1_takes() -> None:
    parts = {"4K": TlbPart(entries=1, ways=1), "2M": TlbPart(entries=1, ways=1, pages=("2M",))}
    for l1, l2, sizes in (
        (("4K",), ("4K", "2M"), (0, 0)),
        (("4K", "2M"), ("4K",), (1, None)),
        (("4K", "2M"), ("2M",), (1, 1)),
        (("4K",), ("2M",), (0, None)),
    ):
        machine = toy(l1_data_tlb=tuple(parts[size] for size in l1), l2_tlb=tuple(parts[size] for size in l2))
        world = World(machine, 1, 2).load("base")
        world.access(PAGE + 7)
        assert world.size(PAGE + 7) == sizes[0]
        entry = world.entry(PAGE + 7, "l2_tlb")
        assert (entry and entry[1]) == sizes[1]


def test_an_l2_hit_is_cut_to_what_the_l1_holds() -> None:
    l1, l2 = (TlbPart(entries=1, ways=1),), (TlbPart(entries=2, ways=2, pages=("2M",)),)
    world = World(toy(l1_data_tlb=l1, l1_instruction_tlb=ALL_SIZES, l2_tlb=l2), 1, 1).load("base")
    world.access(fetch=True)
    assert world.counted(PAGE + 9)["l2_hits"] == 1
    owner = ("combined", 1, 1, 1)
    assert world.held("l1_data_tlb") == [(owner, 0, PAGE + 9, world.data + SHIFT + 9, True, False, True)]


def test_an_escaped_page_is_filled_with_the_size_of_its_leaf() -> None:
    world = World(toy(), 0, 0)
    world.load("vmm-direct", vmm_segment=without(world.vmm_segment, world.data)).access()
    assert world.size() == 0
    world.map_guest(PAGE + 512, world.data + 512, 1)
    world.access(PAGE + 513)
    assert world.size(PAGE + 513) == 1
