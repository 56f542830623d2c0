"""A replay as a table in the terminal: what each mode missed, walked, checked and cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from vmmsim.addresses import SIZE_NAMES, format_bytes
from vmmsim.report import theme
from vmmsim.translation.costs import numbers

if TYPE_CHECKING:
    from rich.console import Console

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
    "time, to\nnative",
)
"""Columns of figures, in the order of ``_figures``."""
COUNTED: Final = 6
"""Columns that count; the others say what that costs, and come as a second table where all are too wide."""


def heading(done: Replay) -> list[str]:
    """Return the lines above the table: what was replayed, where, and laid out how."""
    counts, plan = done.counts, done.plan
    guest, host = SIZE_NAMES[plan.guest_page], SIZE_NAMES[plan.host_page]
    kinds = {"data": "data accesses", "instructions": "instruction fetches", "all": "data accesses and fetches"}
    lines = [
        f"{done.trace.path.name}: {counts.accesses:,} accesses recorded, {format_bytes(counts.footprint_bytes)} "
        f"touched; replayed: {kinds[done.kinds]}",
        f"on {done.machine.title or done.machine.name}; {guest} pages in the guest, {host} in the host; "
        f"frames {plan.placement} at both levels, seed {plan.seed}"
        + (f", {plan.bad_pages} bad pages" if plan.bad_pages else ""),
    ]
    if done.trace.weighted:
        lines.append("A sample, not every access: rates of misses are the sample's, not the program's.")
    return lines + [note for note in done.trace.notes if not done.trace.weighted]


def tables(done: Replay, console: Console) -> list[Table]:
    """Return the table, a row for each run; or two, with shortened counts, where one is too wide for ``console``."""
    whole = _table(done, slice(None), short=False)
    if console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width:
        return [whole]
    return [_table(done, which, short=True) for which in (slice(COUNTED), slice(COUNTED, None))]


def _table(done: Replay, which: slice, *, short: bool) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("mode",) if short else ("mode", "pages"):
        made.add_column(title, no_wrap=True)
    for title in TITLES[which]:
        made.add_column(title, justify="right", no_wrap=True)
    for run in done.runs:
        figures = (*_figures(run, short=short), f"{done.slowdown(run):.4f}")[which]
        label = theme.MODES[run.mode].label
        made.add_row(*(label,) if short else (label, _pages(run)), *figures)
    return made


def _pages(run: Run) -> str:
    return run.guest_page if run.host_page is None else f"{run.guest_page}+{run.host_page}"


def _figures(run: Run, *, short: bool) -> list[str]:
    counters = run.counters
    walks = counters["walks"]
    return [
        _count(run.l1_misses, short=short),
        _count(counters["l2_hits"], short=short),
        _count(counters["segment_0d"], short=short),
        _count(walks, short=short),
        "" if run.references_per_walk is None else f"{run.references_per_walk:.2f}",
        _count(counters["base_bound_checks"], short=short),
        f"{run.walk_cycles / walks:.1f}" if walks else "",
        percent(run.overhead),
        percent(run.linear_walk_cycles / run.ideal_cycles),
    ]


def _count(number: int, *, short: bool) -> str:
    return f"{number / 1e6:,.4g}M" if short and number >= 1_000_000 else f"{number:,}"


def percent(share: float) -> str:
    """Return a share as people read it: two decimals, fewer where it is large, more where it is small."""
    value = 100 * share
    if value >= 1000:
        return f"{value:,.0f} %"
    decimals = 2 if value >= 0.1 or value < 1e-6 else 1 - math.floor(math.log10(value))
    return f"{value:.{decimals}f} %"


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
