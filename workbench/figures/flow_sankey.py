"""The ways from one layer to the next as a Sankey diagram: which of them carry more than chance?

Needs   `probes.flow`: transition (layer, expert, expert2); loads of the lower layer where known.
Yields  a figure: experts of the lower layer left, of the upper right, as high as their loads. Ways
        that carry more than chance are drawn from one to the other; all other choices pass through
        one node in the middle, so that nothing is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.flow_pairs import Step, steps_of
from workbench.figures.moment import Moment
from workbench.figures.routing_flow import one_step
from workbench.figures.template import INK, faint
from workbench.figures.wording import many, number

MOST_WAYS = 60
CLEARLY = 1.25
"""Times chance from which a way is drawn by itself."""

_ORANGE, _BLUE = "#D55E00", "#0072B2"


def sankey(
    flow: xr.Dataset, *, layer: int | None = None, at: int | None = None,
    load: xr.DataArray | None = None, ways: int = MOST_WAYS,
    code: str = "workbench.figures.sankey(probes.flow(run))",
) -> go.Figure:  # fmt: skip
    """One layer's ways to the next.

    Args:
        flow: `probes.flow`, of one moment or with `checkpoint` first.
        layer: the lower layer; None takes the one that says most of its next.
        at, load, code: as for `flow`.
        ways: drawn by themselves at most: those with most tokens beyond chance.

    Raises:
        SchemaError: no transition, or one of another shape.
        UsageError: no such layer or step.

    Example:
        >>> dims = ("layer", "expert", "expert2")
        >>> found = xr.Dataset({"transition": (dims, [[[0.0, 1.0], [1.0, 0.0]]])})
        >>> sankey(found).layout.meta["caption"]["sentence"][-48:]
        'which hold 100 % of the choices, by chance 50 %.'
    """
    found, now = steps_of(flow, at, load)
    if layer is None:
        says = [np.nan_to_num(step.information[0], nan=-1.0) for step in found]
        step = found[int(np.argmax(says))]
    else:
        step = one_step(found, layer)
    drawn = _ways(step, ways)
    fig = Figure(_sankey(step, drawn))
    for x, anchor, text in (
        (0.0, "left", f"layer {step.layer}"), (1.0, "right", f"layer {step.next_layer}"),
    ):  # fmt: skip
        fig.add_annotation(
            xref="paper", yref="paper", x=x, y=1, yanchor="bottom", xanchor=anchor, text=text,
            showarrow=False, yshift=4, font={"size": 12, "color": INK},
        )  # fmt: skip
    caption = Caption(
        name="flow-sankey",
        title=f"Ways of the tokens from layer {step.layer} to layer {step.next_layer}",
        sentence=sankey_sentence(step, drawn, now),
        notes=_notes(step, layer, len(found)),
        table=_table(step, drawn),
        code=code,
        provenance=provenance_of(flow),
    )
    return finish(fig, caption, height=max(320, 15 * len(step.experts) + 60), top=24)


def _ways(step: Step, most: int) -> np.ndarray:
    """(way, 2): places of the ways drawn by themselves, most beyond chance first."""
    excess = step.flow - step.weight[:, None] * step.next_load[None, :]
    clearly = np.nan_to_num(step.ratio) >= CLEARLY
    order = np.argsort(-np.where(clearly, excess, -1.0), axis=None, kind="stable")
    places = np.stack(np.unravel_index(order[: max(0, most)], excess.shape), axis=-1)
    return places[clearly[places[:, 0], places[:, 1]]] if len(places) else places


def _sankey(step: Step, drawn: np.ndarray) -> go.Sankey:
    lower, upper = len(step.experts), len(step.next_experts)
    hub = lower + upper
    flow = step.flow
    rest = flow.copy()
    rest[drawn[:, 0], drawn[:, 1]] = 0.0
    source, target, value, color, told = [], [], [], [], []
    for a, b in drawn:
        source.append(int(a))
        target.append(lower + int(b))
        value.append(float(flow[a, b]))
        color.append(faint(_ORANGE, 0.5 if step.linked else 0.22))
        told.append(f"{number(step.ratio[a, b])} × chance")
    for places, sums, into in ((range(lower), rest.sum(axis=1), True),
                               (range(upper), rest.sum(axis=0), False)):  # fmt: skip
        for p in places:
            # A hair that nobody sees would still take a hover and a place in the layout.
            if sums[p] <= 1e-9:
                continue
            source.append(int(p) if into else hub)
            target.append(hub if into else lower + int(p))
            value.append(float(sums[p]))
            color.append(faint("#808080", 0.22))
            told.append("ways that are not drawn by themselves")
    labels = [f"{int(e)}" for e in (*step.experts, *step.next_experts)] + ["all other ways"]
    layers = [step.layer] * lower + [step.next_layer] * upper
    where = [f"expert {n} of layer {m}" for n, m in zip(labels, layers, strict=False)]
    return go.Sankey(
        arrangement="snap", valueformat=".2%",
        node={
            "label": labels, "customdata": [*where, "all other ways"], "thickness": 12, "pad": 8,
            "color": [_BLUE] * (lower + upper) + ["#c8c8c8"], "line": {"width": 0},
            "hovertemplate": "%{customdata}<br>%{value:.2%} of the choices<extra></extra>",
        },
        link={
            "source": source, "target": target, "value": value, "color": color,
            "customdata": told,
            "hovertemplate": "%{source.customdata} → %{target.customdata}<br>%{value:.2%} of the "
            "choices<br>%{customdata}<extra></extra>",
        },
        textfont={"size": 11 if lower <= 32 else 9, "color": INK},
    )  # fmt: skip


def sankey_sentence(step: Step, drawn: np.ndarray, now: Moment) -> str:
    """Whether the layers are linked, and how many choices the drawn ways hold."""
    when = f" {now.clause}" if now.clause else ""
    head = f"From layer {step.layer} to {step.next_layer}{when} "
    found, low, high = step.information
    if step.linked is None:
        said = "it is not known how surely a token's expert says something of its next"
    elif np.isfinite(low):
        shown = "a token's expert says" if step.linked else "it is not shown that an expert says"
        what = f"of its next, {number(found)} bits [{number(low)}, {number(high)}]"
        said = f"{shown} {'something' if step.linked else 'anything'} {what}"
    else:
        shown = "" if step.linked else "not "
        said = f"the link of the layers is {shown}shown, p = {number(step.p)}"
    if not len(drawn):
        return f"{head}{said}. No way carries {CLEARLY} times chance."
    a, b = drawn[:, 0], drawn[:, 1]
    holds = float(step.flow[a, b].sum())
    chance = float((step.weight[a] * step.next_load[b]).sum())
    return (
        f"{head}{said}. {_drawn(len(drawn))} {100 * holds:.0f} % of the choices, by chance "
        f"{100 * chance:.0f} %."
    )


def _drawn(n: int) -> str:
    if n == 1:
        return f"Orange is 1 way of {CLEARLY} times chance or more, which holds"
    return f"Orange are {n:,} ways of {CLEARLY} times chance or more, which hold"


def _table(step: Step, drawn: np.ndarray) -> Table:
    rows: list[tuple[Any, ...]] = [
        (int(step.experts[a]), int(step.next_experts[b]), float(step.flow[a, b]),
         float(step.ratio[a, b]))
        for a, b in drawn
    ]  # fmt: skip
    columns = (f"expert of layer {step.layer}", f"expert of layer {step.next_layer}",
               "share of choices", "× chance")  # fmt: skip
    return Table(columns, tuple(rows))


def _notes(step: Step, layer: int | None, pairs: int) -> tuple[str, ...]:
    notes = []
    if not step.linked:
        notes.append("Pale orange: these ways are not shown to be more than accident.")
    notes += ["Grey: all other choices. Experts are numbered in each layer by itself."]
    if not step.loads_known:
        notes.append("Loads of the lower layer are not known here: its experts are drawn alike.")
    if layer is None and pairs > 1:
        notes.append(
            f"Of {many(pairs, 'pair of layers', 'pairs of layers')} the one that says most."
        )
    return tuple(notes)
