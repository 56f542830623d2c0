"""The check of workloads: accesses are a pure function of position, and what is touched is what they touch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.workloads.adapted import Adapted
from vmmsim.workloads.touching import first_of_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.protocols import Region, UserWorkload, Workload

_FAR: Final = 10**12
"""A position that lives reach: whoever counts up to it, access by access, is found out."""
_SPAN: Final = 1000
_SPANS: Final = 24
_SIGMAS: Final = 6
_SLACK: Final = 0.02
"""Share by which the numbers of pages touched may differ beside chance: 1 - exp(-p n) is not quite 1 - (1 - p)**n."""


def check_workload(workload: UserWorkload | Workload) -> None:
    """Check that ``workload`` keeps to its contract, ``protocols.UserWorkload``; AssertionError says where it does not.

    Looks at the accesses of some positions, near and far; a workload that takes the longer the further
    on it is asked does not come to an end here. Numbers of pages touched, where they need not be exact, are compared
    over 24 spans and may differ by 6 standard errors and 2 %.
    """
    whole = Adapted(workload, type(workload).__name__)
    _check_regions(whole.regions)
    places = _places(whole)
    for x in places:
        _check_stream(whole, x)
        _check_touched(whole, x, x + _SPAN)
    _check_begins(whole)
    _check_frees(whole, places)
    _check_numbers(whole)


def _check_regions(regions: tuple[Region, ...]) -> None:
    assert all(region.name for region in regions), "each region has a name"
    assert len({region.name for region in regions}) == len(regions), "two regions have the same name"


def _places(whole: Adapted) -> list[int]:
    """Return positions to look at: the start, about the end of the initial phase, far away, about the end."""
    places = [0, 1, 777, max(whole.begins - _SPAN // 2, 0), whole.begins, whole.begins + 12_345, 10**6 + 7]
    if whole.length is None:
        return [*places, _FAR + 1]
    places += [whole.length // 2, max(whole.length - 1000, 0), whole.length]
    return [x for x in places if x <= whole.length]


def _check_stream(whole: Adapted, x: int) -> None:
    pages, writes = whole.stream(x, _SPAN)
    there = _SPAN if whole.length is None else max(0, min(_SPAN, whole.length - x))
    assert pages.shape == writes.shape == (there,), f"stream({x}, {_SPAN}) has {pages.shape}, not ({there},)"
    assert _inside(whole.regions, pages).all(), f"stream({x}, {_SPAN}) leaves the regions"
    for cut in (0, there // 3, there - 1):
        if 0 <= cut <= there:
            later = whole.stream(x + cut, there - cut)  # first, so that whoever advances a generator is found out
            sooner = whole.stream(x, cut)
            for n, name in enumerate(("gvpn", "is_write")):
                same = np.array_equal((pages, writes)[n], np.concatenate([sooner[n], later[n]]))
                assert same, f"stream({x}, {_SPAN}) cut after {cut} accesses differs in {name}"
    for vcpu in (1, 7):
        one, two = whole.stream(x, 100, vcpu), whole.stream(x, 100, vcpu)
        assert np.array_equal(one[0], two[0]), f"stream({x}, 100, vcpu={vcpu}) differs when it is asked for again"
        assert _inside(whole.regions, one[0]).all(), f"stream({x}, 100, vcpu={vcpu}) leaves the regions"


def _check_touched(whole: Adapted, x0: int, x1: int) -> None:
    first = whole.touched(x0, x1)
    whole.touched(x0 + 5, x1 + 3)
    again = whole.touched(x0, x1)
    held = np.concatenate([np.arange(region.start, region.end)[:100] for region in whole.regions])
    asked = np.concatenate([held, *first])
    among = whole.touched_among(asked, x0, x1)
    for name, pages, same, told in zip(("read", "written"), first, again, among, strict=True):
        call = f"touched({x0}, {x1}), pages {name}:"
        assert np.array_equal(pages, same), f"{call} differ when asked for again"
        assert np.unique(pages).size == pages.size, f"{call} a page stands there twice"
        assert _inside(whole.regions, pages).all(), f"{call} leave the regions"
        assert np.array_equal(told, np.isin(asked, pages)), f"{call} touched_among says something else"
    assert not any(pages.size for pages in whole.touched(x0, x0)), f"touched({x0}, {x0}) is not empty"


def _check_begins(whole: Adapted) -> None:
    """Check that the initial phase is told exactly, and that none of its first touches is lost between spans."""
    end = min(whole.begins, 1 << 16)
    met: list[NDArray[np.int64]] = []
    cuts = sorted({0, end, *(n for n in (1, 63, 64, 1000, 1001, end // 2) if n < end)})
    for x0, x1 in pairwise(cuts):
        pages, writes = whole.stream(x0, x1 - x0)
        for pages_told, kind in zip(whole.touched(x0, x1), (~writes, writes), strict=True):
            exact = np.array_equal(pages_told, first_of_each(pages[kind]))
            assert exact, (
                f"touched({x0}, {x1}) is not what stream touches, in its order, though begins is {whole.begins}"
            )
            met.append(pages_told)
    if end:
        every = np.unique(whole.stream(0, end)[0])
        assert np.array_equal(np.unique(np.concatenate(met)), every), "a first touch is lost between spans"


def _check_frees(whole: Adapted, places: list[int]) -> None:
    for x in places:
        far = 1 << 22
        all_of_it = whole.frees(x, x + far)
        for at, region in all_of_it:
            assert x <= at < x + far, f"frees({x}, {x + far}) tells of {at}"
            assert 0 <= region < len(whole.regions), f"frees({x}, {x + far}) tells of region {region}"
        assert all_of_it == sorted(all_of_it), f"frees({x}, {x + far}) is not ascending"
        cut = all_of_it[0][0] if all_of_it else x + far // 3
        parts = whole.frees(x, cut) + whole.frees(cut, x + far)
        assert parts == all_of_it, f"frees({x}, {x + far}) cut at {cut} differs"


def _check_numbers(whole: Adapted) -> None:
    """Check that as many pages are told as touched, over spans too long to be told otherwise than one by one."""
    step = _SPAN * 37 if whole.length is None else max((whole.length - whole.begins) // _SPANS, 1)
    starts = [whole.begins + n * step for n in range(_SPANS)]
    differences = []
    for x in starts:
        pages, writes = whole.stream(x, _SPAN)
        told = whole.touched(x, x + _SPAN)
        differences.append(
            [part.size - np.unique(pages[kind]).size for part, kind in zip(told, (~writes, writes), strict=True)]
        )
    sizes = np.array(differences, dtype=np.float64)
    mean, error = sizes.mean(axis=0), sizes.std(axis=0, ddof=1) / np.sqrt(len(starts))
    for n, name in enumerate(("read", "written")):
        allowed = _SIGMAS * error[n] + _SLACK * _SPAN
        assert abs(mean[n]) <= allowed, (
            f"touched tells of {mean[n]:+.1f} pages {name} in {_SPAN} accesses, "
            f"compared with stream; {allowed:.1f} would do"
        )


def _inside(regions: tuple[Region, ...], pages: NDArray[np.int64]) -> NDArray[np.bool_]:
    starts = np.array([region.start for region in regions])
    ends = np.array([region.end for region in regions])
    which = np.searchsorted(starts, pages, side="right") - 1
    inside: Any = (which >= 0) & (pages < ends[np.maximum(which, 0)])
    return np.asarray(inside, np.bool_)
