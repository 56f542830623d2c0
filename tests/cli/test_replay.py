"""``vmmsim replay``: tables, figures, one clear line for each mistake, and clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.documents import document
from tests.studies.programs import TOY_FILE, accesses, lackey
from vmmsim.cli.app import run
from vmmsim.config import MODES
from vmmsim.jit import INTERPRETED
from vmmsim.report import theme
from vmmsim.report.replay_table import _count, percent

TOY = ["--machine", str(TOY_FILE)]
FEW = 60


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "t.lackey"
    path.write_text(lackey(accesses(FEW)))
    return "t.lackey"


def rows(out: str) -> dict[str, list[str]]:
    """Return the figures of each mode's row, of one table or two."""
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        for look in theme.MODES.values():
            if line.strip().startswith(look.label + " "):
                found.setdefault(look.label, []).extend(line.split(look.label, 1)[1].split())
    return found


# What it shows


def test_the_table_has_a_row_for_each_mode_and_says_how_to_read_it(trace, capsys):
    assert run(["replay", trace, *TOY]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("t.lackey: ")
    assert "4K pages in the guest, 4K in the host; frames fragmented at both levels, seed 1" in out
    assert list(rows(out)) == [look.label for look in theme.MODES.values()]
    assert "overhead: walk cycles over ideal cycles" in out


def test_table_and_document_say_the_same(trace, capsys):
    arguments = ["replay", trace, *TOY, "--mode", "base", "--accesses", "all"]
    assert run(arguments) == 0
    base = rows(capsys.readouterr().out)["base virtualized"]
    assert run([*arguments, "--json"]) == 0
    (told,) = document(capsys.readouterr().out, "replay")["runs"]
    misses = told["data_l1_misses"] + told["instruction_l1_misses"]
    assert base[:5] == ["4K+4K", *(f"{n:,}" for n in (misses, told["l2_hits"], told["segment_0d"], told["walks"]))]
    assert base[5] == f"{told['references_per_walk']:.2f}"
    assert f"{base[8]} %" == percent(told["overhead"])
    assert base[-1] == f"{told['slowdown']:.4f}"
    assert told["costs"]["hierarchy"]["walk_cycles"] == told["walk_cycles"]


@pytest.mark.parametrize(
    "words",
    [
        ["t.lackey", "--mode", "base", "native"],
        ["t.lackey", "--mode", "base,native"],
        ["t.lackey", "--mode", "base", "--mode", "native"],
        ["--mode", "base", "native", "t.lackey"],
        ["--mode", "base", "t.lackey", "native"],
    ],
)
def test_modes_can_be_listed_in_every_usual_way(trace, words, capsys):
    assert run(["replay", *words, *TOY, "--json"]) == 0
    assert [told["mode"] for told in json.loads(capsys.readouterr().out)["runs"]] == ["base", "native"]


def test_every_mode_by_name_is_the_same_as_all(trace, capsys):
    assert run(["replay", trace, *TOY, "--mode", *MODES, "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert run(["replay", trace, *TOY, "--mode", "all", "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    for told in (*named["runs"], *together["runs"]):
        del told["kernel_seconds"]
    assert named == together


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_cuts_nothing_off(trace, width, capsys, monkeypatch):
    from rich.console import Console

    from vmmsim.cli import output

    monkeypatch.setattr(output, "console", lambda: Console(width=width, markup=False, highlight=False))
    assert run(["replay", trace, *TOY]) == 0
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if any(look.label in line for look in theme.MODES.values())]
    if width == 80:
        assert max(map(len, out.splitlines()[2:])) <= 80
        assert "…" not in out
        assert len(table) >= 12  # two tables
    assert run(["replay", trace, *TOY, "--json"]) == 0


def test_large_counts_are_shortened_in_a_narrow_table():
    assert [_count(n, short=True) for n in (0, 999_999, 1_000_000, 123_456_789)] == ["0", "999,999", "1M", "123.5M"]
    assert _count(123_456_789, short=False) == "123,456,789"


def test_shares_are_shown_with_the_digits_that_matter():
    shares = (0, 1e-9, 0.0000712, 0.0123, 0.0789, 1.5, 9.99, 1840)
    shown = ["0.00 %", "0.00 %", "0.0071 %", "1.23 %", "7.89 %", "150.00 %", "999.00 %", "184,000 %"]
    assert [percent(share) for share in shares] == shown


@pytest.mark.parametrize(("name", "magic"), [("m.png", b"\x89PNG"), ("m.svg", b"<?xml"), ("m.PDF", b"%PDF")])
def test_figures_are_whole_and_the_same_each_time(trace, name, magic, capsys):
    images = []
    for _ in range(2):
        assert run(["replay", trace, *TOY, "--plot", name]) == 0
        images.append(Path(name).read_bytes())
    assert images[0].startswith(magic)
    assert images[0] == images[1]
    assert f"wrote {name}" in capsys.readouterr().err
    assert sorted(os.listdir()) == sorted([name, "t.lackey"])


def test_a_figure_beside_json_leaves_the_document_alone(trace, capsys):
    assert run(["replay", trace, *TOY, "--plot", "m.svg", "--json"]) == 0
    document(capsys.readouterr().out, "replay")


def test_paths_with_spaces_and_a_file_named_like_a_shipped_trace(capsys):
    Path("a b").mkdir()
    for name in ("a b/my trace.txt", "database"):
        Path(name).write_text(lackey(accesses(FEW)))
        assert run(["replay", name, *TOY, "--mode", "base", "--json"]) == 0
        told = document(capsys.readouterr().out, "replay")
        assert (told["trace"]["path"], told["trace"]["format"]) == (name, "lackey")


def test_a_mode_may_be_the_name_of_the_trace(capsys):
    Path("base").write_text(lackey(accesses(FEW)))
    assert run(["replay", "base", *TOY, "--mode", "native", "--json"]) == 0
    assert document(capsys.readouterr().out, "replay")["trace"]["path"] == "base"


# What it refuses


def bad_files() -> None:
    """Write the inputs of the table below."""
    Path("t.lackey").write_text(lackey(accesses(FEW)))
    Path("empty").write_bytes(b"")
    Path("none.lackey").write_text("==1== Lackey, an example Valgrind tool\n")
    Path("code.lackey").write_text("I  400000,4\n")
    Path("short.lackey").write_text(" L 1000,4\n L 10")
    Path("far.lackey").write_text(" L 1000,4\n L 900000000000,4\n")
    Path("text").write_text("hello world, this is no trace\n")
    Path("broken.toml").write_text('base = "skylake"\nlevels = 6\n')
    Path("odd.toml").write_text('base = "skylake"\nlevel = 4\n')
    Path("folder").mkdir()
    Path("folder.png").mkdir()
    shipped = Path(__file__).parents[2] / "scenarios" / "traces" / "python.parquet"
    Path("cut.parquet").write_bytes(shipped.read_bytes()[:100_000])


BAD = [
    (["nowhere.lackey"], "nowhere.lackey: no such file"),
    (["nowhere"], "nowhere: neither a file nor a shipped trace; those are compiler, database, graph500, python"),
    (["folder"], "folder: is not a file; a trace is one"),
    (["empty"], "empty: is empty; a trace holds at least one access"),
    (["none.lackey"], "none.lackey: holds no accesses; record a program that makes some"),
    (["code.lackey"], "code.lackey: holds no data accesses; record a program that makes some"),
    (
        ["t.lackey", "--mode", "base", "--accesses", "code"],
        '--accesses: "code" is unknown; known: "data", "instructions", "all"',
    ),
    (["short.lackey"], "short.lackey: byte 10: the last line is cut short; copy or record the trace again"),
    (
        ["cut.parquet"],
        "cut.parquet: byte 100000 (the end): the trace is cut short or corrupt (*); copy or record it again",
    ),
    (
        ["far.lackey"],
        "far.lackey: byte 10: 0x900000000000 is not a canonical address of 4-level tables (bits 63 to 47 must be "
        "equal); a trace of a machine with 5 levels needs levels = 5",
    ),
    (["text"], "text: *"),
    (
        ["t.lackey", "--machine", "nothing"],
        'machine "nothing" is neither a file nor one of sandy-bridge-2012, sapphire-rapids, skylake, zen-4',
    ),
    (["t.lackey", "--machine", "broken.toml"], "broken.toml: levels: must be 4 or 5, not 6"),
    (["t.lackey", "--machine", "odd.toml"], 'odd.toml: unknown key "level"; did you mean "levels"?'),
    (["t.lackey", "--mode", "dual-drect"], '--mode: "dual-drect" is unknown; did you mean "dual-direct"?'),
    (["t.lackey", "--mode", "base,vm-direct"], '--mode: "vm-direct" is unknown; did you mean "vmm-direct"?'),
    (["t.lackey", "--guest-page", "3M"], '--guest-page: "3M" is not a page size; write 4K, 2M or 1G'),
    (["t.lackey", "--host-page", ""], '--host-page: "" is not a page size; write 4K, 2M or 1G'),
    (["t.lackey", "--guest-memory", "lots"], '--guest-memory: "lots" is not a size; write e.g. "64GiB"'),
    (["t.lackey", "--guest-memory", "0"], "--guest-memory: guest memory must lie between 4 KiB and 4 TiB"),
    (["t.lackey", "--guest-memory", "5TiB"], "--guest-memory: guest memory must lie between 4 KiB and 4 TiB"),
    (
        ["t.lackey", "--guest-memory", "64KiB"],
        "--guest-memory: guest memory of 64 KiB is too small: the program in 4K pages, with its page tables, needs *",
    ),
    (
        ["t.lackey", "--placement", "scattered"],
        '--placement: "scattered" is unknown; known: "contiguous", "random", "fragmented"',
    ),
    (["t.lackey", "--bad-pages", "-1"], "--bad-pages: -1 is not a number of bad pages from 0 to 256"),
    (["t.lackey", "--bad-pages", "257"], "--bad-pages: 257 is not a number of bad pages from 0 to 256"),
    (["far.lackey", "--bad-pages", "many"], "Invalid value for '--bad-pages': *"),
    (["t.lackey", "--seed", "-1"], "--seed: -1 is not a seed; a whole number from 0 is"),
    (["t.lackey", "--plot", "m.jpg"], "--plot: m.jpg is neither .png nor .svg nor .pdf"),
    (["t.lackey", "--plot", "m"], "--plot: m is neither .png nor .svg nor .pdf"),
    (["t.lackey", "--plot", "no/m.png"], "--plot: there is no directory no; make it first"),
    (
        ["t.lackey", "--plot", "folder.png"],
        "--plot: folder.png is not a regular file, and is not replaced by one; give another name",
    ),
    (["t.lackey", "empty"], 'TRACE: "empty" is one file too many; replay takes one trace'),
    (["t.lackey", "t.lackey"], 'TRACE: "t.lackey" is one file too many; replay takes one trace'),
    (["t.lackey", "--mode", "base", "empty"], 'TRACE: "empty" is one file too many; replay takes one trace'),
    ([], "Missing argument 'TRACE'"),
    (["t.lackey", "--modes", "base"], "No such option: --modes*"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(bad) or "nothing" for bad, _ in BAD])
def test_each_mistake_is_one_line_and_nothing_is_written(arguments, message, capsys):
    bad_files()
    before = sorted(Path().rglob("*"))
    toy = [] if "--machine" in arguments else TOY
    assert run(["replay", *arguments, *toy]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert matches(line, f"vmmsim: {message}"), line
    assert run(["replay", *arguments, *toy, "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    (problem,) = document(out, "error")["error"]
    joined = ": ".join(part for part in (problem["file"], problem["path"], problem["message"]) if part)
    assert f"vmmsim: {joined}" == line
    assert sorted(Path().rglob("*")) == before


def matches(line: str, message: str) -> bool:
    """Tell whether a line is ``message``, in which * stands for anything."""
    start, star, end = message.partition("*")
    return line == message if not star else line.startswith(start) and line.endswith(end) and len(line) > len(start)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_or_written_is_one_line(trace, capsys):
    os.chmod("t.lackey", 0)
    assert run(["replay", trace, *TOY]) == 2
    assert capsys.readouterr().err == "vmmsim: t.lackey: Permission denied\n"
    os.chmod("t.lackey", 0o600)
    Path("locked").mkdir(mode=0o500)
    assert run(["replay", trace, *TOY, "--plot", "locked/m.png"]) == 2
    assert capsys.readouterr().err == "vmmsim: --plot: nothing can be written to the directory locked\n"


def test_a_full_disk_under_the_figure_leaves_the_old_one(trace, capsys, monkeypatch):
    Path("m.png").write_bytes(b"precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert run(["replay", trace, *TOY, "--plot", "m.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "vmmsim: m.png: cannot be written: No space left on device\n")
    assert Path("m.png").read_bytes() == b"precious"
    assert sorted(os.listdir()) == ["m.png", "t.lackey"]


# How it ends


def vmmsim(*arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "vmmsim", *arguments],
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  a shell's background jobs ignore it
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


def test_output_to_a_closed_pipe_ends_quietly(trace):
    read, write = os.pipe()
    os.close(read)
    with vmmsim("replay", trace, *TOY, stdout=write) as process:
        os.close(write)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_line(trace):
    with open("/dev/full", "w") as full, vmmsim("replay", trace, *TOY, "--json", stdout=full) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (2, "vmmsim: the output cannot be written: No space left on device\n")


def test_ctrl_c_ends_a_long_replay_at_once_and_writes_nothing():
    random = np.random.default_rng(1)
    count = 1_000_000 if INTERPRETED else 20_000_000  # half a minute or more
    np.save("long.npy", 0x7F00_0000_0000 + random.integers(0, 1 << 30, count))
    with vmmsim("replay", "long.npy", "--plot", "m.png") as process:
        time.sleep(5)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, err = process.communicate(timeout=60)
        seconds = time.monotonic() - started
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted\n")
    assert os.listdir() == ["long.npy"]
    assert seconds < (60 if INTERPRETED else 15)  # a chunk is finished first


def test_ctrl_c_during_the_start_ends_in_one_line_too(trace):
    with vmmsim("replay", trace, *TOY) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    # So early, Python may still be starting itself.
    assert process.returncode in (130, -signal.SIGINT)
    assert process.returncode != 130 or err == "interrupted\n"


def test_help_names_every_option(capsys):
    assert run(["replay", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("machine", "mode", "guest-page", "host-page", "accesses", "guest-memory", "placement", "bad-pages",
                   "seed", "plot", "json"):  # fmt: skip
        assert f"--{option}" in out
