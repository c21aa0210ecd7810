"""A few quantities of one line each, stacked over one x axis.

Needs   points along `step`, with their clocks; y of every line, with a band where there is one.
Yields  Row; `line_stack`, the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.figures.bins import binned
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.lines import Band, Line, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import Stack

MOST_ROWS = 60
"""Rows of the table, the last ones."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One panel with its line."""

    title: str
    y: np.ndarray
    unit: str = ""
    band: Band | None = None
    band_is: str = ""
    """What the band goes from and to."""
    from_zero: bool = False
    at: float | None = None
    """A value to draw a line at, such as the fair share."""


def line_stack(
    source: xr.Dataset | xr.DataArray, rows: Sequence[Row], caption: Caption, *,
    marks: Sequence[Mark] = (), x: ClockName = "step", color: str = "#0072B2",
) -> go.Figure:  # fmt: skip
    """The rows from the top.

    Args:
        source: along `step`; its clocks, and how many steps each point stands for.
        caption: its table, provenance and the note on points are filled in here.

    Example:
        >>> ds = xr.Dataset(coords={"step": [1, 2]})
        >>> words = Caption(name="pace", title="Pace", sentence="It is steady.")
        >>> fig = line_stack(ds, [Row(title="seconds", y=np.array([2.0, 2.0]), unit="s")], words)
        >>> fig.layout.meta["caption"]["table"]["rows"]
        ((1, 2.0), (2, 2.0))
    """
    short = binned(
        source if isinstance(source, xr.Dataset) else source.to_dataset(name="y"), each=1
    )
    clock = clock_of(source, x)
    first = 150 if len(rows) < 3 else 120
    stack = Stack(heights=[first, *[100] * (len(rows) - 1)], gap=36)
    fig = stack.figure([row.title for row in rows])
    for place, row in enumerate(rows, start=1):
        hover = hover_of(
            row.title, clock, row.y, row.unit, short=short, band=row.band, band_is=row.band_is
        )
        line = Line(
            name=row.title, x=clock.x, y=row.y, band=row.band, hover=hover, color=color,
            legend=False, markers=len(row.y) == 1,
        )  # fmt: skip
        draw_line(fig, line, row=place, col=1)
        if row.from_zero:
            fig.update_yaxes(rangemode="tozero", row=place, col=1)
        if row.at is not None:
            dotted = {"color": "#6b6b6b", "width": 1, "dash": "dot"}
            fig.add_hline(y=row.at, row=place, col=1, line=dotted)
    fig.update_xaxes(**clock.axis, row=len(rows), col=1)
    top = max(20, draw_marks(fig, marks, clock, stack.axes, above=18))
    told = [(int(step), *(float(row.y[i]) for row in rows)) for i, step in enumerate(clock.steps)]
    caption = replace(
        caption,
        table=Table(("step", *(row.title for row in rows)), tuple(told[-MOST_ROWS:])),
        notes=(*caption.notes, *([short.note] if short.note else [])),
        provenance=provenance_of(source),
    )
    return finish(fig, caption, height=stack.height, top=top)
