"""Popularity by rank: Zipf's law in steps, within each of which all ranks are equally likely.

The first ranks are steps of their own; further on a step spans an eighth of a doubling, over which Zipf's law changes
by less than 10 %. In return a rank is drawn in a time that does not depend on how many there are.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from vmmsim.jit import inlined
from vmmsim.workloads.drawing import alias, below, bits, choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALONE: Final = 64
_STEP: Final = 8


class Ranks(NamedTuple):
    """A distribution over the ranks [0, size), rank 0 the most likely."""

    bounds: NDArray[np.int64]
    """int64[s + 1]: step n has the ranks bounds[n] to bounds[n + 1]."""
    stay: NDArray[np.int64]
    other: NDArray[np.int64]
    """int64[s] each: the distribution over steps, as ``drawing.choose`` takes it."""
    each: NDArray[np.float64]
    """float64[s]: probability of each single rank of a step."""

    @property
    def size(self) -> int:
        """How many ranks there are; less than 2**31."""
        return int(self.bounds[-1])


def zipf(size: int, theta: float, *, cold: int = 0, cold_share: float = 0.0) -> Ranks:
    """Return Zipf's law: rank n (from 0) with a probability in proportion to 1 / (n + 1) ** theta.

    Behind these ``size`` ranks follow ``cold`` further ones, equally likely among themselves, which together have the
    probability ``cold_share``.
    """
    bounds = list(range(min(size, _ALONE) + 1))
    while bounds[-1] < size:
        bounds.append(min(round(bounds[-1] * 2 ** (1 / _STEP)), size))
    weights = [_sum(low + 1, high, theta) for low, high in pairwise(bounds)]
    if cold:
        hot = math.fsum(weights)
        weights = [weight / hot * (1 - cold_share) for weight in weights] + [cold_share]
        bounds.append(size + cold)
    stay, other, weight = alias(weights)
    spans = np.array(bounds, dtype=np.int64)
    return Ranks(spans, stay, other, weight / np.diff(spans))


def _sum(first: int, last: int, theta: float) -> float:
    """Return the sum of n ** -theta for n from first to last: of many numbers by the integral, to 10**-6."""
    if last - first < _STEP:
        return math.fsum(n**-theta for n in range(first, last + 1))
    low, high = first - 0.5, last + 0.5
    if theta == 1:
        return math.log(high / low)
    return float(high ** (1 - theta) - low ** (1 - theta)) / (1 - theta)


@inlined
def draw_rank(
    key: int, position: int, bounds: NDArray[np.int64], stay: NDArray[np.int64], other: NDArray[np.int64]
) -> int:
    """Return a rank drawn from ``Ranks``; uses the positions 2 x and 2 x + 1 of ``key``."""
    high, low = bits(key, 2 * position)
    step = choose(stay, other, high, low)
    first = bounds[step]
    width = bounds[step + 1] - first
    return int(first) if width == 1 else int(first) + below(key, 2 * position + 1, width)
