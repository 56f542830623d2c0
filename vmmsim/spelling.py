"""How a description is spelt in a file where that is more than its fields: notes on classes, which ``strict`` reads."""

from __future__ import annotations

from typing import Any, Final

NO_KEY: Final[dict[str, Any]] = {"spelling": "no key"}
"""Metadata of a field that no file spells: who reads the file fills it in."""

REST: Final[dict[str, Any]] = {"spelling": "rest"}
"""Metadata of a field, a dict, that takes all keys of the table which no other field takes."""

TAGGED: Final = "_tagged"
"""Attribute of a base class whose tables are of one of several classes: (key that tells them apart, {value: class})."""

AS_LIST: Final = "_as_list"
"""Attribute of a class that is spelt as a list of its fields' values, in order, rather than as a table."""


def or_word(word: str) -> dict[str, Any]:
    """Return the metadata of a quantity that may be absent, and is then spelt as ``word``."""
    return {"spelling": "quantity or word", "word": word}
