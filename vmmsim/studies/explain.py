"""One cold walk, told reference by reference: a tiny VM on hardware that caches nothing, and the engine's own log."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import attrs

from vmmsim import hints
from vmmsim.addresses import SIZE_NAMES, page_number, size_number
from vmmsim.config import MODES, Mode
from vmmsim.errors import BadInput
from vmmsim.studies.explanation import Explanation, Kept
from vmmsim.studies.log_reader import LogReader, byte_address, pages_within
from vmmsim.studies.tiny_vm import Plan, bare_machine, bounds, registers

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE_GVA: Final = 0x7F5A12345678


def explain(
    gva: int = EXAMPLE_GVA,
    *,
    mode: str = "base",
    guest_page: str = "4K",
    host_page: str = "4K",
    levels: int = 4,
    escaped: bool = False,
    tables_outside: int = 0,
) -> Explanation:
    """Return what one read of ``gva`` does when nothing is cached.

    mode            a name of ``config.MODES``
    guest_page      "4K", "2M" or "1G": the guest table's leaf (natively, the only table's)
    host_page       the same for the nested table's leaves
    levels          4 or 5, of both tables
    escaped         the data page escapes the segment that leads to host memory: the VMM segment, or natively the only
    tables_outside  how many of the guest tables, from the root down, lie outside the VMM segment

    ``BadInput``, with the parameter as its path, for what is not one of these or makes no sense in the mode.
    """
    return walk(
        plan(
            gva,
            mode=mode,
            guest_page=guest_page,
            host_page=host_page,
            levels=levels,
            escaped=escaped,
            tables_outside=tables_outside,
        )
    )


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Say of ``path`` what is refused inside."""
    try:
        yield
    except BadInput as bad:
        raise BadInput(bad.problems[0].message, path=path) from None


def plan(
    gva: int, *, mode: str, guest_page: str, host_page: str, levels: int, escaped: bool, tables_outside: int
) -> Plan:
    """Return what ``walk`` is to do, checked; arguments and errors are those of ``explain``."""
    if levels not in (4, 5):
        raise BadInput(f"must be 4 or 5, not {levels}", path="levels")
    if mode not in MODES:
        raise BadInput(hints.unknown(mode, MODES), path="mode")
    with _about("gva"):
        gvpn = page_number(gva, levels)
    with _about("guest_page"):
        guest_size = size_number(guest_page)
    with _about("host_page"):
        host_size = size_number(host_page)
    planned = Plan(
        gva=gva % (1 << 64),
        mode=MODES[mode],
        gvpn=gvpn,
        line=gva >> 6 & 63,
        guest_size=guest_size,
        host_size=host_size,
        levels=levels,
        escaped=escaped,
        tables_outside=tables_outside,
    )
    _check_sense(planned)
    return planned


def walk(plan: Plan) -> Explanation:
    """Return the walk, and what other modes leave of it, or it of a base one."""
    walked = _walked(plan, plan.mode)
    if walked.native:
        kept: tuple[Kept, ...] = ()
    elif walked.mode == "base":
        kept = tuple(_kept(_walked(plan, MODES[other]), walked) for other in ("vmm-direct", "guest-direct"))
    else:
        kept = (_kept(walked, _walked(plan, MODES["base"])),)
    return attrs.evolve(walked, kept=kept, notes=tuple(_notes(plan, walked)))


def _check_sense(vm: Plan) -> None:
    """Refuse an escape, or tables outside, where the mode has nothing to be outside of."""
    mode = vm.mode
    if vm.escaped and mode.nested == "walk":
        raise BadInput(
            f"{mode.name} has no VMM segment to escape from: its nested table can put any page anywhere; "
            "use vmm-direct or dual-direct",
            path="escaped",
        )
    if vm.escaped and mode.guest == "walk" and mode.nested == "identity":
        raise BadInput(f"{mode.name} has no segment to escape from; use native-direct", path="escaped")
    if not vm.tables_outside:
        return
    tables = vm.levels - vm.guest_size
    if mode.nested != "segment":
        raise BadInput(f"{mode.name} has no VMM segment to be outside of; use vmm-direct", path="tables_outside")
    if mode.guest == "segment":
        raise BadInput(f"{mode.name} reads no guest table: its guest segment covers the page", path="tables_outside")
    if not 0 < vm.tables_outside <= tables:
        raise BadInput(
            f"{vm.tables_outside} is not 0 to {tables}: that many guest tables translate a "
            f"{SIZE_NAMES[vm.guest_size]} page",
            path="tables_outside",
        )


def _notes(vm: Plan, walk: Explanation) -> Iterator[str]:
    read = {reference.dimension for reference in walk.references}
    if vm.guest_size and "guest" not in read:
        yield f"guest pages of {walk.guest_page} make no difference: no guest table is read"
    if vm.host_size and "nested" not in read:
        yield f"host pages of {SIZE_NAMES[vm.host_size]} make no difference: no nested table is read"
    if vm.escaped and (vm.guest_size if walk.native else vm.host_size):
        yield "the escaped page has a 4K leaf of its own, whatever the size of the others"


def _walked(vm: Plan, mode: Mode) -> Explanation:
    """Let the engine make the walk in ``mode`` and return its log as rows."""
    from vmmsim.translation.chunk import pack
    from vmmsim.translation.engine import Engine
    from vmmsim.translation.state import Exit

    engine = Engine(bare_machine(vm.levels))
    held = registers(engine, vm, mode)
    engine.load(held)
    outcome, log = engine.walk_log(int(pack(vm.gvpn, line=vm.line)[0]))
    assert outcome.exit is Exit.DONE, "the page is mapped at both levels"
    counters = engine.counters()
    rows = LogReader(vm, mode).rows(log)
    walk = Explanation(
        gva=vm.gva,
        mode=mode.name,
        guest_page=SIZE_NAMES[vm.guest_size],
        host_page=None if mode.nested == "identity" else SIZE_NAMES[vm.host_size],
        levels=vm.levels,
        escaped=vm.escaped,
        tables_outside=vm.tables_outside,
        segments=tuple(bounds(vm, held)),
        rows=rows,
        dimension="0D" if counters["segment_0d"] else "2D" if counters["walk_both"] else "1D",
        total_references=counters["references"],
        base_bound_checks=counters["base_bound_checks"],
        hpa=byte_address(log[-1].result + pages_within(log[-1]), vm.gva),
    )
    assert len(walk.references) == walk.total_references
    assert sum(check.counted for check in walk.checks) == walk.base_bound_checks
    return walk


def _kept(walk: Explanation, base: Explanation) -> Kept:
    """Return which references of ``base`` are left in ``walk``, a walk of the same VM."""
    numbers = {(step.dimension, step.level, step.of): step.number for step in base.references}
    return Kept(
        mode=walk.mode,
        numbers=tuple(numbers[step.dimension, step.level, step.of] for step in walk.references),
        of=base.total_references,
        checks=walk.base_bound_checks,
    )
