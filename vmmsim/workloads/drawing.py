"""Random numbers as functions of a key and a position, for workloads that can be looked at anywhere.

``bits`` is Philox2x32-7 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11): a keyed
bijection of 64-bit positions, seven rounds being the fewest that pass all tests of BigCrush there. Everything else is
made of it by whole-number arithmetic that never leaves 63 bits, so that compiled and interpreted code, and any two
machines, agree on every draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from vmmsim.jit import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOW: Final = (1 << 32) - 1
_MULTIPLIER: Final = 0xD256D193 - (1 << 32)
"""Philox's multiplier less 2**32: the product with 32 bits then fits in 63, and the difference is added to its half."""
_WEYL: Final = 0x9E3779B9

UNIT: Final = 1 << 32
"""Scale of ``exponential``: this stands for 1, the mean."""
_LN2: Final = round(math.log(2) * UNIT)
_STEPS: Final = 12
_LOGARITHM: Final = np.array([round(-math.log(0.5 + n / (2 << _STEPS)) * UNIT) for n in range((1 << _STEPS) + 1)])
"""int64[4097]: -ln of the numbers from 1/2 to 1 in steps of 1/8192. Rounded far from any tie, so the same anywhere."""


def key_of(seed: int, *names: object) -> int:
    """Return the 32-bit key of a thing's draws, e.g. ``key_of(1, "db", "pages", 0)``: its own for each thing."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@inlined
def _round(key: int, turn: int, left: int, right: int) -> tuple[int, int]:
    """Return two numbers below 2**32 after one round of Philox2x32."""
    product = _MULTIPLIER * left
    return ((product >> 32) + left) ^ ((key + turn * _WEYL) & _LOW) ^ right, product & _LOW


@inlined
def bits(key: int, position: int) -> tuple[int, int]:
    """Return 64 random bits as two numbers below 2**32; ``key`` is below 2**32, ``position`` an int64."""
    left, right = position & _LOW, (position >> 32) & _LOW
    for turn in range(7):  # a number that LLVM sees: it then makes vector instructions of loops around this one
        left, right = _round(key, turn, left, right)
    return left, right


@inlined
def scaled(high: int, low: int, bound: int) -> int:
    """Return random bits as a whole number of [0, bound), each as likely as the other to 2**-33; bound < 2**31."""
    return (high * bound + ((low * bound) >> 32)) >> 32


@inlined
def below(key: int, position: int, bound: int) -> int:
    """Return a whole number drawn uniformly from [0, bound); bound < 2**31."""
    high, low = bits(key, position)
    return scaled(high, low, bound)


@inlined
def exponential(key: int, position: int) -> int:
    """Return a draw from the exponential distribution of mean 1, as a multiple of 1 / UNIT.

    -ln of a uniform number: ln 2 for each leading zero, the rest from a table with straight lines between, which
    makes it too large by at most one part in 10**4 where it is small, and by 10**-8 where it is not.
    """
    high, low = bits(key, position)
    number = (high << 31) | (low >> 1) | 1
    zeros = 0
    while number < 1 << 62:
        number <<= 1
        zeros += 1
    step = (number >> (62 - _STEPS)) & ((1 << _STEPS) - 1)
    beyond = (number >> (62 - _STEPS - 20)) & ((1 << 20) - 1)
    before, after = _LOGARITHM[step], _LOGARITHM[step + 1]
    return zeros * _LN2 + int(before) - ((int(before - after) * beyond) >> 20)


class Alias(NamedTuple):
    """A finite distribution, from which to draw takes one look (Walker's method)."""

    stay: NDArray[np.int64]
    """int64[n]: of 2**32 draws that fall on n, how many stay there."""
    other: NDArray[np.int64]
    """int64[n]: where the others go."""
    weight: NDArray[np.float64]
    """float64[n]: the probabilities that result, whose sum is 1."""


def alias(weights: Sequence[float]) -> Alias:
    """Return the distribution with probabilities in proportion to ``weights``, to 2**-32 / n."""
    total, size = math.fsum(weights), len(weights)
    # Whole numbers from the start: the sum is exact, so that no draw is left without a place.
    parts = [round(weight / total * size * (1 << 24)) << 8 for weight in weights]
    parts[max(range(size), key=parts.__getitem__)] += size * UNIT - sum(parts)
    left, stay, other = list(parts), [UNIT] * size, list(range(size))
    short = [n for n in range(size) if left[n] < UNIT]
    tall = [n for n in range(size) if left[n] >= UNIT]
    while short:
        low, high = short.pop(), tall[-1]
        stay[low], other[low] = left[low], high
        left[high] -= UNIT - left[low]
        if left[high] < UNIT:
            short.append(tall.pop())
    return Alias(np.array(stay), np.array(other), np.array(parts) / (size * UNIT))


@inlined
def choose(stay: NDArray[np.int64], other: NDArray[np.int64], high: int, low: int) -> int:
    """Return a number drawn from the distribution, given 64 random bits."""
    place = (high * stay.size) >> 32
    return place if low < stay[place] else other[place]


@inlined
def _around(number: int, size: int) -> int:
    """Return a number of [0, 2 size) less ``size`` if it is that large: the remainder without a division."""
    return number - size if number >= size else number


@inlined
def _distance(key: int, turn: int, line: int, bound: int) -> int:
    """Return a whole number of [0, bound) by four rounds, which is enough where four of them are put together."""
    left, right = line, turn
    for step in range(4):
        left, right = _round(key, step, left, right)
    return scaled(left, right, bound)


@inlined
def _moved(key: int, row: int, column: int, rows: int, columns: int) -> int:
    """Return where four turns take what stands at a row and column of the table."""
    # Written out: LLVM makes vector instructions of it, and does not of a loop.
    row = _around(row + _distance(key, 0, column, rows), rows)
    column = _around(column + _distance(key, 1, row, columns), columns)
    row = _around(row + _distance(key, 2, column, rows), rows)
    column = _around(column + _distance(key, 3, row, columns), columns)
    return row * columns + column


@inlined
def shuffled(key: int, number: int, size: int, rows: int) -> int:
    """Return where a shuffle of [0, size) puts ``number``; ``rows`` is ``rows_of(size)``, and size < 2**31.

    Numbers stand in a table of ``rows``; each of four turns moves all those of a column along it, or all those of a
    row, by a distance drawn for it. What lands beyond the end is moved again until it does not.
    """
    columns = (size + rows - 1) // rows
    while True:
        number = _moved(key, number // columns, number % columns, rows, columns)
        if number < size:
            return number


@kernel
def _move_row(key: int, row: int, column: int, rows: int, columns: int, out: NDArray[np.int64]) -> None:
    """Write to ``out``, int64[n], where what stands in a row, from ``column`` on, is moved to: vector instructions."""
    for i in range(out.size):
        out[i] = _moved(key, row, column + i, rows, columns)


@kernel
def shuffle(key: int, first: int, size: int, rows: int, out: NDArray[np.int64]) -> None:
    """Write to ``out``, int64[n], where ``shuffled`` puts the numbers from ``first`` on: several times as fast."""
    columns = (size + rows - 1) // rows
    done = 0
    while done < out.size:
        row, column = (first + done) // columns, (first + done) % columns
        end = min(done + columns - column, out.size)
        _move_row(key, row, column, rows, columns, out[done:end])
        done = end
    for i in range(out.size):
        if out[i] >= size:
            out[i] = shuffled(key, out[i], size, rows)


def rows_of(size: int) -> int:
    """Return how many rows the table of a shuffle of ``size`` numbers has: about the square root."""
    return max(1, math.isqrt(size))
