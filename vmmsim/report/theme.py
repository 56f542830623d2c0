"""How modes and dimensions look, in words, text and figures: one name, one colour and one hatch for each, everywhere.

The colours are Okabe and Ito's, which stay apart for colour-blind readers; the hatches keep bars apart in print.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

INK: Final = "#222222"
"""Text and lines."""
FAINT: Final = "#8a8f98"
"""Text that may be overlooked, and what is not there: bypassed tables."""
GHOST: Final = "#c9cdd3"
"""Lines that matter least."""
PAPER: Final = "#ffffff"
"""The background."""


@attrs.frozen
class Look:
    """How a thing is called and drawn."""

    label: str
    colour: str
    hatch: str = ""
    mark: str = ""
    """One character that stands for it in a terminal."""
    letter: str = ""
    """The same where there is only ASCII."""


MODES: Final[dict[str, Look]] = {
    "native": Look("native", "#5f6670", "", "·", "n"),
    "native-direct": Look("native Direct Segment", "#e69f00", "..", ":", "N"),
    "base": Look("base virtualized", "#d55e00", "//", "░", "b"),
    "dual-direct": Look("Dual Direct", "#009e73", "xx", "█", "D"),
    "vmm-direct": Look("VMM Direct", "#0072b2", "\\\\", "▓", "V"),
    "guest-direct": Look("Guest Direct", "#cc79a7", "--", "▒", "G"),
}
"""Every mode of ``config.MODES``, in its order."""


@attrs.frozen
class Tint:
    """One hue, strong to weak."""

    edge: str
    fill: str
    panel: str


DIMENSIONS: Final[dict[str, Tint]] = {
    "nested": Tint("#2a7fb8", "#cfe8f8", "#eff7fd"),
    "guest": Tint("#b78a12", "#fae6a8", "#fdf7e3"),
}
"""The tables of the two dimensions."""

FONT: Final = "DejaVu Sans"
"""Comes with matplotlib, so that figures are the same on every machine."""
MONO: Final = "DejaVu Sans Mono"

FIGURE: Final[dict[Any, Any]] = {
    "font.family": FONT,
    "text.usetex": False,
    "mathtext.default": "regular",
    "path.sketch": None,
    "path.simplify": True,
    "axes.unicode_minus": False,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "vmmsim",
    "savefig.facecolor": PAPER,
}
"""Settings to draw and save every figure with (``matplotlib.rc_context``), whatever the user's own are."""
