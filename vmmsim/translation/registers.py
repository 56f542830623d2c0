"""What a vCPU carries: its mode, its page tables, its segments and their filters, and the tags of its entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from vmmsim.config import Mode
    from vmmsim.translation.escape_filter import EscapeFilter
    from vmmsim.translation.page_table import PageTable


@attrs.frozen(kw_only=True)
class Segment:
    """A direct segment: page p with base <= p < limit is at p + offset, unless the filter hits it.

    A guest segment maps gvpn to gfn, a VMM segment gfn to hfn. All in pages of 4 KiB.
    """

    base: int
    """First page."""
    limit: int
    """One past the last page; limit = base is a segment that is off."""
    offset: int
    """What to add; may be negative."""
    filter: EscapeFilter | None = None
    """Pages that are translated by the page table instead."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.base <= self.limit:
            raise BadInput(
                f"a segment from page {self.base} to {self.limit}: base must be at least 0, limit at least base"
            )
        if self.base < self.limit and self.base + self.offset < 0:
            raise BadInput(f"a segment whose page {self.base} is at {self.base + self.offset}: that is below 0")


@attrs.frozen(kw_only=True)
class Registers:
    """All that a vCPU loads when it is entered."""

    mode: Mode
    """What each dimension uses."""
    guest_table: PageTable
    """gvpn to gfn; in native mode vpn to hfn."""
    nested_table: PageTable | None = None
    """gfn to hfn; None in native modes."""
    guest_segment: Segment | None = None
    """Used if the mode has one; None is BASE = LIMIT."""
    vmm_segment: Segment | None = None
    """Used if the mode has one; None is BASE = LIMIT."""
    vpid: int = 1
    """Tag of the VM's combined entries."""
    asid: int = 1
    """Tag of the guest process's (PCID)."""
    eptp: int = 1
    """Tag of the nested table's."""

    def __attrs_post_init__(self) -> None:
        if (self.nested_table is None) != (self.mode.nested == "identity"):
            needs = "no" if self.mode.nested == "identity" else "a"
            raise BadInput(f"mode {self.mode.name} needs {needs} nested table")
