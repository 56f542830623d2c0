"""The events of a scenario in the order of time: which of them can never happen as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import attrs

from vmmsim.addresses import PAGE_BYTES, write_bytes, write_duration
from vmmsim.errors import BadInput
from vmmsim.hints import shown
from vmmsim.scenario import (
    VM,
    BalloonEvent,
    BootEvent,
    CompactEvent,
    Event,
    FaultEvent,
    HotAddEvent,
    HotRemoveEvent,
    LoadEvent,
    MigrateEvent,
    ModeEvent,
    ReclaimIoGapEvent,
    SelfBalloonEvent,
    ShutdownEvent,
)
from vmmsim.scenario_draft import Draft
from vmmsim.scenario_reach import VMM_MODES, out_of_reach

_GAP_END_BYTES: Final = 4 << 30
"""Where guest-physical memory goes on above the I/O gap."""

Said: TypeAlias = tuple[str, str]
"""Key of an event ("" for the whole of it) and message."""


@attrs.define
class _State:
    """What is known of one VM at a time, as far as events tell."""

    table: str
    """Name of its table."""
    vm: VM
    memory_bytes: int
    mode: str
    since_ns: int
    """When it booted."""
    may_be_gone: bool = False
    """Whether it migrates to another host: when it leaves is known when it does."""
    down_since: tuple[int, int] | None = None
    """Time and number of the event that shut it down; None while it runs."""


def timeline(draft: Draft) -> Iterator[tuple[str, str]]:
    """Yield path and message of every event that cannot happen as it is written, in the order of time."""
    states = {
        single: _State(table=table, vm=vm, memory_bytes=vm.memory_bytes, mode=vm.mode, since_ns=vm.boot_ns)
        for single, (table, vm) in draft.singles().items()
        if vm is not None
    }
    numbered = [(event.at_ns, n, event) for n, event in enumerate(draft.event) if event is not None]
    for at, n, event in sorted(numbered, key=lambda item: item[:2]):
        path = f"event[{n}]"
        if draft.run and at >= draft.run.until_ns:
            end = write_duration(draft.run.until_ns)
            yield f"{path}.at", f"{write_duration(at)} is not before the end of the run, {end} (run.until)"
        for key, message in _of_event(event, n, draft, states):
            yield f"{path}.{key}" if key else path, message


def _of_event(event: Event, number: int, draft: Draft, states: dict[str, _State]) -> Iterator[Said]:
    """Yield what is wrong with one event; the first VM that it is wrong for speaks for all that it means."""
    if isinstance(event, FaultEvent):
        yield from _fault_on_host(event, draft)
    pattern = getattr(event, "vm", "")
    if not pattern and isinstance(event, CompactEvent | FaultEvent):
        return
    try:
        singles = draft.selected(pattern)
    except BadInput as bad:
        yield "vm", bad.problems[0].message
        return
    known = [(single, states[single]) for single in singles if single in states]
    said = [list(_of_vm(event, number, single, state, draft)) for single, state in known]
    yield from next((messages for messages in said if messages), [])


def _of_vm(event: Event, number: int, name: str, state: _State, draft: Draft) -> list[Said]:
    """Return what is wrong with an event for one VM; if nothing is, note what it changes."""
    wrong = list(_not_now(event, name, state))
    if not wrong and (check := _CHECKS.get(type(event))):
        wrong = list(check(event, name, state, draft))
    if not wrong:
        _note(event, number, state)
    return wrong


def _note(event: Event, number: int, state: _State) -> None:
    """Bring ``state`` to what it is after ``event``."""
    if isinstance(event, BootEvent):
        state.down_since, state.since_ns, state.may_be_gone = None, event.at_ns, False
        state.memory_bytes, state.mode = state.vm.memory_bytes, state.vm.mode
    elif isinstance(event, ShutdownEvent):
        state.down_since = (event.at_ns, number)
    elif isinstance(event, MigrateEvent):
        state.may_be_gone |= event.then == "leave"
    elif isinstance(event, ModeEvent):
        state.mode = event.mode
    elif isinstance(event, HotAddEvent):
        state.memory_bytes += event.size_bytes
    elif isinstance(event, HotRemoveEvent):
        state.memory_bytes -= event.size_bytes


def _not_now(event: Event, name: str, state: _State) -> Iterator[Said]:
    """Say that a VM does not run at the time of an event that needs it to, or runs when it is to boot."""
    if isinstance(event, BootEvent):
        if state.down_since is None and not state.may_be_gone:
            yield "", f"{name} boots at {write_duration(state.since_ns)} already (vm.{state.table}.boot)"
    elif state.down_since is not None:
        at, number = state.down_since
        yield "at", f"{name} is shut down since {write_duration(at)} (event[{number}])"
    elif event.at_ns < state.since_ns:
        yield "at", f"{name} boots only at {write_duration(state.since_ns)} (vm.{state.table}.boot)"


# --- what single verbs ask for ---


def _balloon(event: BalloonEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    if event.target_bytes is not None and event.target_bytes > state.memory_bytes:
        yield "target", f"{write_bytes(event.target_bytes)} is more than {name} has, {write_bytes(state.memory_bytes)}"


def _mode(event: ModeEvent, _name: str, state: _State, draft: Draft) -> Iterator[Said]:
    for message in out_of_reach(event.mode, state.vm, draft.host):
        yield "mode", message


def _self_balloon(event: SelfBalloonEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    if event.size_bytes > state.memory_bytes:
        yield "size", f"{write_bytes(event.size_bytes)} is more than {name} has, {write_bytes(state.memory_bytes)}"


def _hot_add(event: HotAddEvent, name: str, state: _State, draft: Draft) -> Iterator[Said]:
    after = state.memory_bytes + event.size_bytes
    if draft.host and after > draft.host.memory_bytes >= state.memory_bytes:
        yield (
            "size",
            f"{name} would have {write_bytes(after)}, and the host has {write_bytes(draft.host.memory_bytes)} "
            "(host.memory)",
        )


def _hot_remove(event: HotRemoveEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    if event.size_bytes >= state.memory_bytes:
        yield "size", f"{write_bytes(event.size_bytes)} is all that {name} has, {write_bytes(state.memory_bytes)}"


def _reclaim(_event: ReclaimIoGapEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    if state.vm.io_gap == "reclaim":
        yield "", f'vm.{state.table}.io_gap = "reclaim" does that at boot; remove one of them'
    elif state.vm.low_bytes == state.vm.memory_bytes:
        yield "vm", f"with {state.vm.machine_type}, {write_bytes(state.vm.memory_bytes)} of {name} have no gap in them"


def _load(_event: LoadEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    if state.vm.workload is None:
        yield "vm", f"{name} has no workload (vm.{state.table}.workload)"


def _fault(event: FaultEvent, name: str, state: _State, _: Draft) -> Iterator[Said]:
    low = state.vm.low_bytes
    above = state.memory_bytes - low
    end = (_GAP_END_BYTES + above if above else low) // PAGE_BYTES
    if event.gfn is not None and event.gfn + event.pages > end:
        yield "gfn", f"{event.gfn + event.pages - 1} lies beyond the last frame of {name}, {end - 1}"
    if event.segment and state.mode not in VMM_MODES:
        yield "segment", f"{name} wants {shown(state.mode)} at that time, which has no VMM segment"


def _fault_on_host(event: FaultEvent, draft: Draft) -> Iterator[Said]:
    if event.hfn is not None and draft.host:
        end = draft.host.memory_bytes // PAGE_BYTES
        if event.hfn + event.pages > end:
            yield "hfn", f"{event.hfn + event.pages - 1} lies beyond the last frame of the host, {end - 1}"


_CHECKS: Final[dict[type[Event], Callable[[Any, str, _State, Draft], Iterator[Said]]]] = {
    BalloonEvent: _balloon,
    ModeEvent: _mode,
    SelfBalloonEvent: _self_balloon,
    HotAddEvent: _hot_add,
    HotRemoveEvent: _hot_remove,
    ReclaimIoGapEvent: _reclaim,
    LoadEvent: _load,
    FaultEvent: _fault,
}
