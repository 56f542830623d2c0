"""What values scenarios are made of, and what is said of one that is not right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from vmmsim.addresses import PAGE_BYTES, write_bytes
from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown

BLOCK_BYTES: Final = 128 << 20
"""Memory is plugged and unplugged in blocks of this size (Linux memory blocks on x86-64)."""

PAGEBLOCK_BYTES: Final = 2 << 20
"""Memories are whole pageblocks."""
_LARGEST_BYTES: Final = 8 << 40
"""2**31 frames: what int32 numbers of frames reach."""
SECOND_NS: Final = 10**9
HOUR_NS: Final = 3600 * SECOND_NS

VmMode = Literal["base", "vmm-direct", "guest-direct", "dual-direct"]
"""Modes that a VM can want."""

Thp = Literal["always", "never"]
"""Whether memory is mapped in huge pages wherever there are any."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_USER_CODE: Final = re.compile(r"[^:\s]+:[A-Za-z_][A-Za-z0-9_.]*")


def is_user_code(words: str) -> bool:
    """Tell whether ``words`` name code of a user: ``file.py:Name`` or ``package.module:Name``."""
    return _USER_CODE.fullmatch(words) is not None


def check_known(words: str, known: Iterable[str], path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``words`` are one of ``known`` or name code of a user."""
    choices = list(known)
    if words not in choices and not is_user_code(words):
        raise BadInput(
            f'{shown(words)} is unknown{hint(words, choices)}; code of your own is "file.py:Name"', path=path
        )


def check_memory(size_bytes: int, path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``size_bytes`` is a memory: whole pageblocks, and not too many."""
    if size_bytes == 0 or size_bytes % PAGEBLOCK_BYTES:
        raise BadInput(f"{write_bytes(size_bytes)} is not a multiple of 2MiB, at least one", path=path)
    if size_bytes > _LARGEST_BYTES:
        raise BadInput(f"{write_bytes(size_bytes)} is more than the largest memory modelled, 8TiB", path=path)


def check_positive(count: float, path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``count`` is more than 0."""
    if count <= 0:
        raise BadInput("must be more than 0", path=path)


def check_share(share: float, path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``share`` lies in [0, 1]."""
    if not 0 <= share <= 1:
        raise BadInput(f"{share:g} is not between 0 and 1", path=path)


def check_blocks(size_bytes: int, path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``size_bytes`` is a number of 128 MiB blocks, at least one."""
    if size_bytes % BLOCK_BYTES or size_bytes == 0:
        below = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        near = [write_bytes(size) for size in (below, below + BLOCK_BYTES) if size]
        raise BadInput(
            f"{write_bytes(size_bytes)} is not a multiple of 128MiB, the size of a memory block; "
            f"write e.g. {' or '.join(near)}",
            path=path,
        )


def check_pages(size_bytes: int, path: str) -> None:
    """Raise ``BadInput`` at ``path`` unless ``size_bytes`` is a number of 4 KiB pages, at least one."""
    if size_bytes % PAGE_BYTES or size_bytes == 0:
        raise BadInput(f"{write_bytes(size_bytes)} is not a multiple of 4KiB, at least one page", path=path)


def check_vm_name(name: str) -> None:
    """Raise ``BadInput`` unless a VM may be called ``name``."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"{shown(name)} is no name of a VM; use letters, digits, - and _", path="vm")
