"""What every command prints alike: one JSON document on stdout, everything said to people on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmmsim.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console


def say(line: str) -> None:
    """Write one line to stderr, which is where progress, warnings and errors go."""
    print(line, file=sys.stderr, flush=True)


def text(words: str) -> None:
    """Print text for people to stdout, in what characters it has."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        words.encode(encoding)
    except UnicodeEncodeError:
        words = words.replace("·", ".").encode(encoding, "replace").decode(encoding)
    print(words)


def console() -> Console:
    """Return what prints tables to stdout, as wide as the terminal, or as they need off one; no colours there."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 120
    return Console(width=wide, markup=False, highlight=False, emoji=False)


def say_if_compiling() -> None:
    """Say, before the first translation, that it will take a while because kernels are not compiled yet."""
    from vmmsim.jit import is_warm

    if not is_warm():
        say("compiling the translation engine (once; about half a minute)")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there either whole or not at all, over an old one; ``BadInput`` if it cannot be written."""
    from vmmsim.workloads.replacing import replacing, writing

    with replacing(path, force=True) as draft, writing(path):
        draft.write_bytes(content)


def document(command: str, body: dict[str, Any]) -> None:
    """Print the JSON document of a command: its schema's name, then ``body``."""
    print(json.dumps({"schema": f"vmmsim/{command}/1", **body}, indent=2))


def report(bad: BadInput, *, as_json: bool) -> None:
    """Say every problem of ``bad``: a line each on stderr, or one JSON document on stdout."""
    if as_json:
        print(json.dumps({"error": [attrs.asdict(problem) for problem in bad.problems]}, indent=2))
        return
    for problem in bad.problems:
        for line in str(problem).splitlines():
            say(f"vmmsim: {line}")
