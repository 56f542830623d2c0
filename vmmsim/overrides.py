"""Values in place of those that a file gives: ``--set vm.db.memory=32GiB``, by the paths that messages print."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown
from vmmsim.strict import join

_STEP: Final = re.compile(r'(?:^|\.)(?:([A-Za-z0-9_-]+)|("(?:[^"\\]|\\.)*"))|\[(\d+)\]')
_NAMED: Final = ("vm",)
"""Tables whose keys are names that the file chose: setting a value adds none."""


def parse_override(text: str) -> tuple[str, Any]:
    """Return path and value of ``path=value``; ``BadInput`` for anything else.

    The value is what TOML makes of it, or else text: 32GiB needs no quotes.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise BadInput(f"{shown(text)} is no path=value; write e.g. vm.db.memory=32GiB")
    parse_path(path.strip())
    return path.strip(), parse_value(value.strip())


def parse_path(path: str) -> list[str | int]:
    """Return the keys and positions that ``vm.db.memory`` or ``event[0].at`` is made of; the inverse of ``join``."""
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or (at == 0 and path[0] in ".["):
            raise BadInput(f"{shown(path)} is no path; write e.g. vm.db.memory or event[0].at")
        bare, quoted, position = match.groups()
        steps.append(int(position) if position else bare if bare else json.loads(quoted))
        at = match.end()
    return steps


def parse_value(text: str) -> Any:
    """Return the value that ``text`` is in TOML, or ``text`` itself where it is none."""
    try:
        held = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return held["value"] if len(held) == 1 else text


def replaced(data: Any, path: str, value: Any) -> Any:
    """Return ``data`` with ``value`` at ``path``; ``data`` itself stays as it is.

    Tables on the way that the file leaves out are made. ``BadInput`` where a list is too short, a name is unknown
    or something on the way is no table.
    """
    return _replaced(data, parse_path(path), value, "")


def _replaced(held: Any, steps: list[str | int], value: Any, path: str) -> Any:
    if not steps:
        return value
    step, *further = steps
    below = join(path, step)
    if isinstance(step, int):
        if not isinstance(held, list):
            raise BadInput(f"{path} is no list", path=below)
        if step >= len(held):
            raise BadInput(f"{path} has {len(held)} entries, the first of them [0]", path=below)
        return [_replaced(old, further, value, below) if n == step else old for n, old in enumerate(held)]
    if not isinstance(held, Mapping):
        raise BadInput(f"{path} is {shown(held)}, and no table", path=below)
    if path in _NAMED and step not in held:
        raise BadInput(f"{shown(step)} is not in the file{hint(step, held)}", path=path)
    return {**held, step: _replaced(held.get(step, {}), further, value, below)}
