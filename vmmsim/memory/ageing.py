"""Memory that has been lived in: a fresh one is aged by the life of lived_in.py, through the same allocator.

Fragmentation is a ratchet that saturates within the first hour and has no memory of uptime after it (dynamics.md 1.6):
so at most an hour's worth of allocation is lived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from vmmsim.memory import images
from vmmsim.memory.frames import NOBODY
from vmmsim.memory.lived_in import COLUMNS, DRAWS, FILE, LIFE, OPEN, PROCESS, SORTS, forget, live
from vmmsim.memory.scanners import RUN_WORDS
from vmmsim.memory.zone import PARTS
from vmmsim.rates import number

if TYPE_CHECKING:
    from vmmsim.memory.ledger import Memory

HOUR_NS: Final = 3_600_000_000_000
STEPS: Final = 1 << 13
"""Steps whose random numbers are drawn at once."""
WORTH_KEEPING: Final = 1 << 24
"""Pages allocated, about two seconds of it, from which on the result is kept as an image."""


@attrs.frozen(kw_only=True)
class Profile:
    """What lived in a memory. Shares are of its present pages, unless they say otherwise."""

    process_share: float
    """Held by processes."""
    kernel_share: float
    """Held by the kernel for long, unmovable."""
    burst_share: float
    """Asked for by the kernel in a mean burst."""
    bursts_per_turnover: float
    """Bursts while as much is allocated as there is memory."""
    stay_share: float
    """Of what a burst asks for, what stays."""
    process_chunk_share: float
    """Of all allocations by processes and files, those by processes."""
    file_pages: float
    """Mean pages of a cached file."""
    process_pages: float
    """Mean pages of what a process allocates and frees as one."""
    huge_share: float
    """Of a process's allocations, those that ask for a 2 MiB page first."""
    compacts: float
    """Whether kcompactd makes a whole pageblock each time that pageblocks may have got mixed (1), or never (0)."""
    turnovers_per_hour: float
    """How often as much is allocated as there is memory, in the first hour."""


def profile(name: str) -> Profile:
    """Return the profile ``name`` of data/rates.toml: "server", "host" or "guest"."""
    return Profile(**{field.name: float(number(f"ageing.{name}.{field.name}")) for field in attrs.fields(Profile)})


def age(memory: Memory, ns: int, random: np.random.Generator, lived: Profile) -> None:
    """Age ``memory``, so far unused, by ``ns``: page cache, processes and kernel pages of NOBODY are left in it.

    Same memory, time, state of ``random`` and profile: same result, and same state of ``random`` after it.
    """
    if memory.free_pages < memory.managed_pages:
        raise ValueError(f"the memory of {memory.name} is in use: only unused memory can be aged")
    until = int(memory.present_pages * lived.turnovers_per_hour * min(ns, HOUR_NS) / HOUR_NS)
    if until < WORTH_KEEPING:
        _live(memory, until, random, lived)
        return
    image = images.find(memory, (until, lived), random)
    if not image.load(memory, random):
        _live(memory, until, random, lived)
        image.save(memory, random)


def _live(memory: Memory, until: int, random: np.random.Generator, lived: Profile) -> None:
    """Live until ``until`` pages have been allocated in all."""
    pages = memory.present_pages
    life = _life(memory, lived)
    room = 2 * OPEN + int(4 * pages / min(lived.file_pages, lived.process_pages))
    objects = np.zeros((SORTS, room, COLUMNS), np.int64)
    objects[:, :, 0] = NOBODY
    short = np.empty(int(pages * min(1.0, 16 * lived.burst_share)) + 1024, np.int64)
    long = np.empty(int(2 * pages * lived.kernel_share) + 1024, np.int64)
    floors = memory.zone.watermark[0].copy()
    runs = np.zeros((PARTS, RUN_WORDS), np.int64)
    while life.allocated < until:
        draws = random.random((STEPS, DRAWS))
        live(memory.zone, memory.words, memory.blocks, life, objects, short, long, runs, floors, draws, until)
    forget(memory.words, objects, life.objects)


def _life(memory: Memory, lived: Profile) -> Any:
    """Return the LIFE record of ``lived`` in ``memory``, at its beginning."""
    pages = memory.present_pages
    life: Any = np.rec.array(np.zeros(1, LIFE))[0]
    life.process_pages, life.kernel_pages = int(pages * lived.process_share), int(pages * lived.kernel_share)
    life.burst_pages = int(pages * lived.burst_share)
    life.burst_gap_pages = pages / lived.bursts_per_turnover
    life.stay_share, life.huge_share = lived.stay_share, lived.huge_share
    life.chunk_share[FILE], life.chunk_share[PROCESS] = 1 - lived.process_chunk_share, lived.process_chunk_share
    life.mean_pages[FILE], life.mean_pages[PROCESS] = lived.file_pages, lived.process_pages
    life.compacts = int(lived.compacts)
    life.objects[:] = OPEN
    life.until_burst = int(life.burst_gap_pages)
    return life
