"""The VMs of a run over time: mode had, mode wanted, overhead, what waiting cost, and why modes changed."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.text import Text

from vmmsim.addresses import format_duration
from vmmsim.report import theme
from vmmsim.report.headline import WORTH_SAYING, by_number, is_least, names
from vmmsim.report.marks import (
    ASCII_CLIPPED,
    CLIPPED,
    Grid,
    colour,
    label,
    levels,
    mark,
    prevailing,
    runs,
    scale,
    share,
)
from vmmsim.run_tables import OFF
from vmmsim.summary import wanted_overhead

if TYPE_CHECKING:
    from vmmsim.lives import Life, Span
    from vmmsim.report.reasons import Reasons

Found = Mapping[str, Any]

CHANGES: Final = 6
"""As many changes of mode as are told of one VM."""
STRIPS: Final = 6
"""As many strips as the VMs get that are not told at length."""


def vm_block(life: Life, found: Found, reasons: Reasons, grid: Grid) -> list[Text]:
    """Return the lines of one VM that is told at length."""
    lines = [_row(life.vm, _strip(life, grid), _share_note(found), grid, style="bold")]
    if life.had.any():
        lines.append(_row("  as wanted", _ticks(life, grid), "", grid))
    return [*lines, *_overhead(life, found, grid), *_cost(found, grid), *_changes(life, reasons, grid)]


def compact_block(others: Sequence[Life], founds: Mapping[str, Found], grid: Grid) -> list[Text]:
    """Return a strip for VMs that are not told at length; one for all whose strips are the same."""
    strips: dict[tuple[str, ...], list[Life]] = {}
    for life in others:
        strips.setdefault(tuple(prevailing(grid, life.start_ns, life.end_ns, life.mode)), []).append(life)
    lines = []
    for alike in list(strips.values())[:STRIPS]:
        many = f" +{len(alike) - 1}" if len(alike) > 1 else ""
        name = alike[0].vm[: grid.label - 1 - len(many)] + many
        lines.append(_row(name, _strip(alike[0], grid), _range(alike, founds), grid))
    rest = [life for alike in list(strips.values())[STRIPS:] for life in alike]
    if not rest:
        return lines
    told = names(sorted((life.vm for life in rest), key=by_number))
    overhead = _range(rest, founds)
    return lines + _told(f"and {len(rest)} more{f', overhead {overhead}' if overhead else ''}: {told}", grid)


def _row(name: str, strip: Text, note: str, grid: Grid, style: str = "") -> Text:
    line = Text(f"{name[: grid.label - 1]:{grid.label}}", style=style).append_text(strip)
    return line.append(f" {note[: grid.note]}", style=theme.FAINT) if note else line


def _strip(life: Life, grid: Grid) -> Text:
    """Return the mode that the VM has longest in each column."""
    strip = Text(style="not bold")
    for mode, count in runs(prevailing(grid, life.start_ns, life.end_ns, life.mode)):
        strip.append(mark(mode, unicode=grid.unicode) * count, style=colour(mode))
    return strip


def _ticks(life: Life, grid: Grid) -> Text:
    """Return a tick under each column in which the VM has the mode it wants for more than half of its time."""
    had = grid.seconds(life.start_ns, life.end_ns, life.had)
    running = grid.seconds(life.start_ns, life.end_ns, life.running)
    wanted = prevailing(grid, life.start_ns, life.end_ns, life.wanted)
    ticks = Text()
    for has, mode in zip((had > 0) & (had >= running / 2), wanted, strict=True):
        ticks.append(grid.tick if has else " ", style=colour(mode))
    return ticks


def _share_note(found: Found) -> str:
    part = found["in_mode"]
    if part is None:
        return ""
    return f"{f'{100 * part:.0f} %' if 0.01 <= part <= 0.99 else share(part)} as wanted"


def _range(alike: Sequence[Life], founds: Mapping[str, Found]) -> str:
    means = [mean for life in alike if (mean := founds[life.vm]["overhead"]["mean"]) is not None]
    if not means:
        return ""
    low, high = share(min(means)), share(max(means))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _overhead(life: Life, found: Found, grid: Grid) -> list[Text]:
    """Return overhead over time, that of the wanted mode beside it if measured, and the means in words."""
    actual = grid.means(life.start_ns, life.end_ns, np.where(life.running, life.columns["overhead"], np.nan))
    if np.isnan(actual).all():
        return [Text(f"{'  overhead':{grid.label}}not measured")]
    wanted = grid.means(life.start_ns, life.end_ns, np.where(life.running, wanted_overhead(life), np.nan))
    most = max(scale(actual), scale(wanted))
    line = Text()
    modes = prevailing(grid, life.start_ns, life.end_ns, life.mode)
    for character, mode in zip(levels(actual, most, unicode=grid.unicode), modes, strict=True):
        line.append(character, style=colour(mode))
    lines = [_row("  overhead", line, f"0 to {share(most)}", grid)]
    if not np.isnan(wanted).all() and found["without_ns"]:
        line = Text(levels(wanted, most, unicode=grid.unicode), style=colour(found["mode_wanted"]))
        lines.append(_row("  if granted", line, "as if, on a copy", grid))
    beyond = float(np.nanmax(np.where(life.running & (life.span_ns > 0), life.columns["overhead"], np.nan)))
    clipped = np.nanmax(actual) > most
    return lines + _told(_means(found, f"up to {share(beyond)} at {_clip(grid)}" if clipped else ""), grid)


def _clip(grid: Grid) -> str:
    return CLIPPED if grid.unicode else ASCII_CLIPPED


def _means(found: Found, spikes: str) -> str:
    mean, low, high = (found["overhead"][name] for name in ("mean", "low", "high"))
    if mean is None:
        return ""
    said = f"overhead {share(mean)} on the average"
    if low is not None and high is not None:
        said += f" ({share(low).removesuffix(' %')} to {share(high)})"
    said += f", {spikes}" if spikes else ""
    by_mode = {mode: part for mode, part in found["overhead_by_mode"].items() if part is not None}
    if len(by_mode) > 1:
        said += "; " + ", ".join(f"{share(part)} in {label(mode)}" for mode, part in by_mode.items())
    return said


def _cost(found: Found, grid: Grid) -> list[Text]:
    """Return what it cost to be without the wanted mode and to get it, in words."""
    said = []
    waiting = found["waiting"]
    if waiting["share"] is not None:
        lost = f", {format_duration(waiting['time_ns'])}" if waiting["time_ns"] > 0 else ""
        least = waiting["share"] >= WORTH_SAYING and is_least(found)
        told = f"cost of waiting {'at least ' * least}{share(waiting['share'])} of the work done meanwhile{lost}"
        said.append(told + " (as if keeps the page tables as they are)" * least)
    if found["getting_there_ns"]:
        at = found["repaid_at_ns"]
        repaid = "not repaid" if at is None else f"repaid at {format_duration(at)}"
        said.append(f"{format_duration(found['getting_there_ns'])} to get there, {repaid}")
    return _told("; ".join(said), grid)


def _told(text: str, grid: Grid, first: str = "") -> list[Text]:
    """Return text beside the labels, in two lines at most."""
    wide = grid.width - grid.label
    lines = textwrap.wrap(text, wide, max_lines=2, placeholder=" ...") if text else []
    return [Text(f"{first if not number else '':{grid.label}}{line}") for number, line in enumerate(lines)]


def _changes(life: Life, reasons: Reasons, grid: Grid) -> list[Text]:
    """Return the changes of mode, each with its time and its reason; of many the first and the last."""
    changes = [(before, after) for before, after in itertools.pairwise(life.spans()) if before.mode != after.mode]
    kept = changes if len(changes) <= CHANGES else [*changes[: CHANGES - 2], *changes[-2:]]
    lines: list[Text] = []
    for number, (before, after) in enumerate(kept):
        if len(kept) < len(changes) and number == CHANGES - 2:
            lines.append(Text(f"{'':{grid.label}}... {len(changes) - len(kept)} more changes"))
        why = reasons.why(reasons.of_change(life.vm, before.start_ns, after.start_ns, after.mode))
        lines += _told(_change(before, after) + (f": {why}" if why else ""), grid, _when(after.start_ns, grid))
    return lines


def _when(t_ns: int, grid: Grid) -> str:
    return f"{format_duration(t_ns) if t_ns else '0':>{grid.label - 2}}"


def _change(before: Span, after: Span) -> str:
    if before.mode == OFF:
        return f"boots in {label(after.mode)}"
    if after.mode == OFF:
        return "shut down"
    return f"{label(before.mode)} to {label(after.mode)}"
