"""Why things happened: the decisions behind a change, and how a decision reads as a sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from vmmsim.addresses import format_bytes, format_duration, parse_bytes
from vmmsim.config import MODES
from vmmsim.errors import BadInput
from vmmsim.report.marks import label

Row = Mapping[str, Any]

MODE: Final = "mode"
"""The verb of decisions on modes."""
CHANGES: Final = (MODE, "boot", "shutdown")
"""Verbs after which a VM may have another mode."""
NOTHING: Final = format_bytes(0)


class Reasons:
    """The decisions of a run, to be asked for reasons."""

    def __init__(self, decisions: list[dict[str, Any]]) -> None:
        self.rows = decisions
        self._changes: defaultdict[str, list[Row]] = defaultdict(list)
        for row in decisions:
            if row["outcome"] in ("done", "partial") and (row["verb"] in CHANGES or row["got"] in MODES):
                self._changes[row["vm"]].append(row)

    def of_change(self, vm: str, since_ns: int, t_ns: int, mode: str) -> Row | None:
        """Return the decision that gave ``vm`` its ``mode`` at a time; None if there is none.

        since_ns   when the VM got the mode before; a decision may stand some time before the change that it makes
        """
        since = [row for row in self._changes[vm] if since_ns < row["t_ns"] <= t_ns]
        then = [row for row in self._changes[vm] if row["t_ns"] == t_ns]
        best = [row for row in since if row["got"] == mode] or then
        return best[-1] if best else None

    def why(self, row: Row | None) -> str:
        """Return the reason of a decision: its own, and what led to it."""
        if row is None:
            return ""
        cause = self.rows[row["cause"]] if 0 <= row["cause"] < len(self.rows) else None
        if cause is None or cause["verb"] == MODE:
            return str(row["why"])
        led = sentence(cause) if row["why"] else "; ".join(filter(None, (sentence(cause), cause["why"])))
        return f"{row['why']}; after {led}" if row["why"] else f"after {led}"

    def of_headline(self, vm: str, found: Row) -> tuple[str, str]:
        """Return why ``vm`` did not get its mode, and why it first lost it; "" for what is not so."""
        why_not = why_lost = ""
        if found["had_from_ns"] is None:
            last = [row for row in self.rows if row["vm"] == vm and row["outcome"] in ("refused", "failed", "aborted")]
            why_not = last[-1]["why"] or sentence(last[-1]) if last else ""
        for at in found["lost_ns"][:1]:
            then = [row for row in self._changes[vm] if row["t_ns"] == at]
            why_lost = then[-1]["why"] or self.why(then[-1]) if then else ""
        return why_not, why_lost


def sentence(row: Row, of: str = "") -> str:
    """Return a decision in words, without its time and reason: "compactor: build of db, 64 GiB, took 9 s".

    of   whom it is about, instead of its VM
    """
    actor, verb = row["actor"].replace("-", " "), row["verb"].replace("_", " ")
    asked, got = amount(row["asked"]), amount(row["got"])
    said = verb if actor == verb else f"{row['actor']}: {verb}"
    said += f" of {of or row['vm']}" if of or row["vm"] else ""
    said += f", {asked}" if asked else ""
    if got not in ("", asked, NOTHING):
        said += f", got {got}" if asked else f", {got}"
    said += "" if row["outcome"] in ("done", "begun") else f", {row['outcome']}"
    return said + (f", took {format_duration(row['cost_ns'])}" if row["cost_ns"] else "")


def amount(text: str) -> str:
    """Return what a decision asked or got as people read it: a size, a mode, or what it says."""
    if text in MODES:
        return label(text)
    try:
        return format_bytes(parse_bytes(text)) if text.endswith("B") else text
    except BadInput:
        return text
