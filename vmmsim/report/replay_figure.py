"""A replay as a figure: what each mode's translation costs, and what its walks read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from vmmsim.addresses import format_bytes
from vmmsim.report import theme
from vmmsim.report.replay_table import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmmsim.studies.replay import Replay


def render(done: Replay, kind: str) -> bytes:
    """Return the figure as a file of ``kind`` "svg", "png" or "pdf"; the same replay gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context(dict(theme.FIGURE)):
        file = io.BytesIO()
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        draw(done).savefig(file, format=kind, dpi=160, metadata=metadata)
        return file.getvalue()


def _layout() -> Any:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)


def draw(done: Replay) -> Figure:
    """Draw overhead by mode (both cost models) beside references per walk, split by dimension."""
    from matplotlib.figure import Figure

    rows = len(done.runs)
    figure = Figure(figsize=(9.6, 1.75 + 0.46 * rows), facecolor=theme.PAPER, layout=_layout())
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    _overheads(left, done)
    _references(right, done)
    left.set_yticks(range(rows), [theme.MODES[run.mode].label for run in done.runs])
    left.invert_yaxis()
    first = next((run for run in done.runs if run.host_page), done.runs[0])
    sizes = first.guest_page + (f"+{first.host_page}" if first.host_page else "")
    figure.suptitle(
        f"{done.trace.path.name}: {done.counts.accesses:,} accesses over {format_bytes(done.counts.footprint_bytes)}, "
        f"{sizes} pages, {done.machine.name}",
        fontsize=11,
        x=0.012,
        ha="left",
    )
    return figure


def _bare(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter("{x:,.10g}")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.grid(axis="x", color=theme.GHOST, linewidth=0.6)
    axes.set_axisbelow(True)


def _overheads(axes: Any, done: Replay) -> None:
    """Bars of the hierarchy model, each labelled; a diamond where the linear model puts it."""
    for row, run in enumerate(done.runs):
        look = theme.MODES[run.mode]
        share = 100 * run.overhead
        axes.barh(row, share, 0.62, color=look.colour, hatch=look.hatch, edgecolor=theme.PAPER, linewidth=0)
        axes.annotate(
            percent(run.overhead),
            (max(share, 100 * run.linear_walk_cycles / run.ideal_cycles), row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=theme.INK,
        )
    linear = [100 * run.linear_walk_cycles / run.ideal_cycles for run in done.runs]
    axes.plot(
        linear,
        range(len(linear)),
        linestyle="",
        marker="D",
        markersize=5,
        markerfacecolor=theme.PAPER,
        markeredgecolor=theme.INK,
        label="by the linear model",
        clip_on=False,
    )
    top = max([100 * run.overhead for run in done.runs] + linear)
    axes.set_xlim(0, 1.22 * top or 1)
    axes.set_xlabel("walk cycles, % of ideal cycles (upper bound)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, borderaxespad=0.2)
    _bare(axes)


def _references(axes: Any, done: Replay) -> None:
    """References per walk, guest entries and nested entries stacked; nothing where nothing was walked."""
    from matplotlib.patches import Patch

    tops = []
    for row, run in enumerate(done.runs):
        walks = run.counters["walks"]
        start = 0.0
        for dimension in ("guest", "nested"):
            length = run.counters[f"{dimension}_references"] / walks if walks else 0.0
            tint = theme.DIMENSIONS[dimension]
            edge = 0.8 if length else 0.0
            axes.barh(row, length, 0.62, left=start, color=tint.fill, edgecolor=tint.edge, linewidth=edge)
            start += length
        said = f"{start:.2f} in {walks:,} walks" if walks else "no walks"
        axes.annotate(said, (start, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        tops.append(start)
    axes.set_xlim(0, 1.75 * max(tops) or 1)
    axes.set_xlabel("references a walk")
    tints = [(f"{dimension} entries", theme.DIMENSIONS[dimension]) for dimension in ("guest", "nested")]
    keys = [Patch(facecolor=tint.fill, edgecolor=tint.edge, linewidth=0.8, label=label) for label, tint in tints]
    axes.legend(
        handles=keys,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        ncols=2,
        borderaxespad=0.2,
    )
    _bare(axes)
