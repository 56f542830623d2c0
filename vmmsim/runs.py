"""From a description to a Result: a scenario, its path or name, or keywords, run once."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmmsim import strict, user_code
from vmmsim.addresses import parse_duration, write_bytes, write_duration
from vmmsim.errors import BadInput
from vmmsim.result import Result
from vmmsim.scenario import VM, Event, Host, Scenario
from vmmsim.simulation import MAX_EVENTS, Simulation

if TYPE_CHECKING:
    from threading import Event as Flag

    Script = Callable[[Simulation], Any]


def simulate(
    scenario: Scenario | str | Path | None = None,
    *,
    host: Host | Mapping[str, Any] | str | int | None = None,
    vm: Mapping[str, VM | Mapping[str, Any]] | None = None,
    event: Sequence[Event | Mapping[str, Any]] = (),
    measure: Mapping[str, Any] | None = None,
    script: Script | str | None = None,
    name: str = "",
    until: str | int | None = None,
    seed: int | None = None,
    check: bool = False,
    progress: Callable[[int, int, dict[str, str]], None] | None = None,
    stop: Flag | None = None,
    max_events: int | None = MAX_EVENTS,
) -> Result:
    """Run a scenario and return what it left.

    scenario    a ``Scenario``, a file's path, or a shipped scenario's name; or None, with the parts by keyword:
    host        a ``Host``, a table of its keys, or its memory: "96GiB"
    vm          VMs by name: ``VM``, or tables of their keys
    event       events: ``Event``, or tables with ``at`` and ``do``
    measure     keys of the table ``[measure]``
    script      a generator function of the simulation, ``def life(sim): ...``, or "file.py:life"
    until       simulated time at which it ends: "6h", or nanoseconds
    seed        of every stream of randomness
    check       recount everything after every event: slow
    progress    called now and then with (now in ns, end in ns, mode of each VM that runs)
    stop        a ``threading.Event``; once it is set the run ends at the next event, and the result is not complete
    max_events  refuse to run longer; None for any length

    ``BadInput`` for what cannot be run; ``Refused`` where a script does not catch one.
    """
    described = _described(scenario, host, vm, event, measure, name, script)
    described = _changed(described, until, seed)
    sim = Simulation(described, check=check)
    code = _add_user_code(sim, script)
    complete = sim.run(progress=progress, stop=stop, max_events=max_events or MAX_EVENTS**2)
    return Result.of(
        sim.recorder,
        name=described.name or "run",
        scenario=strict.unstructure(described),
        seed=described.run.seed,
        end_ns=int(sim.env.now),
        complete=complete,
        stalled=sim.stalled,
        user_code=code,
    )


def _described(
    scenario: Scenario | str | Path | None,
    host: Host | Mapping[str, Any] | str | int | None,
    vm: Mapping[str, VM | Mapping[str, Any]] | None,
    event: Sequence[Event | Mapping[str, Any]],
    measure: Mapping[str, Any] | None,
    name: str,
    script: Script | str | None,
) -> Scenario:
    """Return the scenario that the arguments of ``simulate`` describe."""
    if isinstance(scenario, Scenario):
        return scenario
    if scenario is not None:
        from vmmsim.scenario_file import load_scenario

        return load_scenario(str(scenario), [])
    if host is None:
        raise BadInput('say what to run: a scenario, or host="96GiB" and vm or script')
    data: dict[str, Any] = {
        "host": _table(host),
        "vm": {key: _plain(one) for key, one in (vm or {}).items()},
        "event": [_plain(one) for one in event],
        "measure": dict(measure or {}),
    }
    if script is not None:
        data["run"] = {"script": script if isinstance(script, str) else f"{script.__module__}:{script.__name__}"}
    from vmmsim.scenario_file import checked

    return checked(data, name=name or "run", folder=Path.cwd())


def _table(host: Host | Mapping[str, Any] | str | int) -> dict[str, Any]:
    if isinstance(host, str):
        return {"memory": host}
    if isinstance(host, int):
        return {"memory": write_bytes(host)}
    return _plain(host)


def _plain(part: Any) -> dict[str, Any]:
    """Return a part of a scenario as a file would spell it; whole numbers stand for bytes and nanoseconds."""
    if attrs.has(type(part)):
        return strict.unstructure(part)
    return {key: _spelt(key, value) for key, value in part.items()}


SIZES = ("memory", "size", "target", "footprint", "kernelcore")
TIMES = ("at", "boot", "age", "every", "until")


def _spelt(key: str, value: Any) -> Any:
    if type(value) is int and key in SIZES:
        return write_bytes(value)
    if type(value) is int and key in TIMES:
        return write_duration(value)
    return {inner: _spelt(inner, one) for inner, one in value.items()} if isinstance(value, Mapping) else value


def _changed(scenario: Scenario, until: str | int | None, seed: int | None) -> Scenario:
    run = scenario.run
    if until is not None:
        run = attrs.evolve(run, until_ns=parse_duration(until) if isinstance(until, str) else until)
    if seed is not None:
        run = attrs.evolve(run, seed=seed)
    return attrs.evolve(scenario, run=run)


def _add_user_code(sim: Simulation, script: Script | str | None) -> dict[str, str]:
    """Let a scenario's script and actors take part; return the SHA-256 of each file they come from."""
    scenario = sim.scenario
    folder = scenario.folder or Path.cwd()
    files: dict[str, str] = {}
    wanted = script if script is not None else scenario.run.script
    if isinstance(wanted, str):
        files |= _hash_of(wanted, folder)
        wanted = user_code.load(wanted, folder)
    if wanted is not None:
        sim.scripts.append(_generator(wanted(sim), "the script"))
    for actor in scenario.actor:
        files |= _hash_of(actor.use, folder)
        made = user_code.make(actor.use, folder, actor.parameters, {"sim": sim})
        sim.scripts.append(_only_generator(made, actor.use))
    return files


def _generator(made: Any, what: str) -> Any:
    if not inspect.isgenerator(made):
        raise BadInput(f"{what} is no generator function; it must yield, e.g. yield sim.sleep('1h')")
    return made


def _only_generator(made: object, words: str) -> Any:
    """Return the one generator method of a user's actor, begun."""
    methods = [
        name for name, method in inspect.getmembers(type(made), inspect.isgeneratorfunction) if not name.startswith("_")
    ]
    if len(methods) != 1:
        raise BadInput(f"{words} needs just one generator method, such as running(self); it has {len(methods)}")
    return getattr(made, methods[0])()


def _hash_of(words: str, folder: Path) -> dict[str, str]:
    place = words.rpartition(":")[0]
    if not place.endswith(".py"):
        return {}
    try:
        return {place: hashlib.sha256((folder / place).read_bytes()).hexdigest()}
    except OSError:
        raise BadInput("no such file", file=place) from None
