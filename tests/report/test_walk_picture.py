"""The picture of a walk: stable to the byte, and with everything on it that the walk did."""

from __future__ import annotations

import itertools
import struct
import sys
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib as mpl
import pytest

from vmmsim.config import MODES
from vmmsim.report import theme
from vmmsim.report.walk_picture import draw, render
from vmmsim.studies.explain import explain

WALKS: list[dict[str, Any]] = [
    *({"mode": mode} for mode in MODES),
    {"mode": "vmm-direct", "escaped": True, "tables_outside": 2, "host_page": "2M"},
    {"mode": "dual-direct", "escaped": True},
    {"mode": "native-direct", "escaped": True},
    {"guest_page": "2M", "host_page": "2M"},
    {"guest_page": "1G", "host_page": "1G", "mode": "vmm-direct"},
    {"levels": 5, "gva": 0xFF3F_ABCD_1234_5678},
]


def words(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("arguments", WALKS, ids=lambda it: " ".join(map(str, it.values())))
def test_every_reference_is_on_the_picture_with_its_address(arguments: dict[str, Any]) -> None:
    walk = explain(**arguments)
    said = words(draw(walk))
    assert [word for word in said if word.isdigit()] == [str(step.number) for step in walk.references]
    assert {f"{step.address:#x}" for step in walk.references} <= set(said)
    assert f"{walk.hpa:#x}" in said
    assert sum(word.startswith("check") for word in said) == walk.base_bound_checks
    assert sum("escape" in word and "page" not in word for word in said) == walk.escaped
    assert sum(word == "outside\nsegment" for word in said) == walk.tables_outside


@pytest.mark.parametrize("arguments", WALKS, ids=lambda it: " ".join(map(str, it.values())))
def test_no_words_leave_the_paper_or_lie_on_others(arguments: dict[str, Any]) -> None:
    figure = draw(explain(**arguments))
    figure.savefig(_Nowhere(), format="png", dpi=100)
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts]
    width, height = figure.get_size_inches() * figure.dpi
    for said, box in boxes:
        assert box.x0 >= 0, said
        assert box.y0 >= 0, said
        assert box.x1 <= width, said
        assert box.y1 <= height, said
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1), f"{one!r} on {other!r}"


class _Nowhere:
    def write(self, content: bytes) -> int:
        return len(content)

    def flush(self) -> None: ...


def test_an_svg_is_the_same_to_the_byte_whatever_the_users_settings() -> None:
    first = render(explain(), "svg")
    with mpl.rc_context({"font.size": 20, "font.family": "serif", "svg.hashsalt": None, "figure.dpi": 33}):
        assert render(explain(), "svg") == first
    assert ET.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in first


def test_a_png_is_large_enough_to_project() -> None:
    content = render(explain(), "png")
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1280
    assert height >= 1000


def test_drawing_touches_no_global_state() -> None:
    before, has_pyplot = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    render(explain(), "svg")
    assert mpl.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == has_pyplot


def test_every_mode_has_a_look_of_its_own() -> None:
    assert list(theme.MODES) == list(MODES)
    for field in ("label", "colour", "hatch"):
        assert len({getattr(look, field) for look in theme.MODES.values()}) == len(MODES)
