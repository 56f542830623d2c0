"""Text of ``valgrind --tool=lackey --trace-mem=yes``: every access of a program, a line each.

::

    I  04001100,3
     L 1ffeffe7e0,8
     S 1ffeffe7d8,8
     M 0403f6a0,4

Operation in the first two columns, address in hexadecimal from the fourth, size in bytes in decimal. Lines
that begin with ``==``, ``--`` or ``**`` are valgrind's own and are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import FETCH, MODIFY, READ, WRITE, Accesses
from vmmsim.workloads.stream import opened
from vmmsim.workloads.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LINE: Final = re.compile(rb"(I |\s[LSM]) +([0-9A-Fa-f]{1,16}),(\d{1,5})")
_KINDS: Final = {b"I": FETCH, b"L": READ, b"S": WRITE, b"M": MODIFY}
_BANNERS: Final = (b"==", b"--", b"**")
_LINE_MAX: Final = 1 << 16
_HEX: Final = b"0123456789abcdefABCDEF"
_FIXED: Final = 5
"""Bytes of a line that are no digits: three before the address, the comma, the end of the line."""
_PREFIXES: Final = {b"I  ": FETCH, b" L ": READ, b" S ": WRITE, b" M ": MODIFY}
_NO_KIND: Final = 255
_PAD: Final = b"0" * 16


class LackeyTrace(Trace):
    """A text file that lackey wrote."""

    format = "lackey"

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with opened(path) as stream:
            head = stream.read(_LINE_MAX)
        self.has_instructions = True if re.search(rb"^I  ", head, re.MULTILINE) else None

    def blocks(self) -> Iterator[Accesses]:
        """Yield the accesses of the file, as the base class says."""
        with opened(self.path) as stream:
            yield from parse(iter(stream.read, b""), file=self.path)

    @staticmethod
    def matches(head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, begins with lackey's or valgrind's lines."""
        for line in head.split(b"\n")[:-1]:
            if not line.startswith(_BANNERS):
                return _LINE.fullmatch(line) is not None
            if b"Lackey, an example Valgrind tool" in line:
                return True
        return False


def parse(texts: Iterable[bytes], *, file: object, live: bool = False) -> Iterator[Accesses]:
    """Yield the accesses in a stream of pieces of text, which may end anywhere within a line.

    ``BadInput`` with the byte offset at a line that is none of lackey's, and at a last line that is cut
    short. If ``live``, the text comes from a program that may be stopped in the middle of a line: such a
    line is dropped.
    """
    rest, offset = b"", 0
    for text in texts:
        whole = rest + text if rest else text
        end = whole.rfind(b"\n") + 1
        rest = whole[end:]
        if len(rest) > _LINE_MAX:
            raise _malformed(rest, offset + end, file)
        if end:
            yield parse_lines(whole[:end], offset, file=file)
        offset += end
    if rest and not live:
        raise BadInput("the last line is cut short; copy or record the trace again", file=file, path=f"byte {offset}")


def parse_lines(text: bytes, offset: int, *, file: object) -> Accesses:
    """Return the accesses of whole lines; ``text`` begins at byte ``offset`` of the trace."""
    starts, ends = _line_bounds(text)
    data = np.frombuffer(text, dtype=np.uint8)
    other = (data[starts] != ord("I")) & (data[starts] != ord(" "))
    origins = starts + offset
    if other.any():
        for line in np.flatnonzero(other):
            if not text.startswith(_BANNERS, int(starts[line])):
                raise _malformed(text[starts[line] : ends[line]], int(origins[line]), file)
        text = data[np.repeat(~other, ends + 1 - starts)].tobytes()
        starts, ends = _line_bounds(text)
        origins = origins[~other]
    # FAST PATH: same result without it; a pass of array operations instead of a match for each line.
    arrays = _parse_arrays(text, starts, ends) or _parse_matching(text, origins, file)
    return Accesses(*arrays, lambda i: f"byte {origins[i]}")


def _line_bounds(text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each line starts and where its newline stands."""
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return starts, ends


_Arrays = tuple["NDArray[np.int64]", "NDArray[np.uint8]", "NDArray[np.int64]"]
"""Address, kind and size of each line."""


def _parse_arrays(text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> _Arrays | None:
    """Return what the lines hold, or None unless each has exactly the shape that lackey prints.

    Of a good line, all bytes but five are hexadecimal digits: the three before the address, the comma, the
    newline. If the three and the newline stand where they must, there is a comma to each line, and the rest
    of the text is digits, then no line can hold anything else; what is left to check is the digits of the
    sizes.
    """
    lines = starts.size
    if len(text.translate(None, _HEX)) != _FIXED * lines:
        return None
    # Words of 2 to 8 bytes are read at any byte: padded, so that none lies outside.
    padded = np.frombuffer(_PAD + text + _PAD, dtype=np.uint8)
    data = padded[len(_PAD) : -len(_PAD)]
    commas = np.flatnonzero(data == ord(","))
    if commas.size != lines:
        return None
    prefix = _words(padded, "<u4")[starts + len(_PAD)] & 0xFFFFFF
    kind = np.full(lines, _NO_KIND, dtype=np.uint8)
    for operation, number in _PREFIXES.items():
        kind[prefix == int.from_bytes(operation, "little")] = number
    digits, size_digits = commas - starts - 3, ends - commas - 1
    good = (digits >= 1) & (digits <= 16) & (size_digits >= 1) & (size_digits <= 5)
    good &= kind != _NO_KIND
    if not good.all():
        return None
    address = _hexadecimal(padded, commas + len(_PAD), digits)
    size = _decimal(data, commas + 1, size_digits)
    return (address, kind, size) if size is not None else None


def _words(data: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    """Return the little-endian words that begin at every byte of ``data``."""
    width = np.dtype(kind).itemsize
    return np.ndarray(data.size - width + 1, dtype=kind, buffer=data, strides=(1,))


def _hexadecimal(padded: NDArray[np.uint8], ends: NDArray[np.int64], digits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of 1 to 16 hexadecimal digits that end before ``ends``."""
    words = _words(padded, "<u8")
    value = _nibbles(words[ends - 8], digits)
    long = np.flatnonzero(digits > 8)
    if long.size:
        value[long] |= _nibbles(words[ends[long] - 16], digits[long] - 8) << np.uint64(32)
    return value.view(np.int64)


def _nibbles(word: NDArray[np.uint64], digits: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the number that the last ``digits`` (or all 8) characters of each word spell, all eight at once.

    The last character is the word's highest byte. "0" to "9" are 0x30 to 0x39; a letter has bit 6 set, and
    9 more than its low four bits is its value.
    """
    u = np.uint64
    value = (word & u(0x0F0F0F0F0F0F0F0F)) + (word >> u(6) & u(0x0101010101010101)) * u(9)
    value &= _LAST_BYTES[np.minimum(digits, 8)]
    # Pairs of digits, then fours, then eight: the earlier character is the more significant.
    value = (value << u(4) | value >> u(8)) & u(0x00FF00FF00FF00FF)
    value = (value << u(8) | value >> u(16)) & u(0x0000FFFF0000FFFF)
    return (value << u(16) | value >> u(32)) & u(0xFFFFFFFF)


_LAST_BYTES: Final = np.array([((1 << 64) - 1) ^ ((1 << 8 * (8 - n)) - 1) for n in range(9)], dtype=np.uint64)


def _decimal(data: NDArray[np.uint8], starts: NDArray[np.int64], digits: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the decimal numbers of 1 to 5 digits from ``starts``; None if one is 0 or no such number."""
    value = np.zeros(starts.size, dtype=np.int64)
    which = np.arange(starts.size)
    for position in range(int(digits.max(initial=0))):
        which = which[digits[which] > position]
        digit = data[starts[which] + position] - np.uint8(ord("0"))
        if (digit > 9).any():
            return None
        value[which] = value[which] * 10 + digit
    return value if value.all() else None


def _parse_matching(text: bytes, origins: NDArray[np.int64], file: object) -> _Arrays:
    """Return what the lines hold, a match at a time; ``BadInput`` at the first that is none of lackey's."""
    address, kind, size = [], [], []
    for line, origin in zip(text.split(b"\n"), origins, strict=False):
        match = _LINE.fullmatch(line)
        if match is None or int(match[3]) == 0:
            raise _malformed(line, int(origin), file)
        address.append(int(match[2], 16))
        kind.append(_KINDS[match[1].strip()])
        size.append(int(match[3]))
    return (
        np.array(address, dtype=np.uint64).view(np.int64),
        np.array(kind, dtype=np.uint8),
        np.array(size, dtype=np.int64),
    )


def _malformed(line: bytes, offset: int, file: object) -> BadInput:
    shown = line[:40].decode("ascii", "backslashreplace")
    return BadInput(
        f'"{shown}" is not a line of lackey; right is e.g. " L 1ffeffe7e0,8"',
        file=file,
        path=f"byte {offset}",
    )
