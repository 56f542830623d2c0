"""Page sizes, the three kinds of page number, alignment, and sizes as people write them.

An address is an int64, never a uint64: 57-bit addresses fit, and mixed arithmetic stays exact. Page numbers count
4 KiB pages whatever the size of the page that maps them. gVA, gPA and hPA (guest virtual, guest physical, host
physical address) have the page numbers gvpn, gfn and hfn.
"""

from __future__ import annotations

import re
from typing import Final, NewType

from vmmsim.errors import BadInput

Gvpn = NewType("Gvpn", int)
"""Guest virtual page number: gVA >> 12, the sign-extension bits dropped."""
Gfn = NewType("Gfn", int)
"""Guest frame number: gPA >> 12."""
Hfn = NewType("Hfn", int)
"""Host frame number: hPA >> 12."""

PAGE_BITS: Final = 12
PAGE_BYTES: Final = 1 << PAGE_BITS
TABLE_BITS: Final = 9
"""A page table has 512 entries, so that each level translates 9 bits."""
TABLE_ENTRIES: Final = 1 << TABLE_BITS
LINE_BITS: Final = 6
"""A cache line has 64 bytes: 8 page-table entries."""

SIZE_NAMES: Final = ("4K", "2M", "1G")
"""Names of the page sizes; the position is the size's number: 0, 1, 2."""
SIZE_4K: Final = 0
SIZE_2M: Final = 1
SIZE_1G: Final = 2

_UNITS: Final = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def size_pages(size: int) -> int:
    """Return how many 4 KiB pages a page of size number ``size`` has: 1, 512 or 262,144."""
    return 1 << (TABLE_BITS * size)


def size_number(name: str) -> int:
    """Return 0, 1 or 2 for "4K", "2M" or "1G"; ``BadInput`` for anything else."""
    if name.upper() in SIZE_NAMES:
        return SIZE_NAMES.index(name.upper())
    raise BadInput(f'"{name}" is not a page size; write 4K, 2M or 1G')


def address_bits(levels: int) -> int:
    """Return the width of a virtual address: 48 bits for 4 levels of tables, 57 for 5."""
    return PAGE_BITS + TABLE_BITS * levels


def is_canonical(address: int, levels: int = 4) -> bool:
    """Tell whether the bits above the translated ones repeat the highest of them."""
    top = address >> (address_bits(levels) - 1)
    return top in (0, -1) or top == (1 << (65 - address_bits(levels))) - 1


def page_number(address: int, levels: int = 4) -> Gvpn:
    """Return the gvpn of a canonical virtual address; ``BadInput`` if it is not canonical."""
    if not is_canonical(address, levels):
        bits = address_bits(levels)
        raise BadInput(
            f"{address:#x} is not a canonical address of {levels}-level tables; bits 63 to {bits - 1} must be equal"
        )
    return Gvpn((address >> PAGE_BITS) & ((1 << (TABLE_BITS * levels)) - 1))


def virtual_address(gvpn: int, levels: int = 4) -> int:
    """Return the canonical gVA of a page, between 0 and 2**64: the inverse of ``page_number``."""
    address = gvpn << PAGE_BITS
    if gvpn >> (TABLE_BITS * levels - 1):
        address |= (1 << 64) - (1 << address_bits(levels))
    return address


def parse_bytes(text: str) -> int:
    """Return the bytes that "64GiB", "512 MiB" or "4096" mean; ``BadInput`` for anything else."""
    match = _SIZE.fullmatch(text)
    scale = _UNITS.get((match[2] or "B").upper()) if match else None
    if match is None or scale is None or (value := float(match[1]) * scale) != int(value):
        raise BadInput(f'"{text}" is not a size; write e.g. "64GiB"')
    return int(value)


def format_bytes(count: int) -> str:
    """Return ``count`` bytes as people write it, with at most one decimal: "1.5 GiB", "640 KiB"."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"
