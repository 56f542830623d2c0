"""The Python blocks of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_blocks_to_run():
    assert len(BLOCKS) == 4


@pytest.mark.life
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_python_md_runs(number, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"python.md block {number + 1}", "exec"), {"__name__": "block"})
