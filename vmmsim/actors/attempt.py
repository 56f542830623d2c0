"""How an attempt to gain something ended, as one actor tells another."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Attempt:
    """How an attempt to gain a segment ended."""

    won: bool
    why: str = ""
    """How it was won; what is in the way, if it was not."""
    hopeless: bool = False
    """Nothing that may happen by itself will change that."""
    declined: bool = False
    """It could be had, but is not worth what it takes."""
