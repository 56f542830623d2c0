"""A walk as text: the two-dimensional drawing in numbers, what it comes to, and every step with its addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.report.theme import MODES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmmsim.studies.explanation import Bounds, Check, Explanation, Kept, Reference, Row

BYPASSED: Final = "·"
HIDDEN: Final = "?"

_NAME: Final = 9
"""Columns of a row's name."""
_CELL: Final = 5
"""Columns of a nested reference's number."""

_LEGEND: Final = {
    "G": "G    the guest segment covers the gVA: + OFFSET_G, and no guest table is read",
    "V": "V    the VMM segment covers this gPA: + OFFSET_V, and no nested table is read",
    "+V": "+V   the VMM segment covers it too: both offsets are known beforehand, one check for both",
    "out": "out  outside the VMM segment: the nested table is walked",
    "esc": "esc  in the segment, but the escape filter knows the page: the table is walked",
}


def drawing(walk: Explanation, *, hidden: bool = False) -> str:
    """Return the title, the walk's numbers where an architect draws them, and what they come to.

    hidden  leave out what a quiz asks: numbers, marks and the last line
    """
    columns = max(row.nested_levels for row in walk.rows)
    lines = [title(walk), _head(walk, columns, hidden=hidden)]
    for row in walk.rows:
        if not (hidden and row.name == "gVA"):
            lines.append(_hidden_line(walk, row, columns) if hidden else _line(walk, row, columns))
    if not hidden:
        lines.append(_sum(walk))
    return "\n".join(line.rstrip() for line in lines)


def _head(walk: Explanation, columns: int, *, hidden: bool) -> str:
    nested = "nested walk" if columns else ""
    check = "check" if walk.segments and not hidden else ""
    entry = "table entry" if walk.native else "guest entry"
    return f"{nested:>{_NAME + _CELL * columns}}  {check:5} {entry}"


def _line(walk: Explanation, row: Row, columns: int) -> str:
    bypassed = [BYPASSED] * row.nested_levels if walk.segments else []
    cells = [str(step.number) for step in row.nested] or bypassed
    check = mark(row.check) if row.check else ""
    guest = str(row.guest.number) if row.guest else BYPASSED if row.is_table else ""
    return _laid_out(walk, row, columns, cells, check, guest)


def _hidden_line(walk: Explanation, row: Row, columns: int) -> str:
    return _laid_out(walk, row, columns, [HIDDEN] * row.nested_levels, "", HIDDEN if row.is_table else "")


def _laid_out(walk: Explanation, row: Row, columns: int, cells: list[str], check: str, guest: str) -> str:
    nested = "".join(f"{cell:>{_CELL}}" for cell in cells)
    return f"{row_name(walk, row):{_NAME}}{nested:{_CELL * columns}}  {check:^5}{guest:>7}"


def _sum(walk: Explanation) -> str:
    said = f"{count(walk.total_references, 'reference')}, {count(walk.base_bound_checks, 'check')}, {walk.dimension}."
    rest = _kept_of_base(walk.kept) if walk.mode == "base" else "".join(_kept_here(kept) for kept in walk.kept)
    return f"{said}     {rest}"


def _kept_of_base(kept: tuple[Kept, ...]) -> str:
    """Return what the other modes leave of a base walk: one clause for each."""
    clauses = (
        f"{MODES[it.mode].label} leaves {numbers(it.numbers)} ({len(it.numbers)}, and {count(it.checks, 'check')})"
        for it in kept
    )
    return "; ".join(clauses) + "."


def _kept_here(kept: Kept) -> str:
    label = MODES["base"].label.capitalize()
    left = numbers(kept.numbers) or "none"
    return f"{label} makes {kept.of}; {MODES[kept.mode].label} leaves {left} of them."


def steps(walk: Explanation) -> str:
    """Return every reference and check in the order of the walk, with its addresses, below what it translates."""
    width = max((len(f"{step.address:#x}") for step in walk.references), default=0)
    lines: list[str] = []
    for row in walk.rows:
        if row.steps:
            lines.append(row_title(walk, row))
            lines += [
                _reference(walk, step, width) if step.kind == "reference" else _check(walk, step) for step in row.steps
            ]
    lines.append(f"gVA {walk.gva:#x} is at hPA {walk.hpa:#x}.")
    return "\n".join(lines)


def _reference(walk: Explanation, step: Reference, width: int) -> str:
    table = f"{step.dimension:6} L{step.level}" if not walk.native else f"L{step.level}"
    space = "gPA" if step.dimension == "guest" and not walk.native else "hPA"
    to = noun(walk, step.to)
    if step.leaf_page in (None, "4K"):
        yields = f"{to} at {space} {step.yields:#x}"
    else:
        yields = f"{to}, in the {step.leaf_page} page at {space} {step.yields:#x}"
    return f"{step.number:>4}  {table}  reads hPA {step.address:<#{width}x}  -> {yields}"


def _check(walk: Explanation, step: Check) -> str:
    letter = "G" if step.segment == "guest" else "V"
    inside = f"[BASE_{letter}, LIMIT_{letter})"
    where = {
        "covered": f"in {inside}, + OFFSET_{letter}",
        "outside": f"not in {inside}",
        "escaped": f"in {inside}, but escapes",
    }[step.outcome]
    line = f"{mark(step):>4}  {'check':9}  {'gVA' if step.segment == 'guest' else 'gPA'} {step.address:#x} {where}"
    if step.yields is None:
        return line
    to = "data page" if step.of == "gVA" else noun(walk, step.of)
    return f"{line}  -> {to} at {'gPA' if step.segment == 'guest' and not walk.native else 'hPA'} {step.yields:#x}"


def mark(check: Check) -> str:
    """Return the sign that stands for a check: "G", "V", "+V" (fused with the guest segment's), "out" or "esc"."""
    if check.outcome != "covered":
        return {"outside": "out", "escaped": "esc"}[check.outcome]
    return ("" if check.counted else "+") + ("G" if check.segment == "guest" else "V")


def row_name(walk: Explanation, row: Row) -> str:
    """Return how a row is called: natively there is no guest, and its tables are just tables."""
    return row.name.replace("guest", "table") if walk.native else row.name


def noun(walk: Explanation, thing: str) -> str:
    """Return "guest L4 table", natively "L4 table"; the others as they are."""
    return thing.removeprefix("guest ") if walk.native else thing


def row_title(walk: Explanation, row: Row) -> str:
    """Return what a row translates, with its address."""
    assert row.address is not None
    if row.name == "gVA":
        return f"gVA {row.address:#x}"
    what = noun(walk, f"{row.name} table" if row.is_table else row.name)
    return f"{what} at {'hPA' if walk.native else 'gPA'} {row.address:#x}"


def legend(walk: Explanation) -> str:
    """Return what the marks of a segment mode mean, and the segments; "" in the modes without."""
    if not walk.segments:
        return ""
    marks = {mark(step) for step in walk.checks}
    lines = [text for sign, text in _LEGEND.items() if sign in marks]
    if any(len(row.nested) < row.nested_levels or (row.is_table and not row.guest) for row in walk.rows):
        lines.append(f"{BYPASSED}    bypassed")
    return "\n".join([*lines, *map(_bounds, walk.segments)])


def numbers(values: Iterable[int]) -> str:
    """Return "5 10 15 20" or "21-24": three and more in a row are a range."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)


def pages(walk: Explanation) -> str:
    """Return the page sizes in words."""
    if walk.host_page is None:
        return f"{walk.guest_page} pages"
    if walk.guest_page == walk.host_page:
        return f"{walk.guest_page} pages in guest and host"
    return f"{walk.guest_page} pages in the guest, {walk.host_page} in the host"


def circumstances(walk: Explanation) -> list[str]:
    """Return what is special about the walk, in words."""
    said = [pages(walk)]
    if walk.levels != 4:
        said.append(f"{walk.levels} levels")
    if walk.tables_outside:
        said.append(f"{walk.tables_outside} guest table{'s' * (walk.tables_outside > 1)} outside the VMM segment")
    if walk.escaped:
        said.append("the data page escapes")
    return [*said, "all caches empty"]


def count(number: int, thing: str) -> str:
    """Return "1 check", "5 checks"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def title(walk: Explanation) -> str:
    """Return the first line: the address, the mode and all that matters for the numbers."""
    return f"gVA {walk.gva:#x}, {MODES[walk.mode].label}, {', '.join(circumstances(walk))}"


def _bounds(bounds: Bounds) -> str:
    letter = "G" if bounds.segment == "guest" else "V"
    name = "guest segment" if bounds.segment == "guest" else "VMM segment"
    return (
        f"{name}: BASE_{letter} {bounds.base:#x}, LIMIT_{letter} {bounds.limit:#x}, OFFSET_{letter} {bounds.offset:+#x}"
    )
