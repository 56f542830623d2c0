"""A scenario part by part, as far as its file could be read: what cross-checks look at, and say at which path."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Final

import attrs

from vmmsim import strict
from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown
from vmmsim.scenario import VM, Actor, Event, Host, Measure, Run, Scenario, Sweep
from vmmsim.scenario.values import check_vm_name
from vmmsim.strict import Mistake

_TABLES: Final = ("run", "host", "vm", "event", "actor", "measure", "sweep")


@attrs.define
class Draft:
    """The parts of a scenario; None, or the place empty, for what is wrong in itself."""

    run: Run | None = attrs.field(factory=Run)
    host: Host | None = None
    vm: dict[str, VM | None] = attrs.field(factory=dict)
    event: list[Event | None] = attrs.field(factory=list)
    actor: list[Actor | None] = attrs.field(factory=list)
    measure: Measure | None = attrs.field(factory=Measure)
    sweep: Sweep | None = None

    def singles(self) -> dict[str, tuple[str, VM | None]]:
        """Return, for the name of each VM that there will be, the name of its table and what that says."""
        return {single: (name, vm) for name, vm in self.vm.items() for single in single_names(name, vm)}

    def selected(self, pattern: str) -> list[str]:
        """Return the names of the VMs that an event's ``vm`` means; ``BadInput`` if there is none."""
        return selected(pattern, list(self.singles()), {name: vm.count for name, vm in self.vm.items() if vm})

    def whole(self, name: str, folder: Any) -> Scenario:
        """Return the scenario of these parts, all of which must be right."""
        assert self.run is not None
        assert self.host is not None
        assert self.measure is not None
        return Scenario(
            name=name,
            folder=folder,
            run=self.run,
            host=self.host,
            vm={key: vm for key, vm in self.vm.items() if vm is not None},
            event=tuple(event for event in self.event if event is not None),
            actor=tuple(actor for actor in self.actor if actor is not None),
            measure=self.measure,
            sweep=self.sweep,
        )


def draft_of(scenario: Scenario) -> Draft:
    """Return the parts of a scenario that is right part by part."""
    return Draft(
        run=scenario.run,
        host=scenario.host,
        vm=dict(scenario.vm),
        event=list(scenario.event),
        actor=list(scenario.actor),
        measure=scenario.measure,
        sweep=scenario.sweep,
    )


def single_names(name: str, vm: VM | None) -> list[str]:
    """Return the names of the VMs that the table ``name`` makes: one, or as many as its count says."""
    return [name] if vm is None or vm.count is None else [f"{name}-{n}" for n in range(vm.count)]


def selected(pattern: str, names: list[str], counts: Mapping[str, int | None]) -> list[str]:
    """Return those of ``names`` that ``pattern`` means; ``BadInput`` with a hint if it means none.

    ``counts`` holds, for each VM's table, how many VMs it makes, to tell who names the table instead.
    """
    if "*" in pattern:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise BadInput(f"{shown(pattern)} selects no VM{hint(pattern, names)}")
        return found
    if pattern in names:
        return [pattern]
    if count := counts.get(pattern):
        raise BadInput(f'{shown(pattern)} is {count} VMs; write "{pattern}-*" for all of them, or e.g. "{pattern}-0"')
    raise BadInput(f"no VM is called {shown(pattern)}{hint(pattern, names)}")


def read_parts(data: Mapping[str, Any]) -> tuple[Draft, list[Mistake]]:
    """Return what could be read of a scenario file, and everything that is wrong with single parts of it."""
    reader = _Reader(data)
    reader.check_tables()
    draft = Draft(
        run=reader.table("run", Run, Run()),
        host=reader.table("host", Host, None),
        vm=reader.vms(),
        event=reader.entries("event", Event),
        actor=reader.entries("actor", Actor),
        measure=reader.table("measure", Measure, Measure()),
        sweep=reader.table("sweep", Sweep, None),
    )
    return draft, reader.found


class _Reader:
    """Reads parts of plain data, and gathers what is wrong with them."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.found: list[Mistake] = []

    def check_tables(self) -> None:
        """Note top-level tables that are unknown or missing."""
        for key in self.data:
            if key not in _TABLES:
                self.found.append(Mistake("", f"unknown key {shown(key)}{hint(key, _TABLES)}", strict.join("", key)))
        if "host" not in self.data:
            self.found.append(Mistake("", '"host" is missing; write e.g. [host] and memory = "96GiB"', ""))
        run = self.data.get("run")
        scripted = isinstance(run, Mapping) and "script" in run
        if self.data.get("vm", {}) == {} and not scripted:
            self.found.append(Mistake("", 'no VM; a scenario needs one, e.g. [vm.db] and memory = "8GiB"', ""))

    def table(self, key: str, cls: type[Any], default: Any) -> Any:
        """Return the description of class ``cls`` in a table of its own; None if it is wrong."""
        return self._structured(cls, self.data[key], key) if key in self.data else default

    def vms(self) -> dict[str, VM | None]:
        """Return the VMs by name, None for those that are wrong."""
        held = self.data.get("vm", {})
        if not isinstance(held, Mapping):
            self._note("vm", f"{shown(held)} is not a table")
            return {}
        for name in held:
            try:
                check_vm_name(name)
            except BadInput as bad:
                self._note(strict.join("vm", name), bad.problems[0].message)
        return {name: self._structured(VM, table, strict.join("vm", name)) for name, table in held.items()}

    def entries(self, key: str, cls: type[Any]) -> list[Any]:
        """Return the descriptions in a list of tables, None for those that are wrong."""
        held = self.data.get(key, [])
        if not isinstance(held, list):
            self._note(key, f"{shown(held)} is not a list; write [[{key}]] above each")
            return []
        return [self._structured(cls, table, strict.join(key, n)) for n, table in enumerate(held)]

    def _structured(self, cls: type[Any], data: Any, path: str) -> Any:
        got = strict.mistakes(cls, data, path)
        if not isinstance(got, list):
            return got
        self.found += got
        return None

    def _note(self, path: str, message: str) -> None:
        self.found.append(Mistake(path, message, path))
