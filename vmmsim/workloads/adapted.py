"""A user's workload with all that the model asks of one: what its author left out is added."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vmmsim.errors import BadInput
from vmmsim.protocols import Churn, Region
from vmmsim.translation.costs import numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pages = NDArray[np.int64]
    Flags = NDArray[np.bool_]


class Adapted:
    """The workload ``user``; ``protocols.Workload`` says what each attribute and method means."""

    def __init__(self, user: Any, name: str) -> None:
        """Take an object with at least what ``protocols.UserWorkload`` has; ``BadInput``, naming it, if it has less."""
        for member in ("stream", "touched"):
            if not callable(getattr(user, member, None)):
                raise BadInput(f"{name} is no workload: it has no {member}(); see vmmsim.protocols.UserWorkload")
        self.user = user
        self.regions = _regions(user, name)
        self.ideal_cycles = float(_given(user, "ideal_cycles", numbers()["ideal_cycles_per_data_access"].value))
        self.begins = int(_given(user, "begins", 0))
        self.length: int | None = _given(user, "length", None)
        self.churn: Churn = _given(user, "churn", Churn())
        self._of_vcpu = "vcpu" in inspect.signature(user.stream).parameters
        self._frees: Callable[[int, int], list[tuple[int, int]]] | None = getattr(user, "frees", None)
        self._among: Callable[[Pages, int, int], tuple[Flags, Flags]] | None = getattr(user, "touched_among", None)

    def stream(self, x: int, n: int, vcpu: int = 0) -> tuple[Pages, Flags]:
        pages, writes = self.user.stream(x, n, vcpu) if self._of_vcpu else self.user.stream(x, n)
        return np.asarray(pages, np.int64), np.asarray(writes, np.bool_)

    def touched(self, x0: int, x1: int) -> tuple[Pages, Pages]:
        read, written = self.user.touched(x0, x1)
        return np.asarray(read, np.int64), np.asarray(written, np.int64)

    def touched_among(self, pages: Pages, x0: int, x1: int) -> tuple[Flags, Flags]:
        if self._among is not None:
            return self._among(pages, x0, x1)
        read, written = self.touched(x0, x1)
        return np.isin(pages, read), np.isin(pages, written)

    def frees(self, x0: int, x1: int) -> list[tuple[int, int]]:
        return [] if self._frees is None else self._frees(x0, x1)


def _given(user: Any, name: str, otherwise: Any) -> Any:
    return getattr(user, name, otherwise)


def _regions(user: Any, name: str) -> tuple[Region, ...]:
    """Return the regions of ``user``; ``BadInput`` unless they are disjoint, ascending, and at most one is primary."""
    found = getattr(user, "regions", None)
    if not isinstance(found, Sequence) or not found or not all(isinstance(region, Region) for region in found):
        raise BadInput(f"{name} is no workload: regions must be a list of vmmsim.protocols.Region, at least one")
    for before, after in pairwise(found):
        if after.start < before.end:
            raise BadInput(f"{name}: region {after.name} begins before region {before.name} ends")
    if sum(region.primary for region in found) > 1:
        raise BadInput(f"{name}: more than one region is primary")
    return tuple(found)
