"""Page sizes, the three kinds of page number, alignment, and quantities as people write them.

An address is an int64, never a uint64: 57-bit addresses fit, and mixed arithmetic stays exact. Page numbers
count 4 KiB pages whatever the size of the page that maps them. gVA, gPA and hPA (guest virtual, guest
physical, host physical address) have the page numbers gvpn, gfn and hfn.
"""

from __future__ import annotations

import itertools
import json
import re
from decimal import Decimal
from fractions import Fraction
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
_HERTZ: Final = {"GHZ": 10**9, "MHZ": 10**6, "KHZ": 10**3, "HZ": 1}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_SECOND_NS: Final = 10**9
_DURATION_NS: Final = {
    "y": 365 * 86400 * _SECOND_NS,
    "d": 86400 * _SECOND_NS,
    "h": 3600 * _SECOND_NS,
    "m": 60 * _SECOND_NS,
    "s": _SECOND_NS,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|ns|y|d|h|m|s)", re.ASCII)
_LARGEST: Final = (1 << 63) - 1


def size_pages(size: int) -> int:
    """Return how many 4 KiB pages a page of size number ``size`` has: 1, 512 or 262,144."""
    return 1 << (TABLE_BITS * size)


def size_number(name: str) -> int:
    """Return 0, 1 or 2 for "4K", "2M" or "1G"; ``BadInput`` for anything else."""
    if name.upper() in SIZE_NAMES:
        return SIZE_NAMES.index(name.upper())
    raise BadInput(f"{json.dumps(name, ensure_ascii=False)} is not a page size; write 4K, 2M or 1G")


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
    return _parse_quantity(text, _UNITS, "B", 'a size; write e.g. "64GiB"')


def write_bytes(count: int) -> str:
    """Return ``count`` bytes exactly, in the largest unit that divides it: the inverse of ``parse_bytes``."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % scale == 0:
            return f"{count // scale}{unit}"
    return f"{count}B"


def format_bytes(count: int) -> str:
    """Return ``count`` bytes as people read it, in three figures unless it is whole: "1.5 GiB", "640 KiB"."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            number = count // scale if count % scale == 0 else float(f"{count / scale:.3g}")
            return f"{number:g} {unit}"
    return f"{count} bytes"


def format_duration(nanoseconds: int) -> str:
    """Return a time as people write it, in two units at most: "2 h 10 min", "47 min", "1.5 s", "80 us"."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 1000)):
        if nanoseconds < 60 * 10**9 and nanoseconds >= scale:
            return f"{float(f'{nanoseconds / scale:.3g}'):g} {unit}"
    if nanoseconds < 1000:
        return f"{nanoseconds} ns"
    units = (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    at = next(n for n, (_, scale) in enumerate(units) if nanoseconds >= scale * _SECOND_NS)
    (unit, scale), (small, small_scale) = units[at : at + 2]
    count = (nanoseconds + small_scale * _SECOND_NS // 2) // (small_scale * _SECOND_NS)
    large, rest = divmod(count, scale // small_scale)
    return f"{large} {unit} {rest} {small}" if rest else f"{large} {unit}"


def parse_frequency(text: str) -> int:
    """Return the hertz that "2.2GHz" means; ``BadInput`` for anything else, a missing unit included."""
    return _parse_quantity(text, _HERTZ, "", 'a frequency; write e.g. "2.2GHz"')


def write_frequency(hertz: int) -> str:
    """Return ``hertz`` exactly, as "2.2GHz": the inverse of ``parse_frequency``."""
    unit, scale = next((u, s) for u, s in (("GHz", 10**9), ("MHz", 10**6), ("Hz", 1)) if hertz >= s or s == 1)
    return f"{(Decimal(hertz) / scale).normalize():f}{unit}"


def parse_rate(text: str) -> int:
    """Return the bytes a second that "1GiB/s" means; ``BadInput`` for anything else."""
    per_second = text.rstrip().removesuffix("/s")
    wanted = 'a rate; write e.g. "1GiB/s"'
    if per_second == text.rstrip():
        raise BadInput(f"{json.dumps(text, ensure_ascii=False)} is not {wanted}")
    return _parse_quantity(per_second, _UNITS, "", wanted, shown=text)


def write_rate(bytes_per_second: int) -> str:
    """Return ``bytes_per_second`` exactly, as "1GiB/s": the inverse of ``parse_rate``."""
    return f"{write_bytes(bytes_per_second)}/s"


def parse_duration(text: str) -> int:
    """Return the nanoseconds that "1d2h30m" or "10ms" mean (y is 365 d); ``BadInput`` for anything else.

    Units stand in falling order and each at most once, so that a slip such as "1h2h" is not summed.
    """
    parts = _DURATION_PART.findall(text)
    scales = [_DURATION_NS[unit] for _, unit in parts]
    numbers = [Fraction(number) for number, _ in parts]
    total = sum((number * scale for number, scale in zip(numbers, scales, strict=True)), Fraction())
    well_formed = parts and "".join(number + unit for number, unit in parts) == text.strip()
    in_order = all(larger > smaller for larger, smaller in itertools.pairwise(scales))
    if not (well_formed and in_order) or total.denominator != 1 or total > _LARGEST:
        raise BadInput(f'{json.dumps(text, ensure_ascii=False)} is not a duration; write e.g. "1d2h30m" or "10ms"')
    return int(total)


def write_duration(nanoseconds: int) -> str:
    """Return ``nanoseconds`` exactly, as "1d2h30m": the inverse of ``parse_duration``."""
    text = ""
    for unit, scale in _DURATION_NS.items():
        count, nanoseconds = divmod(nanoseconds, scale)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _parse_quantity(text: str, units: dict[str, int], default_unit: str, wanted: str, shown: str = "") -> int:
    """Return the whole number that ``text`` means, exactly; ``BadInput`` saying that it is not ``wanted``.

    The message shows ``shown``, where ``text`` is only part of what the user wrote.
    """
    match = _QUANTITY.fullmatch(text)
    scale = units.get((match[2] or default_unit).upper()) if match else None
    value = Fraction(match[1]) * scale if match and scale else None
    if value is None or value.denominator != 1 or value > _LARGEST:
        raise BadInput(f"{json.dumps(shown or text, ensure_ascii=False)} is not {wanted}")
    return int(value)
