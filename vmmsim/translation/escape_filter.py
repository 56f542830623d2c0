"""The escape filter: a partitioned Bloom filter of a few exceptional pages under a segment, hashed by H3.

Each bank has one hash function; each bit of a hash is the parity of the page number ANDed with a row of that bank's
random matrix. A member always hits; another page hits by accident with probability (1 - (1 - 1/b)**n)**k for n
members, k banks of b bits. A page that hits is translated by its page table: right in any case, only slower.

Parity is linear over XOR, so a hash is the XOR of one table look-up per byte, all banks packed in one word.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.errors import BadInput
from vmmsim.jit import apart, inlined, kernel
from vmmsim.translation.state import BANK_WORDS, BANKS, HASH_BYTES, HASH_FIELD, MEMBERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmmsim.translation.types import Core, Pool

KEY_BITS: Final = 45
"""Bits of the page numbers that are hashed: all of a 5-level gVA's."""
FIELD_MASK: Final = (1 << HASH_FIELD) - 1
_WORDS: Final = 16
"""32-bit words for the 512 pages of a 2 MiB block."""


@inlined
def packed_hash(core: Core, dimension: int, page: int) -> int:
    """Return all banks' hashes of ``page``, HASH_FIELD bits to a bank."""
    table = core.filter_hash
    word = table[dimension, 0, page & 255]
    for byte in range(1, HASH_BYTES):
        word ^= table[dimension, byte, page >> 8 * byte & 255]
    return word


@inlined
def _bits_hit(core: Core, dimension: int, word: int) -> bool:
    for bank in range(core.filter_banks[dimension]):
        bit = word >> HASH_FIELD * bank & FIELD_MASK
        if not core.filter_bits[dimension, bank, bit >> 5] >> (bit & 31) & 1:
            return False
    return True


@inlined
def filter_hits(core: Core, dimension: int, page: int) -> bool:
    """Tell whether the filter of ``dimension`` sends ``page`` to paging."""
    # FAST PATH: an empty filter hits nothing.
    return core.members_count[dimension] != 0 and _hashes_hit(core, dimension, page)


@kernel
def _hashes_hit(core: Core, dimension: int, page: int) -> bool:
    apart()
    return _bits_hit(core, dimension, packed_hash(core, dimension, page))


@kernel
def is_member(core: Core, dimension: int, page: int) -> bool:
    """Tell whether ``page`` was inserted, as opposed to hit by accident."""
    apart()
    for i in range(core.members_count[dimension]):
        if core.members[dimension, i] == page:
            return True
    return False


@kernel
def insert(core: Core, dimension: int, page: int) -> None:
    """Set the bits of ``page`` and note it as a member; the caller sees to it that there is room."""
    word = packed_hash(core, dimension, page)
    for bank in range(core.filter_banks[dimension]):
        bit = word >> HASH_FIELD * bank & FIELD_MASK
        core.filter_bits[dimension, bank, bit >> 5] |= 1 << (bit & 31)
    if not is_member(core, dimension, page):
        core.members[dimension, core.members_count[dimension]] = page
        core.members_count[dimension] += 1


@kernel
def map_escapes(core: Core, pool: Pool, dimension: int, start: int, first: int, end: int) -> None:
    """Set bit b of the map at ``pool[start]`` (32 bits to a word) if the filter hits a page of block b.

    Block 0 is the 2 MiB block of page ``first``; pages [first, end) are looked at.

    Linear: the hash of a page is the hash of its block XOR that of its place in the block. So which places of a block
    one bank hits depends on the bank's hash of the block alone, and is worked out once for each: 512 bits. A block is
    hit if some place is hit by all banks. 80 GiB of pages take a millisecond or two.
    """
    banks = core.filter_banks[dimension]
    places = np.zeros((banks, 32 * BANK_WORDS, _WORDS), np.int64)
    known = np.zeros((banks, 32 * BANK_WORDS), np.bool_)
    lows = np.zeros(512, np.int64)
    for low in range(512):
        lows[low] = packed_hash(core, dimension, low)
    hit = np.zeros(_WORDS, np.int64)
    origin = first >> 9
    for block in range(origin, (end + 511) >> 9):
        high = packed_hash(core, dimension, block << 9)
        hit[:] = (1 << 32) - 1
        for bank in range(banks):
            by_bank = high >> HASH_FIELD * bank & FIELD_MASK
            if not known[bank, by_bank]:
                known[bank, by_bank] = True
                for low in range(512):
                    bit = by_bank ^ lows[low] >> HASH_FIELD * bank & FIELD_MASK
                    is_set = core.filter_bits[dimension, bank, bit >> 5] >> (bit & 31) & 1
                    places[bank, by_bank, low >> 5] |= is_set << (low & 31)
            for word in range(_WORDS):
                hit[word] &= places[bank, by_bank, word]
        found = 0
        for word in range(_WORDS):
            if hit[word]:
                found |= _between(hit[word], (block << 9) + 32 * word, first, end)
        place = start + (block - origin >> 5)
        bit = block - origin & 31
        pool[place] = pool[place] & ~(1 << bit) | found << bit


@inlined
def _between(bits: int, page: int, first: int, end: int) -> int:
    """Return 1 if one of 32 bits that stand for pages from ``page`` on is set for a page in [first, end)."""
    if page < first:
        bits = bits >> min(first - page, 32)
        page = first
    return 1 if bits & (1 << min(max(end - page, 0), 32)) - 1 else 0


@kernel
def hits_between(core: Core, dimension: int, first: int, end: int, out: NDArray[np.int64]) -> int:
    """Write the pages of [first, end) that the filter hits to ``out``; return how many there are in all."""
    found = 0
    for page in range(first, end):
        if filter_hits(core, dimension, page):
            if found < out.size:
                out[found] = page
            found += 1
    return found


@attrs.frozen(kw_only=True)
class EscapeFilter:
    """A filter as software holds it: its hash matrices, and the list of members it is rebuilt from.

    A Bloom filter cannot forget: to remove a page, make a filter without it. It never fills; how many members it may
    have is a budget of false positives (16 members of 256 bits in 4 banks: 0.246 % of pages).
    """

    bits: int = 256
    """Bits in all; bits / hashes must be a power of two, 2 to 4096."""
    hashes: int = 4
    """Banks, with one hash function each: 1 to 4."""
    rows: tuple[tuple[int, ...], ...] = attrs.field(repr=False)
    """H3 matrices: for each bank, a mask of page-number bits for each bit of its hash."""
    members: tuple[int, ...] = ()
    """Page numbers presented to the segment (gfn for a VMM segment), in the order of insertion; at most 256."""

    def __attrs_post_init__(self) -> None:
        _check_shape(self.bits, self.hashes)
        if len(self.members) > MEMBERS:
            raise BadInput(f"an escape filter holds at most {MEMBERS} members, not {len(self.members)}")

    def with_members(self, *pages: int) -> EscapeFilter:
        """Return the filter with ``pages`` inserted too."""
        new = dict.fromkeys((*self.members, *pages))
        return attrs.evolve(self, members=tuple(new))

    def load(self, core: Core, dimension: int) -> None:
        """Write this filter into the registers of ``core``."""
        core.filter_banks[dimension] = self.hashes
        core.filter_bits[dimension] = 0
        core.filter_hash[dimension] = hash_tables(self.rows)
        core.members_count[dimension] = 0
        for page in self.members:
            insert(core, dimension, page)


def _check_shape(bits: int, hashes: int) -> None:
    bank = bits // hashes if 0 < hashes <= BANKS else 0
    if bits % max(hashes, 1) or not 2 <= bank <= 32 * BANK_WORDS or bank & (bank - 1):
        raise BadInput(
            f"an escape filter of {bits} bits and {hashes} hashes: hashes must be 1 to {BANKS}, "
            f"and bits / hashes a power of two from 2 to {32 * BANK_WORDS}"
        )


def random_filter(
    random: np.random.Generator, *, bits: int = 256, hashes: int = 4, key_bits: int = KEY_BITS
) -> EscapeFilter:
    """Return an empty filter with random H3 matrices over page numbers of ``key_bits`` bits.

    The rows of each bank have full rank, so that its hash reaches every bit of the bank, and all rows together have
    the highest rank there is, so that the banks are as independent of each other as ``key_bits`` bits allow.
    """
    _check_shape(bits, hashes)
    width = (bits // hashes).bit_length() - 1
    if not width <= key_bits <= KEY_BITS:
        raise BadInput(f"page numbers of {key_bits} bits; an escape filter of {bits} bits takes {width} to {KEY_BITS}")
    everything = _Span()
    banks = []
    for _ in range(hashes):
        bank = _Span()
        rows: list[int] = []
        while len(rows) < width:
            row = int(random.integers(1, 1 << key_bits))
            if bank.reduce(row) and (everything.reduce(row) or everything.rank == key_bits):
                bank.add(row)
                everything.add(row)
                rows.append(row)
        banks.append(tuple(rows))
    return EscapeFilter(bits=bits, hashes=hashes, rows=tuple(banks))


class _Span:
    """A linear span of bit vectors, kept as a basis in which no vector has another's highest bit."""

    def __init__(self) -> None:
        self._basis: list[int] = []

    @property
    def rank(self) -> int:
        return len(self._basis)

    def reduce(self, vector: int) -> int:
        """Return what is left of ``vector`` outside the span: 0 if it lies in it."""
        for other in self._basis:
            vector = min(vector, vector ^ other)
        return vector

    def add(self, vector: int) -> None:
        if rest := self.reduce(vector):
            self._basis.append(rest)
            self._basis.sort(reverse=True)


@functools.lru_cache(maxsize=256)
def hash_tables(rows: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    """Return int64[HASH_BYTES, 256]: the packed hash of each value of each byte of a page number; not to be written."""
    tables = np.zeros((HASH_BYTES, 256), np.int64)
    values = np.arange(256, dtype=np.int64)
    for bank, masks in enumerate(rows):
        for bit, mask in enumerate(masks):
            for byte in range(HASH_BYTES):
                parity = np.bitwise_count(values & (mask >> 8 * byte & 255)) & 1
                tables[byte] |= parity.astype(np.int64) << (HASH_FIELD * bank + bit)
    return tables


def false_positive_rate(members: int, *, bits: int = 256, hashes: int = 4) -> float:
    """Return the share of other pages that hit: (1 - (1 - hashes/bits)**members)**hashes (Bloom, partitioned)."""
    return float((1.0 - (1.0 - hashes / bits) ** members) ** hashes)
