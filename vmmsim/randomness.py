"""One seed, and streams of randomness named by the thing that draws: a new thing changes no other's draws."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of the thing ``name`` (e.g. "replay.guest") under ``seed``; equal at every call."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key])))
