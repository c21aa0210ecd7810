"""Where do the tokens go, in all layers at once: every expert of every layer a row of one image.

Needs   load (step, layer, expert), fraction, sums to 1 over `expert`.
Yields  a figure of one heatmap. figures.expert_load draws a panel for every layer, which for tens
        of layers takes a browser seconds and a refresh a megabyte; this is one image whose cells
        are whole percents, two bytes each.

Cells hold the load in percent of the fair share, and the colours stand at their logarithms: white
is fair, red twice it, blue half of it, as everywhere. Yellow is an expert without a token.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import get_colorscale, sample_colorscale

from workbench.figures.bins import binned
from workbench.figures.caption import Caption, provenance_of
from workbench.figures.clock import ClockName, clock_of
from workbench.figures.figure import Figure, finish
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.router_load import load_sentence, load_table
from workbench.figures.template import DEAD, RATIO

MOST_PERCENT = 400
"""Four times the fair share and beyond are one colour."""
_ROW_PX = (3, 9)
_SHORTEST_PX, _LONGEST_PX = 150, 640


def load_strip(
    load: xr.DataArray, *, marks: tuple[Mark, ...] = (), x: ClockName = "step"
) -> go.Figure:
    """Load of all layers as one image, layer 0 on top.

    Args:
        load: (step, layer, expert), fraction; NaN where a layer saw no token.
        marks: forks and phases to point at.
        x: clock of the x axis.

    Example:
        >>> load = xr.DataArray([[[0.25, 0.75], [1.0, 0.0]]], dims=("step", "layer", "expert"))
        >>> load_strip(load).data[0].z.tolist()
        [[50], [150], [200], [0]]
    """
    for dim in load.dims:
        if dim not in load.coords:
            load = load.assign_coords({dim: np.arange(load.sizes[dim])})
    load = load.transpose("layer", "expert", "step")
    layers, experts = load.sizes["layer"], load.sizes["expert"]
    clock = clock_of(load.transpose("step", ...), x)
    names = [f"layer {n}, expert {e}" for n in load["layer"].values for e in load["expert"].values]
    heat = go.Heatmap(
        x=clock.x, y=names, z=percents(load), zmin=0, zmax=MOST_PERCENT, showscale=False,
        colorscale=_scale(), hoverongaps=False,
        hovertemplate="%{y}<br>" + ("step %{x:,.0f}" if x == "step" else f"{clock.title} %{{x}}")
        + "<br>%{z:.0f} % of the fair share<extra></extra>",
    )  # fmt: skip
    fig = Figure(heat)
    row = min(max(_LONGEST_PX / len(names), _ROW_PX[0]), _ROW_PX[1])
    height = round(min(max(row * len(names), _SHORTEST_PX), 2 * _LONGEST_PX))
    edges = [edge * experts - 0.5 for edge in range(1, layers)]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1}
    white = {"color": "#ffffff", "width": 1.5}
    # All at once: plotly checks every shape anew for each one that is added.
    fig.update_layout(shapes=[{**line, "y0": y, "y1": y, "line": white} for y in edges])
    middles = [i * experts + (experts - 1) / 2 for i in range(layers)]
    every = max(1, -(-layers * 13 // height))
    fig.update_yaxes(
        autorange="reversed", showgrid=False, tickvals=middles[::every],
        ticktext=[f"layer {n}" for n in load["layer"].values[::every]],
    )  # fmt: skip
    fig.update_xaxes(showgrid=False, **clock.axis)
    top = draw_marks(fig, marks, clock, [("x", "y")], width=980)
    caption = Caption(
        name="load",
        title="Load of every expert, all layers",
        sentence=load_sentence(load),
        notes=_notes(load),
        table=load_table(load),
        provenance=provenance_of(load),
    )
    return finish(fig, caption, height=height, top=max(8, top))


def percents(load: xr.DataArray) -> np.ndarray:
    """(layer x expert, step): the load in whole percents of the fair share; 0 is no token at all.

    Whole numbers of two bytes, or float32 where a layer saw no token.
    """
    ratio = 100.0 * load.shape[1] * load.values.reshape(-1, load.shape[2])
    # What is nearly nothing is not nothing.
    whole = np.where(ratio > 0, np.clip(np.rint(ratio), 1, 60_000), ratio)
    return whole.astype("float32" if np.isnan(whole).any() else "uint16")


def _scale() -> list[tuple[float, str]]:
    """RATIO by the logarithm of the percent, on the linear axis that the cells have."""
    ratios = np.geomspace(0.25, MOST_PERCENT / 100, 33)
    colors = sample_colorscale(get_colorscale(RATIO), list(np.linspace(0, 1, 33)))
    least = 0.5 / MOST_PERCENT
    stops = [(0.0, DEAD), (least, DEAD), (least, colors[0])]
    return stops + [(float(100 * r / MOST_PERCENT), c) for r, c in zip(ratios, colors, strict=True)]


def legend() -> list[tuple[str, str]]:
    """Words and colours of the scale, for a legend beside the image.

    Example:
        >>> [words for words, _ in legend()]
        ['no token', '≤ ¼', '½', '1, fair', '2', '≥ 4 times the fair share']
    """
    words = ("≤ ¼", "½", "1, fair", "2", "≥ 4 times the fair share")
    colors = sample_colorscale(get_colorscale(RATIO), [0, 0.25, 0.5, 0.75, 1])
    return [("no token", DEAD), *zip(words, colors, strict=True)]


def _notes(load: xr.DataArray) -> tuple[str, ...]:
    note = binned(load.transpose("step", ...).rename("load"), each=1).note
    return (note,) if note else ()
