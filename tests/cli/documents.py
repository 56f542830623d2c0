"""Documents of commands, held against their schemas."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema


def schema(name: str) -> dict[str, Any]:
    """Return a schema of the package, which must be one itself."""
    text = resources.files("vmmsim.data").joinpath(f"schemas/{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(loaded)
    return loaded


def document(text: str, name: str) -> dict[str, Any]:
    """Return the one JSON document that ``text`` is, which keeps to the schema ``name``."""
    loaded: dict[str, Any] = json.loads(text)
    jsonschema.validate(loaded, schema(name), cls=jsonschema.Draft202012Validator)
    return loaded
