"""Where the shipped scenarios and traces lie: inside the installed package, or at the top of the repository."""

from __future__ import annotations

from pathlib import Path

from vmmsim.errors import BadInput


def scenarios_folder() -> Path:
    """Return the folder of shipped scenarios; ``BadInput`` if this installation has none."""
    package = Path(__file__).parent
    for folder in (package / "scenarios", package.parent / "scenarios"):
        if (folder / "traces").is_dir():
            return folder
    raise BadInput("this installation holds no scenarios; install vmmsim again", file=package)


def shipped_trace(name: str) -> Path:
    """Return the path of a shipped trace by its name without ``.parquet``; ``BadInput`` for an unknown one."""
    traces = {path.stem: path for path in sorted((scenarios_folder() / "traces").glob("*.parquet"))}
    if name not in traces:
        raise BadInput(f"no shipped trace is called that; there are {', '.join(traces)}", file=name)
    return traces[name]


def trace_path(name: str) -> Path:
    """Return the trace that a user names: a file, or a shipped trace by its name."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    try:
        return shipped_trace(name)
    except BadInput:
        return path
