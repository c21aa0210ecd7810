"""How sure is a layer's router of its choices?

Needs   router lines (step, layer): entropy, margin, topk_mass, near_tie; those that are recorded.
Yields  a figure: a panel each for one layer.
"""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.dashboard.line_stack import Row, line_stack
from workbench.errors import RunNotFound
from workbench.figures.caption import Caption
from workbench.figures.clock import ClockName
from workbench.figures.marks import Mark
from workbench.figures.wording import listed, number

_SAID = {
    "entropy": ("entropy of the softmax (nats)", "nats", "the entropy"),
    "margin": ("margin: lowest logit chosen less the highest left out", "logits", "the margin"),
    "topk_mass": ("probability of the chosen together", "", "the probability of the chosen"),
    "near_tie": ("share of tokens within 0.1 logits of a tie", "", "the share of near ties"),
}


def router_sureness(
    lines: xr.Dataset, *, layer: int, experts: int, marks: tuple[Mark, ...] = (),
    x: ClockName = "step",
) -> go.Figure:  # fmt: skip
    """Means over the tokens of each point, for one layer.

    Args:
        lines: (step, layer) variables.
        layer: place, from 0.
        experts: of the layer; a router that knows nothing has an entropy of ln E.

    Raises:
        RunNotFound: none of them was recorded.

    Example:
        >>> lines = xr.Dataset({"near_tie": (("step", "layer"), [[0.5], [0.1]])})
        >>> fig = router_sureness(lines, layer=0, experts=4)
        >>> fig.layout.meta["caption"]["sentence"]
        'In layer 0, the share of near ties goes from 0.5 to 0.1.'
    """
    names = [n for n in _SAID if n in lines and np.isfinite(lines[n].isel(layer=layer)).any()]
    if not names:
        raise RunNotFound(f"none of {', '.join(_SAID)} was recorded in these steps.")
    one = lines.isel(layer=layer)
    rows, told = [], []
    for name in names:
        title, unit, word = _SAID[name]
        y = one[name].values.astype("float64")
        at = math.log(experts) if name == "entropy" and experts > 1 else None
        rows.append(Row(title=title, y=y, unit=unit, at=at, from_zero=name == "near_tie"))
        n = max(1, round(len(y) / 10))
        ends = (number(float(np.nanmean(part))) for part in (y[:n], y[-n:]))
        told.append(f"{word} goes from {' to '.join(ends)}")
    where = int(lines["layer"][layer]) if "layer" in lines.coords else layer
    caption = Caption(
        name="router-sureness",
        title="How sure the router is",
        sentence=f"In layer {where}, {listed(told, longest=200)}.",
        notes=("Dotted: ln E, a router that knows nothing.",) if "entropy" in names else (),
    )
    kept = one[names].drop_vars("layer", errors="ignore")
    return line_stack(kept, rows, caption, marks=marks, x=x)
