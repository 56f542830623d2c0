"""Whether a saved result is whole and true: files, columns, digest, sums; recomputed, and every finding told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from vmmsim.addresses import PAGE_BYTES, parse_bytes
from vmmsim.config import MODES
from vmmsim.errors import BadInput
from vmmsim.result import TABLES, Result, load, read_json, read_table
from vmmsim.run_tables import COLUMNS, NO_CAUSE, OFF, ORDERS, OUTCOMES

Row = Mapping[str, Any]

SUMS: Final = (
    (("accesses",), "=", ("l1_hits", "l2_hits", "segment_0d", "walks")),
    (("walks",), "=", ("walk_guest", "walk_nested", "walk_both")),
    (("l2_misses", "rewalks"), "=", ("segment_0d", "walks")),
    (("dirty_walks",), "<=", ("rewalks",)),
    (("l2_hits", "l2_misses"), "<=", ("data_l1_misses", "instruction_l1_misses")),
    (("data_l1_misses", "instruction_l1_misses"), "<=", ("l2_hits", "l2_misses", "rewalks")),
    (("false_escapes",), "<=", ("escapes",)),
    (("escapes",), "<=", ("checks_failed",)),
    (("references",), "=", ("guest_references", "nested_references")),
    (("references_from_memory",), "<=", ("references",)),
)
"""Sums that hold between counters (docs/engine.md)."""
_NEVER_FALLS: Final = (
    "bad_frames", "moved_bytes", "full_scans", "ksmd_ns", "unshared_writes", "unsharing_ns", "refused_pinned_vmm",
)  # fmt: skip
_TOLD: Final = 5
"""As many rows as are told of one table that have the same thing wrong with them."""


@attrs.frozen
class Finding:
    """One thing that is wrong with a result."""

    where: str
    """File or table, and row where it is one."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def check(folder: str | Path) -> list[Finding]:
    """Return all that is wrong with the result saved in ``folder``, in order; ``BadInput`` if there is no result."""
    place = Path(folder)
    read_json(place)
    missing = list(_unreadable(place))
    return missing or list(check_result(load(place), read_json(place)))


def check_result(result: Result, told: Row) -> Iterator[Finding]:
    """Yield all that is wrong with a result's tables, and with what ``result.json`` has ``told`` of them."""
    rows = {name: result[name].to_pylist() for name in TABLES}
    for name in ("vms", "host", "decisions"):
        yield from _few(_times(name, rows[name], result.end_ns))
    for name in TABLES:
        yield from _few(_negative(name, rows[name]))
    known = {OFF, *MODES, *result.scenario.get("mode", {})}
    yield from _few(_modes(rows["vms"], known))
    yield from _few(_bounds(rows["vms"]))
    yield from _few(_host(rows["host"]))
    yield from _few(_memory(rows["vms"], rows["host"], result.scenario))
    yield from _few(_decisions(rows["decisions"]))
    yield from _few(_counters(rows["walks"]))
    if result.digest != told["digest"]:
        yield Finding("result.json", f"its digest is {told['digest'][:16]}, that of its tables {result.digest[:16]}")
    for name in TABLES:
        if told["tables"].get(name) != len(rows[name]):
            yield Finding("result.json", f"{name} has {len(rows[name])} rows, not {told['tables'].get(name)}")
    if told["summary"] != _plain(result.summary):
        yield Finding("result.json", "its summary is not that of its tables")


def _plain(summary: dict[str, Any]) -> Any:
    import json

    return json.loads(json.dumps(summary))


def _few(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the first few, and how many more there are."""
    found = list(findings)
    yield from found[:_TOLD]
    if len(found) > _TOLD:
        yield Finding(found[0].where.split("[")[0], f"{len(found) - _TOLD} more like these")


def _unreadable(place: Path) -> Iterator[Finding]:
    for name in TABLES:
        try:
            read_table(place, name)
        except BadInput as bad:
            yield from (Finding(f"{name}.parquet", problem.message) for problem in bad.problems)


def _times(name: str, rows: list[Row], end_ns: int) -> Iterator[Finding]:
    """Times never fall, and lie within the run; no VM, and not the host, has two rows of one time."""
    before, last = 0, {"": -1}
    for number, row in enumerate(rows):
        now = row["t_ns"]
        if now < before:
            yield Finding(f"{name}[{number}]", f"is of {now} ns, after a row of {before} ns")
        if not 0 <= now <= end_ns:
            yield Finding(f"{name}[{number}]", f"is of {now} ns, outside the run of {end_ns} ns")
        of = row.get("vm", "")
        if name != "decisions" and last.get(of, -1) == now:
            yield Finding(f"{name}[{number}]", f"is the second of {now} ns")
        before, last[of] = now, now


def _negative(name: str, rows: list[Row]) -> Iterator[Finding]:
    """No amount is negative."""
    columns = [column.name for column in COLUMNS[name] if column.kind == "integer" and column.name != "cause"]
    for number, row in enumerate(rows):
        for column in columns:
            if row[column] < 0:
                yield Finding(f"{name}[{number}]", f"{column} is {row[column]}")


def _modes(rows: list[Row], known: set[str]) -> Iterator[Finding]:
    for number, row in enumerate(rows):
        for column in ("mode", "mode_wanted"):
            if row[column] not in known:
                yield Finding(f"vms[{number}]", f'{column} is "{row[column]}", which is no mode')


def _bounds(rows: list[Row]) -> Iterator[Finding]:
    """What is part of something is not more than it; work done never falls while a VM runs."""
    last: dict[str, Row] = {}
    for number, row in enumerate(rows):
        mean, low, high = row["overhead"], row["overhead_low"], row["overhead_high"]
        if mean is not None and ((low is not None and low > mean) or (high is not None and high < mean)):
            yield Finding(f"vms[{number}]", f"overhead {mean} is outside its interval, {low} to {high}")
        if row["reusable_bytes"] > row["balloon_bytes"]:
            yield Finding(f"vms[{number}]", "more is reusable than the balloon holds")
        before = last.get(row["vm"])
        if before and before["mode"] != OFF and row["mode"] != OFF and row["progress"] < before["progress"]:
            yield Finding(f"vms[{number}]", f"progress falls from {before['progress']} to {row['progress']}")
        last[row["vm"]] = row


def _host(rows: list[Row]) -> Iterator[Finding]:
    """Free memory is what its blocks and its largest run allow; what only grows does not fall."""
    for number, row in enumerate(rows):
        in_blocks = sum(row[f"free_blocks_{order}"] << order for order in range(ORDERS)) * PAGE_BYTES
        for part, what in ((in_blocks, "free blocks"), (row["largest_free_bytes"], "the largest free run")):
            if part > row["free_bytes"]:
                yield Finding(f"host[{number}]", f"{what}: {part} bytes, but {row['free_bytes']} are free")
        if row["unusable_2m"] is not None and not 0 <= row["unusable_2m"] <= 1:
            yield Finding(f"host[{number}]", f"unusable_2m is {row['unusable_2m']}, not a share")
    for number, (before, row) in enumerate(itertools.pairwise(rows), start=1):
        for column in _NEVER_FALLS:
            if row[column] < before[column]:
                yield Finding(f"host[{number}]", f"{column} falls from {before[column]} to {row[column]}")


def _memory(vms: list[Row], host: list[Row], scenario: Row) -> Iterator[Finding]:
    """At any one time for which all have a row, VMs, tables, bad and free memory are not more than the host has."""
    memory = _memory_of(scenario)
    held: dict[str, Row] = {}
    following = iter([*vms, None])
    row = next(following)
    for number, at in enumerate(host if memory is not None else []):
        while row is not None and row["t_ns"] <= at["t_ns"]:
            held[row["vm"]] = row
            row = next(following)
        running = [of for of in held.values() if of["mode"] != OFF]
        if any(of["t_ns"] != at["t_ns"] for of in running):
            continue
        used = sum(of["resident_bytes"] - of["shared_bytes"] for of in running)
        whole = used + at["page_table_bytes"] + at["bad_frames"] * PAGE_BYTES + at["free_bytes"]
        if memory is not None and whole > memory:
            yield Finding(f"host[{number}]", f"{whole} bytes are accounted for, but the host has {memory}")


def _memory_of(scenario: Row) -> int | None:
    try:
        return parse_bytes(scenario["host"]["memory"])
    except (BadInput, KeyError, TypeError):
        return None


def _decisions(rows: list[Row]) -> Iterator[Finding]:
    for number, row in enumerate(rows):
        if row["outcome"] not in OUTCOMES:
            yield Finding(f"decisions[{number}]", f'outcome is "{row["outcome"]}"')
        if not NO_CAUSE <= row["cause"] < number:
            yield Finding(f"decisions[{number}]", f"its cause is {row['cause']}, which is not an earlier decision")


def _counters(rows: list[Row]) -> Iterator[Finding]:
    for number, row in enumerate(rows):
        for left, relation, right in SUMS:
            one, other = (sum(row[name] for name in names) for names in (left, right))
            if one > other or (relation == "=" and one != other):
                sums = f"{' + '.join(left)} {relation} {' + '.join(right)}"
                yield Finding(f"walks[{number}]", f"{sums} does not hold: {one} and {other}")
