"""The numbers of the mechanisms: each has a source, and is read by somebody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmmsim
from vmmsim import rates
from vmmsim.actors.sample import Lengths
from vmmsim.booting import lengths
from vmmsim.scenario import Measure

READ_TABLE_BY_TABLE = ("dram.", "ageing.")
DEFAULTS = ("migration.bandwidth_bytes_per_s", "migration.downtime_ns")
"""What scenario files have as defaults; a test of migration keeps them equal."""
SOURCES = [path.read_text(encoding="utf-8") for path in Path(vmmsim.__file__).parent.rglob("*.py")]


def paths(table: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in table.items():
        if "source" in value:
            yield before + key
        else:
            yield from paths(value, f"{before}{key}.")


@pytest.mark.parametrize("path", [*paths(rates.table())])
def test_a_number_has_a_source_and_somebody_reads_it(path: str) -> None:
    assert rates.sure(path) in ("read", "derived", "recalled", "assumed")
    assert rates.source(path)
    if path not in DEFAULTS and not path.startswith(READ_TABLE_BY_TABLE):
        name = f'"{path.rpartition(".")[2]}"'
        assert any(path in source or name in source for source in SOURCES) or is_made_up(path)


def is_made_up(path: str) -> bool:
    """Tell whether somebody puts the path together from parts, in an f-string that has its shape."""
    shapes = [found for source in SOURCES for found in re.findall(r'rates\.number\(f"([^"]+)"\)', source)]
    return any(re.fullmatch(re.sub(r"\{\w+\}", r"[\\w-]+", shape.replace(".", r"\.")), path) for shape in shapes)


def test_samples_are_as_long_as_the_data_say() -> None:
    said = Lengths()
    assert (said.warm, said.warm_most, said.measured) == tuple(
        rates.number(f"measure.{name}") for name in ("warm", "warm_most", "window")
    )
    assert (said.bias, said.negligible_cycles) == (
        rates.number("measure.cold_share"),
        rates.number("measure.cold_cycles"),
    )
    assert lengths(Measure()) == said
    asked = lengths(Measure(window=5000))
    assert (asked.warm, asked.measured) == (5000, 5000)
