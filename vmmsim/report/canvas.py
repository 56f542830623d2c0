"""A sheet of paper to draw diagrams on, in inches: words, boxes, circles and arrows with round corners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmsim.report import theme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

Point = tuple[float, float]


class Canvas:
    """One figure of a given size; the origin is its lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width, height), facecolor=theme.PAPER)
        self._axes: Any = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(0, height)
        self._axes.axis("off")

    def words(
        self,
        x: float,
        y: float,
        said: str,
        *,
        size: float = 8.0,
        colour: str = theme.INK,
        bold: bool = False,
        mono: bool = False,
        across: str = "center",
        upright: bool = False,
    ) -> None:
        """Write words around (x, y); ``across`` says what of them is at x."""
        self._axes.text(
            x,
            y,
            said,
            fontsize=size,
            color=colour,
            fontweight="bold" if bold else "normal",
            fontfamily=theme.MONO if mono else theme.FONT,
            ha=across,
            va="center",
            rotation=90 if upright else 0,
            zorder=7,
            parse_math=False,
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        edge: str = "none",
        dotted: bool = False,
        corner: float = 0.08,
        line: float = 1.2,
        layer: int = 4,
    ) -> None:
        """Draw a box with round corners around (x, y); lines lie in layer 3, or 5, and words above all."""
        from matplotlib.patches import FancyBboxPatch

        left, low = x - width / 2 + corner, y - height / 2 + corner
        self._axes.add_patch(
            FancyBboxPatch(
                (left, low),
                width - 2 * corner,
                height - 2 * corner,
                boxstyle=f"round,pad={corner}",
                facecolor=fill,
                edgecolor=edge,
                linewidth=line,
                linestyle=(0, (1, 1.6)) if dotted else "-",
                zorder=layer,
            )
        )

    def circle(
        self, x: float, y: float, radius: float, *, fill: str, edge: str, dotted: bool = False, line: float = 1.2
    ) -> None:
        """Draw a circle around (x, y)."""
        from matplotlib.patches import Circle

        style = (0, (1, 1.6)) if dotted else "-"
        self._axes.add_patch(
            Circle((x, y), radius, facecolor=fill, edgecolor=edge, linewidth=line, linestyle=style, zorder=4)
        )

    def arrow(
        self,
        points: Sequence[Point],
        *,
        colour: str = theme.INK,
        line: float = 1.1,
        head: float = 9.0,
        over: bool = False,
    ) -> None:
        """Draw an arrow along ``points``, its corners rounded."""
        from matplotlib.patches import FancyArrowPatch

        self._axes.add_patch(
            FancyArrowPatch(
                path=_rounded(points),
                arrowstyle="-|>",
                mutation_scale=head,
                color=colour,
                linewidth=line,
                shrinkA=0,
                shrinkB=0,
                capstyle="butt",
                joinstyle="round",
                zorder=5 if over else 3,
            )
        )


def _rounded(points: Sequence[Point], radius: float = 0.14) -> Any:
    """Return the path along ``points`` (horizontal and vertical pieces) with round corners."""
    from matplotlib.path import Path

    corners: list[Point] = [points[0]]
    codes: list[Any] = [Path.MOVETO]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        corners += [_toward(at, before, radius), at, _toward(at, after, radius)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*corners, points[-1]], [*codes, Path.LINETO])


def _toward(start: Point, goal: Point, length: float) -> Point:
    """Return the point ``length`` from ``start`` on the way to ``goal``, half way at most."""
    along, up = goal[0] - start[0], goal[1] - start[1]
    whole = (along * along + up * up) ** 0.5
    share = min(length / whole, 0.5) if whole else 0.0
    return start[0] + along * share, start[1] + up * share
