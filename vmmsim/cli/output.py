"""What every command prints alike: one JSON document on stdout, everything said to people on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from vmmsim.errors import BadInput


def say(line: str) -> None:
    """Write one line to stderr, which is where progress, warnings and errors go."""
    print(line, file=sys.stderr, flush=True)


def document(command: str, body: dict[str, Any]) -> None:
    """Print the JSON document of a command: its schema's name, then ``body``."""
    print(json.dumps({"schema": f"vmmsim/{command}/1", **body}, indent=2))


def report(bad: BadInput, *, as_json: bool) -> None:
    """Say every problem of ``bad``: a line each on stderr, or one JSON document on stdout."""
    if as_json:
        print(json.dumps({"error": [attrs.asdict(problem) for problem in bad.problems]}, indent=2))
        return
    for problem in bad.problems:
        say(f"vmmsim: {problem}")
