"""``vmmsim machines``: which machines there are, what each is made of, and a start for one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from vmmsim.config import Machine, TlbPart

SURENESS_STYLES = {"read": "green", "derived": "green", "recalled": "yellow", "assumed": "magenta"}


def machines(
    machine: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", show_default=False, help="Show this one, number by number."),
    ] = None,
    new: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Write the machine's TOML to FILE, to be changed."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the machines, or show one: every number, where it comes from and how sure it is.

    A TOML file of your own works wherever a name does. To start one from a shipped machine:
    vmmsim machines skylake --new mine.toml
    """
    if new is not None:
        _write_new(machine, new)
    elif as_json:
        output.document("machines", {"machines": _described(machine)})
    else:
        _print(_listed() if machine is None else _detailed(machine))


def _write_new(machine: str | None, new: Path) -> None:
    from vmmsim.machine_file import machine_names, machine_path

    if machine is None:
        raise BadInput(f"say which machine to start from: one of {', '.join(machine_names())}", file="--new")
    text = machine_path(machine).read_text(encoding="utf-8")
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise BadInput("exists already; nothing was written", file=str(new)) from None
    output.say(f"wrote {new}; change it, then: vmmsim machines {new}")


def _described(machine: str | None) -> list[dict[str, Any]]:
    """Return the JSON of one machine in full, or of every shipped machine in short."""
    from vmmsim.machine_file import load_machine, machine_names

    if machine is None:
        return [_short(load_machine(name)) for name in machine_names()]
    loaded = load_machine(machine)
    rows = [
        {"path": path, "value": value, "source": source, "sure": sure} for path, value, source, sure in _rows(loaded)
    ]
    return [{**_short(loaded), "values": rows}]


def _short(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "title": machine.title,
        "l1_data_tlb": _parts(machine.l1_data_tlb),
        "l1_instruction_tlb": _parts(machine.l1_instruction_tlb),
        "l2_tlb": _parts(machine.l2_tlb),
    }


def _parts(parts: tuple[TlbPart, ...]) -> str:
    """Return a TLB in short: "64/4 4K, 32/4 2M, 4 1G"; without ways where it is fully associative."""
    return ", ".join(
        f"{part.entries}{f'/{part.ways}' if part.ways < part.entries else ''} {'+'.join(part.pages)}" for part in parts
    )


def _rows(machine: Machine) -> list[tuple[str, Any, str | None, str | None]]:
    """Return path, value, source and sureness of all that the machine is made of."""
    from vmmsim.machine_file import source_of, values

    rows: list[tuple[str, Any, str | None, str | None]] = []
    for path, value in values(machine):
        origin = source_of(machine, path)
        rows.append((path, value, origin.source, origin.sure) if origin else (path, value, None, None))
    return rows


def _listed() -> Table:
    table = _table("name", "title", "L1 data", "L1 instruction", "L2")
    table.caption = "TLBs as entries/ways and page sizes. vmmsim machines NAME shows every number, and its source."
    for short in _described(None):
        table.add_row(*short.values())
    return table


def _detailed(machine: str) -> Table:
    from rich.text import Text

    from vmmsim.machine_file import load_machine

    loaded = load_machine(machine)
    table = _table("key", "value", "sure", "source")
    table.title = f"{loaded.name}: {loaded.title}" if loaded.title else loaded.name
    table.caption = "A source stands for the lines below it too, up to the next one."
    before: str | None = ""
    for path, value, source, sure in _rows(loaded):
        same, before = source == before, source
        if not same:
            table.add_section()
        shown = Text(sure or "-", style=SURENESS_STYLES.get(sure or "", ""))
        table.add_row(path, _shown(value), shown, "" if same else source or "no source given")
    return table


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value == [] else str(value)


def _table(*columns: str) -> Table:
    """Return an empty table without a frame, whose first column is never cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0], overflow="fold")
    return table


def _print(table: Table) -> None:
    """Print to stdout as wide as the terminal; rich leaves colours out off a terminal and under NO_COLOR."""
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(table)
