"""The page that tells a run: what must stand on it, that it fits, and that it is plain off a terminal."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from rich.console import Console

from tests.made_up import (
    GIB,
    HOUR,
    MIN,
    S,
    Writer,
    consolidated_day,
    fragmented_database,
    hard_faults,
    two_rows,
)
from vmmsim.report.marks import Grid
from vmmsim.report.story import story, tell
from vmmsim.runs import simulate
from vmmsim.testing import toy_scenario, toy_vm

MADE = {
    "fragmented": fragmented_database,
    "stopped": lambda: fragmented_database(gets_it=False, complete=False),
    "day": consolidated_day,
    "faults": hard_faults,
    "two rows": two_rows,
    "nothing": lambda: Writer().result(0),
}


def page(result, width=100, **options):
    return [line.plain for line in story(result, width=width, **options)]


def line_of(result, name, width=100):
    """Return the strip of the first line with this label."""
    grid = Grid(end_ns=result.end_ns, width=width)
    line = next(line for line in page(result, width) if line.startswith(f"{name:{grid.label}}"))
    return line[grid.label : grid.label + grid.columns]


@pytest.mark.parametrize("width", [60, 80, 100, 300])
@pytest.mark.parametrize("made", MADE)
def test_it_fits_on_a_page(made, width):
    lines = page(MADE[made](), width)
    assert max(map(len, lines)) <= min(width, 100)
    assert len(lines) <= (60 if width >= 80 else 75)
    assert not any(one == other == "" for one, other in itertools.pairwise(lines))


def test_its_parts_stand_in_order():
    text = "\n".join(page(fragmented_database()))
    parts = [
        "fragmented-database: 4 h simulated, seed 1, 96 GiB on sandy-bridge-2012, memory aged 90d",
        "db waited 47 min for Dual Direct; waiting cost ",
        "build ran in base virtualized throughout, as wanted.",
        "\ndb  ",
        "  as wanted ",
        "  overhead ",
        "  if granted ",
        "cost of waiting ",
        "     12 min  base virtualized to Guest Direct: the guest segment covers 40GiB",
        "     47 min  Guest Direct to Dual Direct: after compactor: build of db, 64 GiB, took 9 s; 7,340,032",
        "\nbuild  ",
        "░ base virtualized   █ Dual Direct   ▒ Guest Direct",
        "Memory of the host, scale 0 to 96 GiB",
        "free  ",
        "Contiguity of its free memory; 28 GiB moved",
        "largest run ",
        "unusable 2M ",
        "free blocks ",
        "Decisions that mattered, of 8 (1 begun, 3 refused, 4 done)",
        "compactor: build of db, 64 GiB, refused, 2 times from here: 41 immovable",
        "digest ",
        "again: vmmsim run made-up --seed 1",
    ]
    at = -1
    for part in parts:
        found = text.find(part, at + 1)
        assert found > at, part
        at = found


def test_the_strip_shows_each_mode_for_its_share_of_the_time():
    strip = line_of(fragmented_database(), "db")
    wide = len(strip)
    assert re.fullmatch("░+▒+█+", strip)
    assert strip.count("░") == pytest.approx(wide * 12 / 240, abs=1)
    assert strip.count("▒") == pytest.approx(wide * 35 / 240, abs=1)
    ticks = line_of(fragmented_database(), "  as wanted")
    assert [at for at, mark in enumerate(ticks) if mark == "▔"] == [at for at, mark in enumerate(strip) if mark == "█"]


def test_overhead_is_drawn_to_the_scale_that_is_given():
    strip = line_of(two_rows(), "  overhead")
    half = len(strip) // 2
    assert set(strip[:half]) == {"█"}
    assert set(strip[half + 1 :]) == {"▂"}  # 0.1 of 0.5: the second of eight levels
    assert any("0 to 50 %" in line for line in page(two_rows()))


def test_a_run_that_was_stopped_says_so_first():
    lines = page(MADE["stopped"]())
    assert "Not complete: stopped before the 4 h that were asked for." in lines[1]
    assert any("db never got Dual Direct (41 immovable frames" in line for line in lines)


def test_a_run_that_was_stopped_at_its_start_has_nothing_to_draw():
    writer = Writer()
    writer.at(0).host_row(free_bytes=GIB, largest_free_bytes=GIB, free_blocks=[0] * 10 + [256], unusable_2m=0.0)
    lines = page(writer.result(0, complete=False))
    assert "Memory of the host: nothing was measured" in lines
    assert not any("Contiguity" in line for line in lines)


def test_a_run_in_which_nobody_made_progress_says_who_waits_for_whom():
    writer = Writer()
    writer.at(0).vm_row("db", mode="base", mode_wanted="base")
    lines = page(writer.result(HOUR, complete=False, stalled="db waits for a window that web holds"))
    assert lines[1] == "Stopped because no VM makes progress: db waits for a window that web holds"


def test_vms_that_are_alike_share_a_strip_and_a_line_of_memory():
    lines = page(consolidated_day())
    assert "web-0 to web-7 and batch ran in base virtualized throughout, as wanted." in lines
    assert sum(line.startswith("web-") for line in lines) == 2  # the sentence, and one strip
    assert any(line.startswith("8 web ") for line in lines)
    strip = line_of(consolidated_day(), "web-0 +7")
    assert strip.strip() == "░" * round(len(strip) * 19 / 24)


def test_a_mode_that_was_lost_is_told_with_its_reason():
    lines = page(consolidated_day())
    assert lines[2].startswith("db had VMM Direct from the start; lost it at 12 h 30 min (the balloon asks")
    assert any(line.startswith("12 h 30 min  VMM Direct to base virtualized: the balloon asks") for line in lines)
    assert any(line.startswith("       15 h  base virtualized to VMM Direct: built again") for line in lines)


def test_faults_are_among_the_decisions_that_mattered_and_alike_ones_are_told_once():
    lines = page(hard_faults())
    assert any("faults: fault of db, bit, got 1 frames, 8 times from here" in line for line in lines)
    assert any("faults: fault of db, bank, got 8192 frames" in line for line in lines)
    assert any("refused: no window of 80GiB without the bad bank" in line for line in lines)


def test_many_changes_are_cut_in_the_middle():
    writer = Writer()
    for number in range(21):
        mode = "dual-direct" if number % 2 else "base"
        writer.at(number * MIN).vm_row("db", mode=mode, mode_wanted="dual-direct", progress=number)
    lines = page(writer.result(21 * MIN))
    assert any("... 14 more changes" in line for line in lines)
    assert sum(" to Dual Direct" in line or " to base virtualized" in line for line in lines) == 6


def test_many_vms_stay_on_one_page():
    writer = Writer()
    for number in range(40):
        writer.at(0).vm_row(f"vm{number}", mode="base", mode_wanted="dual-direct", resident_bytes=GIB)
    for number in range(40):
        writer.at((number + 1) * S).vm_row(f"vm{number}", mode="dual-direct", progress=5)
    writer.recorder.host_row(free_bytes=GIB)
    lines = page(writer.result(60 * S))
    assert len(lines) <= 60
    # The last three are told at length; the others waited 1 s to 37 s, of which the 19th waited 19 s, the 34th 34 s.
    said = "Of 37 more VMs 37 had their modes, half within 19 s, nine in ten within 34 s, the last after 37 s."
    assert said in lines


def test_names_of_many_vms_are_in_order_and_not_cut():
    writer = Writer()
    for second in range(1, 21):  # vm-20 boots first: it is told at length, and vm-19 to vm-14 get a strip each
        writer.at(second * S).vm_row(f"vm-{21 - second}", mode="base", mode_wanted="base", overhead=0.01)
    lines = page(writer.result(60 * S))
    assert f"{'':13}and 13 more, overhead 1 %: vm-1 to vm-13" in lines


def test_a_spike_does_not_flatten_the_rest_and_is_told_in_words():
    writer = Writer()
    for minute in range(100):
        overhead = 3.0 if minute == 40 else 0.01 if minute < 50 else 0.02
        writer.at(minute * MIN).vm_row("db", mode="base", mode_wanted="base", overhead=overhead, progress=minute)
    result = writer.result(100 * MIN)
    strip = line_of(result, "  overhead")
    assert strip[:24] == "▅" * 24  # 0.01 of 0.02: the fifth of eight levels begins there
    assert strip[-30:] == "█" * 30
    assert 1 <= strip.count("▲") <= 2
    lines = page(result)
    assert any("0 to 2 %" in line for line in lines)
    assert any("up to 300 % at ▲" in line for line in lines)
    assert "up to 300 % at ^" in "\n".join(page(result, unicode=False))


def test_a_mode_that_is_not_known_has_a_mark_too():
    writer = Writer()
    writer.at(0).vm_row("db", mode="mine", mode_wanted="mine", overhead=0.1)
    assert line_of(writer.result(S), "db").startswith("mmm")


def printed(result, **options):
    file = io.StringIO()
    tell(result, Console(file=file, width=100, markup=False, highlight=False, emoji=False, **options))
    return file.getvalue()


def test_it_is_plain_off_a_terminal():
    assert "\x1b" not in printed(fragmented_database())


def test_modes_have_their_colours_on_a_terminal_and_none_under_no_colour(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    options = {"force_terminal": True, "color_system": "truecolor"}
    assert "\x1b[38;2;0;158;115m█" in printed(fragmented_database(), **options)  # Okabe and Ito's bluish green
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*38", printed(fragmented_database(), **options))


def test_a_terminal_without_unicode_gets_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    tell(fragmented_database(), Console(file=file, width=100, markup=False, highlight=False, emoji=False))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "bbbGGGG" in text
    assert "D Dual Direct" in text


def test_text_in_brackets_is_text():
    writer = Writer()
    writer.at(0).decide("a", "b", outcome="refused", why="[bold]none[/bold] of [3]")
    assert "[bold]none[/bold] of [3]" in printed(writer.result(S))


@pytest.mark.life
def test_a_lifetime_in_which_nothing_happens_has_a_story():
    result = simulate(toy_scenario({"db": toy_vm()}, detail="lifetime"))
    assert "largest run" in "\n".join(str(line) for line in story(result, width=100))
