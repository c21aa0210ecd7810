"""Ratio map: how a map of ratios is coloured, when 1 means "as expected".

Needs   ratios, and where known whether their interval leaves 1 out.
Yields  `reach_of`, `color_axis`, `ratio_heat`: cells on log2 of the ratio, white at 1, red above,
        blue below, so that double and half are equally strong; a ratio of 0 has the last blue.

A cell whose interval holds 1 is pale and dotted: its colour is not to be read as a finding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.figures.template import MUTED, RATIO

_TICKS = {-4: "1/16", -3: "⅛", -2: "¼", -1: "½", 0: "1", 1: "2", 2: "4", 3: "8", 4: "16"}
_BAR_PX = 190
_SHORTEST_PX = 118
"""Of a bar with its title of two lines; beside a lower panel it reaches into the margin."""
PALE = 0.3
"""Opacity of a cell whose interval holds 1."""

MOST_DOTS = 600
"""Cells beyond which the dots on pale cells would run together."""


def reach_of(ratio: np.ndarray, most: int = 3) -> int:
    """Octaves of the scale to each side: as few as leave a fiftieth of the cells beyond.

    Example:
        >>> reach_of(np.array([0.9, 1.1, 1.5])), reach_of(np.array([0.1, 5.0]))
        (1, 3)
    """
    values = np.abs(octaves(ratio))
    values = values[np.isfinite(values)]
    for reach in range(1, most):
        if not values.size or np.mean(values > reach) <= 0.02:
            return reach
    return most


def octaves(ratio: np.ndarray) -> np.ndarray:
    """log2 of the ratio; 0 lies far below whatever is drawn, NaN stays NaN."""
    values = np.asarray(ratio, dtype=np.float64)
    return np.log2(np.maximum(values, 2.0**-16))


def color_axis(title: str, reach: int, *, x: float = 1.01, height: int = _BAR_PX) -> dict[str, Any]:
    """The colour axis of a ratio map; `title` may hold plotly's line breaks."""
    long = min(max(height, _SHORTEST_PX), _BAR_PX)
    # A short bar has room for its ends and its middle.
    shown = range(-reach, reach + 1) if long >= 26 * (2 * reach + 3) else (-reach, 0, reach)
    text = [_TICKS[t] for t in shown]
    text[0], text[-1] = "≤ " + text[0], "≥ " + text[-1]
    return {
        "colorscale": RATIO, "cmin": -reach, "cmax": reach, "cmid": 0,
        "colorbar": {
            "title": {"text": f"{title}<br>&nbsp;", "font": {"size": 11}},
            "tickvals": list(shown), "ticktext": text, "tickfont": {"size": 11, "color": MUTED},
            "thickness": 12, "lenmode": "pixels", "len": long, "y": 1,
            "yanchor": "top", "x": x, "outlinewidth": 0, "ticks": "outside", "ticklen": 3,
        },
    }  # fmt: skip


def ratio_heat(
    ratio: np.ndarray, template: str, *, sure: np.ndarray | None = None, **options: Any
) -> list[go.Heatmap | go.Scatter]:
    """Traces of one map, rows down and columns across at 0, 1, 2 and so on.

    Args:
        ratio: (row, column); NaN is left blank.
        template: plotly hover template, without the part after the last line.
        sure: (row, column), bool: whether the interval leaves 1 out; None where there is none.
        options: for the heatmap, such as `customdata` and `text`, both (row, column, ...).
    """
    z = octaves(ratio).astype("float32")
    gap = 1 if z.shape[1] <= 40 else 0
    told = {"coloraxis": "coloraxis", "hoverongaps": False, "xgap": gap, "ygap": gap, **options}
    if sure is None:
        return [go.Heatmap(z=z, hovertemplate=f"{template}<extra></extra>", **told)]
    doubtful = ~sure & np.isfinite(z)
    firm = np.where(doubtful, np.nan, z)
    traces: list[go.Heatmap | go.Scatter] = [
        go.Heatmap(z=firm, hovertemplate=f"{template}<extra></extra>", **told)
    ]
    if doubtful.any():
        pale = f"{template}<br>its interval holds 1<extra></extra>"
        z = np.where(doubtful, z, np.nan)
        traces.append(go.Heatmap(z=z, opacity=PALE, hovertemplate=pale, **told))
        if doubtful.size <= MOST_DOTS:
            row, column = np.nonzero(doubtful)
            traces.append(
                go.Scatter(
                    x=column, y=row, mode="markers", hoverinfo="skip", showlegend=False,
                    marker={"size": 3, "color": MUTED},
                )
            )  # fmt: skip
    return traces


def leaves_out_one(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether an interval of a ratio leaves 1 out; one that is not known does not.

    Example:
        >>> leaves_out_one(np.array([0.9, 1.1, np.nan]), np.array([1.2, 1.2, np.nan])).tolist()
        [False, True, False]
    """
    return np.asarray((low > 1) | (high < 1))
