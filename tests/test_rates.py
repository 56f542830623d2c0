"""The numbers of the mechanisms: each has a source, and is read by somebody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmmsim
from vmmsim import rates
from vmmsim.actors.sample import Lengths
from vmmsim.booting import lengths
from vmmsim.scenario import Measure

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
    if not path.startswith(("dram.", "ageing.")):  # those are read table by table
        assert any(path in source or f'"{path.rpartition(".")[2]}"' in source for source in SOURCES)


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
