"""What translation costs: the paper's linear model beside the hierarchy model, and what they are compared with.

The hierarchy model charges each reference its latency in simulated caches as it happens (counter ``walk_cycles``).
The linear model knows only averages: the misses of a native twin, where each would have gone, and a price for each.

    native          C_n M_n                          base            C_v M_v
    native-direct   C_n (1 - F_DS) M_n
    dual-direct     [(C_n + 5) F_VD + (C_n + 1) F_GD + C_v (1 - F_DD - F_VD - F_GD)] M_n
    vmm-direct      [(C_n + 5) F_VD + C_v (1 - F_VD)] M_n
    guest-direct    [(C_n + 1) F_GD + C_v (1 - F_GD)] M_n

M_n, M_v are L2 TLB misses, C_n, C_v cycles for each; F is the share of the native misses whose data page both
segments cover (F_DD; F_DS natively), the VMM segment alone (F_VD), the guest segment alone (F_GD).
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any

import attrs

from vmmsim.config import Source
from vmmsim.jit import kernel
from vmmsim.translation.page_table import PRESENT, find_leaf, frame_of
from vmmsim.translation.segment import COVERED, compare
from vmmsim.translation.state import GUEST, IDENTITY, NESTED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmmsim.config import Mode
    from vmmsim.translation.types import Core, Pool


@attrs.frozen(kw_only=True)
class Number:
    """A modelled number with its source."""

    value: float
    source: Source


def numbers() -> dict[str, Number]:
    """Return the numbers of the cost models, ``data/costs.toml``, by name."""
    text = resources.files("vmmsim.data").joinpath("costs.toml").read_text("utf-8")
    return {
        name: Number(value=row["value"], source=Source(source=row["source"], sure=row["sure"]))
        for name, row in tomllib.loads(text).items()
    }


@attrs.frozen(kw_only=True)
class Coverage:
    """Where the translations of a list of pages would go: how many are covered by what."""

    both: int = 0
    """Guest segment and VMM segment; natively, the segment."""
    vmm_only: int = 0
    """VMM segment only."""
    guest_only: int = 0
    """Guest segment only."""
    neither: int = 0
    """Page tables in every dimension there is."""

    @property
    def total(self) -> int:
        """All pages."""
        return self.both + self.vmm_only + self.guest_only + self.neither

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in attrs.fields(Coverage)}
        )


@kernel
def count_coverage(core: Core, pool: Pool, pages: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Add to ``out`` (int64[4]: neither, VMM only, guest only, both) where each gvpn of ``pages`` would go.

    Reads the registers and guest tables of ``core``; changes no state and no counter.
    """
    for i in range(pages.size):
        page = pages[i]
        guest = compare(core, GUEST, page) == COVERED
        vmm = False
        if core.kind[NESTED] == IDENTITY:
            vmm = guest
        else:
            gfn = page + core.segment_offset[GUEST]
            if not guest:
                place, level = find_leaf(pool, core.root[GUEST], core.levels[GUEST], page)
                entry = pool[place]
                gfn = frame_of(entry) + (page & (1 << 9 * (level - 1)) - 1) if entry & PRESENT else -1
            vmm = compare(core, NESTED, gfn) == COVERED
        out[2 * guest + vmm] += 1


@attrs.frozen(kw_only=True)
class Linear:
    """What the linear model takes: averages of a native and of a base run, and its two constants."""

    native_misses: int
    """M_n."""
    virtual_misses: int
    """M_v."""
    native_cycles: float
    """C_n, cycles a native miss."""
    virtual_cycles: float
    """C_v, cycles a miss under base virtualization."""
    vmm_direct_extra: float
    """Cycles that the five checks of VMM Direct add to a native walk."""
    guest_direct_extra: float
    """Cycles that the one check of Guest Direct adds."""

    def walk_cycles(self, mode: Mode, cover: Coverage) -> float:
        """Return the walk cycles of a mode whose segments cover ``cover`` of the native misses."""
        if mode.nested == "walk" and mode.guest == "walk":
            return self.virtual_cycles * self.virtual_misses
        total = max(cover.total, 1)
        if mode.nested == "identity":
            return self.native_cycles * self.native_misses * (1 - cover.both / total)
        shares = {"vmm": cover.vmm_only / total, "guest": cover.guest_only / total, "none": cover.neither / total}
        price = (
            (self.native_cycles + self.vmm_direct_extra) * shares["vmm"]
            + (self.native_cycles + self.guest_direct_extra) * shares["guest"]
            + self.virtual_cycles * shares["none"]
        )
        return price * self.native_misses


def sources_of(names: list[str]) -> list[dict[str, Any]]:
    """Return name, value, source and how sure, for reports that show where their numbers come from."""
    known = numbers()
    return [{"name": name, "value": known[name].value, **attrs.asdict(known[name].source)} for name in names]
