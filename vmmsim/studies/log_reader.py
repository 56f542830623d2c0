"""The engine's log of one walk, put into the rows that people read."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from vmmsim.addresses import PAGE_BITS, PAGE_BYTES, size_pages
from vmmsim.studies.explanation import Check, Dimension, Outcome, Reference, Row, Step

if TYPE_CHECKING:
    from vmmsim.config import Mode
    from vmmsim.studies.tiny_vm import Plan
    from vmmsim.translation.engine import WalkStep

_OUTCOMES: Final[dict[str, Outcome]] = {"CHECK": "covered", "OUTSIDE": "outside", "ESCAPE": "escaped"}
"""How the engine's log names them."""


class LogReader:
    """Puts the lines of a log into rows."""

    def __init__(self, vm: Plan, mode: Mode) -> None:
        self._vm = vm
        self._gva = vm.gva
        self._native = mode.nested == "identity"
        self._leaf = vm.guest_leaf(mode)[0] + 1
        guest = [f"guest L{level}" for level in range(vm.levels, self._leaf - 1, -1)]
        before = ["gVA"] if mode.guest == "segment" else []
        self._names = [*before, *guest, *([] if self._native else ["data page"])]
        self._now = guest[0]
        self._references = 0
        self._guest_covers = False

    def rows(self, log: list[WalkStep]) -> tuple[Row, ...]:
        """Return all rows, those that the walk did not need too."""
        steps: dict[str, list[Step]] = {name: [] for name in self._names}
        addresses: dict[str, int] = {"gVA": self._gva}
        for line, following in itertools.pairwise((*log, None)):
            assert line is not None
            row, about, step = self._read(line, following)
            steps[row].append(step)
            addresses.setdefault(row, about)
        return tuple(
            Row(
                name=name,
                address=addresses.get(name),
                nested_levels=self._nested_levels(name),
                steps=tuple(steps[name]),
            )
            for name in self._names
        )

    def _nested_levels(self, name: str) -> int:
        if name == "gVA" or self._native:
            return 0
        return self._vm.levels - (0 if name == "data page" and self._vm.escaped else self._vm.host_size)

    def _read(self, line: WalkStep, following: WalkStep | None) -> tuple[str, int, Step]:
        """Return the row of one line, the address that this row is about, and what was done."""
        from vmmsim.translation.state import Step as Kind

        if line.step is Kind.GUEST_REFERENCE:
            return self._guest_reference(line)
        if line.step is Kind.NESTED_REFERENCE:
            goes_on = following is not None and following.step is line.step and following.level == line.level - 1
            return self._nested_reference(line, goes_on=goes_on)
        outcome, segment = line.step.name.split("_")[1], line.step.name.split("_")[0]
        return self._check(line, _OUTCOMES[outcome], is_guest=segment == "GUEST")

    def _guest_reference(self, line: WalkStep) -> tuple[str, int, Step]:
        row = f"guest L{line.level}"
        self._now = "data page" if line.level == self._leaf else f"guest L{line.level - 1}"
        return row, line.address & -PAGE_BYTES, self._reference(line, "guest", "gVA", _object(self._now))

    def _nested_reference(self, line: WalkStep, *, goes_on: bool) -> tuple[str, int, Step]:
        of = _object(self._now)
        to = f"nested L{line.level - 1} table" if goes_on else of
        return self._now, self._about(line), self._reference(line, "nested", of, to)

    def _reference(self, line: WalkStep, dimension: Dimension, of: str, to: str) -> Reference:
        self._references += 1
        return Reference(
            number=self._references,
            dimension=dimension,
            level=line.level,
            of=of,
            address=line.address,
            yields=line.result << PAGE_BITS,
            to=to,
        )

    def _check(self, line: WalkStep, outcome: Outcome, *, is_guest: bool) -> tuple[str, int, Step]:
        row = "gVA" if is_guest else self._now
        about = self._gva if is_guest else self._about(line)
        fused = self._guest_covers and not is_guest
        if is_guest and outcome == "covered":
            self._guest_covers, self._now = True, "data page"
        yields = None
        if outcome == "covered":
            yields = line.result << PAGE_BITS | about % PAGE_BYTES
        return (
            row,
            about,
            Check(
                segment="guest" if is_guest else "vmm",
                of=_object(row),
                after=self._references,
                address=about,
                outcome=outcome,
                yields=yields,
                counted=outcome == "covered" and not fused,
            ),
        )

    def _about(self, line: WalkStep) -> int:
        """Return the gPA that a nested step translates: a table's, or the data page's down to the byte."""
        return byte_address(line.page, self._gva if self._now == "data page" else 0)


def _object(row: str) -> str:
    """Return what the address of a row points at."""
    return f"{row} table" if row.startswith("guest") else row


def byte_address(frame: int, gva: int) -> int:
    return frame << PAGE_BITS | gva % PAGE_BYTES


def pages_within(line: WalkStep) -> int:
    """Return how many 4K pages into the leaf that a reference read its page lies; 0 for a check."""
    return line.page % size_pages(line.level - 1) if line.level else 0
