"""The Python blocks of the documentation run as they stand, and its numbers are those of the model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmmsim import rates

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_blocks_to_run():
    assert len(BLOCKS) == 4


@pytest.mark.life
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_python_md_runs(number, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"python.md block {number + 1}", "exec"), {"__name__": "block"})


def test_numbers_of_life_md_are_the_model_s():
    text = (DOCS / "life.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \|.*\| (\w+) \|$", text, flags=re.MULTILINE)
    assert len(rows) > 20
    assert [(key, rates.number(key), rates.sure(key)) for key, _, _ in rows] == [
        (key, int(value), sure) for key, value, sure in rows
    ]
