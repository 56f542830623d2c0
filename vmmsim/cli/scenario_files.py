"""``vmmsim schema``, ``new`` and ``scenarios``: what scenario files are made of, a start for one, those there are."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vmmsim.cli import output
from vmmsim.errors import BadInput

_SCRIPT: Final = re.compile(r'"([\w-]+)\.py:')
"""Code beside a scenario file, as the file names it."""
START: Final = """\
# Whose question does this scenario answer? The first line is what `vmmsim scenarios` shows of a shipped one.
#
# vmmsim validate FILE    what is wrong with it, or what will happen and what it will take
# vmmsim run FILE         run it
# vmmsim schema           every key, for editors

[run]
until = "1h"                           # simulated time
seed  = 1

[host]
machine = "sandy-bridge-2012"          # the translation hardware; vmmsim machines
memory  = "32GiB"
age     = "30d"                        # lived-in memory at the start; "0s" is a fresh boot
compaction = { bandwidth = "1GiB/s" }  # how fast pages are moved; without this line, others' are not

[vm.db]
memory   = "16GiB"
vcpus    = 4
mode     = "dual-direct"               # the mode it wants: base, vmm-direct, guest-direct, dual-direct
io_gap   = "reclaim"                   # move memory from below the I/O gap to where a segment reaches
workload = { name = "memcached", footprint = "10GiB" }  # or graph500, gups, web, kernel-build, or trace = "FILE"

[vm.web]
count    = 2                           # web-0 and web-1; events name them, or web-* for both
memory   = "4GiB"
workload = { name = "web", footprint = "2GiB", load = [["0m", 0.2], ["20m", 1.0]] }

[[event]]
at = "40m"
do = "balloon"                         # boot shutdown balloon mode compact self_balloon hot_add hot_remove
vm = "web-*"                           # reclaim_io_gap fault load migrate
target = "3GiB"                        # holds until an event with target = "auto"

[measure]
every = "10s"                          # rows of the time series, beside those at changes
as_if = ["base", "dual-direct"]        # the same accesses in these modes, for comparison
"""


def schema() -> None:
    """Print the JSON Schema of scenario files: every key, what it takes and what it means."""
    from vmmsim.scenario_schema import scenario_schema

    print(json.dumps(scenario_schema(), indent=2))


def new(
    words: Annotated[
        list[str], typer.Argument(metavar="[NAME] FILE", help="File to write; first, a shipped scenario to copy.")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a scenario to start from: a small one that explains itself, or a copy of a shipped one.

    A script that the shipped scenario names is copied beside it, under the new file's name. Nothing is overwritten.
    """
    if len(words) > 2:
        raise BadInput("new takes a shipped scenario's name, if any, and one file", file="FILE")
    name, file = words[0] if len(words) == 2 else None, Path(words[-1])
    if file.suffix != ".toml":
        raise BadInput('is no name of a scenario file; write one that ends in ".toml"', file=file)
    texts = {file: START} if name is None else _copies(name, file)
    _write(texts)
    beside = [str(path) for path in texts if path != file]
    if as_json:
        output.document("new", {"path": str(file), "copy_of": name, "beside": beside})
    else:
        output.say(f"wrote {' and '.join([str(file), *beside])}; change it, then: vmmsim validate {file}")


def _copies(name: str, file: Path) -> dict[Path, str]:
    """Return what a copy of a shipped scenario is made of: its file, then the code that it names, by their new paths.

    The code takes the new file's name, so that several copies can lie in one folder, and both say so where they
    speak of it.
    """
    shipped = _shipped(name)
    text = shipped.read_text(encoding="utf-8")
    scripts = [stem for stem in dict.fromkeys(_SCRIPT.findall(text)) if shipped.with_name(f"{stem}.py").is_file()]
    texts = {file: text}
    for stem in scripts:
        mine = file.stem if len(scripts) == 1 else f"{file.stem}_{stem}"
        code = shipped.with_name(f"{stem}.py").read_text(encoding="utf-8")
        texts[file.with_name(f"{mine}.py")] = code.replace(f"vmmsim run {name}`", f"vmmsim run {file.name}`")
        texts = {path: each.replace(f"{stem}.py", f"{mine}.py") for path, each in texts.items()}
    return texts


def _shipped(name: str) -> Path:
    from vmmsim.hints import did_you_mean
    from vmmsim.scenarios_folder import shipped_scenarios

    shipped = shipped_scenarios()
    if name not in shipped:
        raise BadInput(
            f"not a shipped scenario; those are {', '.join(shipped)}{did_you_mean(name, shipped)}", file=name
        )
    return shipped[name]


def _write(texts: dict[Path, str]) -> None:
    """Write all files or none: each is whole beside its place before the first is put there."""
    from vmmsim.workloads.replacing import replacing, writing

    for file in texts:
        if file.exists():
            raise BadInput("exists already; nothing was written", file=file)
    with ExitStack() as all_whole:
        for file, text in texts.items():
            draft = all_whole.enter_context(replacing(file, force=False))
            with writing(file):
                draft.write_text(text, encoding="utf-8")


def scenarios(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the shipped scenarios, each with the question that it answers."""
    rows = _described()
    if as_json:
        output.document("scenarios", {"scenarios": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['question']}")
    output.say("vmmsim validate NAME says what will happen in one; vmmsim new NAME FILE copies it")


def _described() -> list[dict[str, Any]]:
    from vmmsim.scenarios_folder import shipped_scenarios

    return [
        {"name": name, "question": first_comment(path), "path": str(path)} for name, path in shipped_scenarios().items()
    ]


def first_comment(path: Path) -> str:
    """Return the first line of a file that is a comment, without its mark; "" if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")
