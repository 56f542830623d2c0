"""Building a kernel: compilers that come and go, each in memory that is new, and much work for the guest's kernel.

Jobs run in as many slots, which take turns of TURN accesses. A job writes its pages in order, LINES accesses a page,
and then works: most accesses go to the first, hot part of its memory. When it ends its memory is freed and the next
job begins in the slot. The jobs that run at first begin in the initial phase, which touches their pages for them, and
end at different times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.jit import kernel
from vmmsim.protocols import Churn
from vmmsim.workloads.drawing import bits, scaled
from vmmsim.workloads.phased import Phased, laid_out
from vmmsim.workloads.touching import LINES, Mix, Piece, Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURN: Final = 1024
"""Accesses of one slot before the next has its turn: a multiple of LINES."""


@attrs.frozen(kw_only=True)
class KernelBuildParameters:
    """What can be chosen beside the footprint."""

    jobs: int = 4
    """Compilers at a time; the footprint is divided among them."""
    accesses_per_job: int = 10**9
    """Accesses that one makes from its beginning to its end."""
    hot_pages: float = 0.1
    """Share of a job's pages that are hot."""
    hot_share: float = 0.9
    """Share of a job's accesses that go to them."""
    write_share: float = 0.3
    """Share of accesses that are writes, once memory is touched."""
    cache_pages_per_s: float = 5000.0
    """Pages of files (sources, headers, objects) that enter the page cache each second."""
    files_pages: int = 1 << 16
    """Size of all its files, which the page cache cannot exceed."""
    unmovable_pages_per_s: float = 2000.0
    """Kernel pages (tables, inodes, directory entries, buffers) taken each second."""
    unmovable_life_ns: int = 10**9
    """Mean life of such a page."""
    unmovable_kept: float = 0.005
    """Share of them that stays."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.jobs <= 256:
            raise ValueError("jobs must lie from 1 to 256")
        if self.accesses_per_job < TURN:
            raise ValueError(f"accesses_per_job must be at least {TURN}")
        if not all(0 <= share <= 1 for share in (self.hot_pages, self.hot_share, self.write_share)):
            raise ValueError("shares must lie from 0 to 1")


class KernelBuild(Phased):
    """A region for each slot; ``frees`` says when its job ends."""

    def __init__(
        self, pages: int, parameters: KernelBuildParameters, *, seed: int, vm: str, ideal_cycles: float
    ) -> None:
        slots = min(parameters.jobs, pages)
        self.job_pages = pages // slots
        regions = laid_out(*((f"job {n}", self.job_pages) for n in range(slots)))
        super().__init__("kernel-build", regions, seed=seed, vm=vm, ideal_cycles=ideal_cycles)
        self.slots = slots
        self.touching = self.job_pages * LINES
        wanted = max(parameters.accesses_per_job, 2 * self.touching)
        self.life = -(-wanted // TURN) * TURN
        self.hot_pages = min(max(round(self.job_pages * parameters.hot_pages), 1), self.job_pages)
        self.hot_share, self.write_share = parameters.hot_share, parameters.write_share
        self.churn = Churn(
            cache_pages_per_s=parameters.cache_pages_per_s,
            files_pages=parameters.files_pages,
            unmovable_pages_per_s=parameters.unmovable_pages_per_s,
            unmovable_life_ns=parameters.unmovable_life_ns,
            unmovable_kept=parameters.unmovable_kept,
        )

    def run(self, y: int, vcpu: int, pages: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        keys = np.array([self.key("page", vcpu), self.key("kind", vcpu)])
        ages = np.array([self._age(slot) for slot in range(self.slots)])
        shape = np.array([self.job_pages, self.hot_pages, self.life])
        shares = np.array([round(share * (1 << 32)) for share in (self.hot_share, self.write_share)])
        _compile(keys, y, self._starts, ages, shape, shares, pages, writes)

    def pieces(self, y0: int, y1: int) -> list[Piece]:
        found: list[Piece] = []
        for slot in range(self.slots):
            begin, job = y0, self._job(slot, y0)
            while begin < y1:
                end = min(self._beginning(slot, job + 1), y1)
                found += self._lived(slot, job, begin, end)
                begin, job = end, job + 1
        return found

    def frees(self, x0: int, x1: int) -> list[tuple[int, int]]:
        y0, y1 = max(x0 - self.begins, 0), x1 - self.begins
        found = []
        for slot in range(self.slots):
            job = self._job(slot, y0)
            job += self._beginning(slot, job) < y0 or job == 0
            while (at := self._beginning(slot, job)) < y1:
                found.append((at + self.begins, slot))
                job += 1
        return sorted(found)

    def _age(self, slot: int) -> int:
        """Return the accesses that a slot's first job has made before the initial phase ends: those of its begin."""
        spread = (self.life - self.touching) * slot // self.slots
        return -(-(self.touching + spread) // TURN) * TURN

    def _job(self, slot: int, y: int) -> int:
        """Return the number of the job that has the slot at y: 0 for the first."""
        return (self._own(slot, y) + self._age(slot)) // self.life

    def _own(self, slot: int, y: int) -> int:
        """Return how many of the accesses before y are the slot's."""
        turn, within = divmod(y, TURN)
        rounds, whose = divmod(turn, self.slots)
        mine = TURN if whose > slot else within if whose == slot else 0
        return rounds * TURN + mine

    def _beginning(self, slot: int, job: int) -> int:
        """Return the position of a job's first access, 0 for the first job; jobs begin with a turn."""
        own = job * self.life - self._age(slot)
        return (own // TURN * self.slots + slot) * TURN if own > 0 else slot * TURN if own == 0 else 0

    def _lived(self, slot: int, job: int, begin: int, end: int) -> list[Piece]:
        """Return what a job touches in [begin, end), which lies in its life."""
        start, hot, pages = self.regions[slot].start, self.hot_pages, self.job_pages
        works = 0
        found: list[Piece] = []
        if job:
            first = self._beginning(slot, job)
            works = first + (self.touching // TURN * self.slots) * TURN + self.touching % TURN
            if begin < works:
                found.append(Scan(start, pages, first, LINES, TURN // LINES, self.slots * TURN))
        if end > max(works, begin):
            key = self.key("touched", slot)
            share = self.hot_share if hot < pages else 1.0
            for at, count, part in ((start, hot, share), (start + hot, pages - hot, 1 - share)):
                if count:
                    rate = part / count / self.slots
                    reads = np.full(1, rate * (1 - self.write_share), np.float32)
                    writes = np.full(1, rate * self.write_share, np.float32)
                    found.append(Mix(at, reads, writes, count, key, max(works, begin), end))
        return found


@kernel
def _compile(
    keys: NDArray[np.int64],
    y: int,
    starts: NDArray[np.int64],
    ages: NDArray[np.int64],
    shape: NDArray[np.int64],
    shares: NDArray[np.int64],
    out: NDArray[np.int64],
    writes: NDArray[np.bool_],
) -> None:
    """Write the accesses from y on to ``out``, int64[n], and ``writes``, bool[n].

    keys    int64[2]: of pages, of kinds
    starts  int64[s]: first gvpn of each slot; ages int64[s]: accesses its first job has made at y = 0
    shape   int64[3]: pages of a job, hot ones among them, accesses in a job's life
    shares  int64[2]: accesses of 2**32 that go to hot pages, that are writes
    """
    pages, hot, life = shape[0], shape[1], shape[2]
    for i in range(out.size):
        turn, within = (y + i) // TURN, (y + i) % TURN
        slot = turn % starts.size
        age = (turn // starts.size * TURN + within + ages[slot]) % life
        if age < pages * LINES:
            out[i] = starts[slot] + age // LINES
            writes[i] = True
        else:
            high, low = bits(keys[1], y + i)
            writes[i] = low < shares[1]
            is_hot = high < shares[0] or hot == pages
            high, low = bits(keys[0], y + i)
            out[i] = starts[slot] + (scaled(high, low, hot) if is_hot else hot + scaled(high, low, pages - hot))
