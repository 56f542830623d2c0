"""The pages that services are tried on: a random sample of the VM's memory, stratified by what covers each page.

A page is the same one in every life: the program's by its number, page cache by the page of the file, all others by
gfn, and only if they are used for the same in all lives. Where each lies is asked of the life it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.studies.tradeoff_life import Life

    Pages = NDArray[np.int64]

ROLES: Final = {
    "kernel": (Kind.KERNEL, Kind.SLAB),
    "page tables": (Kind.TABLE,),
    "free": (Kind.FREE,),
}
"""What pages that are known by their gfn are used for."""
FEWEST: Final = 4
"""Pages of a stratum that are tried at least, if it has so many."""


@attrs.frozen(kw_only=True)
class Page:
    """One page of the sample."""

    role: str
    """program, page cache, kernel, page tables or free."""
    key: int
    """Its number in the program, its page in the files, or its gfn."""
    stratum: int

    def gfn(self, life: Life) -> int:
        """Return where it is in a life."""
        return int(gfns_of(life, self.role, np.array([self.key], np.int64))[0])

    def gvpn(self, life: Life) -> int | None:
        """Return its place in the program's address space; None if it is not the program's."""
        if self.role != "program":
            return None
        return int(life.guest.os.process.gvpns(np.array([self.key], np.int64))[0])


@attrs.frozen(kw_only=True)
class Stratum:
    """Pages of one role that the same segments cover in the same modes."""

    role: str
    covered: tuple[str, ...]
    """Segments that cover its pages, each as "MODE: guest segment" or "MODE: VMM segment"."""
    pages: int
    """Pages of the VM's memory that it stands for."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        kinds = sorted({one.split(": ")[1] for one in self.covered})
        modes = {kind: [one.split(": ")[0] for one in self.covered if one.endswith(kind)] for kind in kinds}
        inside = [f"under the {kind} of {' and '.join(names)}" for kind, names in modes.items()]
        return f"{self.role}, {', '.join(inside) if inside else 'under no segment'}"


@attrs.frozen(kw_only=True)
class Sample:
    """The strata of a VM's memory, and the pages drawn from them."""

    strata: tuple[Stratum, ...]
    pages: tuple[Page, ...]


def gfns_of(life: Life, role: str, keys: Pages) -> Pages:
    """Return int64[n]: where pages of one role are in a life; -1: the program has not mapped it."""
    if role == "program":
        process = life.guest.os.process
        return np.asarray(process.table.translate(process.gvpns(keys)))
    return life.files[keys] if role == "page cache" else keys


def draw(lives: Mapping[str, Life], count: int, random: np.random.Generator) -> Sample:
    """Draw about ``count`` pages, as many from each stratum, of the memory that ``lives`` have in common."""
    strata: list[Stratum] = []
    pages: list[Page] = []
    found = [
        (role, total, covered, keys)
        for role, total, common in _common(lives)
        for covered, keys in _by_cover(lives, role, common)
    ]
    of_role = {role: sum(keys.size for name, _, _, keys in found if name == role) for role, *_ in found}
    each = max(FEWEST, count // max(len(found), 1))
    for role, total, covered, keys in found:
        strata.append(Stratum(role=role, covered=covered, pages=round(total * keys.size / of_role[role])))
        drawn = np.sort(random.choice(keys, min(each, keys.size), replace=False))
        pages += [Page(role=role, key=key, stratum=len(strata) - 1) for key in drawn.tolist()]
    return Sample(strata=tuple(strata), pages=tuple(pages))


def _common(lives: Mapping[str, Life]) -> list[tuple[str, int, Pages]]:
    """Return for each role how many pages the first life has of it, and the keys of those that all lives have."""
    first, *others = lives.values()
    processes = [life.guest.os.process for life in lives.values()]
    mapped = np.logical_and.reduce([process.mapped for process in processes])
    found = [("program", processes[0].mapped_pages, np.flatnonzero(mapped))]
    files = min(life.files.size for life in lives.values())
    found.append(("page cache", first.files.size, np.arange(files, dtype=np.int64)))
    kinds = [life.vm.guest.kinds(np.arange(life.vm.guest.pages)) for life in lives.values()]
    for role, used_for in ROLES.items():
        masks = [np.isin(kind, used_for) for kind in kinds]
        found.append((role, int(masks[0].sum()), np.flatnonzero(np.logical_and.reduce(masks))))
    assert len(others) == len(kinds) - 1
    return [(role, total, keys) for role, total, keys in found if keys.size]


def _by_cover(lives: Mapping[str, Life], role: str, keys: Pages) -> list[tuple[tuple[str, ...], Pages]]:
    """Split pages of one role by the segments that cover them, most covered last."""
    names: list[str] = []
    code = np.zeros(keys.size, np.int64)
    for mode, life in lives.items():
        vm, gfns = life.vm, gfns_of(life, role, keys)
        for kind, inside in (("guest", vm.under_guest_segment(gfns)), ("VMM", vm.under_vmm_segment(gfns))):
            code |= inside.astype(np.int64) << len(names)
            names.append(f"{mode}: {kind} segment")
    return [
        (tuple(name for bit, name in enumerate(names) if one >> bit & 1), keys[code == one])
        for one in np.unique(code).tolist()
    ]
