"""Where the benchmark's pages lie: 4 KiB pages, frames random at both levels, segments over all that they can cover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vmmsim.translation.engine import Engine
from vmmsim.translation.escape_filter import random_filter
from vmmsim.translation.page_table import EXECUTABLE, WRITABLE
from vmmsim.translation.registers import Registers, Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vmmsim.config import Machine, Mode

ESCAPES: Final = 16
"""Pages in each escape filter: as many bad pages as the MICRO 2014 paper looks at."""
_TABLE_FRAMES: Final = 1 << 15
"""Frames set aside for page tables, among the pages' own."""
_LARGEST_GAP_PAGES: Final = 1 << 18


def laid_out(machine: Machine, mode: Mode, pages: NDArray[np.int64], *, hierarchy: bool) -> Engine:
    """Return an engine with the registers of ``mode`` loaded and ``pages`` (int64[n], ascending) mapped.

    Under a guest segment gfns follow gvpns, under a VMM segment hfns follow gfns, but for the pages that escape.
    """
    random = np.random.default_rng(1)
    engine = Engine(machine, hierarchy=hierarchy)
    gfns, guest_segment = _guest_side(mode, pages, random)
    frames = int(gfns.max()) + 1 + pages.size + _TABLE_FRAMES
    # What no page has; the guest's tables lie in some of it.
    free = np.ones(frames, np.bool_)
    free[gfns] = False
    guest = engine.table(_supply(random.permutation(np.flatnonzero(free))))
    guest.map(pages, gfns, flags=WRITABLE | EXECUTABLE)
    nested = vmm_segment = None
    if mode.nested != "identity":
        hfns, vmm_segment = _host_side(mode, gfns, frames, random)
        nested = engine.table(_supply(np.arange(2 * frames, 3 * frames)))
        mapped = np.zeros(frames, np.bool_)
        mapped[gfns] = mapped[guest.table_frames] = True
        nested.map(np.flatnonzero(mapped), hfns[mapped])
    engine.load(
        Registers(
            mode=mode, guest_table=guest, nested_table=nested, guest_segment=guest_segment, vmm_segment=vmm_segment
        )
    )
    return engine


def _guest_side(
    mode: Mode, pages: NDArray[np.int64], random: np.random.Generator
) -> tuple[NDArray[np.int64], Segment | None]:
    """Return the gfn of each page, and the guest segment: over the primary region, from gfn 0 on."""
    if mode.guest != "segment":
        return random.permutation(pages.size + _TABLE_FRAMES)[: pages.size], None
    base, limit = primary_region(pages)
    gfns = (limit - base) + random.permutation(pages.size + _TABLE_FRAMES)[: pages.size]
    inside = (pages >= base) & (pages < limit)
    escaped = random.choice(pages[inside], ESCAPES)
    follows = inside & ~np.isin(pages, escaped)
    gfns[follows] = pages[follows] - base
    held = random_filter(random).with_members(*escaped.tolist())
    return gfns, Segment(base=base, limit=limit, offset=-base, filter=held)


def _host_side(
    mode: Mode, gfns: NDArray[np.int64], frames: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], Segment | None]:
    """Return the hfn of each of ``frames`` gfns, and the VMM segment: over all of them."""
    if mode.nested != "segment":
        return random.permutation(frames), None
    escaped = random.choice(gfns, ESCAPES)
    hfns = frames + np.arange(frames)
    hfns[escaped] -= frames
    held = random_filter(random).with_members(*escaped.tolist())
    return hfns, Segment(base=0, limit=frames, offset=frames, filter=held)


def primary_region(pages: NDArray[np.int64]) -> tuple[int, int]:
    """Return [first, end) of those pages, with gaps of at most 1 GiB, that are most."""
    cuts = np.flatnonzero(np.diff(pages) > _LARGEST_GAP_PAGES) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, pages.size]
    largest = int(np.argmax(ends - starts))
    return int(pages[starts[largest]]), int(pages[ends[largest] - 1]) + 1


def _supply(frames: NDArray[np.int64]) -> Callable[[int], NDArray[np.int64]]:
    """Return what gives page tables their frames, one after the other."""
    given = 0

    def take(count: int) -> NDArray[np.int64]:
        nonlocal given
        given += count
        return frames[given - count : given]

    return take
