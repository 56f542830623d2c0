"""What a run leaves behind: decisions as they are made, and time series of VMs and host.

Rows are cheap appends. Times come from a clock that whoever runs the simulation sets, so that no actor passes one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from vmmsim.run_tables import (
    AS_IF,
    COUNTERS,
    DECISIONS,
    HOST,
    NATIVE_TWIN,
    NO_CAUSE,
    OFF,
    OUTCOMES,
    THE_VM,
    WALKS,
    Column,
    Outcome,
    arrow_table,
    as_if_column,
    digest,
    vms_columns,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "AS_IF",
    "NATIVE_TWIN",
    "NO_CAUSE",
    "OFF",
    "OUTCOMES",
    "THE_VM",
    "Decision",
    "NullRecorder",
    "Outcome",
    "Recorder",
    "SimulationFailed",
]

CRASH_DECISIONS: Final = 100
"""Decisions that are kept of a run that failed."""


@attrs.frozen
class Decision:
    """One row of the decisions table, and its number."""

    row: int
    t_ns: int
    actor: str
    vm: str
    verb: str
    asked: str
    got: str
    outcome: Outcome
    why: str
    cost_ns: int
    cause: int

    def __str__(self) -> str:
        amount = f" {self.asked}" if self.asked else ""
        got = f", got {self.got}" if self.got else ""
        of = f" of {self.vm}" if self.vm else ""
        return f"{self.t_ns} ns {self.actor}: {self.verb}{of}{amount}: {self.outcome}{got}" + (
            f": {self.why}" if self.why else ""
        )


class _Series:
    """Rows of one thing over time: a value holds until it is given anew, and a row that repeats is dropped."""

    def __init__(self, columns: Sequence[Column], rows: list[list[Any]], named: Mapping[str, Any]) -> None:
        self._columns = columns
        self._place = {column.name: at for at, column in enumerate(columns)}
        self._rows = rows  # shared by all things of one table
        blank = {"integer": 0, "text": "", "real": None}
        self._now: list[Any] = [blank[column.kind] for column in columns]
        self._last: list[Any] | None = None
        self._set(named)

    def add(self, t_ns: int, values: Mapping[str, Any]) -> None:
        """Let ``values`` hold from ``t_ns`` on; a second row of one instant replaces the first."""
        self._set(values)
        last, now = self._last, self._now
        if last is not None and last[1:] == now[1:]:
            return
        now[0] = t_ns
        if last is not None and last[0] == t_ns:
            last[:] = now
            return
        assert last is None or last[0] < t_ns, f"row of {t_ns} ns after one of {last[0]} ns"
        self._last = now.copy()
        self._rows.append(self._last)

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            at = self._place.get(name)
            if not at:
                raise ValueError(f"{name} is not a column that can be set")
            kind = self._columns[at].kind
            if kind == "integer":
                self._now[at] = operator.index(value)
            elif kind == "text":
                self._now[at] = str(value)
            else:
                self._now[at] = None if value is None or math.isnan(value) else float(value)


class Recorder:
    """Collects the tables of one run. ``now_ns`` is the clock; as_if: the modes of ``measure.as_if``."""

    def __init__(self, now_ns: Callable[[], int] = lambda: 0, *, as_if: Sequence[str] = ()) -> None:
        self.now_ns = now_ns
        self.vms_columns = vms_columns(as_if)
        self._decisions: list[tuple[Any, ...]] = []
        self._vms: list[list[Any]] = []
        self._vm: dict[str, _Series] = {}
        self._host_rows: list[list[Any]] = []
        self._host = _Series(HOST, self._host_rows, {})
        self._walks: dict[tuple[str, str, str], dict[str, int]] = {}

    def decide(
        self,
        actor: str,
        verb: str,
        *,
        outcome: Outcome,
        vm: str = "",
        asked: str = "",
        got: str = "",
        why: str = "",
        cost_ns: int = 0,
        cause: int = NO_CAUSE,
    ) -> int:
        """Record one decision, now, and return its row number, to be the ``cause`` of what follows from it."""
        row = len(self._decisions)
        assert outcome in OUTCOMES, outcome
        assert NO_CAUSE <= cause < row, f"decision {row} cannot come from {cause}"
        now = operator.index(self.now_ns())
        self._decisions.append((now, actor, vm, verb, asked, got, outcome, why, operator.index(cost_ns), int(cause)))
        return row

    def vm_row(self, vm: str, *, as_if: Mapping[str, float | None] | None = None, **columns: Any) -> None:
        """Let columns of the vms table hold for ``vm`` from now on; the others keep their values.

        Rows are written when their values begin to hold: ``overhead`` is of the work done from here to the next row,
        ``progress`` what was done before. ``as_if``: overhead by mode. A run ends with a row of every VM that runs.
        """
        for mode, overhead in (as_if or {}).items():
            columns[as_if_column(mode)] = overhead
        series = self._vm.get(vm)
        if series is None:
            series = self._vm[vm] = _Series(self.vms_columns, self._vms, {"vm": vm})
        series.add(operator.index(self.now_ns()), columns)

    def host_row(self, *, free_blocks: Sequence[int] | None = None, **columns: Any) -> None:
        """Let columns of the host table hold from now on; ``free_blocks``: all eleven orders at once."""
        for order, count in enumerate(() if free_blocks is None else free_blocks):
            columns[f"free_blocks_{order}"] = count
        self._host.add(operator.index(self.now_ns()), columns)

    def walks(self, vm: str, mode: str, level: str, counters: Mapping[str, int]) -> None:
        """Add counters, named as the engine's, to those of ``vm`` in ``mode`` on that copy of the hardware."""
        held = self._walks.setdefault((vm, mode, level), dict.fromkeys(COUNTERS, 0))
        for name, count in counters.items():
            if name not in held:
                raise ValueError(f"{name} is not a counter")
            if name != "references":
                held[name] += operator.index(count)
        held["references"] = held["guest_references"] + held["nested_references"]

    def __len__(self) -> int:
        """Return how many decisions there are."""
        return len(self._decisions)

    def decision(self, row: int) -> Decision:
        """Return one decision by its row number."""
        return Decision(range(len(self._decisions))[row], *self._decisions[row])

    def last(self, count: int) -> list[Decision]:
        """Return the last ``count`` decisions, or all if there are fewer."""
        return [self.decision(row) for row in range(max(0, len(self) - count), len(self))]

    def digest(self) -> str:
        """Return the digest of what happened, 64 hexadecimal digits: see ``digest``."""
        return digest(self._decisions, self._walk_rows())

    def tables(self) -> dict[str, pa.Table]:
        """Return the tables vms, host, decisions and walks; rows in order of time, walks in order of their names."""
        rows: dict[str, Sequence[Sequence[Any]]] = {
            "vms": self._vms, "host": self._host_rows, "decisions": self._decisions, "walks": self._walk_rows()
        }  # fmt: skip
        return {
            name: arrow_table(name, columns, rows[name])
            for name, columns in (
                ("vms", self.vms_columns), ("host", HOST), ("decisions", DECISIONS), ("walks", WALKS)
            )
        }  # fmt: skip

    def _walk_rows(self) -> list[tuple[Any, ...]]:
        return [(*key, *(self._walks[key][name] for name in COUNTERS)) for key in sorted(self._walks)]


class NullRecorder(Recorder):
    """Takes everything and keeps nothing: for actors that run by themselves."""

    def decide(self, actor: str, verb: str, **_: Any) -> int:
        """Return the row number that stands for no decision."""
        return NO_CAUSE

    def vm_row(self, vm: str, **_: Any) -> None:
        """Do nothing."""

    def host_row(self, **_: Any) -> None:
        """Do nothing."""

    def walks(self, vm: str, mode: str, level: str, counters: Mapping[str, int]) -> None:
        """Do nothing."""


class SimulationFailed(RuntimeError):
    """Raised from an error of ours in the middle of a run; carries what it takes to find it.

    ``t_ns`` simulated time; ``decisions`` the last CRASH_DECISIONS.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.t_ns = recorder.now_ns()
        self.decisions = recorder.last(CRASH_DECISIONS)
        super().__init__(f"the model failed at {self.t_ns} ns")
