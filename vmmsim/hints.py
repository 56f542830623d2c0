"""The words of messages about a user's values: the value as a file shows it, and what may have been meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Final

_FEW: Final = 9
"""As many choices as a message lists when none of them is near."""


def shown(value: object) -> str:
    """Return ``value`` as TOML writes it, or what it is where that would be long."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool | float) else str(value)


def unknown(word: object, choices: Iterable[str]) -> str:
    """Return that ``word`` is unknown, with a hint at what is known."""
    return f"{shown(word)} is unknown{hint(word, choices)}"


def hint(word: object, choices: Iterable[str]) -> str:
    """Return what may have been meant by ``word``, to end a message: the nearest choice, or all of a few."""
    known = list(choices)
    listed = f"; known: {', '.join(map(shown, known))}" if 0 < len(known) <= _FEW else ""
    return did_you_mean(word, known) or listed


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """Return the nearest of ``choices`` as a question, to end a message; "" if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1) if isinstance(word, str) else []
    return f"; did you mean {shown(near[0])}?" if near else ""
