"""The decisions of a run that mattered: a handful of thousands, alike ones told once."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from rich.text import Text

from vmmsim.addresses import format_duration
from vmmsim.report import theme
from vmmsim.report.headline import by_number, names
from vmmsim.report.reasons import MODE, sentence

if TYPE_CHECKING:
    from vmmsim.report.marks import Grid
    from vmmsim.report.reasons import Reasons

SHOWN: Final = 8
NAMED: Final = 8
"""As many VMs as are named in one line."""
_NUMBER: Final = re.compile(r"\d[\d,.]*")
WEIGHTS: Final = {"failed": 40.0, "refused": 30.0, "aborted": 20.0, "partial": 10.0, "done": 0.0, "begun": -10.0}
"""How much the end of a decision says for telling it; its cost in time adds a point a tenfold."""
VERBS: Final = {"fault": 50.0, "boot": 15.0, "shutdown": 15.0, "migrate": 50.0}
"""How much what was decided says for it."""
MODE_WEIGHT: Final = 25.0
"""How much a change of mode says for telling it, of a VM that is not told at length."""
STYLES: Final = {"failed": "red", "refused": "yellow", "aborted": "yellow"}


@attrs.define
class Group:
    """Decisions that are alike but for their VMs, times and amounts."""

    first: Mapping[str, Any]
    weight_of_one: float
    count: int = 0
    cost_ns: int = 0
    vms: dict[str, None] = attrs.Factory(dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one more."""
        self.count += 1
        self.cost_ns += row["cost_ns"]
        self.vms.setdefault(row["vm"])

    @property
    def weight(self) -> float:
        """How much it says for telling them: what they are, what they cost, and against it that they are usual."""
        return self.weight_of_one + math.log10(1 + self.cost_ns) - math.log10(self.count)


def decisions_block(found: Mapping[str, Any], reasons: Reasons, told: Collection[str], grid: Grid) -> list[Text]:
    """Return the counts of all decisions, and those that mattered in order of time, with their reasons.

    told   VMs whose changes of mode the page has told already
    """
    if not found["count"]:
        return [Text("Nobody decided anything.")]
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in found["outcomes"].items())
    ranked = sorted(groups(reasons, told), key=lambda group: -group.weight)
    kept = [group for group in ranked if group.weight > WEIGHTS["begun"]][:SHOWN]
    counted = f"{found['count']:,} ({outcomes})"
    title = f"Decisions that mattered, of {counted}" if kept else f"Decisions: {counted}; none beyond those above"
    lines = [Text(title[: grid.width], "bold")]
    for group in sorted(kept, key=lambda group: int(group.first["t_ns"])):
        lines += _told(group, grid)
    return lines


def groups(reasons: Reasons, told: Collection[str]) -> list[Group]:
    """Return decisions by what they are; changes of mode that are told already, and what led to them, are left out."""
    changes = [row for row in reasons.rows if row["verb"] == MODE and row["outcome"] == "done" and row["vm"] in told]
    known = {row["cause"] for row in changes}
    found: dict[tuple[str, ...], Group] = {}
    for number, row in enumerate(reasons.rows):
        is_told = row["verb"] == MODE and (row["vm"] in told or row["outcome"] == "begun")
        if is_told or (number in known and row["verb"] not in VERBS):
            continue
        key = (row["actor"], row["verb"], row["outcome"], _NUMBER.sub("#", row["why"]))
        if key not in found:
            weight = MODE_WEIGHT if row["verb"] == MODE else VERBS.get(row["verb"], 0.0)
            found[key] = Group(row, weight + WEIGHTS[row["outcome"]])
        found[key].add(row)
    return list(found.values())


def _told(group: Group, grid: Grid) -> list[Text]:
    """Return a group in two lines at most, after the time of its first decision."""
    row = {**group.first, "cost_ns": group.cost_ns}
    vms = [vm for vm in group.vms if vm]
    said = sentence(row, names(sorted(vms, key=by_number)) if len(vms) <= NAMED else f"{len(vms)} VMs")
    said += f", {group.count:,} times from here" if group.count > 1 else ""
    said += f": {row['why']}" if row["why"] else ""
    lines = textwrap.wrap(said, grid.width - grid.label, max_lines=2, placeholder=" ...")
    when = format_duration(row["t_ns"]) if row["t_ns"] else "0"
    style = STYLES.get(row["outcome"], "")
    first = Text(f"{when:>{grid.label - 2}}  ", style=theme.FAINT).append(lines[0], style=style or "default")
    return [first, *(Text(f"{'':{grid.label}}{line}", style=style) for line in lines[1:])]
