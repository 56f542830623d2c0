"""The numbers of the model's mechanisms, ``data/rates.toml``: each with its source and how sure it is."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def table() -> dict[str, Any]:
    """Return all of ``data/rates.toml``."""
    return tomllib.loads(resources.files("vmmsim.data").joinpath("rates.toml").read_text("utf-8"))


@cache
def entry(path: str) -> dict[str, Any]:
    """Return the entry ``path`` ("buddy.min_free_factor"): value, source, sure; KeyError if there is none."""
    found: Any = table()
    for key in path.split("."):
        found = found[key]
    assert {"value", "source", "sure"} <= set(found), f"{path} is not a number with a source"
    return dict(found)


@cache
def number(path: str) -> float | int:
    """Return the value of ``path``, in the unit that its name ends with."""
    value = entry(path)["value"]
    assert isinstance(value, int | float), f"{path} is no number"
    return value


def source(path: str) -> str:
    """Return where the value of ``path`` is from."""
    return str(entry(path)["source"])


def sure(path: str) -> str:
    """Return how sure the value of ``path`` is: read, derived, recalled or assumed."""
    return str(entry(path)["sure"])
