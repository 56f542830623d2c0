"""Changes of ownership that take time: whoever begins one holds a token; others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@attrs.frozen(eq=False)
class Token:
    """Frames, or a range of pageblocks, that one actor holds until it commits or releases them."""

    number: int
    """Counts the tokens of a memory."""
    by: str
    """Who holds it."""
    frames: NDArray[np.int64]
    """The frames held; none for a lease."""
    range: tuple[int, int] | None = None
    """[start, end) of a lease: nothing is allocated there, what is freed there stays."""

    @property
    def is_lease(self) -> bool:
        """Whether it holds a range."""
        return self.range is not None


class Busy(Exception):
    """Raised when a frame cannot be changed now: another token holds it, or its pageblock is leased to another."""

    def __init__(self, frames: NDArray[np.int64], by: str) -> None:
        # SimPy makes exceptions anew from their arguments for each process that waits.
        super().__init__(frames, by)
        self.frames = frames
        """The frames that are held, or the first of them."""
        self.by = by
        """Who holds them; "" if nobody does, and they never can be changed (holes, retired frames)."""

    def __str__(self) -> str:
        return f"frame {int(self.frames[0])} is held by {self.by or 'nobody: it is a hole or retired'}"
