"""What the experiment of trade-offs found: cells, the columns of modes, and the document of both."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from vmmsim.errors import BadInput
from vmmsim.hints import unknown
from vmmsim.studies.tradeoff_life import STUDIED
from vmmsim.studies.tradeoff_services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmsim.studies.tradeoff_changes import Changes
    from vmmsim.studies.tradeoff_pages import Sample, Stratum
    from vmmsim.studies.tradeoff_services import Attempt
    from vmmsim.studies.tradeoff_walks import Walks

BIG_MEMORY: Final = "big-memory"
ANY: Final = "any"
_SEGMENT_OF: Final = {"PINNED_GUEST": "guest segment", "PINNED_VMM": "VMM segment"}

Verdict = Literal["unrestricted", "limited", "none"]


@attrs.frozen(kw_only=True)
class Cell:
    """One service in one mode."""

    mode: str
    service: str
    attempts: tuple[Attempt, ...]
    """On the pages where it succeeds in Base."""
    strata: tuple[Stratum, ...]
    weights: tuple[float, ...]
    """Share of E, the VM's memory that the service can have in Base, that each attempt stands for."""

    @property
    def verdict(self) -> Verdict | None:
        """What the mode lets it do; None if it can be done nowhere in Base."""
        if not self.attempts:
            return None
        done = sum(one.done for one in self.attempts)
        return "unrestricted" if done == len(self.attempts) else "limited" if done else "none"

    @property
    def share(self) -> float | None:
        """Share of E that it can have in this mode."""
        return self._share(lambda one: one.done)

    @property
    def reusable(self) -> float | None:
        """Share of E whose frames the host can use for others afterwards."""
        return self._share(lambda one: one.reusable)

    def _share(self, counts: Callable[[Attempt], bool]) -> float | None:
        if not self.attempts:
            return None
        return sum(weight for one, weight in zip(self.attempts, self.weights, strict=True) if counts(one))

    @property
    def refusals(self) -> dict[str, int]:
        """Attempts that the mode refused, by reason."""
        return dict(sorted(Counter(one.outcome for one in self.attempts if one.refused).items()))

    def by_stratum(self) -> dict[int, dict[str, int]]:
        """Return how often each outcome was met, by the number of the stratum."""
        numbers = sorted({one.page.stratum for one in self.attempts})
        return {
            number: dict(sorted(Counter(one.outcome for one in self.attempts if one.page.stratum == number).items()))
            for number in numbers
        }

    @property
    def errors(self) -> tuple[str, ...]:
        """What contradicts the model, a line each: outcomes that are no refusals, and refusals out of place."""
        wrong = [
            f"{self.mode}.{self.service}: {'taken from under a live segment' if one.done else one.outcome}, "
            f"a page of {self.strata[one.page.stratum].name}"
            for one in self.attempts
            if not one.sound or not (one.done or one.refused)
        ]
        return (*dict.fromkeys(wrong), *self._out_of_place())

    def _out_of_place(self) -> list[str]:
        """Inside a segment that refuses anything, nothing may be done; outside of it, nothing may be refused."""
        found = []
        for reason in self.refusals:
            kind = _SEGMENT_OF[reason]
            where = f"{self.mode}: {kind}"
            for one in self.attempts:
                stratum = self.strata[one.page.stratum]
                if one.done and where in stratum.covered:
                    found.append(f"{self.mode}.{self.service}: DONE under the {kind} that refuses others")
                if one.outcome == reason and where not in stratum.covered:
                    found.append(f"{self.mode}.{self.service}: {reason} outside the {kind}")
        return list(dict.fromkeys(found))


@attrs.frozen(kw_only=True)
class Column:
    """One mode."""

    mode: str
    walks: Walks
    huge: Walks
    """The same with pages of 2 MiB in guest and host, on a small VM."""
    without: Walks
    """The same with a program that has no primary region, on a small VM."""
    guest: Changes
    vmm: Changes
    cells: dict[str, Cell]

    @property
    def category(self) -> str:
        """Programs that the mode is for: any, if what it covers does not hang on a primary region."""
        return ANY if self.without.share > self.walks.share / 2 else BIG_MEMORY


@attrs.frozen(kw_only=True)
class Tradeoffs:
    """The table as measured."""

    scenario: str
    vm: str
    seed: int
    sample: Sample
    columns: dict[str, Column]

    @property
    def errors(self) -> tuple[str, ...]:
        """What contradicts the model, a line each; empty if all is well."""
        return tuple(line for column in self.columns.values() for cell in column.cells.values() for line in cell.errors)

    def cell(self, name: str) -> Cell:
        """Return a cell by its name, e.g. "dual-direct.page_sharing"; ``BadInput`` if there is none."""
        check_cell(name)
        mode, _, service = name.partition(".")
        return self.columns[mode].cells[service]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON document's body."""
        return {
            "scenario": self.scenario,
            "vm": self.vm,
            "seed": self.seed,
            "errors": list(self.errors),
            "strata": [
                {
                    "name": stratum.name,
                    "pages": stratum.pages,
                    "sampled": sum(page.stratum == number for page in self.sample.pages),
                }
                for number, stratum in enumerate(self.sample.strata)
            ],
            "modes": {mode: _column_dict(column) for mode, column in self.columns.items()},
        }


def _column_dict(column: Column) -> dict[str, Any]:
    walks, huge = column.walks, column.huge
    return {
        "dimension": walks.dimension,
        "references": walks.references,
        "checks": walks.checks,
        "walks": {
            "misses": walks.misses,
            "covered": walks.covered,
            "references": {str(value): count for value, count in walks.of_references.items()},
            "checks": {str(value): count for value, count in walks.of_checks.items()},
        },
        "guest_os_modifications": {"verdict": column.guest.verdict, "used": list(column.guest.used)},
        "vmm_modifications": {"verdict": column.vmm.verdict, "used": list(column.vmm.used)},
        "application_category": {
            "verdict": column.category,
            "covered": walks.share,
            "covered_without_primary_region": column.without.share,
        },
        **{service: _cell_dict(cell) for service, cell in column.cells.items()},
        "reusable_after_ballooning": column.cells["ballooning"].reusable,
        "huge_pages": {"dimension": huge.dimension, "references": huge.references, "checks": huge.checks},
    }


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "verdict": cell.verdict,
        "share": None if cell.share is None else round(cell.share, 6),
        "pages": len(cell.attempts),
        "refusals": cell.refusals,
    }


def cell_dict(cell: Cell) -> dict[str, Any]:
    """Return the attempts behind a cell: counts by stratum, and every page with its addresses."""
    return {
        "cell": f"{cell.mode}.{cell.service}",
        **_cell_dict(cell),
        "errors": list(cell.errors),
        "strata": [
            {"name": cell.strata[number].name, "outcomes": outcomes} for number, outcomes in cell.by_stratum().items()
        ],
        "attempts": [
            {
                "role": one.page.role,
                "stratum": cell.strata[one.page.stratum].name,
                "gva": None if one.gvpn is None else f"{one.gvpn << 12:#x}",
                "gpa": f"{one.gfn << 12:#x}",
                "hpa": None if one.hfn < 0 else f"{one.hfn << 12:#x}",
                "outcome": one.outcome,
            }
            for one in cell.attempts
        ],
    }


def check_cell(name: str) -> None:
    """Raise ``BadInput`` unless ``name`` is MODE.SERVICE."""
    cells = [f"{mode}.{service}" for mode in STUDIED for service in SERVICES]
    if name not in cells:
        raise BadInput(unknown(name, cells) if "." in name else f'"{name}" is no cell; write e.g. "{cells[5]}"')
