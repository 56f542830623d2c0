"""Which format a trace file is in, told from its content; its name decides where the content fits two."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

from vmmsim.errors import BadInput
from vmmsim.workloads import drmemtrace, parquet
from vmmsim.workloads.champsim import ChampSimTrace, CloudSuiteTrace
from vmmsim.workloads.drmemtrace import DrMemTrace
from vmmsim.workloads.lackey import LackeyTrace
from vmmsim.workloads.npy import NpyTrace
from vmmsim.workloads.parquet import ParquetTrace
from vmmsim.workloads.perf import PerfMemTrace, PerfScriptTrace
from vmmsim.workloads.stream import ZIP_MAGIC, opened, opened_member
from vmmsim.workloads.trace import Trace

_HEAD_BYTES: Final = 96 * 1024
"""Bytes looked at: a whole number of records of either size of ChampSim's."""

FORMATS: Final[dict[str, type[Trace]]] = {
    reader.format: reader
    for reader in (
        ParquetTrace,
        NpyTrace,
        DrMemTrace,
        LackeyTrace,
        PerfMemTrace,
        PerfScriptTrace,
        ChampSimTrace,
        CloudSuiteTrace,
    )
}
"""Reader of each format, by name."""


def recognise(path: Path, format: str | None = None) -> type[Trace]:
    """Return the reader of the file at ``path``; ``BadInput`` if it is empty or of no format known.

    ``format`` names the format instead. The most telling signs are looked for first; ChampSim's records,
    which have no header, last.
    """
    if format is not None:
        if format not in FORMATS:
            raise BadInput(f'"{format}" is no format of traces; there are {", ".join(FORMATS)}')
        return FORMATS[format]
    with path.open("rb") as file:
        magic = file.read(8)
    if not magic:
        raise BadInput("is empty; a trace holds at least one access", file=path)
    if magic.startswith(parquet.MAGIC):
        return ParquetTrace
    if magic.startswith(ZIP_MAGIC):
        return _in_zip(path)
    with opened(path) as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise BadInput("is empty once decompressed; a trace holds at least one access", file=path)
    return _by_content(head, path)


def _in_zip(path: Path) -> type[Trace]:
    """Return drmemtrace's reader for a zip file whose first member is a chunk of such a trace."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            head = b""
            if names:
                with opened_member(archive, names[0], path) as stream:
                    head = stream.read(64)
    except zipfile.BadZipFile as error:
        raise BadInput(
            f"the zip file is cut short or corrupt ({error}); copy it again",
            file=path,
            path=f"byte {path.stat().st_size} (the end)",
        ) from None
    if DrMemTrace.matches(head):
        return DrMemTrace
    raise BadInput("is a zip file but no drmemtrace, the one format that comes in zip files; unpack it", file=path)


def _by_content(head: bytes, path: Path) -> type[Trace]:
    for reader in (NpyTrace, DrMemTrace, LackeyTrace, PerfMemTrace, PerfScriptTrace):
        if reader.matches(head):
            return reader
    sizes = [reader for reader in (ChampSimTrace, CloudSuiteTrace) if reader.matches(head)]
    if len(sizes) == 2:
        return CloudSuiteTrace if "cloudsuite" in path.name else ChampSimTrace
    if sizes:
        return sizes[0]
    if drmemtrace.is_raw(head) or ".raw" in path.suffixes:
        return DrMemTrace  # which refuses it and says what to do
    raise BadInput(f"is of no format known, which are {', '.join(FORMATS)}", file=path)
