"""What a run comes down to, in numbers: computed from its tables, and from nothing else.

Shares are fractions of 1, times nanoseconds, means weighted by work done. None: not known, or it never happened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.addresses import PAGE_BYTES
from vmmsim.lives import Life, lives
from vmmsim.run_tables import NO_CAUSE, THE_VM

if TYPE_CHECKING:
    import pyarrow as pa

    from vmmsim.lives import Mask, Reals

Row = dict[str, Any]

BASE: Final = "base"
"""The mode that every VM could have had instead."""
LISTED: Final = 20
"""As many kinds of refusal, and of failure, as a summary lists."""
UNKNOWN: Final = 0.01
"""Share of walk cycles that may lie in rows without an interval."""


def summarize(tables: Mapping[str, pa.Table], end_ns: int) -> dict[str, Any]:
    """Return the summary of a run that ended at ``end_ns``: its VMs, its host and its decisions, as plain data."""
    decisions = tables["decisions"].to_pylist()
    walks = tables["walks"].to_pylist()
    stalls = _stalls(decisions)
    return {
        "end_ns": end_ns,
        "vm": {
            vm: of_vm(life, decisions, walks, stalls.get(vm, {})) for vm, life in lives(tables["vms"], end_ns).items()
        },
        "host": of_host(tables["host"], decisions),
        "decisions": of_decisions(decisions),
    }


def of_vm(life: Life, decisions: list[Row], walks: list[Row], stalls: Mapping[str, int]) -> dict[str, Any]:
    """Return the summary of one VM; ``stalls``: the time that decisions about it took, by verb."""
    counted = [row for row in walks if row["vm"] == life.vm and row["level"] == THE_VM]
    running_ns = int(life.span_ns[life.running].sum())
    return {
        **_wish(life),
        "running_ns": running_ns,
        "work": int(life.work[life.running].sum()),
        "time_in_mode_ns": _time_in_mode(life),
        "overhead": overhead(life, life.running),
        "overhead_by_mode": {mode: overhead(life, life.mode == mode)["mean"] for mode in _modes(life)},
        "as_if": _as_if(life),
        "waiting": waiting(life),
        **repaid(life, decisions),
        "stall_ns": dict(stalls),
        "stall_share": {verb: ns / running_ns for verb, ns in stalls.items()} if running_ns else {},
        "refs_per_walk": {row["mode"]: row["references"] / row["walks"] for row in counted if row["walks"]},
        "escapes": sum(row["escapes"] for row in counted),
        "false_escapes": sum(row["false_escapes"] for row in counted),
        "escaped_pages_most": int(life.columns["escaped_pages"].max()),
    }


def _modes(life: Life) -> list[str]:
    return list(dict.fromkeys(life.mode[life.running].tolist()))


def _time_in_mode(life: Life) -> dict[str, int]:
    return {mode: int(life.span_ns[life.mode == mode].sum()) for mode in _modes(life)}


def _wish(life: Life) -> dict[str, Any]:
    """Return what the VM wanted, when it first had it, and how long it did without.

    ``waited_ns`` ends when the VM first has its mode, ``without_ns`` is all the time that it runs without, later
    losses included; ``in_mode`` is the share of its time in which it has its mode.
    """
    first_on = int(np.argmax(life.running)) if life.running.any() else None
    first_had = int(np.argmax(life.had)) if life.had.any() else None
    before = np.arange(life.mode.size) < (life.mode.size if first_had is None else first_had)
    running_ns = int(life.span_ns[life.running].sum())
    lost = life.had[:-1] & life.waiting[1:] & (life.wanted[1:] == life.wanted[:-1])
    wanted = life.wanted[life.wanted != ""]
    return {
        "mode_wanted": str(wanted[-1]) if wanted.size else "",
        "booted_ns": None if first_on is None else int(life.start_ns[first_on]),
        "had_from_ns": None if first_had is None else int(life.start_ns[first_had]),
        "waited_ns": int(life.span_ns[before & life.waiting].sum()),
        "without_ns": int(life.span_ns[life.waiting].sum()),
        "in_mode": int(life.span_ns[life.had].sum()) / running_ns if running_ns else None,
        "lost_ns": life.start_ns[1:][lost].tolist(),
    }


def overhead(life: Life, rows: Mask) -> dict[str, float | None]:
    """Return mean overhead in ``rows``, and bounds: the means of both ends of the rows' intervals.

    The bounds hold even if the rows err all to one side, so that they are wider than an interval need be. Rows that
    have no interval, for want of samples, are taken together with those after them (``_bounds``). The
    bounds are None if rows without an interval have more than a hundredth of all walk cycles even so: the others' say
    nothing of those.
    """
    values = life.columns["overhead"]
    rows = rows & life.running & ~np.isnan(values)
    found = {"mean": life.mean(values, rows)}
    for name, ends in zip(("low", "high"), _bounds(life), strict=True):
        without = np.where(np.isnan(ends), values, 0.0)
        unknown, mean = life.mean(without, rows), found["mean"]
        known = mean is not None and unknown is not None and unknown <= UNKNOWN * mean
        found[name] = life.mean(ends, rows) if known else None
    return found


def _bounds(life: Life) -> tuple[Reals, Reals]:
    """Return both ends of each row's interval; NaN where there is none.

    An interval is of all that was sampled up to its row. So in a time in one mode, rows without one are within the next
    that there is, as a share of what they are.
    """
    values, low, high = (life.columns[name].copy() for name in ("overhead", "overhead_low", "overhead_high"))
    changed = np.flatnonzero(life.mode[1:] != life.mode[:-1]) + 1
    for span in np.split(np.arange(life.mode.size), changed):
        told = span[~np.isnan(high[span]) & (values[span] > 0)]
        untold = span[np.isnan(high[span])]
        untold = untold[untold < told[-1]] if told.size else untold[:0]
        after = told[np.searchsorted(told, untold)] if untold.size else untold
        for ends in (low, high):
            ends[untold] = values[untold] * ends[after] / values[after]
    return low, high


def _as_if(life: Life) -> dict[str, float | None]:
    start = "overhead_as_if_"
    names = [name for name in life.columns if name.startswith(start)]
    return {name.removeprefix(start).replace("_", "-"): life.mean(life.columns[name], life.running) for name in names}


def waiting(life: Life) -> dict[str, Any]:
    """Return what it cost the VM to run without the mode that it wants, or None for what cannot be known.

    ``share``: overhead beyond that of the wanted mode, of the work done meanwhile. ``time_ns``: the same as time.
    ``basis``: what is taken for the wanted mode's overhead, "as if" (measured for the same accesses) or "once had"
    (the mean of the time in which the VM had it).
    """
    basis = "as if"
    wanted = wanted_overhead(life)
    if np.isnan(wanted[life.waiting]).all():
        basis, once = "once had", life.mean(life.columns["overhead"], life.had)
        wanted = np.full(wanted.size, np.nan if once is None else once)
    beyond = life.columns["overhead"] - wanted
    share = life.mean(beyond, life.waiting)
    if share is None:
        return {"share": None, "time_ns": None, "basis": None}
    known = life.waiting & ~np.isnan(beyond)
    return {"share": share, "time_ns": round(float(_time(life, beyond)[known].sum())), "basis": basis}


def wanted_overhead(life: Life) -> Reals:
    """Return, row by row, the overhead as if in the mode that the VM wants then; NaN where it was not measured."""
    found = np.full(life.start_ns.size, np.nan)
    for mode in set(life.wanted.tolist()):
        found = np.where(life.wanted == mode, life.as_if(mode), found)
    return found


def _time(life: Life, difference: Reals) -> Reals:
    """Return the time of each row that a difference of overhead makes: a row's ideal time is dt / (1 + overhead)."""
    return np.asarray(difference * life.span_ns / (1 + life.columns["overhead"]))


def repaid(life: Life, decisions: list[Row]) -> dict[str, int | None]:
    """Return how long getting the wanted mode took, and when what was gained had repaid as much.

    That is on the safe side: while the host copies, the program goes on.

    The gain is against base virtualization, as if, from the start: what a mode on the way there saves counts too.
    Where base was not measured it is against the mode before, as it was measured last, and from the change on.
    """
    none = {"getting_there_ns": None, "repaid_at_ns": None}
    if not life.had.any() or not life.running[: (switch := int(np.argmax(life.had)))].any():
        return {**none}
    after = np.arange(life.mode.size) >= switch
    cost = _getting_there(life.vm, int(life.start_ns[switch]), decisions)
    reference, counts = life.as_if(BASE), life.running
    if np.isnan(reference[after]).all():
        before = life.columns["overhead"][:switch][life.running[:switch]]
        known = before[~np.isnan(before)]
        reference, counts = np.full(after.size, known[-1] if known.size else np.nan), life.running & after
    gain = np.where(counts, np.nan_to_num(_time(life, reference - life.columns["overhead"])), 0.0)
    total = np.cumsum(gain)
    enough = np.flatnonzero(after & (total > cost))
    if not enough.size:
        return {"getting_there_ns": cost, "repaid_at_ns": None}
    row = int(enough[0])
    share = 1 - min((float(total[row]) - cost) / float(gain[row]), 1.0) if gain[row] > 0 else 0.0
    return {
        "getting_there_ns": cost,
        "repaid_at_ns": round(float(life.start_ns[row]) + share * float(life.span_ns[row])),
    }


def _getting_there(vm: str, until_ns: int, decisions: list[Row]) -> int:
    """Return how long decisions took, up to a time: those about ``vm``, and those these led to."""
    mine: set[int] = set()
    cost = 0
    for number, row in enumerate(decisions):
        if row["t_ns"] > until_ns:
            break
        if row["vm"] == vm or row["cause"] in mine:
            mine.add(number)
            cost += row["cost_ns"]
    return cost


def _stalls(decisions: list[Row]) -> dict[str, Counter[str]]:
    """Return, for each VM, the time that decisions about it took, by verb."""
    stalls: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in decisions:
        if row["cost_ns"]:
            stalls[row["vm"]][row["verb"]] += row["cost_ns"]
    return stalls


def of_host(host: pa.Table, decisions: list[Row]) -> dict[str, Any]:
    """Return the summary of the host: memory and contiguity at the start, at the end, and at their worst."""
    names = ("free_bytes", "largest_free_bytes", "unusable_2m", "page_table_bytes")
    rows = host.select([*names, "bad_frames", "moved_bytes"]).to_pydict()
    found: dict[str, Any] = {name: _course(rows[name]) for name in names}
    for name in ("bad_frames", "moved_bytes"):
        found[name] = rows[name][-1] if rows[name] else 0
    faults = sum(row["verb"] == "fault" and row["cause"] == NO_CAUSE for row in decisions)
    return {**found, "faults": faults, "sharing": of_sharing(host)}


def of_sharing(host: pa.Table) -> dict[str, Any] | None:
    """Return what page sharing saved and what it cost; None where it was off."""
    totals = ("full_scans", "ksmd_ns", "unshared_writes", "unsharing_ns", "refused_pinned_vmm", "general_profit")
    rows = host.select(["pages_sharing", *totals]).to_pydict()
    if not any(rows["ksmd_ns"]):
        return None
    saved = _course([pages * PAGE_BYTES for pages in rows["pages_sharing"]])
    return {"saved_bytes": saved, **{name: rows[name][-1] for name in totals}}


def _course(values: list[Any]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "start": known[0] if known else None,
        "end": known[-1] if known else None,
        "least": min(known, default=None),
        "most": max(known, default=None),
    }


def of_decisions(decisions: list[Row]) -> dict[str, Any]:
    """Return how many decisions ended how, and which were declined or failed, the most frequent first."""
    counted: dict[tuple[str, ...], Row] = {}
    for row in decisions:
        key = tuple(row[name] for name in ("outcome", "actor", "vm", "verb", "why"))
        held = counted.setdefault(key, {name: row[name] for name in ("outcome", "actor", "vm", "verb", "why")})
        held["count"] = held.get("count", 0) + 1
        held.setdefault("first_ns", row["t_ns"])
    listed = sorted(counted.values(), key=lambda row: -row["count"])
    return {
        "count": len(decisions),
        "outcomes": dict(Counter(row["outcome"] for row in decisions)),
        "refusals": [row for row in listed if row["outcome"] == "refused"][:LISTED],
        "failures": [row for row in listed if row["outcome"] == "failed"][:LISTED],
    }
