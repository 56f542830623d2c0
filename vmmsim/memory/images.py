"""Images of aged memories, kept in the user's cache so that the same one is not lived twice.

An image is there whole or not at all; only the KEPT that were used last stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.jit import cache_key, user_cache
from vmmsim.memory.zone import ZONE

if TYPE_CHECKING:
    from vmmsim.memory.ledger import Memory

KEPT: Final = 4


def folder() -> Path:
    """Return where images lie."""
    return user_cache() / "images"


@attrs.frozen
class Image:
    """One image, there or not."""

    path: Path

    def load(self, memory: Memory, random: np.random.Generator) -> bool:
        """Put the image into ``memory``, and ``random`` into the state it was left in; False if it is not there."""
        try:
            with self.path.open("rb") as file:
                zone, blocks, words, state = (np.load(file, allow_pickle=False) for _ in range(4))
            self.path.touch()
        except (OSError, ValueError, EOFError):
            return False
        for field in ZONE.names or ():
            memory.zone[field] = zone[0][field]
        memory.blocks[:], memory.words[:] = blocks, words
        random.bit_generator.state = json.loads(str(state))
        return True

    def save(self, memory: Memory, random: np.random.Generator) -> None:
        """Keep ``memory`` and the state of ``random``; where nothing can be written, nothing is."""
        zone = np.zeros(1, ZONE)
        for field in ZONE.names or ():
            zone[0][field] = memory.zone[field]
        part = self.path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    state = np.array(json.dumps(random.bit_generator.state))
                    for array in (zone, memory.blocks, memory.words, state):
                        np.save(file, array, allow_pickle=False)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)
            _drop_old(self.path.parent)


def find(memory: Memory, lived: Any, random: np.random.Generator) -> Image:
    """Return the image of ``memory`` as it is, aged as ``lived`` says with ``random`` in its present state."""
    digest = hashlib.sha256(cache_key().encode())
    digest.update(memory.zone.tobytes())
    digest.update(memory.blocks.tobytes())
    digest.update(repr(lived).encode())
    digest.update(json.dumps(random.bit_generator.state, sort_keys=True).encode())
    return Image(folder() / f"{digest.hexdigest()[:24]}.npy")


def _drop_old(where: Path) -> None:
    """Drop all images but the KEPT that were used last."""
    there = sorted(where.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in there[KEPT:]:
        path.unlink(missing_ok=True)
