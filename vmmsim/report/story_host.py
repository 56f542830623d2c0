"""The host of a run over time: where its memory is, and how contiguous what is free."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.text import Text

from vmmsim.addresses import PAGE_BYTES, format_bytes, format_duration
from vmmsim.report import theme
from vmmsim.report.marks import Grid, levels
from vmmsim.run_tables import ORDERS

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from vmmsim.lives import Life

    Reals = NDArray[np.float64]

VMS: Final = 4
"""As many VMs as have a line of memory of their own."""


def memory_block(host: pa.Table, all_lives: Mapping[str, Life], host_bytes: int | None, grid: Grid) -> list[Text]:
    """Return the host's memory by kind over time, each kind on the scale of the whole host."""
    if not host.num_rows or not grid.end_ns:
        return [Text("Memory of the host: nothing was measured")]
    kinds = _kinds(host, all_lives, host_bytes, grid)
    most = float(host_bytes or np.nanmax(np.sum([np.nan_to_num(values) for values in kinds.values()], axis=0)))
    lines = [Text(f"Memory of the host, scale 0 to {format_bytes(int(most))}", style="bold")]
    for name, values in kinds.items():
        if np.nanmax(np.append(values, 0)) > 0:
            strip = levels(np.where(values > 0, values, np.nan), most, unicode=grid.unicode)
            style = theme.FAINT if name == "free" else ""
            lines.append(_row(name, strip, _from_to(values), grid, style))
    return lines


def _kinds(host: pa.Table, all_lives: Mapping[str, Life], host_bytes: int | None, grid: Grid) -> dict[str, Reals]:
    start, end = _times(host, grid)
    of_vms: dict[str, Reals] = {}
    for name, life in _families(all_lives):
        resident = np.nan_to_num(grid.means(life.start_ns, life.end_ns, life.columns["resident_bytes"]))
        of_vms[name] = of_vms.get(name, np.zeros(grid.columns)) + resident
    largest = sorted(of_vms, key=lambda vm: -float(of_vms[vm].max()))
    shown = largest if len(largest) <= VMS + 1 else largest[:VMS]
    kinds = {vm: of_vms[vm] for vm in of_vms if vm in shown}
    if rest := [of_vms[vm] for vm in of_vms if vm not in shown]:
        kinds["other VMs"] = np.sum(rest, axis=0)
    kinds["page tables"] = grid.means(start, end, _column(host, "page_table_bytes"))
    kinds["bad frames"] = grid.means(start, end, _column(host, "bad_frames")) * PAGE_BYTES
    free = grid.means(start, end, _column(host, "free_bytes"))
    if host_bytes is not None:
        kinds["other"] = np.maximum(host_bytes - free - np.sum(list(kinds.values()), axis=0), 0)
    return {**kinds, "free": free}


def _families(all_lives: Mapping[str, Life]) -> Iterator[tuple[str, Life]]:
    """Yield every life with the name under which its memory is told: web-0 to web-7 go together as "8 web"."""
    stems = {
        vm: stem if number.isdecimal() and stem else vm for vm in all_lives for stem, _, number in [vm.rpartition("-")]
    }
    many = Counter(stems.values())
    for vm, life in all_lives.items():
        yield f"{many[stems[vm]]} {stems[vm]}" if many[stems[vm]] > 1 else vm, life


def sharing_block(found: Mapping[str, Any] | None, grid: Grid) -> list[Text]:
    """Return what page sharing saved and what it cost, in a sentence; nothing where it was off."""
    if found is None:
        return []
    saved, refused = found["saved_bytes"], found["refused_pinned_vmm"]
    most = f" ({format_bytes(saved['most'])} at most)" if saved["most"] > saved["end"] else ""
    told = (
        f"Page sharing saves {format_bytes(saved['end'])} at the end{most}, at the cost of "
        f"{format_duration(found['ksmd_ns'])} of ksmd in {found['full_scans']} full scans and of "
        f"{found['unshared_writes']} writes that had to copy first, {format_duration(found['unsharing_ns'])} in all"
        + (f"; {refused} merges were refused under VMM segments" if refused else "")
        + "."
    )
    return [Text(line) for line in textwrap.wrap(told, grid.width, subsequent_indent="  ")]


def contiguity_block(host: pa.Table, found: Mapping[str, Any], grid: Grid) -> list[Text]:
    """Return how contiguous the host's free memory is over time, and by order at the start and at the end."""
    if not host.num_rows or not grid.end_ns:
        return []
    start, end = _times(host, grid)
    moved = f"; {format_bytes(found['moved_bytes'])} moved" if found["moved_bytes"] else ""
    lines = [Text(f"Contiguity of its free memory{moved}", style="bold")]
    largest = grid.means(start, end, _column(host, "largest_free_bytes"))
    most = float(np.nanmax(np.append(largest, 0)))
    lines.append(_row("largest run", levels(largest, most, unicode=grid.unicode), _from_to(largest), grid))
    unusable = grid.means(start, end, _column(host, "unusable_2m"))
    if not np.isnan(unusable).all():
        first, last = _ends(unusable)
        note = f"{100 * first:.0f} to {100 * last:.0f} %" if first != last else f"{100 * last:.0f} %"
        lines.append(_row("unusable 2M", levels(unusable, 1.0, unicode=grid.unicode), note, grid))
    return [*lines, _orders(host, grid)]


def _orders(host: pa.Table, grid: Grid) -> Text:
    """Return free memory by the order of its blocks, first and last: each a line of eleven levels."""
    line = Text(f"{'free blocks':{grid.label}}")
    for name, row in (("start", 0), ("end", host.num_rows - 1)):
        bytes_in = [host.column(f"free_blocks_{order}")[row].as_py() << order for order in range(ORDERS)]
        shares = np.array([share if share else np.nan for share in bytes_in], float)
        marks = levels(shares, float(np.nanmax(np.append(shares, 0))), unicode=grid.unicode)
        line.append(f"{name} ").append(f"[{marks}]", style=theme.FAINT).append("  ")
    line.append("bytes, 4K to 4M", style=theme.FAINT)
    line.truncate(grid.width)
    return line


def _row(name: str, strip: str, note: str, grid: Grid, style: str = "") -> Text:
    return Text(f"{name[: grid.label - 1]:{grid.label}}{strip}", style=style).append(
        f" {note[: grid.note]}", style=theme.FAINT
    )


def _times(host: pa.Table, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    start = host.column("t_ns").to_numpy()
    return start, np.append(start[1:], max(grid.end_ns, start[-1]))


def _column(host: pa.Table, name: str) -> Reals:
    return np.asarray(host.column(name).to_numpy(), dtype=float)


def _ends(values: Reals) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    return float(known[0]), float(known[-1])


def _from_to(values: Reals) -> str:
    """Return the first and the last value of bytes in short: "14 to 3.2 GiB"."""
    first, last = (format_bytes(int(value)) if value else "0" for value in _ends(values))
    if first == last:
        return first
    number, _, unit = first.partition(" ")
    return f"{number if unit == last.partition(' ')[2] else first} to {last}"
