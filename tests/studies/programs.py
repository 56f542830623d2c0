"""Small programs for tests of layouts and replays: pages, accesses and lackey text."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np

from vmmsim.config import Machine
from vmmsim.machine_file import load_machine
from vmmsim.studies.layout import Plan, Program
from vmmsim.translation.chunk import pack

TOY_FILE = Path(__file__).parents[1] / "machines" / "toy.toml"
TOY = load_machine(str(TOY_FILE))
CODE, HEAP, STACK = 0x400, 0x7_F000_0300, 0x7_FFFF_FFC0
"""gvpns. The heap begins in the middle of a 2M page's pages; below it, in the same 2M page, lies other data."""
HEAP_PAGES = (*range(12), 600, 601, 1500)
LOW = HEAP - 5000
"""Data too far below the heap to be of its region."""
NEAR = HEAP - 3
"""Fetched from, in the heap's first 2M page: the region ends above it."""
CODE_PAGES = (CODE, CODE + 1, NEAR)
DATA_PAGES = (CODE + 1, LOW, *(HEAP + page for page in HEAP_PAGES), STACK, STACK + 1)


def program() -> Program:
    """Return the program whose pages these are, with all accesses replayed."""
    code = np.array(CODE_PAGES, np.int64)
    return Program(pages=np.union1d(code, np.array(DATA_PAGES, np.int64)), code=code)


def accesses(count: int, seed: int = 1) -> np.ndarray:
    """Return a packed chunk of ``count`` runs over those pages, mostly near the last one, a fifth of them fetches."""
    random = np.random.default_rng(seed)
    fetch = random.random(count) < 0.2
    data = np.array(DATA_PAGES)[random.integers(len(DATA_PAGES), size=count)]
    code = np.array(CODE_PAGES)[random.integers(len(CODE_PAGES), size=count)]
    page = np.where(fetch, code, data)
    page = np.where(random.random(count) < 0.3, np.concatenate([page[:1], page[:-1]]), page)
    fetch &= np.isin(page, CODE_PAGES)
    fetch |= np.isin(page, [CODE, NEAR])  # never read as data
    write = ~fetch & (random.random(count) < 0.4)
    return pack(page, write, is_fetch=fetch, line=random.integers(64, size=count), again=random.integers(3, size=count))


def lackey(chunk: np.ndarray) -> str:
    """Return the accesses of a chunk as lackey prints them."""
    lines = []
    for word in chunk.tolist():
        address = (word >> 18 << 12) + (word >> 12 & 63) * 64
        what = "I " if word & 2 else " S" if word & 1 else " L"
        lines += [f"{what} {address:x},8"] * (1 + (word >> 2 & 1023))
    return "\n".join(lines) + "\n"


def plan(**changes: object) -> Plan:
    """Return 4K pages, fragmented, no bad pages, seed 1; with ``changes``."""
    usual = Plan(guest_page=0, host_page=0, guest_frames=None, placement="fragmented", bad_pages=0, seed=1)
    return attrs.evolve(usual, **changes)  # type: ignore[arg-type]


def machine(**changes: object) -> Machine:
    """Return the toy machine with ``changes``."""
    return attrs.evolve(TOY, **changes)  # type: ignore[arg-type]
