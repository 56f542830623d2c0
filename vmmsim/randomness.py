"""One seed, and streams of randomness named by the thing that draws: a new thing changes no other's draws."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of the thing ``name`` (e.g. "replay.guest") under ``seed``; equal at every call."""
    key = _number(name)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key])))


def stream_key(seed: int, name: str) -> int:
    """Return a number below 2^64 of the thing ``name`` under ``seed``, for what hashes instead of drawing in order."""
    return _number(f"{seed}.{name}") % (1 << 64)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
