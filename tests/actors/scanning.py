"""A program that writes one page after another, without end: how many pages it writes in a time is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmmsim.protocols import Region

START = 1 << 20
Pages = NDArray[np.int64]


class Scan:
    """Access x writes page x modulo ``pages``; at 1 GHz, ``cycles`` of 10,000 make 100,000 pages a second."""

    def __init__(self, pages: int = 2048, cycles: float = 10_000.0) -> None:
        self.pages = pages
        self.regions = (Region("scanned", START, pages, primary=True),)
        self.begins = pages
        self.ideal_cycles = cycles

    def stream(self, x: int, n: int) -> tuple[Pages, NDArray[np.bool_]]:
        return START + np.arange(x, x + n) % self.pages, np.ones(n, np.bool_)

    def touched(self, x0: int, x1: int) -> tuple[Pages, Pages]:
        return np.empty(0, np.int64), START + np.arange(x0, min(x1, x0 + self.pages)) % self.pages
