"""Output files that are whole or not there: written beside their target, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmmsim.errors import BadInput


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ``BadInput`` if ``target`` exists and may not be overwritten, or if its directory does not exist."""
    if target.exists() and not target.is_file():
        raise BadInput("is not a regular file, and is not replaced by one; give another name", file=target)
    if target.exists() and not force:
        raise BadInput("exists already; give another name, or --force to overwrite it", file=target)
    if not target.parent.is_dir():
        raise BadInput(f"there is no directory {target.parent}; make it first", file=target)


@contextmanager
def replacing(target: Path, *, force: bool) -> Iterator[Path]:
    """Give the path of an empty temporary beside ``target``; rename it to ``target`` when the block ends well.

    However the block ends otherwise (an error, a full disk, Ctrl-C), the temporary is removed and
    ``target`` stays as it was. ``BadInput`` if the target exists and not ``force``, or if it cannot be
    written.
    """
    refuse_existing(target, force=force)
    target = Path(os.path.realpath(target))
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        refuse_existing(target, force=force)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror or error}", file=target) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _umask() -> int:
    """Return the permissions that new files do not get; mkstemp's have fewer than a file that people share."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
