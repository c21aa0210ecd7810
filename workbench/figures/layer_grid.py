"""Layer grid: a panel a layer, as many columns as stay legible, sized in pixels.

Needs   how many panels and how high each.
Yields  Grid: the empty figure with a title over each panel, the place and the axes of a panel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.subplots import make_subplots

from workbench.figures.figure import Figure
from workbench.figures.panels import axis_names
from workbench.figures.template import INK

GAP_PX = 40
"""Between two rows: the title of the lower panel and the ticks of the upper one stand there."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Panels in rows and columns, filled row by row.

    Example:
        >>> grid = Grid(panels=5, columns=3, panel_px=100)
        >>> grid.rows, grid.height, grid.place(4), grid.bottom(2)
        (2, 240, (2, 2), 2)
    """

    panels: int
    columns: int
    panel_px: int
    gap_px: int = GAP_PX
    between: float = 0.12
    """Room between two columns, as a share of a column."""

    @property
    def rows(self) -> int:
        return math.ceil(self.panels / self.columns)

    @property
    def height(self) -> int:
        return self.rows * self.panel_px + (self.rows - 1) * self.gap_px

    @property
    def axes(self) -> list[tuple[str, str]]:
        """Plotly names of the axes, panel by panel."""
        # Plotly numbers the cells of a row whether or not a panel stands in them.
        return [axis_names(i) for i in range(self.panels)]

    def place(self, i: int) -> tuple[int, int]:
        """Row and column of panel `i`, from 1."""
        return i // self.columns + 1, i % self.columns + 1

    def bottom(self, i: int) -> int:
        """The lowest panel in the column of panel `i`."""
        return max(j for j in range(self.panels) if j % self.columns == i % self.columns)

    def figure(self, titles: Sequence[str], **options: Any) -> Figure:
        """The empty panels, each under its title at its left edge."""
        fig = Figure(
            make_subplots(
                rows=self.rows, cols=self.columns,
                horizontal_spacing=self.between / self.columns,
                vertical_spacing=self.gap_px / self.height if self.rows > 1 else 0,
                subplot_titles=list(titles), **options,
            )
        )  # fmt: skip
        for i, title in enumerate(fig.layout.annotations[: self.panels]):
            axis = fig.layout["xaxis" + (str(i + 1) if i else "")]
            title.update(x=axis.domain[0], xanchor="left", font={"size": 12, "color": INK})
        # Cells beyond the last panel are empty: their axes would stand there without a line.
        for i in range(self.panels, self.rows * self.columns):
            row, col = self.place(i)
            fig.update_xaxes(visible=False, row=row, col=col)
            fig.update_yaxes(visible=False, row=row, col=col)
        return fig

    def axis_titles(self, fig: Figure, x: dict[str, Any], y: dict[str, Any]) -> None:
        """Dress the x axis of every column's lowest panel and the y axis of the first column."""
        for i in range(self.panels):
            row, col = self.place(i)
            if self.bottom(i) == i:
                fig.update_xaxes(**x, showticklabels=True, row=row, col=col)
            if col == 1:
                fig.update_yaxes(**y, row=row, col=col)


def columns_for(panels: int, most: int = 4) -> int:
    """Columns of a grid: few panels stay wide.

    Example:
        >>> columns_for(1), columns_for(3), columns_for(4), columns_for(6), columns_for(24)
        (1, 3, 2, 3, 4)
    """
    wide = panels if panels <= 3 else 2 if panels == 4 else 3 if panels <= 9 else 4
    return max(1, min(most, wide))
