"""``vmmsim demo``: a scenario's life, and its story."""

from __future__ import annotations

import pytest

from vmmsim.cli.app import run

TOY = """
[run]
until = "2s"
[host]
memory = "64MiB"
kernelcore = "16MiB"
[vm.db]
memory = "16MiB"
mode = "dual-direct"
workload = { name = "gups", footprint = "1MiB" }
"""


@pytest.mark.life
def test_a_life_is_told(tmp_path, capsys):
    (tmp_path / "toy.toml").write_text(TOY)
    assert run(["demo", str(tmp_path / "toy.toml")]) == 0
    out = capsys.readouterr().out
    assert "db waited" in out
    assert "Dual Direct" in out
    assert out.rstrip().endswith("vmmsim --help")


@pytest.mark.life
def test_by_default_a_fragmented_guest_is_rescued_by_self_ballooning_and_not_by_compaction(capsys):
    assert run(["demo"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "compact never got Guest Direct" in out
    assert "self waited" in out
    assert "no page copied" in out


def test_a_wrong_name_is_one_line_and_nothing_else(capsys):
    assert run(["demo", "fragmented-gest"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.rstrip().endswith('did you mean "fragmented-guest"?')
