"""Where do the tokens of an expert go in the next layer? Every way, against what chance would give.

Needs   `probes.flow`: transition (layer, expert, expert2), next_layer (layer); information with
        bounds, p, attainable where known.
Yields  a figure: a panel a pair of layers; experts of the lower down, of the upper across; the
        colour is log2 of the way's share over the upper expert's load.

Experts are numbered in each layer by itself: that expert 3 follows expert 3 means nothing. So no
diagonal is taken out here; what everybody's tokens do anyway, the upper expert's load, is. The
upper experts are put in the order in which those who follow each other most stand on the diagonal.

A transition is exact on its tokens; whether there is anything in it is said by the information, and
a pair of layers whose information is not shown to be over 0 is drawn pale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.flow_pairs import Step, steps_of
from workbench.figures.layer_grid import Grid
from workbench.figures.moment import Moment
from workbench.figures.ratio_map import color_axis, ratio_heat, reach_of
from workbench.figures.wording import count, listed, many, number

MOST_CELLS = 40_000
"""Cells that a page draws without effort; beyond them the pairs of layers that say least are left
out."""

_PAGE_PX = 1060


def flow(
    flow: xr.Dataset, *, layer: int | None = None, at: int | None = None,
    load: xr.DataArray | None = None,
    code: str = "workbench.figures.flow(probes.flow(run))",
) -> go.Figure:  # fmt: skip
    """From each expert to those of the next layer, over chance.

    Args:
        flow: `probes.flow`, of one moment or with `checkpoint` first.
        layer: the lower layer of one pair; None draws all.
        at: step of the checkpoint; None is the last.
        load: (layer, expert), loads on the same tokens, in any unit; without them (and without a
            variable `load`) each expert of the lower layer counts alike.
        code: the Python that made the data, for "copy as code".

    Raises:
        SchemaError: no transition, or one of another shape.
        UsageError: no such layer or step.

    Example:
        >>> dims = ("layer", "expert", "expert2")
        >>> found = xr.Dataset({"transition": (dims, [[[0.0, 1.0], [1.0, 0.0]]])})
        >>> fig = flow(found)
        >>> fig.layout.meta["caption"]["sentence"][-50:]
        'of layer 0 to expert 1 of layer 1: 2 times chance.'
    """
    steps, now = steps_of(flow, at, load)
    if layer is not None:
        steps = [one_step(steps, layer)]
    shown = _shown(steps)
    grid = _grid(shown)
    fig = _draw(grid, shown, now, flow)
    caption = Caption(
        name="routing-flow",
        title="Routing flow: where the tokens of an expert go in the next layer, over chance",
        sentence=flow_sentence(steps, now),
        notes=_notes(steps, shown),
        table=flow_table(steps),
        code=code,
        provenance=provenance_of(flow),
    )
    return finish(fig, caption, height=grid.height, top=24)


def one_step(found: list[Step], layer: int) -> Step:
    """The pair of layers that starts at `layer`.

    Raises:
        UsageError: there is none.
    """
    for step in found:
        if step.layer == layer:
            return step
    raise UsageError(
        f"no flow starts at layer {layer}; there are {listed([str(s.layer) for s in found], 12)}."
    )


def _shown(found: list[Step]) -> list[Step]:
    """As many pairs of layers as a page bears: those that say most of each other, by depth."""
    cells = max(1, found[0].transition.size)
    most = max(1, MOST_CELLS // cells)
    if len(found) <= most:
        return found
    says = [-np.nan_to_num(step.information[0], nan=-1.0) for step in found]
    return [found[i] for i in sorted(np.argsort(says, kind="stable")[:most].tolist())]


def _grid(shown: list[Step]) -> Grid:
    experts = len(shown[0].experts)
    columns = min(len(shown), 3)
    # Square panels, as wide as the columns of a page let them be.
    side = min(_PAGE_PX / columns - 30, 26 * experts, 560)
    return Grid(
        panels=len(shown), columns=columns, panel_px=round(max(side, 150)), between=0.12, gap_px=54
    )


def _draw(grid: Grid, shown: list[Step], now: Moment, flow: xr.Dataset) -> Figure:
    fig = grid.figure([f"layer {s.layer} → {s.next_layer}" for s in shown])
    reach = reach_of(np.stack([s.ratio for s in shown]))
    tokens = f"<br>n = {count(float(flow.attrs['n']))} tokens" if "n" in flow.attrs else ""
    for i, step in enumerate(shown):
        row, col = grid.place(i)
        traces = _heat(step, now, tokens)
        fig.add_traces(traces, rows=[row] * len(traces), cols=[col] * len(traces))
        _axes(fig, step, row, col, alone=len(shown) == 1)
    for i in range(len(shown)):
        row, col = grid.place(i)
        if grid.bottom(i) == i:
            fig.update_xaxes(title_text="expert of the next layer", row=row, col=col)
        if col == 1:
            fig.update_yaxes(title_text="expert", row=row, col=col)
    right = 1.0
    if len(shown) == 1:
        right = min(0.9, (grid.panel_px + 70) / _PAGE_PX)
        fig.update_xaxes(domain=[0, right], constraintoward="left")
    fig.update_layout(
        coloraxis=color_axis("share ÷<br>chance", reach, x=right + 0.01, height=grid.height)
    )
    return fig


def _heat(step: Step, now: Moment, tokens: str) -> list[go.Heatmap | go.Scatter]:
    order = step.order
    ratio, transition = step.ratio[:, order], step.transition[:, order]
    lower = np.broadcast_to(step.experts[:, None].astype(np.float64), ratio.shape)
    upper = np.broadcast_to(step.next_experts[order][None, :].astype(np.float64), ratio.shape)
    load = np.broadcast_to(step.next_load[order][None, :], ratio.shape)
    hover = (
        f"expert %{{customdata[0]:d}} of layer {step.layer} → expert %{{customdata[1]:d}} of layer "
        f"{step.next_layer}{f'<br>{now.clause}' if now.clause else ''}"
        "<br>%{customdata[2]:.2f} × chance"
        f"<br>%{{customdata[3]:.1%}} of its tokens' choices, %{{customdata[4]:.1%}} of all{tokens}"
    )
    sure = None if step.linked else np.zeros(ratio.shape, dtype=bool)
    custom = np.stack([lower, upper, ratio, transition, load], axis=-1).astype("float32")
    return ratio_heat(ratio, hover, sure=sure, customdata=custom)


def _axes(fig: Figure, step: Step, row: int, col: int, *, alone: bool) -> None:
    """Every expert's number where there is room; else none above, as they are not in order."""
    size = len(step.experts)
    few = size <= 16 or alone
    font = {"size": 11 if size <= 16 else 9 if size <= 32 else 8}
    common = {"showgrid": False, "tickfont": font, "constrain": "domain"}
    upper = step.next_experts[step.order]
    fig.update_xaxes(
        tickvals=list(range(len(upper))) if few else [], ticktext=[f"{int(e)}" for e in upper],
        range=[-0.5, len(upper) - 0.5], row=row, col=col, tickangle=0 if size <= 32 else -90,
        **common,
    )  # fmt: skip
    every = 1 if few else 8
    places = list(range(0, size, every))
    fig.update_yaxes(
        tickvals=places, ticktext=[f"{int(step.experts[p])}" for p in places],
        range=[size - 0.5, -0.5], row=row, col=col, **common,
    )  # fmt: skip


def flow_sentence(found: list[Step], now: Moment) -> str:
    """Between how many layers an expert says something of the next, and the strongest way."""
    known = [step for step in found if step.linked is not None]
    linked = [step for step in known if step.linked]
    when = f"{now.clause[:1].upper()}{now.clause[1:]}, " if now.clause else ""
    pairs = many(len(known), "pair of layers", "pairs of layers")
    if known and not linked:
        least = max(known, key=lambda s: np.nan_to_num(s.information[0], nan=-1.0))
        return _capital(
            f"{when}in none of {pairs} is it shown that a token's expert says anything of its "
            f"next: most {least.said}."
        )
    said = ""
    if known:
        most = max(linked, key=lambda s: np.nan_to_num(s.information[0], nan=-1.0))
        said = (
            f"{when}in {len(linked)} of {pairs} a token's expert says something of its next: "
            f"{'most ' if len(linked) > 1 else ''}{most.said}. "
        )
        when = ""
    return _capital(said) + _capital(f"{when}{_strongest(linked or found)}.")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _strongest(found: list[Step]) -> str:
    """The way that carries most tokens beyond chance."""
    best = max(found, key=lambda s: float(np.nanmax(_excess(s))) if s.ratio.size else -1.0)
    a, b = np.unravel_index(int(np.nanargmax(_excess(best))), best.ratio.shape)
    return (
        f"most beyond chance go from expert {int(best.experts[a])} of layer {best.layer} to expert "
        f"{int(best.next_experts[b])} of layer {best.next_layer}: {number(best.ratio[a, b])} times "
        "chance"
    )


def _excess(step: Step) -> np.ndarray:
    """Share of all choices on each way beyond what chance would send there."""
    excess = step.flow - step.weight[:, None] * step.next_load[None, :]
    return np.where(np.isfinite(step.ratio), excess, -1.0)


def flow_table(found: list[Step]) -> Table:
    """A row a pair of layers: the information, and the way most beyond chance."""
    rows: list[tuple[Any, ...]] = []
    for step in found:
        if not np.isfinite(step.ratio).any():
            rows.append((step.layer, step.next_layer, *[None] * 8))
            continue
        a, b = np.unravel_index(int(np.argmax(_excess(step))), step.ratio.shape)
        rows.append(
            (step.layer, step.next_layer, *step.information, step.attainable, step.p,
             int(step.experts[a]), int(step.next_experts[b]), float(step.ratio[a, b]))
        )  # fmt: skip
    columns = ("layer", "next layer", "information (bits)", "low", "high", "attainable", "p",
               "from expert", "to expert", "share ÷ chance")  # fmt: skip
    return Table(columns, tuple(rows))


def _notes(found: list[Step], shown: list[Step]) -> tuple[str, ...]:
    notes = [
        "Experts are numbered in each layer by itself: the upper ones stand in the order that puts "
        "those who follow each other most on the diagonal."
    ]
    if not found[0].loads_known:
        notes.append("Chance: the mean over the lower experts, whose loads are not known here.")
    else:
        notes.append("Chance: the upper expert's load.")
    if any(not step.linked for step in shown):
        notes.append("Pale: not shown to be more than accident.")
    if len(shown) < len(found):
        pairs = many(len(found), "pair of layers", "pairs of layers")
        notes.append(
            f"Drawn are the {len(shown)} of {pairs} that say most of each other; the table has all."
        )
    return tuple(notes)
