"""What the walks of a VM's own accesses take, one by one: references, checks and dimension of most of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from vmmsim.translation.chunk import pack
from vmmsim.translation.state import Count, Exit

if TYPE_CHECKING:
    from vmmsim.config import Mode
    from vmmsim.studies.tradeoff_life import Life

_WAYS: Final = (Count.SEGMENT_0D, Count.WALK_GUEST, Count.WALK_NESTED, Count.WALK_BOTH)
"""How a miss of the TLBs can be translated; the engine counts each by what covers the data page."""
_COVERED_BY: Final = {
    ("segment", "segment"): Count.SEGMENT_0D,
    ("walk", "segment"): Count.WALK_GUEST,
    ("segment", "walk"): Count.WALK_NESTED,
    ("walk", "walk"): Count.WALK_BOTH,
}
"""The way of a miss whose data page is covered by all that a mode has: what its description says, dimension by
dimension."""


@attrs.frozen(kw_only=True)
class Walks:
    """Misses of a VM's accesses without walk caches: what most of those that its segments cover took."""

    misses: int
    covered: int
    """Misses whose data page all segments of the mode cover."""
    references: int | None
    """Page-table entries that most of them read; None if there were none."""
    checks: int | None
    """Base-bound checks of most of them."""
    dimension: str | None
    """Dimensions that most of them walked, by the tables that they read: 2D, 1D or 0D."""
    of_references: dict[int, int]
    """Histogram: how many covered misses read so many entries,"""
    of_checks: dict[int, int]
    """and made so many checks."""

    @property
    def share(self) -> float:
        """Share of the misses that is covered."""
        return self.covered / self.misses if self.misses else 0.0


def measure(life: Life, mode: Mode, accesses: int) -> Walks:
    """Run the program's next ``accesses`` on a core that looks on, and look at each miss."""
    sim, vm = life.sim, life.vm
    vcpus = life.guest.vcpus
    assert vcpus is not None
    core = sim.engine.add_core(shadow=True)
    sim.engine.load(vm.registers(), core=core)
    pages, writes = vcpus.workload.stream(vcpus.position(), accesses, 0)
    count = sim.engine.record(core=core).count
    way = _COVERED_BY[mode.guest, mode.nested]
    found: list[tuple[int, int, int]] = []
    misses = 0
    for word in pack(pages, writes).reshape(-1, 1):
        before = count.copy()
        outcome = sim.engine.run(word, core=core)
        took = count - before
        if outcome.exit is not Exit.DONE or not any(took[one] for one in _WAYS):
            continue
        misses += 1
        if took[way]:
            guest, nested = int(took[Count.GUEST_REFERENCES]), int(took[Count.NESTED_REFERENCES])
            found.append((guest + nested, int(took[Count.BASE_BOUND_CHECKS]), (guest > 0) + (nested > 0)))
    sim.engine.drop_core(core)
    return _told(misses, found)


def _told(misses: int, found: list[tuple[int, int, int]]) -> Walks:
    references, checks, dimensions = (Counter(row[i] for row in found) for i in range(3))
    most = _most(dimensions)
    return Walks(
        misses=misses,
        covered=len(found),
        references=_most(references),
        checks=_most(checks),
        dimension=None if most is None else f"{most}D",
        of_references=dict(sorted(references.items())),
        of_checks=dict(sorted(checks.items())),
    )


def _most(histogram: Counter[int]) -> int | None:
    """Return the most frequent value, the smallest of equals; None of nothing."""
    return min(histogram, key=lambda value: (-histogram[value], value), default=None)
