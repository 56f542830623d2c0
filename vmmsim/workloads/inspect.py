"""All that one pass over a trace tells: totals, and how soon pages are used again."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from vmmsim.errors import BadInput
from vmmsim.translation.chunk import FETCH
from vmmsim.workloads.counts import Counts, Tally
from vmmsim.workloads.parquet import ParquetTrace
from vmmsim.workloads.reuse import Reuse, ReuseMeter
from vmmsim.workloads.save import Progress
from vmmsim.workloads.trace import Trace


@attrs.frozen(kw_only=True)
class Inspection:
    """What a trace holds."""

    trace: Trace
    """The trace itself."""
    counts: Counts
    """Its totals."""
    reuse: dict[str, Reuse]
    """Misses by TLB size, for "data" and "instructions", whichever there are."""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON; sizes of TLBs are strings, as JSON's keys are."""
        about = self.trace.about if isinstance(self.trace, ParquetTrace) else None
        return {
            "path": str(self.trace.path),
            "format": self.trace.format,
            "recorded_as": about.recorded_as if about else self.trace.format,
            "command": about.command if about else "",
            "complete": about.complete if about else True,
            "weighted": self.trace.weighted,
            "notes": list(self.trace.notes),
            "counts": self.counts.as_dict(),
            "reuse": {name: attrs.asdict(part) for name, part in self.reuse.items()},
        }


def inspect(trace: Trace, *, progress: Progress | None = None) -> Inspection:
    """Read all of ``trace`` and return what it holds; ``BadInput`` where it is damaged.

    A trace of our own must also have the SHA-256 that its description gives.
    """
    digest = hashlib.sha256()
    tally = Tally(trace.levels)
    meters = {"data": ReuseMeter(), "instructions": ReuseMeter()}
    for runs in trace.runs("all", tally):
        digest.update(runs.astype("<i8", copy=False).data)
        fetch = (runs & FETCH) != 0
        meters["data"].add(runs[~fetch])
        meters["instructions"].add(runs[fetch])
        if progress is not None:
            progress(tally.accesses)
    if isinstance(trace, ParquetTrace) and trace.levels == trace.about.levels:
        _require_digest(trace, digest.hexdigest())
    reuse = {name: part for name, meter in meters.items() if (part := meter.reuse()).accesses}
    return Inspection(trace=trace, counts=tally.counts(), reuse=reuse)


def _require_digest(trace: ParquetTrace, digest: str) -> None:
    if digest != trace.sha256:
        raise BadInput(
            f"its runs have SHA-256 {digest[:12]}, its description says {trace.sha256[:12]}; record it again",
            file=trace.path,
        )
