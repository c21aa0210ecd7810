"""How is the load spread over the experts? Quantiles of a layer's experts, through training.

Needs   load (step, layer, expert), fraction, sums to 1 over `expert`.
Yields  a figure: one panel a layer; the median expert as a line, the middle half, the middle eight
        tenths and the whole range of the experts as bands, as multiples of the fair share 1/E.

The axis is log2 of E * load, so that double and half the fair share are equally far from it. An
expert without a token has no logarithm: it stands at a tick of its own, 0, under all others.

The loads are exact counts: the bands are the spread of experts, not an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.bins import MOST, binned
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.layer_grid import Grid, columns_for
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import LEGEND_PX
from workbench.figures.router_load import highest_step
from workbench.figures.template import DEAD, MUTED, arm_colors
from workbench.figures.wording import many, number, plain

_PANEL_PX = {1: 300, 2: 220, 3: 160, 4: 130}
_TICKS = {-4: "1/16", -3: "⅛", -2: "¼", -1: "½", 0: "1 fair"}


@dataclass(frozen=True)
class Band:
    """The experts between two quantiles."""

    low: float
    high: float
    name: str
    depth: float
    """Share of the arm's colour; the rest is white. Not an opacity: bands lie over each other."""
    fewest: int
    """Experts under which these quantiles are not worth telling apart."""


BANDS = (
    Band(0.0, 1.0, "all experts", 0.16, 2),
    Band(0.1, 0.9, "middle 80 %", 0.32, 20),
    Band(0.25, 0.75, "middle half", 0.55, 6),
)


def load_spread(
    load: xr.DataArray, *, marks: Sequence[Mark] = (), x: ClockName = "step",
    colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.load_spread(probes.expert_load(run))",
) -> go.Figure:  # fmt: skip
    """The spread of the experts' loads through training, a panel a layer.

    Args:
        load: (step, layer, expert), fraction; sums to 1 over `expert`, NaN where a layer saw no
            token. Of one arm.
        marks: fork and phases to point at.
        x: "step", "tokens" or "utc"; the last two need the coordinate `tokens_seen` or `utc`.
        colors: arm name -> hex colour; by default the arm's own.
        code: the Python that made `load`, for "copy as code".

    Returns:
        Figure. Long records are averaged into bins before the quantiles are taken: what is drawn is
        inequality that lasts for a bin.

    Raises:
        SchemaError: dims other than (step, layer, expert), or loads that do not sum to 1.
        UsageError: no step at all.

    Example:
        >>> load = xr.DataArray([[[0.25, 0.75], [0.5, 0.5]]], dims=("step", "layer", "expert"))
        >>> fig = load_spread(load)
        >>> fig.layout.meta["caption"]["sentence"][-47:]
        'in layer 0, from 0.5 to 1.5; no expert is dead.'
    """
    load = _checked(load)
    layers, experts = load.sizes["layer"], load.sizes["expert"]
    columns = columns_for(layers)
    panel = _PANEL_PX[columns] if layers != 3 else _PANEL_PX[2]
    grid = Grid(panels=layers, columns=columns, panel_px=panel, between=0.09)
    short = binned(load.rename("load"), most=MOST if layers <= 9 else MOST // 2)
    ratio = short.mean["load"].transpose("step", "layer", "expert") * experts
    clock = clock_of(short.mean, x)
    arm = str(load.attrs.get("branch", "main"))
    color = {**arm_colors([arm]), **(colors or {})}[arm]
    fig = grid.figure(
        [f"layer {n}" for n in load["layer"].values], shared_xaxes="all", shared_yaxes="all"
    )
    axis = _axis(ratio.values)
    for i in range(layers):
        traces = _panel(ratio.isel(layer=i), clock, color, axis, first=i == 0)
        row, col = grid.place(i)
        fig.add_traces(traces, rows=[row] * len(traces), cols=[col] * len(traces))
    fig.update_yaxes(range=axis.range, tickvals=axis.ticks, ticktext=axis.texts)
    fig.add_hline(y=0, line={"color": MUTED, "width": 1, "dash": "dot"})
    grid.axis_titles(fig, clock.axis, {"title_text": "load ÷ fair share"})
    above = draw_marks(fig, marks, clock, grid.axes, width=960 // grid.columns, above=18)
    top = max(24, above)
    fig.update_layout(
        hovermode="x",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1 + top / grid.height,
                "yanchor": "bottom"},
    )  # fmt: skip
    caption = Caption(
        name="load-distribution",
        title=_title(load),
        sentence=distribution_sentence(load),
        notes=_notes(
            ratio, " ".join([short.note, highest_step(load)]).strip() if short.note else ""
        ),
        table=distribution_table(load),
        code=code,
        provenance=provenance_of(load),
    )
    return finish(fig, caption, height=grid.height, top=top + LEGEND_PX)


def _title(load: xr.DataArray) -> str:
    arm = load.attrs.get("branch")
    under = f" under {plain(arm)}" if arm else ""
    return f"Spread of the load over experts{under}, as a multiple of the fair share"


def _checked(load: xr.DataArray) -> xr.DataArray:
    if set(load.dims) != {"step", "layer", "expert"}:
        raise SchemaError(
            f"load has dims {tuple(load.dims)}; expected step, layer and expert. "
            "probes.expert_load(run) returns them."
        )
    load = load.transpose("step", "layer", "expert")
    if not load.size:
        raise UsageError(
            f"load of {dict(load.sizes)} holds no number; widen the window it was taken over."
        )
    for dim in load.dims:
        if dim not in load.coords:
            load = load.assign_coords({dim: np.arange(load.sizes[dim])})
    total = load.sum("expert", skipna=False)
    if bool((abs(total - 1) > 1e-3).any()):
        raise SchemaError(
            f"loads sum to between {float(total.min()):.4g} and {float(total.max()):.4g} over "
            "'expert'; a load sums to 1. Divide raw counts first: counts / counts.sum('expert')."
        )
    return load


@dataclass(frozen=True)
class _Axis:
    """Octaves from the fair share, with a place under them for a load of 0."""

    lowest: int
    highest: int
    zero: bool

    @property
    def range(self) -> list[float]:
        return [self.lowest - (1.25 if self.zero else 0.1), self.highest + 0.1]

    @property
    def ticks(self) -> list[int]:
        return [self.lowest - 1] * self.zero + list(range(self.lowest, self.highest + 1))

    @property
    def texts(self) -> list[str]:
        said = [_TICKS.get(t, f"{2**t:,}") for t in range(self.lowest, self.highest + 1)]
        return ["0"] * self.zero + said

    def at(self, ratio: np.ndarray) -> np.ndarray:
        octaves = np.log2(np.where(ratio > 0, ratio, 1.0))
        placed = np.clip(octaves, self.lowest, self.highest)
        placed = np.where(ratio > 0, placed, self.lowest - 1)
        return np.where(np.isnan(ratio), np.nan, placed)


def _axis(ratio: np.ndarray) -> _Axis:
    there = ratio[np.isfinite(ratio) & (ratio > 0)]
    octaves = np.log2(there) if there.size else np.zeros(1)
    lowest = int(np.clip(np.floor(octaves.min()), -4, -1))
    highest = int(max(1, np.ceil(octaves.max())))
    return _Axis(lowest, highest, bool((ratio == 0).any()))


def _bands(experts: int) -> list[Band]:
    return [band for band in BANDS if experts >= band.fewest]


def _panel(
    ratio: xr.DataArray, clock: Clock, color: str, axis: _Axis, *, first: bool
) -> list[go.Scatter]:
    """The bands of one layer, the median over them, and a bar where experts are dead."""
    values = ratio.values
    traces: list[go.Scatter] = []
    told: list[np.ndarray] = []
    said: list[str] = []
    known = np.isfinite(values).all(axis=-1)
    for band in _bands(values.shape[-1]):
        low, high = _quantiles(values, band.low), _quantiles(values, band.high)
        legend = {"legendgroup": band.name, "showlegend": first, "name": band.name}
        for part in _stretches(known):
            x = clock.x[part]
            traces.append(
                go.Scatter(
                    x=np.concatenate([x, x[::-1]]),
                    y=np.concatenate([axis.at(high[part]), axis.at(low[part])[::-1]]),
                    fill="toself", fillcolor=tint(color, band.depth), mode="lines",
                    line={"width": 0}, hoverinfo="skip", **legend,
                )
            )  # fmt: skip
            legend = {**legend, "showlegend": False}
        place = 2 * len(said)
        said.append(
            f"{band.name}: %{{customdata[{place}]:.2f}} to %{{customdata[{place + 1}]:.2f}}"
        )
        told += [low, high]
    median = _quantiles(values, 0.5)
    told.append(median)
    where = "step %{x:,.0f}" if clock.name == "step" else f"{clock.title} %{{x}}"
    if clock.tokens is not None and clock.name != "tokens":
        told.append(clock.tokens.astype(np.float64))
        where += f", %{{customdata[{len(told) - 1}]:.3s}} tokens"
    lines = [
        f"layer {int(ratio['layer'])}", where,
        f"median expert: %{{customdata[{2 * len(said)}]:.2f}} × fair share", *said,
        f"n = {many(values.shape[-1], 'expert')}",
    ]  # fmt: skip
    traces.append(
        go.Scatter(
            x=clock.x, y=axis.at(median), mode="lines" if len(median) > 1 else "markers",
            name="median expert", legendgroup="median", showlegend=first,
            line={"color": color, "width": 1.8}, customdata=np.stack(told, axis=-1),
            hovertemplate="<br>".join(lines) + "<extra></extra>",
        )
    )  # fmt: skip
    dead = (values == 0).sum(axis=-1)
    if dead.any():
        traces.append(_dead(clock, dead, axis, values.shape[-1]))
    return traces


def _dead(clock: Clock, dead: np.ndarray, axis: _Axis, experts: int) -> go.Scatter:
    there = dead > 0
    return go.Scatter(
        x=clock.x[there], y=np.full(int(there.sum()), axis.lowest - 1), mode="markers",
        marker={"symbol": "square", "size": 6, "color": DEAD},
        name="experts without a token", legendgroup="dead", showlegend=False,
        customdata=dead[there],
        hovertemplate=f"%{{customdata}} of {experts} experts without a token<extra></extra>",
    )  # fmt: skip


def tint(color: str, depth: float) -> str:
    """A hex colour mixed with white.

    Example:
        >>> tint("#000000", 0.2)
        '#cccccc'
    """
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - depth * (255 - part)):02x}" for part in parts)


def _quantiles(values: np.ndarray, q: float) -> np.ndarray:
    """(step,) of (step, expert); NaN where the layer saw no token."""
    return np.quantile(values, q, axis=-1)


def _stretches(known: np.ndarray) -> list[slice]:
    """Runs of steps at which the layer saw tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _part(load: xr.DataArray, end: bool) -> xr.DataArray:
    """(layer, expert): mean ratio to the fair share over the first or the last tenth of steps."""
    n = max(1, round(load.sizes["step"] / 10))
    part = load.isel(step=slice(-n, None) if end else slice(0, n))
    return part.mean("step") * load.sizes["expert"]


def distribution_sentence(load: xr.DataArray) -> str:
    """The middle half of the experts at the end and at the start, and the layer furthest apart."""
    layers, experts = load.sizes["layer"], load.sizes["expert"]
    size = f"{many(layers, 'layer')} of {many(experts, 'expert')}."
    late = _part(load, end=True)
    if not bool(np.isfinite(late).any()):
        return f"{size} No token was routed."
    if experts == 1:
        return f"{size} One expert takes every token: there is nothing to spread."
    steps = max(1, round(load.sizes["step"] / 10))
    now = _middle(late)
    before = ""
    if load.sizes["step"] >= 2 * steps and bool(np.isfinite(_part(load, end=False)).any()):
        then = _middle(_part(load, end=False))
        before = f" (over the first {steps:,}: {then})"
    apart = late.max("expert") - late.min("expert")
    widest = int(apart.fillna(-1).argmax("layer"))
    low, high = float(late[widest].min()), float(late[widest].max())
    which = f"layer {int(late['layer'][widest])}"
    gone = _gone(load)
    return (
        f"{size} Over the last {many(steps, 'step')} the middle half of the median layer's experts "
        f"gets {now} times the fair share 1/{experts}{before}. The loads lie furthest apart in "
        f"{which}, from {number(low)} to {number(high)}; {gone}."
    )


def _middle(ratio: xr.DataArray) -> str:
    low, high = (
        float(ratio.quantile(q, "expert", skipna=False).median("layer")) for q in (0.25, 0.75)
    )
    return f"{number(low)} to {number(high)}"


def _gone(load: xr.DataArray) -> str:
    n = max(1, round(load.sizes["step"] / 10))
    late = load.isel(step=slice(-n, None))
    dead = int((late.sum("step", min_count=1) == 0).sum())
    if dead == 0:
        return "no expert is dead"
    return f"{many(dead, 'expert')} of {load.sizes['layer'] * load.sizes['expert']:,} got no token"


def distribution_table(load: xr.DataArray) -> Table:
    """A row a layer: quantiles over its experts of the load over the last tenth of the steps."""
    late = _part(load, end=True)
    quantiles = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    rows: list[tuple[Any, ...]] = []
    for i, layer in enumerate(load["layer"].values):
        values = late[i].values
        if not np.isfinite(values).all():
            rows.append((int(layer), *[None] * (len(quantiles) + 1)))
            continue
        found = [float(v) for v in np.quantile(values, quantiles)]
        rows.append((int(layer), *found, int((values == 0).sum())))
    columns = ("lowest (× fair)", "10 %", "25 %", "median", "75 %", "90 %", "highest", "no token")
    return Table(("layer", *columns), tuple(rows))


def _notes(ratio: xr.DataArray, short: str) -> tuple[str, ...]:
    notes = [short, "Bands are the spread of experts, not an uncertainty: loads are exact counts."]
    if bool((ratio == 0).any()):
        notes.append("Yellow at 0: experts without a token there.")
    return tuple(n for n in notes if n)
