"""One sentence for each VM: what it wanted, when it had it, and what doing without cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vmmsim.addresses import format_duration
from vmmsim.config import MODES
from vmmsim.report.marks import label, share

Found = Mapping[str, Any]

WORTH_SAYING: Final = 0.0005
"""A share below which waiting cost nothing that anybody would notice."""
_MANY: Final = 3
"""As many VMs in a row as are told by the first and the last."""
WITH_GUEST_SEGMENT: Final = frozenset(name for name, mode in MODES.items() if mode.guest == "segment")
_AT_ONCE: Final = 0.001
"""A wait below this share of a VM's time is none."""


def headline(vm: str, found: Found, why_not: str = "", why_lost: str = "") -> str:
    """Return the sentence about one VM.

    found               the VM's part of a summary
    why_not, why_lost   reasons, if decisions give any
    """
    if not found["running_ns"]:
        return f"{vm} never ran."
    wanted = label(found["mode_wanted"])
    if not found["mode_wanted"]:
        return f"{vm} ran without a wish for a mode."
    if found["had_from_ns"] is None:
        return f"{vm} never got {wanted}{_because(why_not)}{_cost(found)}."
    parts = []
    if found["waited_ns"] > _AT_ONCE * found["running_ns"]:
        parts.append(f"{vm} waited {format_duration(found['waited_ns'])} for {wanted}{_cost(found)}{_repaid(found)}")
    elif found["lost_ns"]:
        parts.append(f"{vm} had {wanted} from the start")
    if found["lost_ns"]:
        parts.append(_lost(found, why_lost))
    if parts:
        cost = _cost(found, "doing without") if found["waited_ns"] <= _AT_ONCE * found["running_ns"] else ""
        return "; ".join(parts) + cost + "."
    return f"{vm} had {wanted} from the start and kept it, as it wanted."


def _because(why: str) -> str:
    return f" ({why})" if why else ""


def _cost(found: Found, doing: str = "") -> str:
    cost = found["waiting"]["share"]
    doing = doing or ("waiting" if found["had_from_ns"] is not None else "doing without")
    if cost is None:
        return ""
    if cost < WORTH_SAYING:
        return f"; {doing} cost nothing to speak of"
    once = " (by what it had later)" if found["waiting"]["basis"] == "once had" else ""
    return f"; {doing} cost {'at least ' * is_least(found)}{share(cost)} of the work done meanwhile{once}"


def is_least(found: Found) -> bool:
    """Tell whether waiting may have cost more: as if keeps small pages, where a guest segment brings large ones."""
    small = sum(ns for mode, ns in found["time_in_mode_ns"].items() if mode not in WITH_GUEST_SEGMENT)
    return bool(small and found["waiting"]["basis"] == "as if" and found["mode_wanted"] in WITH_GUEST_SEGMENT)


def _repaid(found: Found) -> str:
    """Return how long getting the mode took, and when as much was gained."""
    cost, at = found["getting_there_ns"], found["repaid_at_ns"]
    if not cost:
        return ""
    there = f"; getting there took {format_duration(cost)}"
    if at is None:
        return f"{there}, which was not repaid"
    return f"{there}, repaid {format_duration(at - found['had_from_ns'])} later"


def _lost(found: Found, why: str) -> str:
    times = found["lost_ns"]
    again = f", {len(times)} times in all" if len(times) > 1 else ""
    later = found["without_ns"] - found["waited_ns"]
    return f"lost it at {format_duration(times[0])}{again}{_because(why)}, and was without for {format_duration(later)}"


def names(vms: Sequence[str]) -> str:
    """Return names of VMs in short: "web-0 to web-7", "a, b and c"."""
    parts: list[list[str]] = []
    for vm in vms:
        if parts and vm == _next(parts[-1][-1]):
            parts[-1].append(vm)
        else:
            parts.append([vm])
    told = [name for part in parts for name in (part if len(part) < _MANY else [f"{part[0]} to {part[-1]}"])]
    return " and ".join(filter(None, (", ".join(told[:-1]), *told[-1:])))


def _next(vm: str) -> str:
    """Return the name that follows ``vm`` where a scenario counts: web-8 after web-7; "" if it is not counted."""
    stem, _, number = vm.rpartition("-")
    return f"{stem}-{int(number) + 1}" if stem and number.isdecimal() else ""


def by_number(vm: str) -> tuple[str, int]:
    """Return a key that sorts web-10 behind web-9."""
    stem, _, number = vm.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (vm, -1)


def content(vms: Sequence[str], founds: Sequence[Found]) -> str:
    """Return the one sentence about VMs that all had what they wanted from the start to the end."""
    modes = sorted({found["mode_wanted"] for found in founds})
    return f"{names(vms)} ran in {' or '.join(label(mode) for mode in modes)} throughout, as wanted."


def others(founds: Sequence[Found]) -> str:
    """Return the one sentence about several VMs that did without for a while, and are told no further."""
    waits = sorted(found["waited_ns"] for found in founds if found["had_from_ns"] is not None)
    never, lost = len(founds) - len(waits), sum(bool(found["lost_ns"]) for found in founds)
    told = []
    if waits:
        shares = ((0.5, "half within"), (0.9, "nine in ten within"), (1.0, "the last after"))
        told.append(
            f"{len(waits)} had their modes, " + ", ".join(f"{said} {_rank(waits, part)}" for part, said in shares)
        )
    told += [f"{never} never had {'them' if waits else 'their modes'}"] if never else []
    told += [f"{lost} lost them again"] if lost else []
    return f"Of {len(founds)} more VMs {'; '.join(told)}."


def _rank(waits: Sequence[int], part: float) -> str:
    return format_duration(waits[math.ceil(part * len(waits)) - 1])


def is_content(found: Found) -> bool:
    """Tell whether a VM ran, and had what it wanted all the time."""
    return bool(found["running_ns"] and found["mode_wanted"] and not found["without_ns"])
