"""Output files that are whole or not there: written beside their target, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmmsim.errors import BadInput


@contextmanager
def replacing(target: Path, *, force: bool) -> Iterator[Path]:
    """Give the path of an empty temporary beside ``target``; rename it to that if the block ends well.

    However the block ends otherwise (an error, a full disk, Ctrl-C), the temporary is removed and
    ``target`` stays as it was. ``BadInput`` if the target exists and not ``force``, or if it cannot be
    written.
    """
    refuse_existing(target, force=force)
    place = Path(os.path.realpath(target))  # a link stays a link
    with writing(target):
        descriptor, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent)
        os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        refuse_existing(target, force=force)  # it may have come into being meanwhile
        with writing(target):
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ``BadInput`` if ``target`` exists and may not be overwritten, or has no directory to lie in."""
    if target.exists() and not target.is_file():
        raise BadInput("is not a regular file, and is not replaced by one; give another name", file=target)
    if target.exists() and not force:
        raise BadInput("exists already; give another name, or --force to overwrite it", file=target)
    if not target.parent.is_dir():
        raise BadInput(f"there is no directory {target.parent}; make it first", file=target)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an error of the system in the block, which writes ``target``, into ``BadInput``."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror or error}", file=target) from error


def _umask() -> int:
    """Return the permissions that new files are not given; temporaries have fewer than files people share."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
