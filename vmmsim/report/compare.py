"""Runs side by side: what was asked differently, what came out differently, and where they first parted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
from rich import box
from rich.table import Table

from vmmsim.addresses import format_bytes, format_duration
from vmmsim.decisions import Decision
from vmmsim.report.marks import share
from vmmsim.report.reasons import sentence
from vmmsim.run_tables import DECISIONS
from vmmsim.strict import leaves

if TYPE_CHECKING:
    from vmmsim.result import Result

Values = tuple[Any, ...]

MISSING: Final = None
"""The value of a key that a run does not have."""
_SHARES: Final = ("overhead", "share", "in_mode", "unusable_2m", "as_if")
"""Keys of a summary whose values are shares, or hold shares."""


@attrs.frozen
class Comparison:
    """What differs between runs; a key stands for one value of each run, in their order."""

    results: tuple[Result, ...]
    configuration: dict[str, Values]
    """Paths of the scenario, seed and versions, of what differs."""
    summary: dict[str, Values]
    """Paths of the summary, of what differs."""
    parted_at: int | None
    """Row number of the first decision that is not the same in all runs; None if there is none."""
    parted: tuple[Decision | None, ...]
    """That decision in each run; None where a run has ended before."""

    @property
    def equal(self) -> bool:
        """Whether all runs have one digest."""
        return len({result.digest for result in self.results}) == 1


def compare(results: Sequence[Result]) -> Comparison:
    """Return what differs between ``results``."""
    rows = [result["decisions"].to_pylist() for result in results]
    at = _parted_at(rows)
    return Comparison(
        results=tuple(results),
        configuration=_differences([_configuration(result) for result in results]),
        summary=_differences([_outcome(result) for result in results]),
        parted_at=at,
        parted=tuple(Decision(at, **of[at]) if at < len(of) else None for of in rows) if at is not None else (),
    )


def _configuration(result: Result) -> dict[str, Any]:
    whole = {"seed": result.seed, "complete": result.complete, "versions": result.versions, "code": result.user_code}
    return dict(leaves({**result.scenario, **whole}))


def _outcome(result: Result) -> dict[str, Any]:
    """Return the summary by path, without the lists of refusals and failures, whose places mean nothing."""
    return {path: value for path, value in leaves(result.summary) if "[" not in path or ".lost_ns" in path}


def _differences(plain: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    paths = dict.fromkeys(path for one in plain for path in one)
    values = {path: tuple(one.get(path, MISSING) for one in plain) for path in paths}
    return {path: given for path, given in values.items() if any(value != given[0] for value in given[1:])}


def _parted_at(rows: Sequence[list[dict[str, Any]]]) -> int | None:
    shortest = min(len(of) for of in rows)
    for at in range(shortest):
        if any(of[at] != rows[0][at] for of in rows[1:]):
            return at
    return shortest if any(len(of) != shortest for of in rows) else None


def as_dict(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Return a comparison as plain data; ``names`` are what the user calls the runs."""
    return {
        "equal": comparison.equal,
        "runs": [
            {"path": name, "name": result.name, "seed": result.seed, "complete": result.complete,
             "digest": result.digest}
            for name, result in zip(names, comparison.results, strict=True)
        ],
        "configuration": [{"path": path, "values": list(given)} for path, given in comparison.configuration.items()],
        "summary": [{"path": path, "values": list(given)} for path, given in comparison.summary.items()],
        "parted_at": comparison.parted_at,
        "parted": [attrs.asdict(one) if one else None for one in comparison.parted],
    }  # fmt: skip


def tables(comparison: Comparison, names: Sequence[str]) -> list[Table]:
    """Return configuration and summary as tables with a column for each run; only what differs."""
    made = []
    for title, values in (("configuration", comparison.configuration), ("outcome", comparison.summary)):
        if values:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{title}, where it differs", title_justify="left")
            table.add_column("", no_wrap=True)
            for name in names:
                table.add_column(name, justify="right", overflow="fold")
            for path, given in values.items():
                table.add_row(path, *(_shown(path, value) for value in given))
            made.append(table)
    return made


def _shown(path: str, value: Any) -> str:
    """Return a value of a summary or scenario as people read it, by its path: times, sizes, shares."""
    if value is None:
        return "-"
    parts = path.replace("[", ".").split(".")
    if isinstance(value, int) and not isinstance(value, bool):
        unit = next((unit for part in parts for unit in ("_ns", "_bytes") if part.endswith(unit)), "")
        return {"_ns": format_duration, "_bytes": format_bytes}.get(unit, "{:,}".format)(value)
    if isinstance(value, float):
        return (
            share(value)
            if any(part.startswith(_SHARES) or part.endswith("share") for part in parts)
            else f"{value:.4g}"
        )
    return str(value)


def parting(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Return lines on where decisions part: the first that differs, as each run has it."""
    if comparison.parted_at is None:
        count = comparison.results[0]["decisions"].num_rows
        return [f"All {count:,} decisions are the same."]
    lines = [f"Decisions are the same up to number {comparison.parted_at:,}, where they part:"]
    wide = max(map(len, names))
    for name, one in zip(names, comparison.parted, strict=True):
        lines.append(f"  {name:{wide}}  {_told(one) if one else 'has ended'}")
    return lines


def _told(one: Decision) -> str:
    row = {column.name: getattr(one, column.name) for column in DECISIONS}
    why = f": {one.why}" if one.why else ""
    return f"{format_duration(one.t_ns)}  {sentence(row)}{why}"


def counts(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Return a line for each run: how many decisions ended how, and its digest."""
    wide = max(map(len, names))
    lines = []
    for name, result in zip(names, comparison.results, strict=True):
        found = result.summary["decisions"]
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in found["outcomes"].items())
        lines.append(f"{name:{wide}}  digest {result.digest[:16]}  {found['count']:,} decisions ({outcomes})")
    return lines
