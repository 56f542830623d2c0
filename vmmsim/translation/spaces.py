"""Numbers for address spaces: the tags that entries bear, given out when registers are loaded and taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from numpy.typing import NDArray

SPACES: Final = 1 << 15
"""Contexts, and eptps, that a host can tell apart."""

Name = TypeVar("Name", bound="Hashable")


class Spaces(Generic[Name]):
    """Names of address spaces of one kind and their numbers, from 1; a number whose space is gone is given anew."""

    def __init__(self) -> None:
        self.numbers: dict[Name, int] = {}
        self._free: list[int] = []

    def number(self, name: Name) -> int:
        """Return the number of a space, a new one for a new name."""
        number = self.numbers.get(name)
        if number is None:
            number = self._free.pop() if self._free else len(self.numbers) + 1
            if number >= SPACES:
                raise BadInput(f"more than {SPACES - 1} address spaces on one host")
            self.numbers[name] = number
        return number

    def forget(self, name: Name) -> None:
        """Take a space's number back: nothing may bear it any more."""
        self._free.append(self.numbers.pop(name))


class Marks:
    """Sets of numbers as the kernels take them; one array, used again and again."""

    def __init__(self, sets: int) -> None:
        self._marked = np.zeros((sets, SPACES), np.bool_)
        self._numbers = [list[int]() for _ in range(sets)]

    def only(self, *sets: Iterable[int]) -> NDArray[np.bool_]:
        """Return bool[sets, SPACES] with exactly these numbers marked, until the next call."""
        for row, numbers in enumerate(sets):
            self._marked[row, self._numbers[row]] = False
            self._numbers[row] = list(numbers)
            self._marked[row, self._numbers[row]] = True
        return self._marked
