"""Places in plain data, as messages print them and users type them: ``vm.db``, ``event[0]``, ``arms."no filter"``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def join(path: str, key: str | int) -> str:
    """Return the path of ``key`` in what is at ``path``: ``vm.db``, ``event[0]``, ``arms."no filter"``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    written = key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{path}.{written}" if path else written


def leaves(data: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of all in ``data`` that is no table and no list; an empty list is a value."""
    below = list(_children(data, path))
    if not below and data != {}:
        yield path, data
    for child_path, child in below:
        yield from leaves(child, child_path)


def every_path(data: object, path: str = "") -> Iterator[str]:
    """Yield ``path``, which is that of ``data``, and the path of everything in it, in order."""
    yield path
    for child_path, child in _children(data, path):
        yield from every_path(child, child_path)


def upwards(path: str) -> Iterator[str]:
    """Yield ``path`` and the path of everything that it lies in, "" last."""
    yield path
    for n in range(len(path) - 1, 0, -1):
        if path[n] in ".[":
            yield path[:n]
    yield ""


def _children(data: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        yield from ((join(path, key), value) for key, value in data.items())
    elif isinstance(data, list | tuple):
        yield from ((join(path, n), value) for n, value in enumerate(data))
