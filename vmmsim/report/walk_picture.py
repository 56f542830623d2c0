"""A walk as architects draw it: guest levels down, nested levels across, and what a segment spares.

All lengths are inches; y grows upwards. A row is an address that has to be translated: a pill at the left says which,
circles are the nested entries read for it, a square is the guest entry that it leads to, whose yield is the next row.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from vmmsim.addresses import TABLE_BITS, TABLE_ENTRIES
from vmmsim.report import theme
from vmmsim.report.canvas import Canvas
from vmmsim.report.walk_text import circumstances, count, noun, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmmsim.studies.explanation import Bounds, Check, Explanation, Kept, Reference, Row

_MARGIN: Final = 0.45
_PILL: Final = 1.5
"""Width of a pill."""
_PILL_HEIGHT: Final = 0.44
_COLUMN: Final = 1.12
"""From one nested entry to the next."""
_ROW: Final = 1.05
_RADIUS: Final = 0.24
_BESIDE: Final = 1.45
"""Right of the guest entries: what they read."""
_TOP: Final = 2.4
"""From the top of the paper to the first row."""
_BOTTOM: Final = 0.7
"""From the last row to the bottom of the paper, or to the lines below the picture."""
_LINE: Final = 0.24

_STRIP_START: Final = 2.4
_STRIP_GAP: Final = 0.04

_NESTED: Final = theme.DIMENSIONS["nested"]
_GUEST: Final = theme.DIMENSIONS["guest"]
_ADDRESS: Final = "#4d5560"

_SEGMENT_COLOURS: Final = {
    "guest": theme.MODES["guest-direct"].colour,
    "vmm": theme.MODES["vmm-direct"].colour,
}

_FAILS: Final = theme.MODES["base"].colour
"""What has to be walked although there is a segment."""


def render(walk: Explanation, kind: str) -> bytes:
    """Return the picture as a file of ``kind`` "svg" or "png"; the same walk gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context(theme.FIGURE):
        file = io.BytesIO()
        metadata = {"Date": None, "Title": _headline(walk)} if kind == "svg" else {"Title": _headline(walk)}
        draw(walk).savefig(file, format=kind, dpi=160, metadata=metadata)
        return file.getvalue()


def draw(walk: Explanation) -> Figure:
    """Return the picture as a matplotlib figure, which belongs to nobody's pyplot."""
    return _Picture(walk).drawn()


def _headline(walk: Explanation) -> str:
    label = theme.MODES[walk.mode].label
    return f"{label[0].upper()}{label[1:]}: {count(walk.total_references, 'reference')}, " + (
        f"{count(walk.base_bound_checks, 'check')}, {walk.dimension}"
    )


class _Picture:
    """The places of everything in one picture, and the pieces that it is drawn of."""

    def __init__(self, walk: Explanation) -> None:
        self.walk = walk
        self.rows = [row for row in walk.rows if row.name != "gVA"]
        self.guest_check = next((row.check for row in walk.rows if row.name == "gVA"), None)
        self.columns = max(row.nested_levels for row in self.rows)
        self.colour = theme.MODES[walk.mode].colour
        bypass = 0.55 if self.guest_check else 0.0
        fails = any(row.check and row.check.outcome != "covered" for row in self.rows)
        self.pill_x = _MARGIN + bypass + _PILL / 2
        self.first_x = self.pill_x + _PILL / 2 + (1.5 if fails else 1.7 if walk.native else 0.8)
        after_nested = (self.columns - 1) * _COLUMN + 1.3 if self.columns else 0.0
        self.guest_x = self.first_x + after_nested
        beside = _BESIDE if any(row.guest for row in self.rows) else 0.62
        width = self.guest_x + beside + _MARGIN
        self.last_row = len(self.rows) - (0 if walk.native else 1)
        self.foot_lines = len(walk.segments) + bool(walk.kept)
        bottom = _BOTTOM + (0.16 + _LINE * self.foot_lines if self.foot_lines else 0.0)
        height = _TOP + _ROW * self.last_row + bottom
        strip = _STRIP_START + sum(wide + _STRIP_GAP for _, wide, _ in self._fields()) + _MARGIN
        self.canvas = Canvas(max(width, strip), height)

    def drawn(self) -> Figure:
        """Draw it all, from the back to the front."""
        self._panels()
        self._head()
        self._address_strip()
        self._column_heads()
        for index, row in enumerate(self.rows):
            self._row(index, row)
        if self.walk.native:
            self._native_end()
        self._guest_segment()
        self._foot()
        return self.canvas.figure

    # Places

    def y(self, index: int) -> float:
        """Return the height of a row."""
        return self.canvas.height - _TOP - _ROW * index

    def nested_x(self, column: int) -> float:
        """Return where the nested entry of a column is."""
        return self.first_x + _COLUMN * column

    # Around the walk

    def _panels(self) -> None:
        top, low = self.y(0) + 0.84, self.y(self.last_row) - 0.46
        middle, height = (top + low) / 2, top - low
        if self.columns:
            left, right = self.nested_x(0) - 0.52, self.nested_x(self.columns - 1) + 0.52
            self.canvas.box((left + right) / 2, middle, right - left, height, fill=_NESTED.panel, layer=0, corner=0.12)
        low = self.y(len(self.rows) - 1 if self.walk.native else self.last_row - 1) - 0.46
        self.canvas.box(self.guest_x, (top + low) / 2, 1.0, top - low, fill=_GUEST.panel, layer=0, corner=0.12)

    def _head(self) -> None:
        y = self.canvas.height - 0.42
        self.canvas.box(_MARGIN + 0.05, y - 0.13, 0.1, 0.56, fill=self.colour, corner=0.04)
        self.canvas.words(_MARGIN + 0.25, y, _headline(self.walk), size=14, bold=True, across="left")
        said = ", ".join(circumstances(self.walk))
        self.canvas.words(_MARGIN + 0.25, y - 0.28, said, size=9, colour=theme.FAINT, across="left")

    def _address_strip(self) -> None:
        """Draw the gVA cut into the indices that the guest entries use, and the offset."""
        y = self.canvas.height - 1.12
        self.canvas.words(_MARGIN, y, f"gVA {self.walk.gva:#x}", size=9, bold=True, mono=True, across="left")
        x = _STRIP_START
        for said, wide, colour in self._fields():
            self.canvas.box(x + wide / 2, y, wide, 0.26, fill=theme.PAPER, edge=colour, corner=0.03)
            self.canvas.words(x + wide / 2, y, said, size=7)
            x += wide + _STRIP_GAP

    def _fields(self) -> list[tuple[str, float, str]]:
        """Return what the parts of the gVA say, their widths and colours."""
        levels = [int(row.name.removeprefix("guest L")) for row in self.rows if row.is_table]
        fields = [(f"L{level} index {_index(self.walk.gva, level)}", 0.82, _GUEST.edge) for level in levels]
        offset = self.walk.gva & (1 << 12 + TABLE_BITS * (levels[-1] - 1)) - 1
        return [*fields, (f"offset {offset:#x}", 1.1, theme.GHOST)]

    def _column_heads(self) -> None:
        y = self.y(0) + 0.47
        if self.columns:
            middle = (self.nested_x(0) + self.nested_x(self.columns - 1)) / 2
            said = "gPA → hPA, by nested entries; below each, the hPA that is read"
            self.canvas.words(middle, y + 0.2, said if self.columns > 3 else "gPA → hPA", size=7.5, colour=_NESTED.edge)
        spaces = "gVA → hPA" if self.walk.native else "gVA → gPA"
        self.canvas.words(self.guest_x, y + 0.2, spaces, size=7.5, colour=_GUEST.edge)
        for column in range(self.columns):
            self.canvas.words(self.nested_x(column), y, f"nested L{self.walk.levels - column}", size=8, bold=True)
        said = "table entry" if self.walk.native else "guest entry"
        self.canvas.words(self.guest_x, y, said, size=8, bold=True)

    # The walk

    def _row(self, index: int, row: Row) -> None:
        is_used = bool(row.steps)
        y = self.y(index)
        self._pill(row, y, is_used=is_used)
        for column in range(row.nested_levels):
            if column < len(row.nested):
                self._nested_entry(self.nested_x(column), y, row.nested[column])
            else:
                self.canvas.circle(self.nested_x(column), y, 0.12, fill=theme.PAPER, edge=theme.FAINT, dotted=True)
        if row.guest:
            self._guest_entry(y, row.guest)
        elif row.is_table:
            self.canvas.box(self.guest_x, y, 0.3, 0.3, fill=theme.PAPER, edge=theme.FAINT, dotted=True, corner=0.04)
        else:
            self._result(self.guest_x, y)
        if is_used:
            self._along(row, y)
        if row.guest and index < self.last_row:
            self._to_next_row(y)
        if index == 0 and is_used:
            said = "CR3" if self.walk.native else "guest CR3"
            self.canvas.words(self.pill_x, y + 0.54, said, size=7.5, colour=theme.FAINT)
            self.canvas.arrow([(self.pill_x, y + 0.46), (self.pill_x, y + _PILL_HEIGHT / 2)])

    def _pill(self, row: Row, y: float, *, is_used: bool) -> None:
        fails = row.check is not None and row.check.outcome != "covered"
        edge = _FAILS if fails else theme.INK if is_used else theme.FAINT
        name = noun(self.walk, f"{row.name} table" if row.is_table else row.name)
        self.canvas.box(
            self.pill_x, y, _PILL, _PILL_HEIGHT, fill=theme.PAPER, edge=edge, dotted=not is_used, corner=0.2
        )
        if row.address is None:
            self.canvas.words(self.pill_x, y, name, size=8, colour=theme.FAINT)
            return
        space = "hPA" if self.walk.native else "gPA"
        self.canvas.words(self.pill_x, y + 0.085, name, size=8, bold=True)
        self.canvas.words(self.pill_x, y - 0.095, f"{space} {row.address:#x}", size=7, mono=True)

    def _nested_entry(self, x: float, y: float, step: Reference) -> None:
        self.canvas.circle(x, y, _RADIUS, fill=_NESTED.fill, edge=_NESTED.edge)
        self.canvas.words(x, y, str(step.number), size=11, bold=True)
        self.canvas.words(x, y - _RADIUS - 0.11, f"{step.address:#x}", size=6.3, mono=True, colour=_ADDRESS)

    def _guest_entry(self, y: float, step: Reference) -> None:
        self.canvas.box(self.guest_x, y, 0.5, 0.5, fill=_GUEST.fill, edge=_GUEST.edge, corner=0.07)
        self.canvas.words(self.guest_x, y, str(step.number), size=11, bold=True)
        x, index = self.guest_x + 0.6, _index(self.walk.gva, step.level)
        self.canvas.words(x, y + 0.08, f"index {index}", size=7, colour=_ADDRESS, across="left")
        self.canvas.words(x, y - 0.06, f"{step.address:#x}", size=6.3, mono=True, colour=_ADDRESS, across="left")

    def _along(self, row: Row, y: float) -> None:
        """Draw the arrows of a row: through its nested entries, or past them with the VMM segment."""
        start = self.pill_x + _PILL / 2
        ends = self.guest_x - (0.25 if row.guest else 0.62)
        check = row.check
        if check and check.outcome == "covered":
            colour = _SEGMENT_COLOURS["vmm"]
            self.canvas.arrow([(start, y), (ends, y)], colour=colour, line=2.6, head=14, over=True)
            x = (self.nested_x(0) + self.nested_x(self.columns - 1)) / 2
            self._badge(x, y, self._covered(check), colour)
            return
        x = start
        for column in range(len(row.nested)):
            self.canvas.arrow([(x, y), (self.nested_x(column) - _RADIUS, y)])
            x = self.nested_x(column) + _RADIUS
        self.canvas.arrow([(x, y), (ends, y)])
        if check:
            said = "escape\nfilter hits" if check.outcome == "escaped" else "outside\nsegment"
            self._badge((start + self.nested_x(0) - _RADIUS) / 2 - 0.04, y, said, _FAILS)

    def _covered(self, check: Check) -> str:
        """Return what stands on the way past the nested table."""
        if not check.counted:
            return "fused into check 1" if self.columns < 3 else "VMM segment, fused into check 1"
        counted = [it for it in self.walk.checks if it.counted]
        said = "+ OFFSET_V" if self.columns < 3 else "VMM segment, + OFFSET_V"
        return f"check {counted.index(check) + 1}: {said}"

    def _badge(self, x: float, y: float, said: str, colour: str, *, upright: bool = False) -> None:
        lines = said.split("\n")
        width, height = 0.2 + 0.065 * max(map(len, lines)), 0.13 + 0.13 * len(lines)
        if upright:
            width, height = height, width
        self.canvas.box(x, y, width, height, fill=theme.PAPER, edge=colour, corner=0.08, line=1.6, layer=6)
        self.canvas.words(x, y, said, size=7.3, bold=True, upright=upright)

    def _to_next_row(self, y: float) -> None:
        """Draw what a guest entry yields going to the start of the next row."""
        turn = y - 0.62
        goal = self.y(0) - _ROW * round((self.y(0) - y) / _ROW + 1) + _PILL_HEIGHT / 2
        self.canvas.arrow([(self.guest_x, y - 0.25), (self.guest_x, turn), (self.pill_x, turn), (self.pill_x, goal)])

    def _result(self, x: float, y: float) -> None:
        self.canvas.box(x, y, 1.24, 0.46, fill=theme.INK, corner=0.1)
        self.canvas.words(x, y + 0.085, "hPA", size=8, bold=True, colour=theme.PAPER)
        self.canvas.words(x, y - 0.095, f"{self.walk.hpa:#x}", size=7.5, mono=True, colour=theme.PAPER)

    def _native_end(self) -> None:
        self._result(self.pill_x, self.y(self.last_row))

    def _guest_segment(self) -> None:
        """Draw what the guest segment does with the gVA: past all guest tables, or nothing."""
        check = self.guest_check
        if check is None:
            return
        colour = _SEGMENT_COLOURS["guest"]
        x, top, goal = _MARGIN + 0.12, self.canvas.height - 1.28, self.y(self.last_row)
        edge = self.pill_x - (0.62 if self.walk.native else _PILL / 2)
        if check.outcome == "covered":
            self.canvas.arrow([(x, top), (x, goal), (edge, goal)], colour=colour, line=2.6, head=14)
            self._badge(x, (top + goal) / 2, "check 1: guest segment, + OFFSET_G", colour, upright=True)
        else:
            first = (self.pill_x - _PILL / 2, self.y(0))
            self.canvas.arrow([(x, top), (x, first[1]), first], colour=_FAILS)
            said = "escapes" if check.outcome == "escaped" else "outside"
            self._badge(x, (top + first[1]) / 2, said, _FAILS, upright=True)

    def _foot(self) -> None:
        y = _LINE * self.foot_lines + 0.1
        for bounds in self.walk.segments:
            colour = _SEGMENT_COLOURS[bounds.segment]
            self.canvas.box(_MARGIN + 0.07, y, 0.14, 0.14, fill=colour, corner=0.03)
            self.canvas.words(_MARGIN + 0.25, y, _registers(bounds), size=7.3, mono=True, across="left")
            y -= _LINE
        if self.walk.kept:
            said = "; ".join(_left(self.walk, kept) for kept in self.walk.kept)
            self.canvas.words(_MARGIN, y, said, size=8, colour=theme.FAINT, across="left")


def _registers(bounds: Bounds) -> str:
    letter = "G" if bounds.segment == "guest" else "V"
    return f"BASE_{letter} {bounds.base:#x}  LIMIT_{letter} {bounds.limit:#x}  OFFSET_{letter} {bounds.offset:+#x}"


def _left(walk: Explanation, kept: Kept) -> str:
    label = theme.MODES[kept.mode].label
    if walk.mode == "base":
        return f"{label} leaves {numbers(kept.numbers)}"
    return f"Base virtualized makes {kept.of} references; {label} leaves {numbers(kept.numbers) or 'none'} of them"


def _index(gva: int, level: int) -> int:
    return gva >> 12 + TABLE_BITS * (level - 1) & TABLE_ENTRIES - 1
