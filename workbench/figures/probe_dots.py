"""A probe's result at one moment: a dot a label with its interval, or a map where there are many.

Needs   a View without a clock (result_view.py).
Yields  `without_training`, the drawing; axis and colour bar of any View.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.figures.figure import Figure
from workbench.figures.result_view import View
from workbench.figures.template import MAGNITUDE, MUTED, arm_colors
from workbench.figures.wording import label, plain, wrapped

DOTS = 48
"""Dots under each other at most."""
ROWS = 240
"""Rows of a map at most."""


def without_training(view: View) -> tuple[Figure, int, str]:
    """The figure, the height of its panel in pixels, and how to read it."""
    count = len(view.keys)
    if count <= DOTS:
        return _dots(view)
    if len(view.dims) == 1:
        return _profile(view)
    return _table_map(view)


def _dots(view: View) -> tuple[Figure, int, str]:
    """A dot a label, with its interval."""
    values = view.values_LS[:, 0]
    rows = np.arange(len(values))
    bars = None
    band = ["" for _ in rows]
    if view.band_LS is not None:
        low, high = view.band_LS[0][:, 0], view.band_LS[1][:, 0]
        up, down = (np.where(np.isfinite(d), d, 0) for d in (high - values, values - low))
        bars = {"type": "data", "array": up, "arrayminus": down, "width": 0, "thickness": 1.6}
        band = [f" [{view.say(a)}, {view.say(b)}]" for a, b in zip(low, high, strict=True)]
    told = [view.say(v) + b for v, b in zip(values, band, strict=True)]
    texts = [label(text or view.name, 40) for text in view.labels]
    fig = Figure(
        go.Scatter(
            x=values, y=rows, mode="markers", error_x=bars, text=texts, customdata=told,
            marker={"size": 8, "color": arm_colors(["continue"])["continue"]}, showlegend=False,
            hovertemplate="%{text}<br>%{customdata} " + label(view.unit) + "<extra></extra>",
        )
    )  # fmt: skip
    for row, level in enumerate(view.chance_L):
        if np.isfinite(level):
            fig.add_shape(
                type="line", x0=level, x1=level, y0=row - 0.4, y1=row + 0.4,
                line={"color": MUTED, "width": 1.2, "dash": "dot"},
            )  # fmt: skip
    fig.update_yaxes(
        tickvals=rows, ticktext=texts, range=[len(rows) - 0.4, -0.6], showgrid=False, ticks=""
    )
    fig.update_xaxes(**value_axis(view, 110))
    return fig, max(90, 24 * len(rows) + 20), ""


def _profile(view: View) -> tuple[Figure, int, str]:
    """A line over the one dim, too long for dots."""
    dim, values = view.dims[0], view.values_LS[:, 0]
    numbers = all(isinstance(key[0], int | float) for key in view.keys)
    where = np.array([key[0] for key in view.keys]) if numbers else np.arange(len(values))
    fig = Figure(
        go.Scatter(
            x=where, y=values, mode="markers", showlegend=False,
            marker={"size": 4, "color": arm_colors(["continue"])["continue"]},
            text=[label(text) for text in view.labels], customdata=[view.say(v) for v in values],
            hovertemplate="%{text}<br>%{customdata} " + label(view.unit) + "<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title_text=label(dim) + ("" if numbers else " (in the order given)"))
    fig.update_yaxes(**value_axis(view, 44))
    return fig, 260, f"A dot {each(view)}."


def _table_map(view: View) -> tuple[Figure, int, str]:
    """Two dims or more: the last across, the others down, the value as colour."""
    one = view.sizes[-1]
    wide = len(view.keys) // one
    across = [key[-1] for key in view.keys[:one]]
    values = view.values_LS[:, 0].reshape(wide, one)[:ROWS]
    labels = view.labels
    down = [labels[i * one].rpartition(", ")[0] for i in range(len(values))]
    heat = go.Heatmap(
        x=np.arange(one), y=np.arange(len(values)), z=values, colorscale=MAGNITUDE,
        text=[[label(labels[i * one + j]) for j in range(one)] for i in range(len(values))],
        customdata=[[view.say(v) for v in row] for row in values], colorbar=colorbar(view),
        hovertemplate="%{text}<br>%{customdata} " + label(view.unit) + "<extra></extra>",
        hoverongaps=False,
    )  # fmt: skip
    fig = Figure(heat)
    height = int(np.clip(18 * len(values), 160, 620))
    every, step = max(1, math.ceil(len(values) * 14 / height)), max(1, math.ceil(one / 40))
    rows, columns = range(0, len(values), every), range(0, one, step)
    fig.update_yaxes(
        tickvals=list(rows), ticktext=[label(down[i], 34) for i in rows], autorange="reversed",
        showgrid=False, ticks="",
    )  # fmt: skip
    fig.update_xaxes(
        title_text=label(view.dims[-1]), tickvals=list(columns),
        ticktext=[label(across[i], 18) for i in columns], showgrid=False,
    )  # fmt: skip
    left = f" The first {ROWS} of {wide:,} rows." if wide > ROWS else ""
    return fig, height, f"A cell {each(view)}; colour: {view.with_unit}.{left}"


def each(view: View) -> str:
    """What there is one of, as a phrase."""
    return "for each " + " and ".join(plain(dim, 24) for dim in view.dims)


def value_axis(view: View, width: int) -> dict[str, Any]:
    """Title in lines of `width` characters, and words where values stand for words."""
    axis: dict[str, Any] = {"title_text": wrapped(plain(view.with_unit, 3 * width), width)}
    if view.words:
        axis["tickvals"] = list(range(len(view.words)))
        axis["ticktext"] = [label(word, 24) for word in view.words]
        axis["range"] = [-0.3, len(view.words) - 0.7]
    elif np.isfinite(view.chance_L).any():
        # Plotly makes room for points, not for lines: chance would lie on the edge.
        axis["range"] = _span(view)
    return axis


def _span(view: View) -> list[float]:
    """The axis that holds values, bounds and chance, with a margin."""
    parts = [view.values_LS, view.chance_L, *(view.band_LS or ())]
    known = np.concatenate([part[np.isfinite(part)] for part in parts])
    low, high = float(known.min()), float(known.max())
    margin = 0.06 * (high - low) or 0.5
    return [low - margin, high + margin]


def colorbar(view: View) -> dict[str, Any]:
    """The colour bar of a map."""
    bar: dict[str, Any] = {
        "title": {"text": label(view.unit or view.name, 24)}, "thickness": 12, "outlinewidth": 0,
    }  # fmt: skip
    if view.words:
        bar["tickvals"] = list(range(len(view.words)))
        bar["ticktext"] = [label(word, 20) for word in view.words]
    return bar
