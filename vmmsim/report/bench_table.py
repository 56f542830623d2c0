"""The benchmark as tables in the terminal: rates and ratios, then how long a start takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from vmmsim.addresses import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmmsim.studies.bench import Rate
    from vmmsim.studies.start_time import StartTimes


def rates_table(rates: Sequence[Rate]) -> Table:
    """Return a row for each mode and stream; without a C program its two columns are left out."""
    rivalled = rates[0].ratio is not None
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    made.title = "million accesses translated per second" + (
        ", page tables and data through the caches" * rates[0].hierarchy
    )
    for name in ("mode", "stream"):
        made.add_column(name, no_wrap=True)
    for name in ("L1 misses", "both miss", "vmmsim", *(("C", "ratio") if rivalled else ())):
        made.add_column(name, justify="right", no_wrap=True)
    before = ""
    for rate in rates:
        if before and rate.mode != before:
            made.add_section()
        cells = [f"{rate.l1_misses:.1%}", f"{rate.l2_misses:.1%}", f"{rate.accesses_per_second / 1e6:.1f}"]
        if rate.c_accesses_per_second is not None:
            cells += [f"{rate.c_accesses_per_second / 1e6:.1f}", f"{rate.ratio:.2f}"]
        made.add_row("" if rate.mode == before else rate.mode, rate.stream, *cells)
        before = rate.mode
    return made


def verdict(mean: float | None, smallest: float | None, compiler: str | None) -> str:
    """Return the line below the rates: how they compare with the C program's, or why they do not."""
    if compiler is None or mean is None or smallest is None:
        return "No ratios: the C program comes with the source and needs a C compiler."
    return (
        f"vmmsim to C ({compiler}): geometric mean {mean:.2f}, smallest {smallest:.2f}; "
        "both did the same work, counter for counter and entry for entry."
    )


def start_lines(start: StartTimes) -> Iterator[str]:
    """Yield what was measured of the start."""
    yield f"vmmsim --help: {start.help_seconds:.2f} s"
    memory = format_bytes(start.peak_bytes)
    yield f"first access, kernels cached: {start.first_access_seconds:.2f} s, {memory} of memory"
    if start.cold_first_access_seconds is not None:
        yield f"first access, everything compiled anew: {start.cold_first_access_seconds:.1f} s"
