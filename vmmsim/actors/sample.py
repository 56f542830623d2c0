"""What one sample found, and how long it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from vmmsim import rates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.actors.calibration import Prices
    from vmmsim.translation.costs import Coverage


def _from_data(name: str) -> Any:
    return attrs.field(factory=lambda: rates.number(f"measure.{name}"))


@attrs.frozen(kw_only=True)
class Lengths:
    """How long a sample is, in accesses: W to warm up, M measured; unsaid, as ``data/rates.toml`` has it."""

    warm: int = _from_data("warm")
    """W to begin with."""
    warm_most: int = _from_data("warm_most")
    """W is doubled up to this."""
    measured: int = _from_data("window")
    """M."""
    bias: float = _from_data("cold_share")
    """W is doubled while cold misses could make up more than this share of the rate,"""
    negligible_cycles: float = _from_data("cold_cycles")
    """and more than this many cycles per access."""


@attrs.frozen(kw_only=True)
class Span:
    """Pages [start, end): a primary region in gvpns, or what a VMM segment would cover in gfns."""

    start: int = 0
    end: int = 0

    def holds(self, pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: which pages lie in the span."""
        held: NDArray[np.bool_] = (pages >= self.start) & (pages < self.end)
        return held


@attrs.frozen(kw_only=True)
class Sample:
    """What one sample found; rates are cycles per access."""

    mode: str
    """Name of the mode that the VM had."""
    x: int
    """First of the accesses measured."""
    accesses: int
    """How many were measured: M, or the whole stratum."""
    warm: int
    """Accesses run before them, from empty structures."""
    whole: bool
    """The stratum was run whole: the rate is no estimate, and holds what flushes did."""
    walk_cycles: float
    """r, by the model that drives time."""
    linear_walk_cycles: float
    """The same by the linear model, in which modes are compared."""
    hierarchy_walk_cycles: float | None
    """The same by the hierarchy model, if the real core has caches."""
    l2_tlb_cycles: float
    """Hits of the L2 TLB; not part of r."""
    misses: int
    """Misses that r is made of: the native twin's; in base the VM's own."""
    cold_misses: int
    """u: how many of them filled an invalid way, and might have been hits."""
    prices: Prices
    """C_n and C_v."""
    coverage: Coverage
    """Where the native twin's misses would go in this mode."""
    counters: dict[str, int]
    """The real core's, over the accesses measured."""
    points: NDArray[np.int64] = attrs.field(eq=False)
    """int64[k], numbers of accesses after a flush; empty if the stratum was run whole."""
    refill: NDArray[np.float64] = attrs.field(eq=False)
    """float64[k], C(n): walk cycles of so many accesses, all together."""
    as_if: dict[str, float]
    """r had it been another mode, by its name."""
    exits: int
    """Transitions met and mended."""
    hierarchy_bias_cycles: float | None = None
    """Where the hierarchy model drives time, the most by which r can be too high: misses that filled an invalid way,
    and references that missed caches which had not seen their line yet."""

    @property
    def bias_cycles(self) -> float:
        """The most by which r can be too high: u C / M in the linear model."""
        if self.hierarchy_bias_cycles is not None:
            return min(self.hierarchy_bias_cycles, self.walk_cycles)
        return min(self.cold_misses, self.misses) * self.walk_cycles / max(self.misses, 1)

    @property
    def l1_misses(self) -> int:
        """Misses of the real core's first-level TLBs."""
        return self.counters["data_l1_misses"] + self.counters["instruction_l1_misses"]

    @property
    def l2_misses(self) -> int:
        """Accesses of the real core that both TLB levels missed."""
        return self.counters["l2_misses"]

    @property
    def references_per_walk(self) -> float | None:
        """Page-table entries read by a walk; None if nothing was walked."""
        return self.counters["references"] / self.counters["walks"] if self.counters["walks"] else None

    def refill_cycles(self, accesses: float) -> float:
        """Return C(n): walk cycles of the first n accesses after a flush; between points kept, a straight line."""
        if self.points.size == 0:
            return self.walk_cycles * accesses
        points, refill = np.append(0, self.points), np.append(0.0, self.refill)
        beyond = max(accesses - float(points[-1]), 0.0)
        return float(np.interp(accesses, points, refill)) + self.walk_cycles * beyond
