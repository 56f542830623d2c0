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


def shipped_traces() -> dict[str, Path]:
    """Return the shipped traces by their names without ``.parquet``; ``BadInput`` if there are none."""
    return {path.stem: path for path in sorted((scenarios_folder() / "traces").glob("*.parquet"))}


def shipped_scenarios() -> dict[str, Path]:
    """Return the shipped scenario files by their names without ``.toml``; ``BadInput`` if there are none."""
    return {path.stem: path for path in sorted(scenarios_folder().glob("*.toml"))}


def trace_beside(name: str, folder: Path | None) -> Path | None:
    """Return the trace that a scenario in ``folder`` names: a file, or a shipped trace; None if there is neither.

    A path is relative to ``folder``, or to the working directory if that is None.
    """
    path = (folder or Path()) / name
    if path.is_file():
        return path
    return shipped_traces().get(name.removesuffix(".parquet"))


def trace_path(name: str) -> Path:
    """Return the trace that a user names: a file, or a shipped trace by its name; ``BadInput`` if it is neither."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    traces = shipped_traces()
    if name not in traces:
        raise BadInput(f"neither a file nor a shipped trace; those are {', '.join(traces)}", file=name)
    return traces[name]
