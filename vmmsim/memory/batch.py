"""One batch of copies that a placement asks for, and the spare frames that it may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.memory.frames import PAGEBLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(eq=False)
class Batch:
    """Copies to be made, in order; ``pages_each`` pages to a line."""

    gfn: NDArray[np.int64]
    """int64[k]: the (first) page that filling."""
    source: NDArray[np.int64]
    """int64[k]: the (first) hfn that it is at."""
    target: NDArray[np.int64]
    """int64[k]: the (first) hfn that it goes to."""
    pages_each: int
    """1, or 512: whole 2 MiB leaves."""
    cycles: int = 0
    """Closed cycles that begin in it, counted in pages."""
    _looked: tuple[int, int] = (0, 0)
    _cursors: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        """Lines; an empty batch is false."""
        return int(self.gfn.size)

    @property
    def copies(self) -> int:
        """Pages to be copied."""
        return len(self) * self.pages_each

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each gfn that moves, once, ascending, and the hfn where it is at last."""
        last, index = np.unique(self.gfn[::-1], return_index=True)
        return self._all(last), self._all(self.target[::-1][index])

    def taken(self) -> NDArray[np.int64]:
        """Return the frames, free before, that hold a page afterwards."""
        return self._all(self._balance(1))

    def released(self) -> NDArray[np.int64]:
        """Return the frames that held a page and are free afterwards."""
        return self._all(self._balance(-1))

    def _balance(self, sign: int) -> NDArray[np.int64]:
        frames, inverse = np.unique(np.concatenate((self.target, self.source)), return_inverse=True)
        weights = np.repeat([1, -1], len(self))
        balance = np.bincount(inverse, weights, frames.size)
        return np.asarray(frames[balance == sign], np.int64)

    def _all(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all pages of the lines whose first is given."""
        return (first[:, None] + np.arange(self.pages_each)).reshape(-1)


_NONE: Final = np.empty(0, np.int64)
EMPTY: Final = Batch(_NONE, _NONE, _NONE, 1)


@attrs.define
class _Spare:
    first: int
    pages: int
    used: int = 0


class Spares:
    """Frames outside the window, lent for pages to wait in; single ones, and aligned runs of 512."""

    def __init__(self) -> None:
        self._lent: list[_Spare] = []

    def lend(self, first: int, pages: int) -> None:
        """Add a frame, or a run of 512."""
        assert pages in (1, PAGEBLOCK), "a frame, or a whole 2 MiB"
        assert first % pages == 0, "aligned"
        self._lent.append(_Spare(first, pages))

    def unused(self, pages: int) -> list[int]:
        """Return the (first) frames of those of that size that hold nothing."""
        return [spare.first for spare in self._lent if spare.pages == pages and not spare.used]

    def take_back(self) -> list[tuple[int, int]]:
        """Return those that hold nothing, as (first, pages), and forget them."""
        unused = [(spare.first, spare.pages) for spare in self._lent if not spare.used]
        self._lent = [spare for spare in self._lent if spare.used]
        return unused

    def keep(self, frames: set[int]) -> None:
        """Forget the single frames ``frames``: their pages stay there."""
        self._lent = [spare for spare in self._lent if spare.first not in frames]

    @property
    def in_use(self) -> bool:
        """Whether any holds a page."""
        return any(spare.used for spare in self._lent)

    def note(self, sources: NDArray[np.int64], targets: NDArray[np.int64], each: int) -> None:
        """Count what they hold, after moves of ``each`` pages."""
        for spare in self._lent:
            came, went = (
                int(np.count_nonzero((hfns >= spare.first) & (hfns < spare.first + spare.pages)))
                for hfns in (targets, sources)
            )
            spare.used += (came - went) * each


def first_sources(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each gfn that ``batch`` moves, and the frame that holds it before the first copy."""
    gfns, at = np.unique(batch.gfn, return_index=True)
    within = np.arange(batch.pages_each)
    return (gfns[:, None] + within).ravel(), (batch.source[at][:, None] + within).ravel()
