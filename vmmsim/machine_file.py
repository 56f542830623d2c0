"""Machine files: the shipped ones and a user's own, read the same way, each number with its source.

A file of one's own may say ``base = "skylake"`` and give only what differs: tables are merged key by key,
lists are replaced whole. What it changes loses the base's source: the file gives its own, or the value counts
as assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vmmsim import strict
from vmmsim.config import Machine, Source
from vmmsim.errors import BadInput, Problem
from vmmsim.hints import did_you_mean, hint, shown, unknown

_FOLDER: Final = Path(__file__).parent / "data" / "machines"
_WORDS: Final = ("name", "title")
"""Keys that describe, and need no source."""


def machine_names() -> list[str]:
    """Return the names of the machines that are shipped, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def machine_path(name_or_path: str) -> Path:
    """Return the file of a machine; ``BadInput`` for what is neither a shipped name nor a path."""
    names = machine_names()
    if name_or_path in names:
        return _FOLDER / f"{name_or_path}.toml"
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1 or path.is_file():
        return path
    raise BadInput(
        f"machine {shown(name_or_path)} is neither a file nor one of {', '.join(names)}"
        + did_you_mean(name_or_path, names)
    )


def load_machine(name_or_path: str) -> Machine:
    """Return the machine with a shipped name, or the one that a TOML file describes; else ``BadInput``.

    A file that does not name its machine gives it the file's own name, without ``.toml``.
    """
    path = machine_path(name_or_path)
    label = path.name if path.parent == _FOLDER else name_or_path
    data = {"name": path.stem, **strict.load_toml(path)}
    machine = strict.structure(Machine, _with_base(data, label), label)
    _check_sources(machine, label)
    return machine


def source_of(machine: Machine, path: str) -> Source | None:
    """Return where the value at ``path`` (as in a file: ``l2_tlb[0].ways``) comes from, if it is said."""
    key = _longest_cover(machine.sources, path)
    return None if key is None else machine.sources[key]


def values(machine: Machine) -> Iterator[tuple[str, Any]]:
    """Yield path and value of all that needs a source, as a file spells it."""
    plain = strict.unstructure(machine)
    for key in (*_WORDS, "sources"):
        del plain[key]
    yield from strict.leaves(plain)


def _check_sources(machine: Machine, label: str) -> None:
    """Raise ``BadInput`` for every key of ``sources`` at or below which the machine has no value."""
    paths = [path for path, _ in values(machine)]
    known = sorted({prefix for path in paths for prefix in _prefixes(path)})
    problems = [
        Problem(label, "sources", f"{shown(key)} is no key of this machine{hint(key, known)}")
        for key in machine.sources
        if key not in known
    ]
    if problems:
        raise BadInput.of(problems)


# --- paths: each stands for all below it ---


def _covers(key: str, path: str) -> bool:
    return path == key or path.startswith((f"{key}.", f"{key}["))


def _longest_cover(keys: Iterable[str], path: str) -> str | None:
    return max((key for key in keys if _covers(key, path)), key=len, default=None)


def _prefixes(path: str) -> Iterator[str]:
    yield from (path[:n] for n, character in enumerate(path) if character in ".[")
    yield path


# --- base: what a file leaves to another ---


def _with_base(data: dict[str, Any], label: str) -> dict[str, Any]:
    """Return ``data`` upon the shipped machine that it names as its ``base``, if it names one."""
    if "base" not in data:
        return data
    own = {key: value for key, value in data.items() if key != "base"}
    base = data["base"]
    if base not in machine_names():
        raise BadInput(unknown(base, machine_names()), file=label, path="base")
    below = strict.unstructure(load_machine(base)) | {"title": f"{base}, changed"}
    both = _merged(below, own)
    if isinstance(own_sources := own.pop("sources", {}), Mapping):
        both["sources"] = _merged_sources(below["sources"], own_sources, list(_set_paths(own)), label)
    return both


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` upon ``below``: tables key by key, everything else replaced whole."""
    both = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            both[key] = _merged(under, value)
        else:
            both[key] = value
    return both


def _merged_sources(below: Mapping[str, Any], own: Mapping[str, Any], changed: list[str], label: str) -> dict[str, Any]:
    """Return the sources of a changed machine: what ``changed`` covers never keeps the source of the base."""
    unsaid = {"source": f"{label}, which does not say where it comes from", "sure": "assumed"}
    kept = {key: source for key, source in below.items() if not any(_covers(path, key) for path in changed)}
    covers = {path: _longest_cover(own, path) for path in changed}
    return {**kept, **{path: own[key] if key else unsaid for path, key in covers.items()}, **own}


def _set_paths(data: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of all that a file sets and that needs a source, a list as a whole."""
    for key, value in data.items():
        below = strict.join(path, key)
        if isinstance(value, Mapping):
            yield from _set_paths(value, below)
        elif below not in _WORDS:
            yield below
