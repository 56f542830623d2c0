"""What translation costs over a life: strata summed, with an interval and a bound of bias beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from vmmsim.actors.sample import Sample

_Z: Final = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""
LEAST_DIFFERENCES: Final = 8
"""Fewer differences between neighbours say next to nothing: equal by chance, or all of it one change of the program."""
WIDEST: Final = 0.5
"""Half an interval, as a share of its middle, above which it says next to nothing."""


@attrs.frozen(kw_only=True)
class Stack:
    """Cycles of accesses, part by part."""

    ideal: float = 0.0
    """Of the program, if translation cost nothing."""
    walk: float = 0.0
    """Of walks in steady state: r for each access."""
    refill: float = 0.0
    """Of walks that flushes add to that."""
    l2_tlb: float = 0.0
    """Of hits of the L2 TLB."""

    @property
    def total(self) -> float:
        """All together: what the clock moves by."""
        return self.ideal + self.walk + self.refill + self.l2_tlb

    def steady(self) -> dict[str, float]:
        """Return the parts by name, but for what flushes add, which vCPUs lose like a stall."""
        return {"ideal": self.ideal, "walk": self.walk, "l2_tlb": self.l2_tlb}

    def __add__(self, other: Stack) -> Stack:
        return Stack(
            ideal=self.ideal + other.ideal,
            walk=self.walk + other.walk,
            refill=self.refill + other.refill,
            l2_tlb=self.l2_tlb + other.l2_tlb,
        )


@attrs.frozen
class _Rate:
    """An estimated rate, and the variance it adds to the sum for each unit of its own variance."""

    cycles: float
    weight: float


class Overheads:
    """The sum of a VM's strata so far.

    The variance is by successive differences: neighbours in an epoch differ by chance, and by how the program changes,
    so that it errs upwards. A stratum alone in its epoch takes the average variance of the others.
    """

    def __init__(self) -> None:
        self.stack = Stack()
        self.strata = 0
        self._estimates = 0
        self._bias = 0.0
        self._variance = 0.0
        self._weight = 0.0
        self._differences = 0
        self._alone = 0.0
        self._last: _Rate | None = None
        self._before_last: _Rate | None = None
        self._as_if: dict[str, tuple[float, float]] = {}

    def new_epoch(self) -> None:
        """What comes is no neighbour of what was: mode, segments, filters or co-runners have changed."""
        if self._last is not None:
            self._close(self._last, self._before_last)
        self._last = self._before_last = None

    def add(self, accesses: int, sample: Sample, *, flushes: int, ideal: float) -> Stack:
        """Add a stratum, and return its cycles.

        accesses  dx, how many it has
        flushes   n, how many there were, evenly spaced; a stratum run whole holds what they did already
        ideal     cycles per access of the program, if translation cost nothing
        """
        spacing = accesses / (flushes + 1)
        refill = 0.0
        if not sample.whole:
            refill = flushes * (sample.refill_cycles(spacing) - sample.walk_cycles * spacing)
        stack = Stack(
            ideal=accesses * ideal,
            walk=accesses * sample.walk_cycles,
            refill=refill,
            l2_tlb=accesses * sample.l2_tlb_cycles,
        )
        self.stack += stack
        self.strata += 1
        if not sample.whole or sample.warm:
            self._bias += accesses * sample.bias_cycles
        for mode, cycles in sample.as_if.items():
            walk, of = self._as_if.get(mode, (0.0, 0.0))
            self._as_if[mode] = (walk + accesses * cycles, of + stack.ideal)
        if not sample.whole:
            # What was measured of the stratum is known: only the rest varies.
            self._take(_Rate(sample.walk_cycles, accesses * (accesses - sample.accesses)))
        return stack

    def _take(self, rate: _Rate) -> None:
        self._estimates += 1
        if self._last is not None:
            self._differ(self._last, rate)
        self._last, self._before_last = rate, self._last

    def _differ(self, rate: _Rate, neighbour: _Rate) -> None:
        self._variance += rate.weight * (rate.cycles - neighbour.cycles) ** 2 / 2
        self._weight += rate.weight
        self._differences += 1

    def _close(self, last: _Rate, before: _Rate | None) -> None:
        """The last of an epoch has its neighbour before it; one that has none is alone."""
        if before is None:
            self._alone += last.weight
        else:
            self._differ(last, before)

    @property
    def overhead(self) -> float:
        """Walk cycles over ideal cycles, refills left out."""
        return self.stack.walk / self.stack.ideal if self.stack.ideal else 0.0

    @property
    def refill_overhead(self) -> float:
        """Cycles that flushes added, over ideal cycles."""
        return self.stack.refill / self.stack.ideal if self.stack.ideal else 0.0

    @property
    def bias(self) -> float:
        """The most by which the overhead can be too high because samples began cold."""
        return self._bias / self.stack.ideal if self.stack.ideal else 0.0

    @property
    def variance(self) -> float:
        """Variance of the overhead; infinite if there is nothing to tell it from."""
        closed = self._closed()
        if closed._alone and not closed._weight:
            return math.inf
        alone = closed._alone * closed._variance / closed._weight if closed._alone else 0.0
        return (closed._variance + alone) / self.stack.ideal**2 if self.stack.ideal else 0.0

    def _closed(self) -> Overheads:
        """Return a copy whose last epoch has ended."""
        copy = Overheads()
        copy.__dict__.update(self.__dict__)
        copy.new_epoch()
        return copy

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the overhead; the bias bound, which lies below it, is not part of it."""
        variance = self.variance
        if variance == 0.0:
            return self.overhead, self.overhead
        # Successive differences share their terms: each is worth two thirds of a degree of freedom.
        half = _student(2 * self._closed()._differences / 3) * math.sqrt(variance)
        return self.overhead - half, self.overhead + half

    def share_of_error(self) -> float | None:
        """Return half the interval over its middle; None if there are too few samples for one that says something.

        0 if all strata were run whole, or all of them cost nothing.
        """
        if not self._estimates:
            return 0.0
        low, high = self.interval()
        if self._closed()._differences < LEAST_DIFFERENCES or not math.isfinite(high):
            return None
        error = (high - low) / 2 / self.overhead if self.overhead else 0.0
        return error if error <= WIDEST else None

    def as_if(self, mode: str) -> float | None:
        """Return the overhead had the VM been in another mode, over the strata priced so; None if none was."""
        walk, ideal = self._as_if.get(mode, (0.0, 0.0))
        return walk / ideal if ideal else None


def _student(freedom: float) -> float:
    """Return Student's 97.5 % quantile (Abramowitz and Stegun 26.7.5)."""
    n = max(freedom, 1.0)
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4
