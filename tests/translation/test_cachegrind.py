"""The native engine against Cachegrind, which with 4 KiB lines is a TLB: same program, same geometry, same misses.

Cachegrind is a judge that nobody here wrote. It differs from a TLB in one rule, for accesses that cross a page: it
counts one reference, which misses if either page does; and after a miss of either it looks both up in the last level.
We count two references, and look up in the L2 TLB what the L1 TLB missed. ``Lists`` below is both, in lists, with that
rule as its only switch: with it, it must be Cachegrind, and without it the engine, to the last miss.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import pytest

from vmmsim.config import MODES
from vmmsim.jit import INTERPRETED
from vmmsim.machine_file import load_machine
from vmmsim.translation.chunk import gvpn_of
from vmmsim.translation.engine import Engine
from vmmsim.translation.page_table import ACCESSED, DIRTY, EXECUTABLE, WRITABLE
from vmmsim.translation.registers import Registers
from vmmsim.workloads.accesses import FETCH
from vmmsim.workloads.trace import Trace, open_trace

pytestmark = [
    pytest.mark.valgrind,
    pytest.mark.skipif(INTERPRETED, reason="millions of accesses are for compiled kernels"),
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
]
MACHINE = Path(__file__).parents[1] / "machines" / "cachegrind.toml"
GEOMETRY = ("--I1=262144,4,4096", "--D1=262144,4,4096", "--LL=2097152,4,4096")
PAGE_BITS = 12


class Misses(NamedTuple):
    """L1 misses of fetches and of data, and misses of the level behind them."""

    fetch: int
    data: int
    last: int


def valgrind(tool: list[str], program: list[str], folder: Path) -> None:
    """Run ``program`` under a tool, its address space the same each time: same arguments, same environment."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/"}
    command = ["valgrind", *tool, *program]
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)


def cachegrind(program: list[str], folder: Path) -> Misses:
    """Return what Cachegrind counts."""
    out = folder / "cachegrind.out"
    valgrind(["--tool=cachegrind", "--cache-sim=yes", *GEOMETRY, f"--cachegrind-out-file={out}"], program, folder)
    lines = dict(
        line.split(":", 1) for line in out.read_text().splitlines() if line.startswith(("events:", "summary:"))
    )
    n = dict(zip(lines["events"].split(), map(int, lines["summary"].split()), strict=True))
    return Misses(n["I1mr"], n["D1mr"] + n["D1mw"], n["ILmr"] + n["DLmr"] + n["DLmw"])


def engine(trace: Trace) -> Misses:
    """Return what the engine counts, natively and with every page mapped at the start."""
    made = Engine(load_machine(str(MACHINE)))
    chunks = list(trace.chunks("all"))
    pages = np.unique(np.concatenate([gvpn_of(chunk) for chunk in chunks]))
    table = made.table(np.arange)
    table.map(pages, pages, flags=WRITABLE | EXECUTABLE | ACCESSED | DIRTY)
    made.load(Registers(mode=MODES["native"], guest_table=table))
    for chunk in chunks:
        assert made.run(chunk).done == chunk.size
    n = made.counters()
    assert n["rewalks"] == 0
    assert n["walks"] == n["l2_misses"]
    return Misses(n["instruction_l1_misses"], n["data_l1_misses"], n["l2_misses"])


@attrs.define
class Lists:
    """Two L1 TLBs and one L2 TLB as sets in recency order, for accesses that may cross a page."""

    one_reference: bool
    """Cachegrind's rule: a crossing access is one reference."""
    l1: tuple[list[list[int]], list[list[int]]] = attrs.field(init=False)
    last: list[list[int]] = attrs.field(init=False)
    l1_misses: list[int] = attrs.field(factory=lambda: [0, 0])
    last_misses: int = 0
    crossings_missed_twice: list[int] = attrs.field(factory=lambda: [0, 0])
    """Crossing accesses, of data and of fetches, whose pages both missed the L1: one miss too many."""
    crossings_missed: int = 0
    """Crossing accesses of which any page missed the L1: these look up the last level in two ways."""

    def __attrs_post_init__(self) -> None:
        self.l1 = [[] for _ in range(16)], [[] for _ in range(16)]
        self.last = [[] for _ in range(128)]

    def misses(self) -> Misses:
        return Misses(self.l1_misses[1], self.l1_misses[0], self.last_misses)

    def access(self, fetch: int, first: int, second: int) -> None:
        """Access one page, or two of which the second is another."""
        pages = [first] if first == second else [first, second]
        missed = [page for page in pages if not look_up(self.l1[fetch], page)]
        if len(pages) == 2 and missed:
            self.crossings_missed += 1
            self.crossings_missed_twice[fetch] += len(missed) == 2
        if self.one_reference:
            self.l1_misses[fetch] += bool(missed)
            hits = [look_up(self.last, page) for page in pages] if missed else []
            self.last_misses += not all(hits)
        else:
            self.l1_misses[fetch] += len(missed)
            self.last_misses += sum(not look_up(self.last, page) for page in missed)


def look_up(sets: list[list[int]], page: int) -> bool:
    """Look a page up in 4 ways and leave it at the front; tell whether it was there."""
    held = sets[page % len(sets)]
    hit = page in held
    if hit:
        held.remove(page)
    held.insert(0, page)
    del held[4:]
    return hit


def lists(trace: Trace) -> tuple[Lists, Lists]:
    """Return both kinds of lists after the trace: as the engine counts, and as Cachegrind does."""
    blocks = list(trace.blocks())
    address, kind, size = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    first, second = address >> PAGE_BITS, address + size - 1 >> PAGE_BITS
    kept = []
    for stream in (kind == FETCH, kind != FETCH):
        where = np.flatnonzero(stream)
        # An access to the page that its L1 saw last changes nothing and misses nothing.
        news = np.ones(where.size, np.bool_)
        news[1:] = (first[where][1:] != second[where][:-1]) | (second[where][1:] != second[where][:-1])
        kept.append(where[news])
    both = Lists(one_reference=False), Lists(one_reference=True)
    for i in np.sort(np.concatenate(kept)).tolist():
        for each in both:
            each.access(int(kind[i] == FETCH), int(first[i]), int(second[i]))
    return both


SQL = (
    "create table t (a, b); with recursive n (i) as (select 1 union all select i + 1 from n where i < 20) "
    "insert into t select i * 7919 % 10007, hex(i) from n; create index x on t (b); select max(a + 1) from t;"
)


@pytest.mark.parametrize(
    "program", [("ls", "-la", "/usr/share"), ("sqlite3", ":memory:", SQL)], ids=lambda words: words[0]
)
def test_the_engine_misses_what_cachegrind_misses(program: tuple[str, ...], tmp_path: Path) -> None:
    found = shutil.which(program[0])
    if found is None:
        pytest.skip(f"{program[0]} is not installed")
    judged = cachegrind([found, *program[1:]], tmp_path)
    out = tmp_path / "lackey.out"
    valgrind(["--tool=lackey", "--trace-mem=yes", f"--log-file={out}"], [found, *program[1:]], tmp_path)
    trace = open_trace(out)
    ours = engine(trace)
    two, one = lists(trace)
    assert one.misses() == judged
    assert two.misses() == ours
    # L1 TLBs see the same pages in the same order: they differ by the crossings that we count twice, and by no more.
    assert ours.fetch - judged.fetch == two.crossings_missed_twice[1]
    assert ours.data - judged.data == two.crossings_missed_twice[0]
    # A touch of the L2 TLB more or less moves one page within its set: at most a miss for each of the 4 ways.
    assert abs(ours.last - judged.last) <= 4 * two.crossings_missed
    assert min(judged) > 100, "too few misses to judge anything by"
