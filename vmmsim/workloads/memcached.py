"""memcached under a load like Facebook's ETC: look-ups of keys, some of which are asked for all the time.

A request has two accesses: the bucket of the hash table, then the item. Both are writes if it sets a value. Keys are
laid in the order of a shuffle, as a hash would, so that hot ones lie everywhere and pages differ less than keys do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.jit import kernel
from vmmsim.workloads.drawing import below, bits, rows_of, shuffle, shuffled
from vmmsim.workloads.phased import Phased, laid_out
from vmmsim.workloads.ranks import Ranks, draw_rank, zipf
from vmmsim.workloads.touching import Mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKET_BYTES: Final = 8
PAGE_BYTES: Final = 4096
_ALONE: Final = 1 << 22
"""Keys, the most popular ones, whose buckets are looked up where pages' probabilities are added up; the others are
many to a page of the table, and hardly asked for: the error is 1 % of a page's probability."""
_AT_ONCE: Final = 4096


@attrs.frozen(kw_only=True)
class MemcachedParameters:
    """What can be chosen beside the footprint."""

    item_bytes: int = 512
    """Memory of an item: header, key, value and what its slab wastes."""
    buckets_per_item: float = 1.0
    """Buckets of the hash table for each item, which are pointers of 8 bytes."""
    set_share: float = 0.03
    """Share of requests that set a value."""
    cold_keys: float = 0.5
    """Share of keys that are hardly asked for, all alike."""
    cold_share: float = 0.01
    """Share of requests that ask for them."""
    theta: float = 0.99
    """Zipf's exponent among the others."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.item_bytes <= PAGE_BYTES:
            raise ValueError("an item must have from 1 byte to 4 KiB")
        if not 0 < self.buckets_per_item <= 100:
            raise ValueError("buckets_per_item must be above 0 and at most 100")
        if not all(0 <= share < 1 for share in (self.set_share, self.cold_keys, self.cold_share)):
            raise ValueError("shares must be at least 0 and below 1")
        if not 0 <= self.theta <= 3:
            raise ValueError("theta must lie from 0 to 3")


class Memcached(Phased):
    """Hash table and items in one region, the heap."""

    def __init__(self, pages: int, parameters: MemcachedParameters, *, seed: int, vm: str, ideal_cycles: float) -> None:
        regions = laid_out(("heap", pages), primary="heap")
        super().__init__("memcached", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)
        self.items_per_page = PAGE_BYTES // parameters.item_bytes
        table = self.items_per_page * parameters.buckets_per_item * BUCKET_BYTES / PAGE_BYTES
        self.table_pages = min(max(1, round(pages * table / (1 + table))), pages - 1)
        self.items = (pages - self.table_pages) * self.items_per_page
        cold = int(self.items * parameters.cold_keys)
        self.ranks: Ranks = zipf(
            self.items - cold, parameters.theta, cold=cold, cold_share=parameters.cold_share if cold else 0.0
        )
        self.set_share = parameters.set_share
        items = [self.items, rows_of(self.items), self.items_per_page]
        self._shape = np.array([self.regions[0].start, self.table_pages, *items])
        self._rates: NDArray[np.float32] | None = None
        self._parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] | None = None

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        keys = np.array([self.key("request", vcpu), self.key("set", vcpu), self.key("item"), self.key("bucket")])
        sets = round(self.set_share * (1 << 32))
        bounds, stay, other, _ = self.ranks
        _request(keys, y, sets, bounds, stay, other, self._shape, pages, writes)

    def pieces(self, y0: int, y1: int) -> list[Mix]:
        start, table = self.regions[0].start, self.table_pages
        rates = self.rates()
        if self._parts is None:
            shares = np.float32(1 - self.set_share), np.float32(self.set_share)
            self._parts = [(part * shares[0], part * shares[1]) for part in (rates[:table], rates[table:])]
        return [
            Mix(first, reads, writes, reads.size, self.key("touched"), 0, y1)
            for first, (reads, writes) in zip((start, start + table), self._parts, strict=True)
        ]

    def rates(self) -> NDArray[np.float32]:
        """Return the probability that an access is to each page of the heap, float32[pages]: summed over all keys."""
        if self._rates is None:
            sums = np.zeros(self.pages, dtype=np.float64)
            bounds, _, _, each = self.ranks
            _add_up(self.key("item"), self.key("bucket"), bounds, each, self._shape[1:], sums)
            self._rates = (sums / 2).astype(np.float32)
        return self._rates


@kernel
def _request(
    keys: NDArray[np.int64],
    y: int,
    sets: int,
    bounds: NDArray[np.int64],
    stay: NDArray[np.int64],
    other: NDArray[np.int64],
    shape: NDArray[np.int64],
    out: NDArray[np.int64],
    writes: NDArray[np.bool_],
) -> None:
    """Write the accesses from y on to ``out``, int64[n], and ``writes``, bool[n].

    keys    int64[4]: of requests, of what they do, of the shuffle of items, of buckets
    sets    requests of 2**32 that set a value
    shape   int64[5]: first gvpn, pages of the hash table, items, ``rows_of`` them, items in a page
    """
    start, table, items, rows, per_page = shape[0], shape[1], shape[2], shape[3], shape[4]
    for i in range(out.size):
        request = (y + i) >> 1
        if i == 0 or not (y + i) & 1:
            item = shuffled(keys[2], draw_rank(keys[0], request, bounds, stay, other), items, rows)
            high, _ = bits(keys[1], request)
        writes[i] = high < sets
        if (y + i) & 1:
            out[i] = start + table + item // per_page
        else:
            out[i] = start + below(keys[3], item, table)


@kernel
def _add_up(
    key_item: int,
    key_bucket: int,
    bounds: NDArray[np.int64],
    each: NDArray[np.float64],
    shape: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Add the probability of each item to its page and to its bucket's in ``sums``, float64[pages].

    bounds  int64[s + 1], each float64[s]: ``Ranks``
    shape   int64[4]: pages of the hash table, items, ``rows_of`` them, items in a page
    """
    table, items, rows, per_page = shape[0], shape[1], shape[2], shape[3]
    places = np.empty(_AT_ONCE, np.int64)
    step, others = 0, 0.0
    for first in range(0, items, _AT_ONCE):
        some = places[: min(_AT_ONCE, items - first)]
        shuffle(key_item, first, items, rows, some)
        for i in range(some.size):
            while first + i >= bounds[step + 1]:
                step += 1
            sums[table + some[i] // per_page] += each[step]
            if first + i < _ALONE:
                sums[below(key_bucket, some[i], table)] += each[step]
            else:
                others += each[step]
    for page in range(table):
        sums[page] += others / table
