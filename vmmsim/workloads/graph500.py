"""Graph500's breadth-first search of a Kronecker graph: stretches of edge lists, and the vertices they lead to.

::

    heap    offsets: 8 B a vertex | edges: 8 B, two for each pair | parents: 8 B a vertex

A step looks at one edge: it reads the edge's end from the list (or, at the beginning of a list, the vertex's offset)
and then the parent of the vertex it leads to, which is written if it had none. Steps come in blocks of 1024, all of
whose lists have the same length, a power of two drawn from the lengths of lists that edges lie in: so that a step's
place is known without those before it.

With R-MAT's parameters a, b, c, d, a vertex whose number has k of S bits set is an edge's end with probability
(a + b)**(S - k) (c + d)**k, and has a list in proportion. Numbers are shuffled over the vertices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.jit import kernel
from vmmsim.workloads.drawing import Alias, alias, bits, choose, rows_of, scaled, shuffled
from vmmsim.workloads.phased import Phased, laid_out
from vmmsim.workloads.touching import Mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDS: Final = 512
"""Edges, offsets or parents in a page."""
BLOCK: Final = 1024
"""Steps in a block; also the longest list, longer ones being several."""
_GROUP: Final = 8
"""Bits of a vertex's number that are drawn at once."""
_GROUPS: Final = 4
_ALONE: Final = 1 << 24
"""Vertices, those with most edges, that are counted one by one where pages' probabilities are added up."""


@attrs.frozen(kw_only=True)
class Graph500Parameters:
    """What can be chosen beside the footprint."""

    edge_factor: int = 16
    """Edges generated for each vertex; each stands in two lists."""
    rmat_one: float = 0.24
    """Probability c + d that a bit of an edge's end is set: how unlike vertices are, from 0 to 0.5 (all alike)."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.edge_factor <= 1024:
            raise ValueError("edge_factor must lie from 1 to 1024")
        if not 0 < self.rmat_one <= 0.5:
            raise ValueError("rmat_one must be above 0 and at most 0.5")


class Graph500(Phased):
    """The search; generation and compression of the graph are the initial phase, as writes of all pages."""

    def __init__(self, pages: int, parameters: Graph500Parameters, *, seed: int, vm: str, ideal_cycles: float) -> None:
        regions = laid_out(("heap", pages), primary="heap")
        super().__init__("graph500", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)
        edges_each = 2 * parameters.edge_factor
        self.vertex_pages = max(1, pages // (edges_each + 2))
        self.edge_pages = pages - 2 * self.vertex_pages
        self.vertices = self.vertex_pages * WORDS
        self.scale = min(max((self.vertices - 1).bit_length(), 1), _GROUP * _GROUPS - 1)
        self.rmat_one = parameters.rmat_one
        self.discoveries = 1 / edges_each
        self._lengths = alias(_lengths(self.scale, edges_each, self.rmat_one))
        self._group = _group(self.rmat_one)
        self._parents: NDArray[np.float32] | None = None

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        names = ("list", "start", "end", "discovery")
        keys = np.array([*(self.key(name, vcpu) for name in names), self.key("shuffle")])
        scale = [self.scale, rows_of(1 << self.scale)]
        shape = np.array([self.regions[0].start, self.vertex_pages, self.edge_pages, *scale])
        discoveries = round(self.discoveries * (1 << 32))
        tables = np.array([self._lengths.stay, self._lengths.other]), np.array([self._group.stay, self._group.other])
        _search(keys, y, discoveries, *tables, shape, pages, writes)

    def pieces(self, y0: int, y1: int) -> list[Mix]:
        start, key = self.regions[0].start, self.key("touched")
        never = np.zeros(1, np.float32)
        offsets, edges = self._visits()
        parents = self.parents()
        found = np.float32(self.discoveries)
        first = start + self.vertex_pages
        return [
            Mix(start, np.full(1, offsets, np.float32), never, self.vertex_pages, key, 0, y1),
            Mix(first, np.full(1, edges, np.float32), never, self.edge_pages, key, 0, y1),
            Mix(first + self.edge_pages, parents * (1 - found), parents * found, parents.size, key, 0, y1),
        ]

    def _visits(self) -> tuple[float, float]:
        """Return how often an access begins a stay at each page of the offsets, and of the edges.

        A list of n edges begins with one read of an offset, and its n - 1 further reads meet 1 + (n - 2) / 512 pages.
        """
        offsets = edges = 0.0
        for log, weight in enumerate(self._lengths.weight, start=1):
            lists = weight / 2 / (1 << log)
            offsets += lists
            edges += lists * (1 + ((1 << log) - 2) / WORDS)
        return offsets / self.vertex_pages, edges / self.edge_pages

    def parents(self) -> NDArray[np.float32]:
        """Return the probability that an access is to each page of the parents, float32[pages]."""
        if self._parents is None:
            one, scale, pages = self.rmat_one, self.scale, self.vertex_pages
            weights = np.array([(1 - one) ** (scale - k) * one**k for k in range(scale + 1)])
            counts = np.cumsum([math.comb(scale, k) for k in range(scale + 1)])
            heavy = int((counts <= _ALONE).sum())
            alone = math.fsum(math.comb(scale, k) * weights[k] for k in range(heavy))
            sums = np.full(pages, max(0.0, 1 - alone) / pages)
            if heavy:
                shape = np.array([scale, rows_of(1 << scale), self.vertices])
                _add_heavy(self.key("shuffle"), weights, heavy, shape, sums)
            self._parents = (sums / 2).astype(np.float32)
        return self._parents


def _lengths(scale: int, edges_each: int, one: float) -> list[float]:
    """Return the share of edges that lie in lists of 2, 4, ... BLOCK edges; longer lists count as BLOCK."""
    most = BLOCK.bit_length() - 1
    shares = [0.0] * most
    for k in range(scale + 1):
        share = math.comb(scale, k) * (1 - one) ** (scale - k) * one**k
        mean = edges_each * 2.0**scale * (1 - one) ** (scale - k) * one**k
        shares[min(max(round(math.log2(mean)), 1), most) - 1] += share
    return shares


def _group(one: float) -> Alias:
    """Return the distribution of numbers of _GROUP bits, each of which is set with probability ``one``."""
    bits_set = (number.bit_count() for number in range(1 << _GROUP))
    return alias([(1 - one) ** (_GROUP - k) * one**k for k in bits_set])


@kernel
def _search(
    keys: NDArray[np.int64],
    y: int,
    discoveries: int,
    lengths: NDArray[np.int64],
    group: NDArray[np.int64],
    shape: NDArray[np.int64],
    out: NDArray[np.int64],
    writes: NDArray[np.bool_],
) -> None:
    """Write the accesses from y on to ``out``, int64[n], and ``writes``, bool[n].

    keys         int64[5]: of lengths, of starts of lists, of ends of edges, of discoveries, of the shuffle
    discoveries  steps of 2**32 that find a vertex without a parent
    lengths      int64[2, l], group int64[2, 256]: ``Alias`` each, of lengths and of bits of a vertex's number
    shape        int64[5]: first gvpn, pages of the offsets, pages of the edges, bits of a number, ``rows_of`` numbers
    """
    start, vertex_pages, edge_pages, scale, rows = shape[0], shape[1], shape[2], shape[3], shape[4]
    vertices = vertex_pages * WORDS
    numbers = 1 << scale
    block, log = -1, 0
    for i in range(out.size):
        step = (y + i) >> 1
        if (y + i) & 1:
            number = 0
            for part in range((scale + _GROUP - 1) // _GROUP):
                high, low = bits(keys[2], _GROUPS * step + part)
                number |= choose(group[0], group[1], high, low) << _GROUP * part
            place = shuffled(keys[4], number & (numbers - 1), numbers, rows)
            out[i] = start + vertex_pages + edge_pages + (place * vertices >> scale) // WORDS
            writes[i] = bits(keys[3], step)[0] < discoveries
        else:
            if step // BLOCK != block:
                block = step // BLOCK
                high, low = bits(keys[0], block)
                log = 1 + choose(lengths[0], lengths[1], high, low)
            first = step >> log
            high, low = bits(keys[1], 16 * first + log)
            if step & ((1 << log) - 1) == 0:
                out[i] = start + scaled(high, low, vertex_pages)
            else:
                edge = scaled(high, low, edge_pages) * WORDS + (low & (WORDS - 1)) + (step & ((1 << log) - 1))
                out[i] = start + vertex_pages + edge // WORDS % edge_pages
            writes[i] = False


@kernel
def _add_heavy(
    key: int, weights: NDArray[np.float64], heavy: int, shape: NDArray[np.int64], sums: NDArray[np.float64]
) -> None:
    """Add the probabilities of vertices with fewer than ``heavy`` bits set to those of their pages in ``sums``.

    weights  float64[scale + 1]: probability of a vertex by bits set
    shape    int64[3]: bits of a number, ``rows_of`` the numbers, vertices
    """
    scale, rows, vertices = shape[0], shape[1], shape[2]
    for number in range(1 << scale):
        ones, rest = 0, number
        while rest and ones < heavy:
            rest &= rest - 1
            ones += 1
        if rest == 0 and ones < heavy:
            sums[(shuffled(key, number, 1 << scale, rows) * vertices >> scale) // WORDS] += weights[ones]
