"""Text of Linux perf: ``perf mem -D -x ';' report`` and ``perf script``. Samples, not every access.

perf takes one access in thousands, and prefers slow ones. Such a trace tells which pages are hot, weighted
by the latency of the loads; what a TLB makes of it is not what it made of the program, and results say so.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from vmmsim.errors import BadInput
from vmmsim.workloads.accesses import READ, WRITE, Accesses
from vmmsim.workloads.stream import opened
from vmmsim.workloads.trace import Trace

_LINE_MAX: Final = 1 << 16
_Sample = tuple[int, int, int]
"""Address, kind, weight."""


class _PerfTrace(Trace):
    """Lines of text, a sample each."""

    weighted = True
    has_instructions = False
    notes = ("it is a sample that perf took, not every access: rates and orders are not those of the program",)

    def blocks(self) -> Iterator[Accesses]:
        """Yield the samples that have an address, as accesses of one byte with weights."""
        with opened(self.path) as stream:
            offset, rest = 0, b""
            while text := stream.read():
                whole = rest + text
                end = whole.rfind(b"\n") + 1
                rest = whole[end:]
                if len(rest) > _LINE_MAX:
                    raise self._malformed(rest, offset + end)
                if end:
                    yield self._block(whole[:end], offset)
                offset += end
            if rest:
                raise BadInput("the last line is cut short; write it again", file=self.path, path=f"byte {offset}")

    def _block(self, text: bytes, offset: int) -> Accesses:
        samples, places = [], []
        for line in text.splitlines(keepends=True):
            if line.strip() and not line.startswith(b"#"):
                sample = self._sample(line.decode("utf-8", "replace").rstrip("\r\n"))
                if sample is None:
                    raise self._malformed(line, offset)
                if sample[0]:  # perf prints address 0 for a sample that has none
                    samples.append(sample)
                    places.append(offset)
            offset += len(line)
        address, kind, weight = np.array(samples, dtype=np.uint64).reshape(-1, 3).T
        return Accesses(
            np.ascontiguousarray(address).view(np.int64),
            kind.astype(np.uint8),
            None,
            lambda i: f"byte {places[i]}",
            weight.astype(np.int64),
        )

    @abstractmethod
    def _sample(self, line: str) -> _Sample | None:
        """Return what a line holds, None if it is no sample."""

    def _malformed(self, line: bytes, offset: int) -> BadInput:
        shown = line[:60].decode("ascii", "backslashreplace").strip()
        return BadInput(f'"{shown}" is not {self._right}', file=self.path, path=f"byte {offset}")

    _right = "a sample"


class PerfMemTrace(_PerfTrace):
    """Rows of ``perf mem -D -x ';' report``, under a header that names their columns.

    The header is always separated by commas, the rows by what -x says. The last column may contain the
    separator.
    """

    format = "perf-mem"
    _right = "a row of perf mem; write it with: perf mem -D -x ';' report"
    _STORE: Final = 4
    """Bit of the data source's operation (its five lowest bits) for a store."""

    def __init__(self, path: Path, *, levels: int = 4) -> None:
        super().__init__(path, levels=levels)
        with opened(path) as stream:
            lines = stream.read(_LINE_MAX).decode("utf-8", "replace").splitlines()
        header = next((line for line in lines if line.startswith("# PID")), "")
        names = [name.strip() for name in header.lstrip("# ").split(",")]
        missing = [name for name in ("ADDR", "LOCAL WEIGHT", "DSRC") if name not in names]
        if missing:
            raise BadInput(
                f"its header does not name {missing[0]}; write it with: perf mem -D -x ';' report", file=path
            )
        rows = (re.match(r"\s*\d+\s*([^\s\d])", line) for line in lines if not line.startswith("#") and line.strip())
        match = next(rows, None)
        self._separator = match[1] if match else ";"
        self._columns = [names.index(name) for name in ("ADDR", "LOCAL WEIGHT", "DSRC")]
        self._count = len(names)

    @staticmethod
    def matches(head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, has perf mem's header."""
        return any(line.startswith(b"# PID") and b"DSRC" in line for line in head.split(b"\n"))

    def _sample(self, line: str) -> _Sample | None:
        parts = line.split(self._separator, self._count - 1)
        if len(parts) != self._count or "0x016" in line:
            return None
        try:
            address, source = (int(parts[self._columns[i]], 16) for i in (0, 2))
            weight = int(parts[self._columns[1]])
        except ValueError:
            return None
        if not (0 <= address < 1 << 64 and 0 <= weight < 1 << 63):
            return None
        return address, WRITE if source & self._STORE else READ, weight


class PerfScriptTrace(_PerfTrace):
    """Lines of ``perf script -F ...`` with at least time and addr.

    perf prints fields in an order of its own whatever -F says: comm, pid/tid, [cpu], time:, period, event:,
    addr, data_src, weight. The text of data_src has spaces and bars and ends with its last bar-separated
    part.
    """

    format = "perf-script"
    _right = "a sample with an address; write it with: perf script -F comm,pid,tid,time,event,addr,data_src,weight"
    _LINE: Final = re.compile(
        r"(?:.*?\s)?(?P<time>\d+\.\d+):\s+"  # comm, pid/tid and [cpu] stand before it and are not used
        r"(?:(?:\d+\s+)?(?P<event>[^\s:]\S*):\s+)?"
        r"(?P<address>[0-9a-f]{1,16})(?=\s|$)"
        r"(?:\s+[0-9a-f]+\s+\|(?P<source>.*\|[^|0-9]*)(?:(?P<weight>\d+)(?=\s|$))?)?"
    )

    @classmethod
    def matches(cls, head: bytes) -> bool:
        """Tell whether ``head``, the file's first bytes, begins with a sample that has an address."""
        for line in head.decode("utf-8", "replace").splitlines()[:-1] or [""]:
            if line.strip() and not line.startswith("#"):
                return cls._LINE.match(line) is not None
        return False

    def _sample(self, line: str) -> _Sample | None:
        match = self._LINE.match(line)
        if match is None:
            return None
        told = match["source"]
        store = "OP STORE" in told if told is not None else "store" in (match["event"] or "")
        return int(match["address"], 16), WRITE if store else READ, int(match["weight"] or 0)
