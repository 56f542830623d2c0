"""What a run returns: its configuration, its tables and what they come down to; saved whole, or not at all."""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from vmmsim.addresses import format_duration
from vmmsim.errors import BadInput
from vmmsim.run_tables import digest_of, wrong_columns
from vmmsim.summary import summarize
from vmmsim.workloads.replacing import writing

if TYPE_CHECKING:
    import pyarrow as pa

    from vmmsim.decisions import Recorder

SCHEMA: Final = "vmmsim/result/1"
"""Name of what ``result.json`` holds."""
TABLES: Final = ("vms", "host", "decisions", "walks")
RUNS: Final = Path("runs")
"""Where results lie that nobody gave a place."""


def versions() -> dict[str, str]:
    """Return the versions of vmmsim, Python and the libraries that results depend on."""
    import platform
    from importlib.metadata import version

    names = ("vmmsim", "numpy", "numba", "simpy", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Result:
    """One run: ``result["vms"]`` is a pyarrow.Table, as are host, decisions and walks."""

    name: str
    """The scenario's name."""
    scenario: dict[str, Any]
    """The resolved scenario as plain data, spelled as a file would."""
    seed: int
    """The run's one seed."""
    end_ns: int
    """Simulated time at which it ended."""
    complete: bool = True
    """Whether it came to its end; not if somebody stopped it, or nobody made progress."""
    stalled: str = ""
    """If nobody made progress: who waits for whom."""
    versions: dict[str, str] = attrs.field(factory=versions)
    """Of vmmsim, Python and the libraries that results depend on."""
    user_code: dict[str, str] = attrs.field(factory=dict)
    """SHA-256 of every file of the user's that took part, by its name."""
    again: str = ""
    """The command that runs it again."""
    tables: dict[str, pa.Table]
    """The four tables of a run."""

    @classmethod
    def of(cls, recorder: Recorder, **fields: Any) -> Result:
        """Return the result that a recorder holds; the other fields as they are."""
        return cls(tables=recorder.tables(), **fields)

    def __getitem__(self, table: str) -> pa.Table:
        """Return one of the four tables."""
        return self.tables[table]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what happened: equal for equal sources, configuration and seed."""
        return digest_of(self.tables)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the tables come down to, as plain data: VMs, host, decisions."""
        return summarize(self.tables, self.end_ns)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the tables as plain data: what ``result.json`` holds beside its schema's name."""
        return {
            "name": self.name,
            "complete": self.complete,
            "stalled": self.stalled,
            "seed": self.seed,
            "end_ns": self.end_ns,
            "digest": self.digest,
            "scenario": self.scenario,
            "versions": self.versions,
            "user_code": self.user_code,
            "again": self.again,
            "tables": {name: table.num_rows for name, table in self.tables.items()},
            "summary": self.summary,
        }

    def default_folder(self) -> Path:
        """Return where the result goes if nobody says: scenario, seed and the digest's first digits."""
        return RUNS / f"{self.name}-seed{self.seed}-{self.digest[:8]}"

    def save(self, folder: str | Path | None = None, *, force: bool = False) -> Path:
        """Write ``result.json`` and the tables to a folder, which is made, and return it.

        Without ``folder`` it is ``default_folder()``, or, if that is there with another content, the same with a
        number after it. ``BadInput`` if the folder exists and not ``force`` (only a saved result is ever replaced),
        or cannot be written; nothing is left behind then.
        """
        if folder is not None:
            return self._write(Path(folder), force=force)
        with writing(RUNS):
            RUNS.mkdir(exist_ok=True)
        place = self.default_folder()
        number = 2
        while place.exists() and not force:
            if self._is_saved_in(place):
                return place
            place = place.with_name(f"{self.default_folder().name}-{number}")
            number += 1
        return self._write(place, force=force)

    def _is_saved_in(self, folder: Path) -> bool:
        try:
            other = load(folder)
        except BadInput:
            return False
        same = other.as_dict() == json.loads(json.dumps(self.as_dict()))
        return same and all(other[name].equals(self[name]) for name in TABLES)

    def _write(self, folder: Path, *, force: bool) -> Path:
        import pyarrow.parquet as pq

        with _replacing_folder(folder, force=force) as draft, writing(folder):
            for name in TABLES:
                pq.write_table(self.tables[name], draft / f"{name}.parquet", compression="zstd")
            text = json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=2, allow_nan=False)
            (draft / "result.json").write_text(text + "\n", encoding="utf-8")
        return folder

    @staticmethod
    def load(folder: str | Path) -> Result:
        """Return the result that was saved in ``folder``; ``BadInput`` if there is none, or not a whole one."""
        return load(folder)

    def _repr_html_(self) -> str:
        """Return a small table of the VMs for notebooks."""
        rows = [_html_row("th", ("VM", "wanted", "had from", "in it", "overhead"))]
        for vm, found in self.summary["vm"].items():
            had, mean = found["had_from_ns"], found["overhead"]["mean"]
            cells = (
                vm,
                found["mode_wanted"],
                "never" if had is None else format_duration(had),
                "" if found["in_mode"] is None else f"{found['in_mode']:.1%}",
                "" if mean is None else f"{mean:.2%}",
            )
            rows.append(_html_row("td", cells))
        unfinished = "" if self.complete else ", not complete"
        title = f"{self.name}, seed {self.seed}, {format_duration(self.end_ns)}{unfinished}: {self.digest[:8]}"
        return f"<table><caption>{html.escape(title)}</caption>{''.join(rows)}</table>"


def load(folder: str | Path) -> Result:
    """Return the result that was saved in ``folder``; ``BadInput`` if there is none, or not a whole one."""
    place = Path(folder)
    fields = read_json(place)
    tables = {name: read_table(place, name) for name in TABLES}
    names = [field.name for field in attrs.fields(Result) if field.name != "tables"]
    return Result(tables=tables, **{name: fields[name] for name in names})


def read_json(folder: Path) -> dict[str, Any]:
    """Return what ``result.json`` of a saved result holds, with every key that it must have."""
    path = folder / "result.json"
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        if not folder.is_dir():
            raise BadInput("there is no such result", file=folder) from None
        if not path.exists():
            raise BadInput("is no saved result: it has no result.json", file=folder) from None
        raise BadInput(f"cannot be read: {error.strerror or error}", file=path) from None
    except ValueError:
        raise BadInput("is not JSON", file=path) from None
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise BadInput(f'is not a result of this version; its schema is not "{SCHEMA}"', file=path)
    needed = (*(field.name for field in attrs.fields(Result)), "digest", "summary")
    if missing := [name for name in needed if name not in fields]:
        raise BadInput(f"lacks {', '.join(missing)}", file=path)
    return fields


def read_table(folder: Path, name: str) -> pa.Table:
    """Return a table of a saved result; ``BadInput`` if it is not there or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{name}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        why = "is missing" if not path.exists() else f"cannot be read: {str(error).splitlines()[0]}"
        raise BadInput(why, file=path) from None
    if wrong := wrong_columns(name, table.schema):
        raise BadInput(wrong, file=path)
    return table


def refuse_folder(folder: Path, *, force: bool) -> None:
    """Raise ``BadInput`` if a result cannot go to ``folder``: it exists, or has no directory to lie in."""
    if folder.exists() and not force:
        raise BadInput("exists already; give another name, or --force to replace it", file=folder)
    if folder.exists() and not _may_be_replaced(folder):
        raise BadInput("is not a saved result, and is not replaced by one; give another name", file=folder)
    if not folder.resolve().parent.is_dir():
        raise BadInput(f"there is no directory {folder.parent}; make it first", file=folder)
    if not os.access(folder.resolve().parent, os.W_OK):
        raise BadInput(f"nothing can be written to the directory {folder.resolve().parent}", file=folder)


def _may_be_replaced(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "result.json").is_file() or not any(folder.iterdir()))


@contextlib.contextmanager
def _replacing_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder beside ``folder``, which becomes that if the block ends well and is gone otherwise."""
    refuse_folder(folder, force=force)
    place = folder.resolve()
    with writing(folder):
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    try:
        yield draft
        refuse_folder(folder, force=force)  # it may have come into being meanwhile
        with writing(folder):
            draft.chmod(0o777 & ~_umask())
            _take_the_place(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _take_the_place(draft: Path, place: Path) -> None:
    """Rename ``draft`` to ``place``; an old one goes only once the new one is there."""
    if not place.exists():
        draft.rename(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".old", dir=place.parent))
    try:
        place.rename(old / "result")
        try:
            draft.rename(place)
        except BaseException:
            (old / "result").rename(place)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _html_row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
