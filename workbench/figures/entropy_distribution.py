"""How sure is the router, token by token? The spread of its entropy over tokens, through training.

Needs   entropy_histogram (sample, layer, bin): tokens of a sampled step by router entropy / ln E,
        in equal bins of [0, 1]; tokens_seen (step) where that clock is wanted.
Yields  a figure: a panel a layer; steps across, entropy up, the share of tokens as colour, and the
        median token as a line. 0 is a router that is certain, 1 one that knows nothing.

A mean over tokens (probes.confidence) cannot tell a router that is half sure of everything from one
that is sure of half: the histogram can. Counts are exact on the sampled steps; the median is read
from bins, and is known to half a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.bins import binned
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.layer_grid import Grid, columns_for
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.template import MAGNITUDE, MUTED
from workbench.figures.wording import number, plain

MOST_CELLS = 48_000
"""Cells that a page draws without effort; beyond them consecutive samples are averaged."""

_PANEL_PX = {1: 300, 2: 210, 3: 150, 4: 130}
_LINE = "#D55E00"


def entropy_spread(
    router: xr.Dataset, *, marks: Sequence[Mark] = (), x: ClockName = "step",
    code: str = "workbench.figures.entropy_spread(run.router)",
) -> go.Figure:  # fmt: skip
    """The router's entropy over tokens, a panel a layer.

    Args:
        router: a router record, `run.router`: entropy_histogram (sample, layer, bin).
        marks: fork and phases to point at.
        x: "step", "tokens" or "utc"; the last two need `tokens_seen` or `utc` along `step`.
        code: the Python that made the data, for "copy as code".

    Raises:
        SchemaError: no entropy_histogram, or one of other dims.
        UsageError: no sample.

    Example:
        >>> from workbench.testing import router_record
        >>> fig = entropy_spread(router_record(steps=40))
        >>> fig.layout.meta["caption"]["sentence"][:57]
        'In the median layer the median token leaves the router an'
    """
    shares = _shares(router)
    layers, bins = shares.sizes["layer"], shares.sizes["bin"]
    short = binned(shares.rename("share"), most=max(40, MOST_CELLS // (layers * bins)))
    drawn = short.mean["share"].transpose("step", "layer", "bin")
    clock = clock_of(short.mean, x)
    columns = columns_for(layers)
    grid = Grid(
        panels=layers, columns=columns, between=0.09,
        panel_px=_PANEL_PX[columns] if layers != 3 else _PANEL_PX[2],
    )  # fmt: skip
    titles = [f"layer {int(n)}" for n in shares["layer"].values]
    fig = grid.figure(titles, shared_xaxes="all", shared_yaxes="all")
    for i in range(layers):
        row, col = grid.place(i)
        traces = _panel(drawn.isel(layer=i), clock)
        fig.add_traces(traces, rows=[row] * len(traces), cols=[col] * len(traces))
    fig.update_yaxes(range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75, 1], showgrid=False)
    fig.update_xaxes(showgrid=False)
    grid.axis_titles(fig, clock.axis, {"title_text": "entropy ÷ ln E"})
    top = draw_marks(fig, marks, clock, grid.axes, width=960 // columns, above=18)
    fig.update_layout(coloraxis=_scale(drawn.values))
    arm = router.attrs.get("branch")
    caption = Caption(
        name="entropy",
        title=f"How sure the router is of each token{f', {plain(arm)}' if arm else ''}",
        sentence=entropy_sentence(shares),
        notes=tuple(n for n in (short.note.replace(" steps", " samples"), _NOTE) if n),
        table=entropy_table(shares),
        code=code,
        provenance=provenance_of(router),
    )
    return finish(fig, caption, height=grid.height, top=max(24, top))


_NOTE = (
    "0: certain; 1: every expert alike. Line: the median token, known to half a bin. Exact on the "
    "sampled steps."
)


def _shares(router: xr.Dataset) -> xr.DataArray:
    """(step, layer, bin): share of a sampled step's tokens; NaN where a layer saw none."""
    name = "entropy_histogram"
    if name not in router or set(router[name].dims) != {"sample", "layer", "bin"}:
        have = {str(n): tuple(map(str, v.dims)) for n, v in router.data_vars.items()}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected {name} (sample, layer, bin), as "
            "run.router holds where histograms are recorded."
        )
    counts = router[name].transpose("sample", "layer", "bin")
    if not counts.size:
        raise UsageError(
            f"{name} of {dict(counts.sizes)} holds no sample; widen the window, or record it more "
            "often."
        )
    if "layer" not in counts.coords:
        counts = counts.assign_coords(layer=np.arange(counts.sizes["layer"]))
    total = counts.sum("bin")
    shares = (counts / total.where(total > 0)).rename(sample="step")
    clocks = {}
    if "sample" in router.coords and "step" in router.coords:
        place = np.searchsorted(router["step"].values, router["sample"].values)
        place = np.minimum(place, router.sizes["step"] - 1)
        for clock in ("tokens_seen", "utc"):
            if clock in router.variables and router[clock].dims == ("step",):
                clocks[clock] = ("step", router[clock].values[place])
    return shares.assign_coords(clocks)


def _median(shares: np.ndarray) -> np.ndarray:
    """(...): entropy / ln E under which half of the tokens lie, from (..., bin) shares."""
    bins = shares.shape[-1]
    known = np.isfinite(shares).all(axis=-1)
    upto = np.cumsum(np.nan_to_num(shares), axis=-1)
    place = np.minimum((upto < 0.5).sum(axis=-1), bins - 1)
    inside = np.take_along_axis(np.nan_to_num(shares), place[..., None], -1)[..., 0]
    before = np.take_along_axis(upto, place[..., None], -1)[..., 0] - inside
    part = np.divide(0.5 - before, inside, out=np.full(place.shape, 0.5), where=inside > 0)
    return np.where(known, (place + np.clip(part, 0, 1)) / bins, np.nan)


def _panel(shares: xr.DataArray, clock: Clock) -> list[Any]:
    values = shares.values
    bins = values.shape[-1]
    edges = (np.arange(bins) + 0.5) / bins
    step = "step %{x:,.0f}" if clock.name == "step" else f"{clock.title} %{{x}}"
    where = f"layer {int(shares['layer'])}<br>{step}"
    told = None
    if clock.tokens is not None and clock.name == "step":
        told = clock.tokens
        where += ", %{customdata:.3s} tokens"
    return [
        go.Heatmap(
            x=clock.x, y=edges, z=values.T.astype("float32"), coloraxis="coloraxis",
            hoverongaps=False,
            customdata=None if told is None else np.broadcast_to(told, values.T.shape),
            hovertemplate=f"{where}<br>entropy %{{y:.2f}} of ln E<br>%{{z:.1%}} of tokens"
            "<extra></extra>",
        ),
        go.Scatter(
            x=clock.x, y=_median(values), mode="lines" if len(clock.x) > 1 else "markers",
            line={"color": _LINE, "width": 2}, showlegend=False, customdata=told,
            hovertemplate=f"{where}<br>median token: %{{y:.3f}} of ln E<extra></extra>",
        ),
    ]  # fmt: skip


def _scale(values: np.ndarray) -> dict[str, Any]:
    there = values[np.isfinite(values)]
    top = float(np.quantile(there, 0.995)) if there.size else 1.0
    return {
        "colorscale": MAGNITUDE, "cmin": 0, "cmax": top or 1.0,
        "colorbar": {
            "title": {"text": "share of<br>tokens<br>&nbsp;", "font": {"size": 11}},
            "tickformat": ".1~%", "tickfont": {"size": 11, "color": MUTED}, "thickness": 12,
            "lenmode": "pixels", "len": 190, "y": 1, "yanchor": "top", "x": 1.01,
            "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "nticks": 5,
        },
    }  # fmt: skip


def _ends(shares: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """(layer, bin): mean shares over the first and the last tenth of the samples."""
    n = max(1, round(shares.sizes["step"] / 10))
    first, last = shares.isel(step=slice(0, n)), shares.isel(step=slice(-n, None))
    return first.mean("step"), last.mean("step")


def entropy_sentence(shares: xr.DataArray) -> str:
    """The median token's entropy at the end and at the start, the surest and least sure layer."""
    first, last = _ends(shares)
    then, now = _median(first.values), _median(last.values)
    if not np.isfinite(now).any():
        return "No token was routed."
    layer = "In the median layer the" if len(now) > 1 else "The"
    said = (
        f"{layer} median token leaves the router an entropy of {number(np.nanmedian(now))} of the "
        "most possible over the last tenth of the samples"
    )
    if shares.sizes["step"] > 1 and np.isfinite(then).any():
        said += f" (over the first: {number(np.nanmedian(then))})"
    if np.isfinite(now).sum() > 1 and number(np.nanmin(now)) != number(np.nanmax(now)):
        low, high = int(np.nanargmin(now)), int(np.nanargmax(now))
        labels = shares["layer"].values
        said += (
            f"; surest is layer {int(labels[low])}, {number(now[low])}, least sure layer "
            f"{int(labels[high])}, {number(now[high])}"
        )
    return f"{said}."


def entropy_table(shares: xr.DataArray) -> Table:
    """A row a layer: the median at the start and the end, and how many tokens are sure at last."""
    first, last = _ends(shares)
    then, now = _median(first.values), _median(last.values)
    half = shares.sizes["bin"] // 2
    rows = tuple(
        (int(layer), float(then[i]), float(now[i]), float(last.values[i, :half].sum()))
        for i, layer in enumerate(shares["layer"].values)
    )
    columns = ("layer", "median at first", "median at last", "tokens under half of ln E")
    return Table(columns, rows)
