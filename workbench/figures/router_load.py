"""Where do the tokens go? Every expert of every layer, as a multiple of its fair share.

Needs   load (step, layer, expert), fraction, sums to 1 over `expert`.
Yields  a figure: one panel a layer, all on one colour scale; steps across, experts down.

The scale is log2 of E * load: white is the fair share 1/E, red twice it, blue half of it, so that
double and half are equally strong. An expert without a single token has no logarithm: it is yellow,
a colour that the scale does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.bins import MOST, Binned, binned
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import Figure, finish
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.template import DEAD, INK, MUTED, RATIO
from workbench.figures.wording import listed, many, number, plain

MOST_CELLS = 48_000
"""Cells that a page draws without effort; beyond them the bins get wider."""

_PANEL_PX = {1: 150, 2: 120, 3: 104, 4: 96}
_GAP_PX = 34
_BAR_PX = 190


def expert_load(
    load: xr.DataArray,
    *,
    marks: Sequence[Mark] = (),
    x: ClockName = "step",
    code: str = "workbench.figures.expert_load(probes.expert_load(run))",
) -> go.Figure:
    """Router load as heatmaps, a panel a layer, one colour scale: ratio to the fair share 1/E.

    Args:
        load: (step, layer, expert), fraction; sums to 1 over `expert`, NaN where a layer saw no
            token.
        marks: fork and phases to point at.
        x: "step", "tokens" or "utc"; the last two need the coordinate `tokens_seen` or `utc`.
        code: the Python that made `load`, for "copy as code".

    Returns:
        Figure. More than 400 steps (fewer where there are many layers) are averaged into bins, and
        the caption says so; an expert counts as dead in a bin in which it got no token at all.

    Raises:
        SchemaError: dims other than (step, layer, expert), or loads that do not sum to 1.

    Example:
        >>> load = xr.DataArray([[[0.25, 0.75], [1.0, 0.0]]], dims=("step", "layer", "expert"))
        >>> fig = expert_load(load)
        >>> fig.layout.meta["caption"]["sentence"][:36]
        '2 layers of 2 experts. Over the last'
    """
    load = _checked(load)
    columns = _columns(load.sizes["layer"])
    across = max(60, min(MOST // min(columns, 2), MOST_CELLS // (load[0].size or 1)))
    short = binned(load.rename("load"), most=across)
    ratio = short.mean["load"] * load.sizes["expert"]
    clock = clock_of(short.mean, x)
    fig = _panels(ratio, clock, short, columns)
    rows = math.ceil(ratio.sizes["layer"] / columns)
    panel = max(_PANEL_PX[columns], min(9 * ratio.sizes["expert"], 220))
    names = [("x" + str(i + 1), "y" + str(i + 1)) for i in range(ratio.sizes["layer"])]
    names[0] = ("x", "y")
    top = draw_marks(fig, marks, clock, names, width=980 // columns, above=18)
    return finish(
        fig,
        Caption(
            name="router-load",
            title=_title(load),
            sentence=load_sentence(load),
            notes=_notes(load, ratio, short),
            table=load_table(load),
            code=code,
            provenance=provenance_of(load),
        ),
        height=rows * panel + (rows - 1) * _GAP_PX,
        top=max(24, top),
    )


def _title(load: xr.DataArray) -> str:
    arm = load.attrs.get("branch")
    under = f" under {plain(arm)}" if arm else ""
    first = int(load["step"][0]) if load.sizes["step"] else 0
    since = f" from step {first:,}" if first > 1 else ""
    return f"Router load{under}{since}: tokens per expert, as a multiple of the fair share"


def _checked(load: xr.DataArray) -> xr.DataArray:
    if set(load.dims) != {"step", "layer", "expert"}:
        raise SchemaError(
            f"load has dims {tuple(load.dims)}; expected step, layer and expert. "
            "probes.expert_load(run) returns them."
        )
    load = load.transpose("step", "layer", "expert")
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


def _columns(layers: int) -> int:
    return next(n for n, most in ((1, 5), (2, 10), (3, 18), (4, math.inf)) if layers <= most)


def _panels(ratio: xr.DataArray, clock: Clock, short: Binned, columns: int) -> go.Figure:
    layers, experts = ratio.sizes["layer"], ratio.sizes["expert"]
    rows = math.ceil(layers / columns)
    panel = max(_PANEL_PX[columns], min(9 * experts, 220))
    fig = Figure(
        make_subplots(
            rows=rows,
            cols=columns,
            shared_xaxes="all",
            horizontal_spacing=0.14 / columns**1.3,
            vertical_spacing=_GAP_PX / (rows * panel + (rows - 1) * _GAP_PX) if rows > 1 else 0,
            subplot_titles=[f"layer {n}" for n in ratio["layer"].values],
        )
    )
    fig.update_annotations(font={"size": 12, "color": INK}, x=None)
    for i in range(layers):
        row, col = i // columns + 1, i % columns + 1
        shown = ratio.isel(layer=i).transpose("expert", ...)
        fig.add_traces(_heat(shown, clock, short), rows=row, cols=col)
    reach = _reach(ratio)
    fig.update_layout(coloraxis=_scale(reach))
    if bool((ratio == 0).any()):
        _legend_of_dead(fig, rows * panel + (rows - 1) * _GAP_PX)
    fig.update_yaxes(autorange="reversed", showgrid=False, tickvals=_expert_ticks(ratio))
    fig.update_xaxes(showgrid=False)
    for row in range(1, rows + 1):
        fig.update_yaxes(title_text="expert", row=row, col=1)
    for col in range(1, columns + 1):
        last = max(i for i in range(layers) if i % columns == col - 1) // columns + 1
        fig.update_xaxes(**clock.axis, showticklabels=True, row=last, col=col)
    _left_titles(fig, layers)
    return fig


def _left_titles(fig: go.Figure, layers: int) -> None:
    for i, title in enumerate(fig.layout.annotations[:layers]):
        axis = fig.layout["xaxis" + (str(i + 1) if i else "")]
        title.update(x=axis.domain[0], xanchor="left")


def _expert_ticks(ratio: xr.DataArray) -> list[int]:
    ids = ratio["expert"].values
    every = max(1, round(len(ids) / 4))
    return [int(e) for e in ids[::every]]


def _reach(ratio: xr.DataArray) -> int:
    """Octaves of the scale to each side: one, or two where a twentieth of the cells lies beyond."""
    values = ratio.values[np.isfinite(ratio.values) & (ratio.values > 0)]
    beyond = np.mean(np.abs(np.log2(values)) > 1) if values.size else 0.0
    return 2 if beyond > 0.05 else 1


def _scale(reach: int) -> dict[str, object]:
    ticks = {-2: "¼", -1: "½", 0: "1 fair", 1: "2", 2: "4"}
    shown = range(-reach, reach + 1)
    text = [ticks[t] for t in shown]
    text[0], text[-1] = "≤ " + text[0], "≥ " + text[-1]
    return {
        "colorscale": RATIO,
        "cmin": -reach,
        "cmax": reach,
        "cmid": 0,
        "colorbar": {
            "title": {"text": "load ÷<br>fair share<br>&nbsp;", "font": {"size": 11}},
            "tickvals": list(shown),
            "ticktext": text,
            "tickfont": {"size": 11, "color": MUTED},
            "thickness": 12,
            "lenmode": "pixels",
            "len": _BAR_PX,
            "y": 1,
            "yanchor": "top",
            "x": 1.01,
            "outlinewidth": 0,
            "ticks": "outside",
            "ticklen": 3,
        },
    }


def _heat(shown: xr.DataArray, clock: Clock, short: Binned) -> list[go.Heatmap]:
    values = shown.values.astype("float32")
    octaves = np.log2(np.where(values > 0, values, np.nan))
    told = [values]
    where = f"layer {int(shown['layer'])}, expert %{{y}}<br>"
    where += "step %{x:,.0f}" if clock.name == "step" else f"{clock.title} %{{x}}"
    hover = where
    if clock.tokens is not None:
        told.append(np.broadcast_to(clock.tokens.astype("float32"), values.shape))
        hover += "<br>%{customdata[1]:.3s} tokens seen"
    hover += "<br>%{customdata[0]:.2f} × fair share"
    if len(short.n) and short.n.max() > 1:
        hover += f"<br>n = {int(short.n.max())} steps, mean"
    live = go.Heatmap(
        x=clock.x, y=shown["expert"].values, z=octaves.astype("float32"),
        customdata=np.stack(told, axis=-1), coloraxis="coloraxis", hoverongaps=False,
        hovertemplate=f"{hover}<extra></extra>",
    )  # fmt: skip
    dead = values == 0
    if not dead.any():
        return [live]
    mask = go.Heatmap(
        x=clock.x, y=shown["expert"].values,
        z=np.where(dead, 1.0, np.nan).astype("float32"), showscale=False,
        colorscale=[[0, DEAD], [1, DEAD]], hoverongaps=False,
        hovertemplate=f"{where}<br>dead: no token at all<extra></extra>",
    )  # fmt: skip
    return [live, mask]


def _legend_of_dead(fig: go.Figure, height: int) -> None:
    swatch = go.Scatter(
        x=[None], y=[None], mode="markers", name="no token", showlegend=True,
        marker={"symbol": "square", "size": 10, "color": DEAD,
                "line": {"color": MUTED, "width": 1}},
    )  # fmt: skip
    fig.add_trace(swatch)
    fig.update_layout(legend={"x": 1.005, "y": 1 - (_BAR_PX + 10) / height, "yanchor": "top"})


def load_sentence(load: xr.DataArray) -> str:
    """How uneven the load (step, layer, expert) ends, who is busiest, and who gets nothing."""
    layers, experts = load.sizes["layer"], load.sizes["expert"]
    size = f"{many(layers, 'layer')} of {many(experts, 'expert')}."
    late = _late(load)
    if not bool(np.isfinite(late).any()):
        return f"{size} No token was routed."
    ratio = late.mean("step") * experts
    top = ratio.where(ratio == ratio.max(), drop=True)
    where = f"expert {int(top['expert'][0])} of layer {int(top['layer'][0])}"
    dead = int((late.sum("step") == 0).sum())
    gone = (
        "no expert is dead"
        if dead == 0
        else f"{many(dead, 'expert')} of {layers * experts} got no token"
    )
    return (
        f"{size} Over the last {many(late.sizes['step'], 'step')} drawn the loads run from "
        f"{number(float(ratio.min()))} to {number(float(ratio.max()))} times the fair share "
        f"1/{experts}; the busiest is {where}, and {gone}."
    )


def _late(load: xr.DataArray) -> xr.DataArray:
    """The last tenth of the samples: what "at the end" means in the sentence and in the table."""
    return load.isel(step=slice(-max(1, round(load.sizes["step"] / 10)), None))


def load_table(load: xr.DataArray) -> Table:
    """A row a layer: busiest and idlest expert and the dead, over the last tenth of the steps."""
    experts = load.sizes["expert"]
    late = _late(load)
    rows: list[tuple[Any, ...]] = []
    for layer in load["layer"].values:
        one = late.sel(layer=layer)
        ratio = (one.mean("step") * experts).values
        if not np.isfinite(ratio).any():
            rows.append((int(layer), None, None, None, None, None))
            continue
        high, low = int(np.nanargmax(ratio)), int(np.nanargmin(ratio))
        ids = load["expert"].values
        dead = [str(ids[e]) for e in np.flatnonzero(one.sum("step").values == 0)]
        rows.append(
            (int(layer), int(ids[high]), float(ratio[high]), int(ids[low]), float(ratio[low]),
             listed(dead, most=8))
        )  # fmt: skip
    return Table(
        (
            "layer",
            "busiest expert",
            "its load (× fair)",
            "idlest expert",
            "its load (× fair)",
            "dead",
        ),
        tuple(rows),
    )


def highest_step(load: xr.DataArray) -> str:
    """What averaging into bins hides: the highest load of a single step, in words.

    Of an overview, whose rows are means already, nothing is known of single steps.
    """
    if "rows" in load.coords or not bool(load.notnull().any()):
        return ""
    step, layer, expert = np.unravel_index(
        int(np.nanargmax(load.transpose("step", "layer", "expert").values)),
        [load.sizes[d] for d in ("step", "layer", "expert")],
    )
    at = load.isel(step=int(step), layer=int(layer), expert=int(expert))
    return (
        f"The highest load of a single step is {number(float(at) * load.sizes['expert'])} times "
        f"the fair share: expert {int(at['expert'])} of layer {int(at['layer'])}, step "
        f"{int(at['step']):,}."
    )


def _notes(load: xr.DataArray, ratio: xr.DataArray, short: Binned) -> tuple[str, ...]:
    notes = [short.note, highest_step(load) if short.note else ""]
    if bool((ratio == 0).any()):
        notes.append("Yellow: no token at all.")
    return tuple(n for n in notes if n)
