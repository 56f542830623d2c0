"""Bytes of a trace file, decompressed as they are read, with the offset at which reading went wrong.

The compression is told by the first bytes of the file, never by its name.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from vmmsim.errors import BadInput

BLOCK_BYTES: Final = 1 << 20
"""Bytes a reader decodes at a time: its arrays then stay near the processor, and its memory is bounded."""

ZIP_MAGIC: Final = b"PK\x03\x04"


def _gzip(file: IO[bytes]) -> IO[bytes]:
    import gzip

    return cast("IO[bytes]", gzip.GzipFile(fileobj=file))


def _bzip2(file: IO[bytes]) -> IO[bytes]:
    import bz2

    return cast("IO[bytes]", bz2.BZ2File(file))


def _xz(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", lzma.LZMAFile(file))


def _lz4(file: IO[bytes]) -> IO[bytes]:
    import lz4.frame

    return cast("IO[bytes]", lz4.frame.LZ4FrameFile(file))


def _snappy(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(_SnappyFrames(file)))


class _SnappyFrames(io.RawIOBase):
    """The contents of a file of snappy frames, as a raw stream."""

    def __init__(self, file: IO[bytes]) -> None:
        import snappy

        self._file = file
        self._decoder: Any = snappy.StreamDecompressor()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(BLOCK_BYTES)
            if not block:
                self._decoder.flush()  # raises if a frame is cut short
                return 0
            self._ready = self._decoder.decompress(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


_CODECS: Final[tuple[tuple[bytes, str, Callable[[IO[bytes]], IO[bytes]]], ...]] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x04\x22\x4d\x18", "lz4", _lz4),
    (b"\xff\x06\x00\x00sNaPpY", "snappy", _snappy),
)
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Stream:
    """One file's bytes, decompressed, front to back; ``offset`` counts what has been read."""

    def __init__(self, file: IO[bytes], name: object, codec: str = "") -> None:
        self._file = file
        self.name = name
        """What errors call the file: its path, and the member if it is a zip file's."""
        self.codec = codec
        """Its compression: "gzip", "xz", ...; "" for none."""
        self.offset = 0
        """Decompressed bytes read so far."""

    def read(self, count: int = BLOCK_BYTES) -> bytes:
        """Return the next ``count`` bytes, fewer only at the end; ``BadInput`` if they are damaged."""
        parts = []
        while count:
            part = self._read_some(count)
            if not part:
                break
            parts.append(part)
            count -= len(part)
            self.offset += len(part)
        return b"".join(parts)

    def _read_some(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except EOFError:
            raise self._bad(f"the {self.codec} data is cut short here; copy or record the file again") from None
        except Exception as error:
            if not _is_corruption(error):
                raise
            raise self._bad(
                f"the {self.codec} data is corrupt ({_first_line(error)}); copy or record the file again"
            ) from None

    def _bad(self, message: str) -> BadInput:
        where = f"byte {self.offset}" + (" after decompression" if self.codec else "")
        return BadInput(message, file=self.name, path=where)


def _is_corruption(error: Exception) -> bool:
    """Tell a damaged file from a disk or a program that fails."""
    if isinstance(error, OSError):
        return error.errno is None  # gzip and bz2 raise plain OSErrors, the system numbered ones
    foreign = type(error).__module__.partition(".")[0]
    return isinstance(error, (zlib.error, lzma.LZMAError)) or (
        foreign in ("snappy", "cramjam", "lz4", "zipfile") or (foreign == "builtins" and type(error) is RuntimeError)
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """Open a file, decompressing as its first bytes say; ``BadInput`` if that needs a missing extra."""
    with path.open("rb") as file:
        magic = file.read(16)
        file.seek(0)
        if magic.startswith(_ZSTD_MAGIC):
            raise BadInput("is compressed with zstd, which is not read; decompress it first: zstd -d", file=path)
        for prefix, codec, start in _CODECS:
            if magic.startswith(prefix):
                try:
                    inner = start(file)
                except ImportError:
                    raise BadInput(
                        f"is compressed with {codec}, which needs an extra: pip install 'vmmsim[traces]'",
                        file=path,
                    ) from None
                with inner:
                    yield Stream(inner, path, codec)
                return
        yield Stream(file, path)


@contextmanager
def opened_member(archive: Any, member: str, path: Path) -> Iterator[Stream]:
    """Open one member of the zip file ``archive``, a ``zipfile.ZipFile`` of ``path``."""
    with archive.open(member) as inner:
        yield Stream(inner, f"{path}({member})", "zip")
