"""A replay as a table in the terminal: what each mode missed, walked, checked and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from vmmsim.addresses import format_bytes
from vmmsim.report import theme
from vmmsim.translation.costs import numbers

if TYPE_CHECKING:
    from vmmsim.studies.replay import Replay, Run


TITLES: Final = (
    "L1\nmisses",
    "L2\nhits",
    "0D",
    "walks",
    "refs\na walk",
    "checks",
    "cycles\na walk",
    "overhead",
    "linear\nmodel",
    "time to\nnative",
)
"""Columns of figures, in the order of ``_figures``, and the slowdown."""


def heading(done: Replay) -> list[str]:
    """Return the lines above the table: what was replayed, where, and laid out how."""
    counts, plan = done.counts, done.plan
    kinds = {"data": "data accesses", "instructions": "instruction fetches", "all": "data accesses and fetches"}
    lines = [
        f"{done.trace.path.name}: {counts.accesses:,} accesses recorded, {format_bytes(counts.footprint_bytes)} "
        f"touched; replayed: {kinds[done.kinds]}",
        f"on {done.machine.title or done.machine.name}; frames {plan.placement} at both levels, seed {plan.seed}"
        + (f", {plan.bad_pages} bad pages" if plan.bad_pages else ""),
    ]
    if done.trace.weighted:
        lines.append("A sample, not every access: rates of misses are the sample's, not the program's.")
    return lines + [note for note in done.trace.notes if not done.trace.weighted]


def table(done: Replay) -> Table:
    """Return the table, a row for each run."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("mode", no_wrap=True)
    made.add_column("pages", no_wrap=True)
    titles = (
        "L1\nmisses",
        "L2\nhits",
        "0D",
        "walks",
        "refs\na walk",
        "checks",
        "cycles\na walk",
        "overhead",
        "linear\nmodel",
    )
    for title in (*titles, "time, to\nnative"):
        made.add_column(title, justify="right", no_wrap=True)
    for run in done.runs:
        made.add_row(theme.MODES[run.mode].label, _pages(run), *_figures(run), f"{done.slowdown(run):.4f}")
    return made


def _pages(run: Run) -> str:
    return run.guest_page if run.host_page is None else f"{run.guest_page}+{run.host_page}"


def _figures(run: Run) -> list[str]:
    counters = run.counters
    walks = counters["walks"]
    return [
        f"{run.l1_misses:,}",
        f"{counters['l2_hits']:,}",
        f"{counters['segment_0d']:,}",
        f"{walks:,}",
        "" if run.references_per_walk is None else f"{run.references_per_walk:.2f}",
        f"{counters['base_bound_checks']:,}",
        f"{run.walk_cycles / walks:.1f}" if walks else "",
        f"{100 * run.overhead:.2f} %",
        f"{100 * run.linear_walk_cycles / run.ideal_cycles:.2f} %",
    ]


def footnotes(done: Replay) -> list[str]:
    """Return what a reader must know to read the table rightly."""
    ideal = numbers()[done.ideal]
    what = done.ideal.removeprefix("ideal_cycles_per_").replace("_", " ")
    lines = [
        f"overhead: walk cycles over ideal cycles ({ideal.value:g} for each {what}; {ideal.source.sure}). Walks are "
        "charged through simulated caches, one after the other, none hidden: an upper bound.",
        "linear model: the paper's, on the misses of the native run; its cycles a miss are calibrated by the native "
        "and base runs here.",
        "time to native: ideal, walk and L2 TLB cycles together, over the native run's.",
    ]
    cold = max((run.counters["cold_lines"] / max(run.counters["references"], 1) for run in done.runs), default=0)
    if cold >= 0.01:
        lines.append(
            f"Caches begin empty: up to {100 * cold:.0f} % of a mode's references were the first to their line, and "
            "cost a memory access that a longer trace would spread thinner."
        )
    if any(run.mode == "guest-direct" for run in done.runs) and done.machine.switches.segment_at == "l1_miss":
        lines.append(
            "Guest Direct compares its segment on an L1 TLB miss, and it wins over the L2 TLB: more, shorter walks, "
            "no L2 hits (switches.segment_at)."
        )
    return lines
