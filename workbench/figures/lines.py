"""A line with its interval: a band behind it, and a hover text that says everything about a point.

Needs   x, y and where known the bounds of y at every sample.
Yields  Line; `draw_line`, which adds it to a panel.

A line of more points than thinning.MOST is thinned; the figure says so by itself (figure.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.figures.bins import Binned
from workbench.figures.clock import Clock
from workbench.figures.template import faint
from workbench.figures.thinning import Thinned, thinned
from workbench.figures.wording import count, label, number

Band = tuple[np.ndarray, np.ndarray]
"""Lower and upper bound at every sample."""


@dataclass(frozen=True)
class Hover:
    """What a pointer over a sample is told: the common part once, the rest by sample."""

    template: str
    where: list[str]
    value: list[str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel, as long as its samples."""

    name: str
    """Name in the legend and in the hover text, unescaped."""
    x: np.ndarray
    y: np.ndarray
    band: Band | None = None
    hover: Hover
    color: str = "#000000"
    dash: str = "solid"
    markers: bool = False
    legend: bool = True
    """Whether this line, of all lines of its name, stands in the legend."""
    width: float = 1.8
    opacity: float = 1.0


def draw_line(fig: go.Figure, line: Line, *, row: int, col: int) -> None:
    """Add the line, and its band under it, to a panel. A click on its legend entry hides both."""
    line = _short(fig, line)
    group = label(line.name, 200)
    if line.band is not None:
        low, high = line.band
        for part in _unbroken(low, high):
            around = np.concatenate([line.x[part], line.x[part][::-1]])
            edge = np.concatenate([high[part], low[part][::-1]])
            band = go.Scatter(
                x=around, y=edge, fill="toself", fillcolor=faint(line.color), mode="lines",
                line={"width": 0}, hoverinfo="skip", legendgroup=group, showlegend=False,
            )  # fmt: skip
            fig.add_trace(band, row=row, col=col)
    fig.add_trace(
        go.Scatter(
            x=line.x, y=line.y, mode="lines+markers" if line.markers else "lines",
            name=label(line.name), legendgroup=group, showlegend=line.legend,
            line={"color": line.color, "width": line.width, "dash": line.dash},
            opacity=line.opacity,
            marker={"size": 4, "color": line.color},
            text=line.hover.where, customdata=line.hover.value,
            hovertemplate=f"{line.hover.template}<extra></extra>",
        ),
        row=row, col=col,
    )  # fmt: skip


def _short(fig: go.Figure, line: Line) -> Line:
    """The line by as many points as a panel shows."""
    kept = thinned(line.y, *(line.band or ()))
    if not kept.note:
        return line
    say_thinned(fig, kept)
    places = kept.places
    band = None if line.band is None else (line.band[0][places], line.band[1][places])
    told = [[texts[i] for i in places] for texts in (line.hover.where, line.hover.value)]
    hover = Hover(line.hover.template, *told)
    return replace(line, x=line.x[places], y=line.y[places], band=band, hover=hover)


def say_thinned(fig: go.Figure, kept: Thinned) -> None:
    """Leave word in the figure of the longest curve that was thinned; `finish` puts it into the
    caption's notes.
    """
    meta = dict(fig.layout.meta or {})
    most = max(meta.get("thinned", (0, 0)), (len(kept.places), kept.total), key=lambda it: it[1])
    if kept.note:
        fig.layout.meta = {**meta, "thinned": tuple(most)}


def _unbroken(low: np.ndarray, high: np.ndarray) -> list[slice]:
    """The stretches of two samples or more on which both bounds are there."""
    there = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(int), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1]


def hover_of(
    head: str,
    clock: Clock,
    y: np.ndarray,
    unit: str,
    *,
    band: Band | None = None,
    band_is: str = "95 %",
    n: str = "",
    short: Binned | None = None,
) -> Hover:
    """What it is, step, tokens, value with unit, band and n, for every sample.

    `head` is unescaped and may hold several lines, a newline between them.
    """
    where, value = [], []
    for i, step in enumerate(clock.steps):
        at = f"step {step:,.0f}"
        if short is not None and short.n[i] > 1:
            at = f"mean of steps {int(short.first[i]):,}–{int(short.last[i]):,}"
        if clock.tokens is not None:
            at += f", {count(float(clock.tokens[i]))} tokens"
        where.append(at)
        told = number(float(y[i]), 3)
        if band is not None:
            low, high = (number(float(bound[i]), 3) for bound in band)
            told += f" [{low}, {high}]"
        value.append(told)
    top = "<br>".join(label(part, 80) for part in head.split("\n"))
    tail = " ".join(part for part in (label(unit), f"({label(band_is)})" * bool(band)) if part)
    lines = [top, "%{text}", f"%{{customdata}} {tail}".rstrip(), label(n)]
    return Hover("<br>".join(line for line in lines if line), where, value)


def band_of(one: xr.Dataset, name: str) -> Band | None:
    """The variables `name`_low and `name`_high as a band; None where one is missing."""
    ends = [f"{name}_{end}" for end in ("low", "high")]
    return (one[ends[0]].values, one[ends[1]].values) if all(e in one for e in ends) else None
