"""What is told of one walk: the references and checks it made, row by row, and what other modes leave of it."""

from __future__ import annotations

from typing import Literal

import attrs

from vmmsim.addresses import SIZE_NAMES
from vmmsim.config import MODES

Dimension = Literal["guest", "nested"]
Outcome = Literal["covered", "outside", "escaped"]


@attrs.frozen(kw_only=True)
class Reference:
    """One page-table entry that the walk read."""

    kind: Literal["reference"] = attrs.field(default="reference", init=False, repr=False)
    number: int
    """Its place in the walk, from 1."""
    dimension: Dimension
    """Whose table was read."""
    level: int
    """Level of that table; 1 is the leaf level."""
    of: str
    """What was being translated: "gVA", "guest L4 table", "data page"."""
    address: int
    """hPA of the entry."""
    yields: int
    """What the entry says: the address of the next table or of the page. A gPA from guest entries, else an hPA."""
    to: str
    """What lies at that address: "nested L3 table", "guest L4 table", "data page"."""

    @property
    def leaf_page(self) -> str | None:
        """The size of the page that the entry maps, "4K", "2M" or "1G"; None if it leads to a table below."""
        goes_on = self.to == f"{self.dimension} L{self.level - 1} table"
        return None if goes_on else SIZE_NAMES[self.level - 1]


@attrs.frozen(kw_only=True)
class Check:
    """One compare of an address with a segment and its escape filter."""

    kind: Literal["check"] = attrs.field(default="check", init=False, repr=False)
    segment: Literal["guest", "vmm"]
    """Whose segment."""
    of: str
    """What was being translated, as in ``Reference``."""
    after: int
    """How many references the walk had made before."""
    address: int
    """The gVA or gPA that was compared."""
    outcome: Outcome
    """Covered; outside [BASE, LIMIT); or inside, but the filter sends it to paging."""
    yields: int | None
    """The address plus OFFSET if it is covered."""
    counted: bool
    """Whether it is one of the base-bound checks: it is covered, and not fused with the guest segment's."""


Step = Reference | Check


@attrs.frozen(kw_only=True)
class Row:
    """One line of the drawing: an address to be translated, and what that took."""

    name: str
    """ "gVA" (the guest segment's compare), "guest L4", ..., "data page"."""
    address: int | None
    """The gVA, or the gPA of the guest table or the data page (natively the hPA); None if it was never needed."""
    nested_levels: int
    """How many nested references its address takes where the nested table is walked."""
    steps: tuple[Step, ...]
    """In the order of the walk."""

    @property
    def is_table(self) -> bool:
        """Whether its address is that of a guest table, an entry of which is then read."""
        return self.name.startswith("guest")

    @property
    def nested(self) -> tuple[Reference, ...]:
        """The references to nested tables."""
        return tuple(step for step in self.steps if step.kind == "reference" and step.dimension == "nested")

    @property
    def guest(self) -> Reference | None:
        """The reference to the guest table."""
        found = (step for step in self.steps if step.kind == "reference" and step.dimension == "guest")
        return next(found, None)

    @property
    def check(self) -> Check | None:
        """The compare with a segment; a row has one at most."""
        return next((step for step in self.steps if step.kind == "check"), None)


@attrs.frozen(kw_only=True)
class Bounds:
    """A segment's registers, in bytes."""

    segment: Literal["guest", "vmm"]
    base: int
    limit: int
    offset: int


@attrs.frozen(kw_only=True)
class Kept:
    """What a mode leaves of the references of a base virtualized walk in the same VM."""

    mode: str
    numbers: tuple[int, ...]
    """The references it still makes, as the base walk numbers them."""
    of: int
    """How many the base walk makes."""
    checks: int
    """Base-bound checks it makes."""


@attrs.frozen(kw_only=True)
class Explanation:
    """One walk, with all caches empty."""

    gva: int
    mode: str
    guest_page: str
    host_page: str | None
    """None in native modes, which have no nested table."""
    levels: int
    escaped: bool
    tables_outside: int
    segments: tuple[Bounds, ...]
    """The guest segment first, as far as the mode has them."""
    rows: tuple[Row, ...]
    """One for each address that this walk or a walk without segments translates."""
    dimension: Literal["0D", "1D", "2D"]
    """By the class of the translation, which the data page alone decides."""
    total_references: int
    base_bound_checks: int
    hpa: int
    kept: tuple[Kept, ...] = ()
    """base: what VMM Direct and Guest Direct leave of it; another virtualized mode: what it leaves of base."""
    notes: tuple[str, ...] = ()
    """What was asked for and makes no difference, or differs from what one may expect."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """References and checks in the order of the walk."""
        return tuple(step for row in self.rows for step in row.steps)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, numbered from 1."""
        return tuple(step for step in self.steps if step.kind == "reference")

    @property
    def checks(self) -> tuple[Check, ...]:
        """The compares, those that failed too."""
        return tuple(step for step in self.steps if step.kind == "check")

    @property
    def native(self) -> bool:
        """Whether there is no nested dimension."""
        return MODES[self.mode].nested == "identity"
