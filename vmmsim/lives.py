"""The vms table, VM by VM: what held from when to when, and how much work was done meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import numpy as np

from vmmsim.run_tables import OFF, VMS, as_if_column

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Reals = NDArray[np.float64]
    Whole = NDArray[np.int64]


class Span(NamedTuple):
    """A time [start_ns, end_ns) in which mode had and mode wanted stay the same."""

    start_ns: int
    end_ns: int
    mode: str
    wanted: str


@attrs.frozen(eq=False)
class Life:
    """The rows of one VM; every array has one value a row, and row i holds during [start_ns[i], end_ns[i])."""

    vm: str
    start_ns: Whole
    end_ns: Whole
    mode: NDArray[np.str_]
    wanted: NDArray[np.str_]
    work: Whole
    """Accesses done while the row held; 0 for the last one."""
    columns: dict[str, NDArray[Any]]
    """The other columns; what is unknown is NaN."""

    @property
    def span_ns(self) -> Whole:
        """How long each row held."""
        return self.end_ns - self.start_ns

    @property
    def running(self) -> Mask:
        """Rows in which the VM runs."""
        return np.asarray(self.mode != OFF)

    @property
    def had(self) -> Mask:
        """Rows in which the VM has the mode that it wants."""
        return np.asarray(self.running & (self.mode == self.wanted))

    @property
    def waiting(self) -> Mask:
        """Rows in which the VM runs without the mode that it wants."""
        return np.asarray(self.running & (self.mode != self.wanted) & (self.wanted != ""))

    def as_if(self, mode: str) -> Reals:
        """Return the overhead as if in ``mode``; NaN where that was not measured."""
        unknown = np.full(self.start_ns.size, np.nan)
        return self.columns.get(as_if_column(mode), unknown)

    def mean(self, values: Reals, rows: Mask) -> float | None:
        """Return the mean of what is known of ``values`` in ``rows``, weighted by work; None if nothing is.

        Where no work was done the weight is time.
        """
        known = rows & ~np.isnan(values)
        weights = self.work[known].astype(float)
        if not weights.any():
            weights = self.span_ns[known].astype(float)
        return float(np.average(values[known], weights=weights)) if weights.any() else None

    def spans(self) -> Iterator[Span]:
        """Yield the longest spans of one mode and one wish, in order."""
        changed = (self.mode[1:] != self.mode[:-1]) | (self.wanted[1:] != self.wanted[:-1])
        firsts = np.concatenate(([0], np.flatnonzero(changed) + 1))
        lasts = np.concatenate((firsts[1:] - 1, [self.mode.size - 1]))
        for first, last in zip(firsts, lasts, strict=True):
            mode, wanted = str(self.mode[first]), str(self.wanted[first])
            yield Span(int(self.start_ns[first]), int(self.end_ns[last]), mode, wanted)


def lives(vms: pa.Table, end_ns: int) -> dict[str, Life]:
    """Return the life of every VM of the vms table of a run that ended at ``end_ns``, in order of their first rows."""
    names = np.array(vms.column("vm").to_pylist(), dtype=np.str_)
    columns = {name: _numbers(vms, name) for name in vms.column_names if name not in ("vm", "mode", "mode_wanted")}
    mode, wanted = (np.array(vms.column(name).to_pylist(), dtype=np.str_) for name in ("mode", "mode_wanted"))
    return {
        vm: _life(vm, np.flatnonzero(names == vm), mode, wanted, columns, end_ns)
        for vm in dict.fromkeys(names.tolist())
    }


def _numbers(vms: pa.Table, name: str) -> NDArray[Any]:
    integer = any(column.name == name and column.kind == "integer" for column in VMS)
    values = vms.column(name).to_numpy()
    return values.astype(np.int64 if integer else np.float64)  # type: ignore[no-any-return]


def _life(
    vm: str, rows: Whole, mode: NDArray[np.str_], wanted: NDArray[np.str_], columns: dict[str, Any], end_ns: int
) -> Life:
    mine = {name: values[rows] for name, values in columns.items()}
    start = mine.pop("t_ns")
    end = np.append(start[1:], max(end_ns, start[-1]))
    progress = mine["progress"]
    work = np.append(np.maximum(np.diff(progress), 0), 0)  # counted anew after a boot
    return Life(vm, start, end, mode[rows], wanted[rows], work, mine)
