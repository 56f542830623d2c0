"""A TOML file as plain data, or in one line what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from vmmsim.errors import BadInput

_AT: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load_toml(path: str | Path) -> dict[str, Any]:
    """Return what the TOML file ``path`` holds; ``BadInput`` if it cannot be read or is no TOML."""
    try:
        text = Path(path).read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise BadInput("no such file", file=path) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", file=path) from None
    except UnicodeDecodeError as error:
        raise BadInput("is not UTF-8 text", file=path, path=f"byte {error.start}") from None
    except RecursionError:
        raise BadInput("is nested too deeply", file=path) from None
    except ValueError as error:  # tomllib lets the errors of int() and datetime through
        where, message = _where_and_what(str(error))
        raise BadInput(f"is not TOML: {message}", file=path, path=where) from None
    if not data:
        raise BadInput("is empty", file=path)
    return data


def _where_and_what(message: str) -> tuple[str, str]:
    """Split tomllib's "Invalid value (at line 3, column 5)" into place and message."""
    at = _AT.search(message)
    where = "" if at is None else f"line {at[1]}, column {at[2]}" if at[1] else "end of file"
    what = message[: at.start()] if at else message
    return where, what[:1].lower() + what[1:]
