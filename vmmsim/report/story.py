"""A run told on one page of a terminal, from its result and nothing else.

In this order: what was run; a sentence for each VM that has a story; VM by VM the mode over time, overhead and what
waiting cost; the host's memory and its contiguity; the decisions that mattered; how to have it again.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from vmmsim.addresses import format_bytes, format_duration, parse_bytes, parse_duration
from vmmsim.errors import BadInput
from vmmsim.lives import Life, lives
from vmmsim.report import theme
from vmmsim.report.headline import content, headline, is_content, others
from vmmsim.report.marks import Grid, mark
from vmmsim.report.reasons import Reasons
from vmmsim.report.story_decisions import decisions_block
from vmmsim.report.story_host import contiguity_block, memory_block, sharing_block
from vmmsim.report.story_vms import compact_block, vm_block

if TYPE_CHECKING:
    from rich.console import Console

    from vmmsim.result import Result

WIDEST: Final = 100
NARROWEST: Final = 60
TOLD: Final = 3
"""As many VMs as are told at length; the others get a strip."""


def story(result: Result, *, width: int = WIDEST, unicode: bool = True) -> list[Text]:
    """Return the page, a line of at most ``width`` columns each, with the styles of ``theme``."""
    grid = Grid(end_ns=result.end_ns, width=max(NARROWEST, min(width, WIDEST)), unicode=unicode)
    found = result.summary
    all_lives = lives(result["vms"], result.end_ns)
    reasons = Reasons(result["decisions"].to_pylist())
    told = _worth_telling(found["vm"])
    at_length = told[:TOLD]
    blocks = [
        _title(result, grid),
        _headlines(found["vm"], told, reasons, grid),
        _lives_block(all_lives, found["vm"], at_length, reasons, grid),
        memory_block(result["host"], all_lives, _host_bytes(result.scenario), grid),
        sharing_block(found["host"]["sharing"], grid),
        contiguity_block(result["host"], found["host"], grid),
        decisions_block(found["decisions"], reasons, at_length, grid),
        _again(result, grid),
    ]
    page = [line for block in blocks if block for line in (*block, Text())]
    return page[:-1]


def tell(result: Result, console: Console) -> None:
    """Print the page to a console: in colours on a terminal, plain elsewhere and under NO_COLOR."""
    unicode = console.encoding.lower().startswith("utf")
    for line in story(result, width=console.width, unicode=unicode):
        console.print(line, soft_wrap=True)


def _worth_telling(vms: dict[str, Any]) -> list[str]:
    """Return the VMs with a story, the longest without their modes first; or the first VM, if none has one."""
    restless = [vm for vm, found in vms.items() if found["running_ns"] and (found["without_ns"] or found["lost_ns"])]
    restless.sort(key=lambda vm: -vms[vm]["without_ns"])
    if restless:
        return restless
    direct = [vm for vm, found in vms.items() if found["running_ns"] and found["mode_wanted"] != "base"]
    return (direct or [vm for vm, found in vms.items() if found["running_ns"]])[:1]


def _lives_block(
    all_lives: dict[str, Life], vms: dict[str, Any], at_length: list[str], reasons: Reasons, grid: Grid
) -> list[Text]:
    """Return every VM over time, under one time axis."""
    if not all_lives:
        return []
    lines = [Text(" " * grid.label + grid.axis(), style=theme.FAINT)]
    for vm in at_length:
        lines += vm_block(all_lives[vm], vms[vm], reasons, grid)
    lines += compact_block([all_lives[vm] for vm in vms if vm not in at_length], vms, grid)
    return [*lines, _legend(all_lives, grid)]


def wrapped(text: str, grid: Grid, *, style: str = "", indent: int = 0, lines: int = 4) -> list[Text]:
    """Return a sentence as lines that fit, those after the first indented."""
    made = textwrap.wrap(text, grid.width, subsequent_indent=" " * indent, max_lines=lines, placeholder=" ...")
    return [Text(line, style=style) for line in made]


def _title(result: Result, grid: Grid) -> list[Text]:
    run, host = result.scenario.get("run", {}), result.scenario.get("host", {})
    parts = [f"{format_duration(result.end_ns)} simulated", f"seed {result.seed}"]
    parts += [f"{format_bytes(size)} on {host.get('machine', '?')}"] if (size := _host_bytes(result.scenario)) else []
    parts += [f"memory aged {host['age']}"] if host.get("age", "0s") != "0s" else []
    parts += [f"scaled 1:{run['scale']}"] if run.get("scale", 1) != 1 else []
    lines = wrapped(f"{result.name}: {', '.join(parts)}", grid, style="bold", lines=2)
    if result.stalled:
        lines += wrapped(f"Stopped because no VM makes progress: {result.stalled}", grid, style="bold red")
    elif not result.complete:
        lines += wrapped(f"Not complete: stopped{_of(run)}. What follows is of that much.", grid, style="bold red")
    return lines


def _of(run: dict[str, Any]) -> str:
    try:
        return f" before the {format_duration(parse_duration(run['until']))} that were asked for"
    except (BadInput, KeyError, TypeError):
        return ""


def _host_bytes(scenario: dict[str, Any]) -> int | None:
    try:
        return parse_bytes(scenario["host"]["memory"])
    except (BadInput, KeyError, TypeError):
        return None


def _headlines(vms: dict[str, Any], told: list[str], reasons: Reasons, grid: Grid) -> list[Text]:
    if not vms:
        return [Text("No VM was ever there.")]
    happy = [vm for vm, found in vms.items() if is_content(found)]
    restless = [vm for vm in dict.fromkeys([*told, *vms]) if vm not in happy]
    first = restless if len(restless) <= TOLD + 1 else restless[:TOLD]
    lines: list[Text] = []
    for vm in first:
        sentence = headline(vm, vms[vm], *reasons.of_headline(vm, vms[vm]))
        lines += wrapped(sentence, grid, style="bold" if not lines else "", indent=2)
    rest = [vms[vm] for vm in restless[len(first) :] if vms[vm]["running_ns"]]
    lines += wrapped(others(rest), grid, indent=2) if rest else []
    return lines + (wrapped(content(happy, [vms[vm] for vm in happy]), grid, indent=2) if happy else [])


def _legend(all_lives: dict[str, Life], grid: Grid) -> Text:
    """Return what the marks of the strips mean: those that stand on this page."""
    there = {mode for life in all_lives.values() for mode in life.mode[life.running].tolist()}
    line = Text(" " * grid.label)
    for mode, look in theme.MODES.items():
        if mode in there:
            line.append(mark(mode, unicode=grid.unicode), style=look.colour)
            line.append(f" {look.label}   ", style=theme.FAINT)
    line.truncate(grid.width)
    line.rstrip()
    return line


def _again(result: Result, grid: Grid) -> list[Text]:
    again = f"; again: {result.again}" if result.again else ""
    return wrapped(f"digest {result.digest[:16]}{again}", grid, style=theme.FAINT, indent=2)
