"""Scenario files: the shipped ones and a user's own, read the same way, all mistakes at once.

A file is read part by part (``scenario_draft``), then the parts are held against each other (``scenario_checks``),
and what they name outside the file is looked for. The scenario that comes out has each VM under its own name, and
each event for one VM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from vmmsim import strict
from vmmsim.config import Machine
from vmmsim.errors import BadInput, Problem
from vmmsim.hints import did_you_mean, shown
from vmmsim.machine_file import load_machine, machine_names
from vmmsim.overrides import parse_override, replaced
from vmmsim.scenario import VM, Event, Scenario
from vmmsim.scenario_checks import contradictions
from vmmsim.scenario_draft import Draft, draft_of, read_parts, single_names
from vmmsim.scenarios_folder import shipped_scenarios, trace_beside
from vmmsim.strict import Mistake, in_order, join

_SET = "--set"


def scenario_path(name_or_path: str) -> Path:
    """Return the file of a scenario; ``BadInput`` for what is neither a shipped name nor a path."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1 or path.is_file():
        return path
    shipped = shipped_scenarios()
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise BadInput(
        f"scenario {shown(name_or_path)} is neither a file nor one of {', '.join(shipped)}"
        + did_you_mean(name_or_path, shipped)
    )


def load_scenario(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Return the shipped scenario of that name, or the one that a TOML file describes.

    ``overrides`` are texts such as "vm.db.memory=32GiB", applied in order. ``BadInput`` has every mistake, in the
    order of the file.
    """
    path = scenario_path(str(name_or_path))
    label = str(path) if path == Path(name_or_path) else path.name
    data, changed = _overridden(strict.load_toml(path), overrides)
    return checked(data, name=path.stem, folder=path.parent, label=label, changed=changed)


def checked(
    data: Mapping[str, Any], *, name: str, folder: Path, label: str = "", changed: Iterable[str] = ()
) -> Scenario:
    """Return the scenario that plain data describe, spelled as in a file; ``BadInput`` has every mistake in them.

    label    what messages call the file
    changed  paths whose values came from the command line instead
    """
    changed = list(changed)
    draft, found = read_parts(data)
    found += contradictions(draft)
    found += _sweep(draft, data)
    found += _absent(draft, folder)
    if found:
        raise BadInput.of(
            [
                Problem(_SET if _under(mistake.place, changed) else label, mistake.path, mistake.message)
                for mistake in in_order(found, data)
            ]
        )
    return resolved(draft.whole(name, folder))


def resolved(scenario: Scenario) -> Scenario:
    """Return ``scenario`` with each VM that ``count`` makes under its own name, and each event for one VM."""
    draft = draft_of(scenario)
    vms = {
        single: attrs.evolve(vm, count=None) for name, vm in scenario.vm.items() for single in single_names(name, vm)
    }
    events = tuple(single for event in scenario.event for single in _singly(event, draft))
    return attrs.evolve(scenario, vm=vms, event=events)


def machine_of(scenario: Scenario) -> Machine:
    """Return the machine of a scenario's host: a shipped one, or the one in a file beside the scenario."""
    return load_machine(_machine_name(scenario.host.machine, scenario.folder))


def trace_of(scenario: Scenario, vm: VM) -> Path | None:
    """Return the file of the trace that runs in ``vm``; None if no trace does."""
    named = vm.workload.trace if vm.workload else None
    return trace_beside(named, scenario.folder) if named else None


def _machine_name(name: str, folder: Path | None) -> str:
    """Return what names a machine from the working directory: a path in ``folder`` if ``name`` is one, and no word."""
    if name in machine_names() or folder is None:
        return name
    beside = folder / name
    is_path = beside.suffix == ".toml" or len(Path(name).parts) > 1 or beside.is_file()
    return str(beside) if is_path else name


def _singly(event: Event, draft: Draft) -> Iterator[Event]:
    """Yield ``event`` for each VM that it means."""
    pattern = getattr(event, "vm", "")
    if not pattern:
        yield event
        return
    for single in draft.selected(pattern):
        yield attrs.evolve(event, vm=single)  # type: ignore[call-arg]  # each class with a vm takes it


# --- what is given on the command line ---


def _overridden(data: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return ``data`` with ``overrides`` applied, and their paths; ``BadInput`` with all that cannot be applied."""
    problems: list[Problem] = []
    changed: list[str] = []
    for text in overrides:
        try:
            path, value = parse_override(text)
            data = replaced(data, path, value)
            changed.append(path)
        except BadInput as bad:
            problems += [attrs.evolve(problem, file=_SET) for problem in bad.problems]
    if problems:
        raise BadInput.of(problems)
    return data, changed


def _under(place: str, paths: list[str]) -> bool:
    """Tell whether ``place`` is one of ``paths``, or below one."""
    return any(place == path or place.startswith((f"{path}.", f"{path}[")) for path in paths)


# --- what is in other files ---


def _absent(draft: Draft, folder: Path) -> Iterator[Mistake]:
    """Yield everything that the scenario names, and that is not there."""
    if draft.host:
        yield from _machine(draft.host.machine, folder)
    for name, vm in draft.vm.items():
        named = vm.workload.trace if vm and vm.workload else None
        if named and trace_beside(named, folder) is None:
            path = f"{join('vm', name)}.workload.trace"
            yield Mistake(path, f"{shown(named)} is neither a file beside the scenario nor a shipped trace", path)
    for path, code in _user_code(draft):
        file = code.rpartition(":")[0]
        if file.endswith(".py") and not (folder / file).is_file():
            yield Mistake(path, f"there is no file {shown(file)} beside the scenario", path)


def _machine(name: str, folder: Path) -> Iterator[Mistake]:
    """Yield what is wrong with the host's machine; what is wrong inside its own file is said at the same place."""
    try:
        load_machine(_machine_name(name, folder))
    except BadInput as bad:
        for problem in bad.problems:
            named = shown(name) if problem.file else ""
            message = ": ".join(
                part for part in (named, problem.path, problem.message.removeprefix("machine ")) if part
            )
            yield Mistake("host.machine", message, "host.machine")


def _user_code(draft: Draft) -> Iterator[tuple[str, str]]:
    """Yield path and words of everything that may name code of a user."""
    if draft.run and draft.run.script:
        yield "run.script", draft.run.script
    for n, cost in enumerate(draft.run.costs if draft.run else ()):
        yield f"run.costs[{n}]", cost
    if draft.host and draft.host.balloon:
        yield "host.balloon.policy", draft.host.balloon.policy
    for name, vm in draft.vm.items():
        if vm and vm.workload and vm.workload.use:
            yield f"{join('vm', name)}.workload.use", vm.workload.use
        if vm:
            yield f"{join('vm', name)}.mode_policy", vm.mode_policy
    for n, actor in enumerate(draft.actor):
        if actor:
            yield f"actor[{n}].use", actor.use


# --- sweeps: each value must give a scenario ---


def _sweep(draft: Draft, data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what is wrong with single values of a sweep that the scenario itself does not have wrong."""
    if draft.sweep is None:
        return
    base = {(m.path, m.message) for m in _mistakes_in(data)}
    for name, arm in draft.sweep.arms.items():
        for path, value in arm.items():
            yield from _trial(data, base, path, value, join(join("sweep.arms", name), path))
    for path, values in draft.sweep.vary.items():
        for n, value in enumerate(values):
            yield from _trial(data, base, path, value, join(join("sweep.vary", path), n))


def _trial(data: Mapping[str, Any], base: set[tuple[str, str]], path: str, value: Any, place: str) -> Iterator[Mistake]:
    """Yield, at ``place``, what is wrong with ``value`` at ``path`` beyond what is wrong with the scenario itself."""
    try:
        changed = replaced(data, path, value)
    except BadInput as bad:
        yield Mistake(place, bad.problems[0].message, place)
        return
    for mistake in _mistakes_in(changed):
        if (mistake.path, mistake.message) not in base:
            yield Mistake(place, ": ".join(part for part in (mistake.path, mistake.message) if part), place)


def _mistakes_in(data: Mapping[str, Any]) -> list[Mistake]:
    """Return what is wrong with a scenario, apart from its sweep and other files."""
    draft, found = read_parts({key: table for key, table in data.items() if key != "sweep"})
    return in_order([*found, *contradictions(draft)], data)
