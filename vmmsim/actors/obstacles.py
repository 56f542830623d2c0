"""Why a service cannot have a page now. Two of these are refusals of a mode; the others come and go with the page."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Obstacle(IntEnum):
    """What is in the way of sharing a page, giving it up, or swapping it out."""

    NONE = 0
    """Nothing: the service may have it."""
    PINNED_GUEST = 1
    """The guest segment translates its gVA, whatever the guest's page table says."""
    PINNED_VMM = 2
    """The VMM segment translates its gPA, whatever the nested table says."""
    ABSENT = 3
    """There is nothing: no memory, no frame, or no page mapped."""
    MERGED = 4
    """It shares its frame with others already."""
    GIVEN_UP = 5
    """The balloon holds it already."""
    LEASED = 6
    """It lies where a VMM segment is being built."""
    BUSY = 7
    """A change in progress holds it."""
    IMMOVABLE = 8
    """The kernel, or the hardware that walks page tables, must find it where it is."""
    NO_ROOM = 9
    """There is no free frame or no free slot for what it holds."""


REFUSALS: Final = (Obstacle.PINNED_GUEST, Obstacle.PINNED_VMM)
"""What a mode refuses for as long as it lasts."""


def first_of(*rules: tuple[Obstacle, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Return uint8[n]: the first obstacle whose mask (bool[n]) has each page; ``NONE`` where none has."""
    found = np.zeros(rules[0][1].size, np.uint8)
    for obstacle, mask in reversed(rules):
        found[mask] = obstacle
    return found
