"""The Python blocks of the documentation run as they stand, and its numbers are those of the model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmmsim import rates

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```(python|toml)\n(?:# (\w+\.\w+)\n)?(.*?)```", flags=re.DOTALL)


@pytest.mark.life
def test_the_blocks_of_python_md_run(capsys, tmp_path, monkeypatch):
    """One after another, in one folder; a block that begins with a file's name is that file, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = BLOCK.findall((DOCS / "python.md").read_text(encoding="utf-8"))
    assert [language for language, _, _ in blocks].count("python") == 8
    for number, (language, file, text) in enumerate(blocks, start=1):
        if file:
            (tmp_path / file).write_text(text, encoding="utf-8")
        if language == "python":
            exec(compile(text, f"python.md block {number}", "exec"), {"__name__": "block"})
    said = capsys.readouterr().out
    assert "lies free or cache" in said, "the refusal that the script prints"
    assert "want vmm-direct" in said, "what the mode policy wants"
    assert "MiB given up" in said, "what the balloon policy takes"
    assert "balloon balloon 64MiB 64MiB" in said, "what the actor asks for"


def test_numbers_of_life_md_are_the_model_s():
    text = (DOCS / "life.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \|.*\| (\w+) \|$", text, flags=re.MULTILINE)
    assert len(rows) > 20
    assert [(key, rates.number(key), rates.sure(key)) for key, _, _ in rows] == [
        (key, int(value), sure) for key, value, sure in rows
    ]
