"""What an error of ours leaves behind, so that whoever looks for it can have it again."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any, Final

import attrs

from vmmsim.workloads.replacing import writing

CRASH: Final = Path("crash")


def write_crash(error: Exception, scenario: Any, options: dict[str, Any], command: str) -> Path:
    """Write ``crash/`` and return its path: the resolved scenario, the seed, the last decisions and the traceback.

    Its two files are ``crash.json`` and ``traceback.txt``. An older crash is replaced, anything else of that name is
    left alone. ``BadInput`` if nothing can be written.
    """
    from vmmsim.result import versions

    decisions = getattr(error, "decisions", ())
    told = {
        "command": command,
        "options": options,
        "seed": options.get("seed") if options.get("seed") is not None else _seed(scenario),
        "t_ns": getattr(error, "t_ns", None),
        "versions": versions(),
        "scenario": _plain(scenario),
        "decisions": [attrs.asdict(one) for one in decisions],
    }
    trace = "".join(traceback.format_exception(error))
    place = _place()
    with writing(place):
        draft = Path(tempfile.mkdtemp(prefix=".crash.", suffix=".part", dir="."))
        try:
            (draft / "crash.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            (draft / "traceback.txt").write_text(trace, encoding="utf-8")
            draft.chmod(0o755)
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place


def _place() -> Path:
    """Return ``crash``, or with a number after it the first that is not there or holds an older crash."""
    names = itertools.chain([CRASH], (Path(f"{CRASH}-{number}") for number in itertools.count(2)))
    return next(place for place in names if not place.exists() or (place / "crash.json").is_file())


def _seed(scenario: Any) -> Any:
    return getattr(getattr(scenario, "run", None), "seed", None)


def _plain(scenario: Any) -> Any:
    """Return the scenario as plain data; whatever it is, a crash is written."""
    from vmmsim.strict import unstructure

    try:
        plain = unstructure(scenario)
        json.dumps(plain)
    except Exception:
        return repr(scenario)
    return plain
