"""A web server: a few processes with small, hot pages, and files that pass through the guest's page cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from vmmsim.jit import kernel
from vmmsim.protocols import Churn
from vmmsim.workloads.drawing import bits, rows_of, shuffle, shuffled
from vmmsim.workloads.phased import Phased, laid_out
from vmmsim.workloads.ranks import draw_rank, zipf
from vmmsim.workloads.touching import Mix

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class WebParameters:
    """What can be chosen beside the footprint."""

    processes: int = 8
    """Worker processes, each with an equal share of the footprint."""
    theta: float = 0.9
    """Zipf's exponent among pages."""
    write_share: float = 0.25
    """Share of accesses that are writes."""
    cache_pages_per_s: float = 500.0
    """Pages of files that enter the page cache each second."""
    files_pages: int = 1 << 16
    """Size of all its files, which the page cache cannot exceed."""
    unmovable_pages_per_s: float = 200.0
    """Kernel pages (sockets, buffers, directory entries) taken each second."""
    unmovable_life_ns: int = 10**9
    """Mean life of such a page."""
    unmovable_kept: float = 0.001
    """Share of them that stays."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.processes <= 64:
            raise ValueError("processes must lie from 1 to 64")
        if not 0 <= self.theta <= 3:
            raise ValueError("theta must lie from 0 to 3")
        if not 0 <= self.write_share <= 1:
            raise ValueError("write_share must lie from 0 to 1")


class Web(Phased):
    """Accesses go to pages by Zipf's law, the ranks shuffled over all pages of all processes."""

    def __init__(self, pages: int, parameters: WebParameters, *, seed: int, vm: str, ideal_cycles: float) -> None:
        count = min(parameters.processes, pages)
        sizes = [pages // count + (n < pages % count) for n in range(count)]
        regions = laid_out(*((f"process {n}", size) for n, size in enumerate(sizes)))
        super().__init__("web", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)
        self.write_share = parameters.write_share
        self.churn = Churn(
            cache_pages_per_s=parameters.cache_pages_per_s,
            files_pages=parameters.files_pages,
            unmovable_pages_per_s=parameters.unmovable_pages_per_s,
            unmovable_life_ns=parameters.unmovable_life_ns,
            unmovable_kept=parameters.unmovable_kept,
        )
        self._ranks = zipf(pages, parameters.theta)
        self._rates: NDArray[np.float32] | None = None
        self._parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] | None = None

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        keys = np.array([self.key("page", vcpu), self.key("write", vcpu), self.key("shuffle")])
        bounds, stay, other, _ = self._ranks
        shape = np.array([self.pages, rows_of(self.pages), round(self.write_share * (1 << 32))])
        _serve(keys, y, bounds, stay, other, shape, self._starts, self._ends, pages, writes)

    def pieces(self, y0: int, y1: int) -> list[Mix]:
        rates, key = self.rates(), self.key("touched")
        if self._parts is None:
            share = np.float32(self.write_share)
            self._parts = [(part * (1 - share), part * share) for part in np.split(rates, self._ends[:-1])]
        parts = zip(self.regions, self._parts, strict=True)
        return [Mix(region.start, reads, writes, reads.size, key, 0, y1) for region, (reads, writes) in parts]

    def rates(self) -> NDArray[np.float32]:
        """Return the probability that an access is to each page, float32[pages], in the order of addresses."""
        if self._rates is None:
            rates = np.empty(self.pages, dtype=np.float64)
            _place(self.key("shuffle"), self._ranks.bounds, self._ranks.each, rows_of(self.pages), rates)
            self._rates = rates.astype(np.float32)
        return self._rates


@kernel
def _serve(
    keys: NDArray[np.int64],
    y: int,
    bounds: NDArray[np.int64],
    stay: NDArray[np.int64],
    other: NDArray[np.int64],
    shape: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    out: NDArray[np.int64],
    writes: NDArray[np.bool_],
) -> None:
    """Write the accesses from y on to ``out``, int64[n], and ``writes``, bool[n].

    keys    int64[3]: of ranks, of writes, of the shuffle
    shape   int64[3]: pages, ``rows_of`` them, accesses of 2**32 that are writes
    starts  int64[r]: first gvpn of each region
    ends    int64[r]: pages of the regions up to and with each
    """
    pages, rows, written = shape[0], shape[1], shape[2]
    for i in range(out.size):
        page = shuffled(keys[2], draw_rank(keys[0], y + i, bounds, stay, other), pages, rows)
        region = 0
        while page >= ends[region]:
            region += 1
        out[i] = starts[region] + page - (ends[region - 1] if region else 0)
        writes[i] = bits(keys[1], y + i)[0] < written


@kernel
def _place(
    key: int, bounds: NDArray[np.int64], each: NDArray[np.float64], rows: int, rates: NDArray[np.float64]
) -> None:
    """Write the probability of each page to ``rates``, float64[pages]."""
    places = np.empty(rates.size, np.int64)
    shuffle(key, 0, rates.size, rows, places)
    for step in range(each.size):
        for rank in range(bounds[step], bounds[step + 1]):
            rates[places[rank]] = each[step]
