"""Panels stacked over one x axis, sized in pixels: many panels must not squeeze each other.

Needs   the height of every panel and the gap between two, pixels.
Yields  an empty figure with a title over each panel; the plotly names of its axes; where its legend
        stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.subplots import make_subplots

from workbench.figures.figure import Figure
from workbench.figures.template import INK

LEGEND_PX = 24
"""Room for a legend of one row."""


@dataclass(frozen=True)
class Stack:
    """Panels one over the other.

    Example:
        >>> Stack(heights=[100, 50], gap=20).height
        170
    """

    heights: Sequence[int]
    """Pixels of every panel, from the top."""
    gap: int
    """Pixels between two panels: the title of the lower one stands there."""

    @property
    def height(self) -> int:
        return sum(self.heights) + self.gap * (len(self.heights) - 1)

    @property
    def axes(self) -> list[tuple[str, str]]:
        """Plotly names of the axes, from the top."""
        return [axis_names(i) for i in range(len(self.heights))]

    def legend(self, above: int) -> dict[str, Any]:
        """A legend in a row over the right end of the first panel, `above` pixels over it."""
        return {
            "orientation": "h", "x": 1, "xanchor": "right", "y": 1 + above / self.height,
            "yanchor": "bottom",
        }  # fmt: skip

    def figure(self, titles: Sequence[str]) -> Figure:
        """The empty panels, each under its title."""
        rows = len(self.heights)
        fig = Figure(
            make_subplots(
                rows=rows, cols=1, shared_xaxes=True, row_heights=list(self.heights),
                vertical_spacing=self.gap / self.height if rows > 1 else 0, subplot_titles=titles,
            )
        )  # fmt: skip
        fig.update_annotations(x=0, xanchor="left", font={"size": 12, "color": INK})
        return fig


def axis_names(i: int) -> tuple[str, str]:
    """Plotly's names for the axes of the i-th panel, from 0: ("x", "y"), ("x2", "y2") and so on."""
    return (f"x{i + 1}", f"y{i + 1}") if i else ("x", "y")
