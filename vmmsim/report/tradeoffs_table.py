"""The table of trade-offs as text, laid out as the poster's, and the attempts behind one cell of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmmsim.studies.tradeoff_changes import Changes
    from vmmsim.studies.tradeoff_result import Cell, Column, Tradeoffs

YES: Final = "\u2713"
NO: Final = "\u2717"
_NEEDED: Final = {"none": NO, "minimal": "minimal", "needed": YES}
_POSTER: Final[tuple[tuple[str, Callable[[Column], str]], ...]] = (
    ("memory accesses of most page walks", lambda it: _number(it.walks.references)),
    ("base-bound checks of most page walks", lambda it: _number(it.walks.checks)),
    ("dimension of page walk", lambda it: it.walks.dimension or "-"),
    ("guest OS modifications", lambda it: _NEEDED[it.guest.verdict]),
    ("VMM modifications", lambda it: _NEEDED[it.vmm.verdict]),
    ("application category", lambda it: it.category),
    ("page sharing", lambda it: _verdict(it.cells["page_sharing"])),
    ("ballooning", lambda it: _verdict(it.cells["ballooning"])),
    ("guest OS swapping", lambda it: _verdict(it.cells["guest_swapping"])),
    ("VMM swapping", lambda it: _verdict(it.cells["vmm_swapping"])),
)
"""The poster's rows."""
_BEYOND: Final[tuple[tuple[str, Callable[[Column], str]], ...]] = (
    ("frames reusable after ballooning", lambda it: _percent(it.cells["ballooning"].reusable)),
    ("dirty logging (live migration)", lambda it: _verdict(it.cells["dirty_logging"])),
    ("memory accesses with 2M pages", lambda it: _number(it.huge.references)),
    ("misses that the mode covers", lambda it: _percent(it.walks.share)),
    ("  by a program without primary region", lambda it: _percent(it.without.share)),
)
_EXAMPLES: Final = 2
"""Pages shown of each outcome in a stratum."""


def table(found: Tradeoffs) -> str:
    """Return the table, what guest and VMM had to do for it, and what contradicts the model."""
    columns = list(found.columns.values())
    rows = [["", *(column.mode for column in columns)]]
    rows += [[title, *map(tell, columns)] for title, tell in _POSTER]
    rows += [["beyond the poster", *[""] * len(columns)]]
    rows += [[title, *map(tell, columns)] for title, tell in _BEYOND]
    parts = [
        f"What each mode permits, measured on {found.vm} of {found.scenario}, seed {found.seed}: "
        f"{len(found.sample.pages)} pages tried in each mode.",
        _aligned(rows),
        "\n".join(line for column in columns for line in _changes(column)),
    ]
    if found.errors:
        parts.append("\n".join(["These contradict the model:", *(f"  {line}" for line in found.errors)]))
    return "\n\n".join(parts)


def _changes(column: Column) -> Iterable[str]:
    sides: tuple[tuple[str, Changes], ...] = (("guest OS", column.guest), ("VMM", column.vmm))
    for side, needed in sides:
        if needed.used:
            yield f"{column.mode}, {side}: {'; '.join(needed.used)}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _verdict(cell: Cell) -> str:
    if cell.verdict is None:
        return "-"
    mark = {"unrestricted": YES, "none": NO, "limited": f"limited, {_percent(cell.share)}"}[cell.verdict]
    return f"{mark} (!)" if cell.errors else mark


def explained(cell: Cell) -> str:
    """Return the attempts behind a cell: outcomes by stratum, each with some of its pages."""
    name = f"{cell.mode}.{cell.service}"
    if not cell.attempts:
        return f"{name}: no page of the sample can be had in Base either"
    lines = [
        f"{name}: {cell.verdict}, {_percent(cell.share)} of what can be had in Base; "
        f"{len(cell.attempts)} pages tried, {sum(one.done for one in cell.attempts)} done"
    ]
    if cell.refusals:
        lines.append("refused: " + ", ".join(f"{count} {reason}" for reason, count in cell.refusals.items()))
    for number, outcomes in cell.by_stratum().items():
        stratum = cell.strata[number]
        lines.append(f"\n{stratum.name}: {stratum.pages} pages")
        for outcome, count in outcomes.items():
            lines.append(f"  {count} {outcome}")
            those = [one for one in cell.attempts if one.page.stratum == number and one.outcome == outcome]
            for one in those[:_EXAMPLES]:
                gva = "" if one.gvpn is None else f"gVA {one.gvpn << 12:#x}, "
                hpa = "" if one.hfn < 0 else f", hPA {one.hfn << 12:#x}"
                lines.append(f"    e.g. {gva}gPA {one.gfn << 12:#x}{hpa}")
    if cell.errors:
        lines += ["", *cell.errors]
    return "\n".join(lines)
