"""What does one expert get, among those of its layer?

Needs   load (step, layer, expert), fraction.
Yields  a figure: the expert's load as a multiple of the fair share, over the range of all experts
        of the layer.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.dashboard.line_stack import Row, line_stack
from workbench.errors import RunNotFound
from workbench.figures.caption import Caption
from workbench.figures.clock import ClockName
from workbench.figures.marks import Mark
from workbench.figures.wording import number


def expert_line(
    load: xr.DataArray, *, layer: int, expert: int, marks: tuple[Mark, ...] = (),
    x: ClockName = "step",
) -> go.Figure:  # fmt: skip
    """One expert's load through training.

    Args:
        load: (step, layer, expert), fraction.
        layer, expert: places, from 0.

    Raises:
        RunNotFound: no token was routed in the layer.

    Example:
        >>> load = xr.DataArray([[[0.25, 0.75]], [[0.5, 0.5]]], dims=("step", "layer", "expert"))
        >>> expert_line(load, layer=0, expert=1).layout.meta["caption"]["sentence"]
        'Expert 1 of layer 0 gets 1.5 × the fair share at first and 1 × at the end.'
    """
    one = load.isel(layer=layer).transpose("step", "expert")
    ratio = one.values * one.sizes["expert"]
    if not np.isfinite(ratio).any():
        raise RunNotFound(f"no token was routed in layer {layer} in these steps.")
    mine = ratio[:, expert]
    n = max(1, round(len(mine) / 10))
    first, last = (number(float(np.nanmean(part))) for part in (mine[:n], mine[-n:]))
    name = int(load["layer"][layer]) if "layer" in load.coords else layer
    caption = Caption(
        name="expert-load",
        title="One expert's load",
        sentence=(
            f"Expert {expert} of layer {name} gets {first} × the fair share at first and "
            f"{last} × at the end."
        ),
        notes=("Band: from the idlest to the busiest expert of the layer.",) * (len(mine) > 1),
    )
    row = Row(
        title="load ÷ fair share", y=mine, unit="× fair", from_zero=True, at=1.0,
        band=(ratio.min(axis=1), ratio.max(axis=1)), band_is="idlest and busiest expert",
    )  # fmt: skip
    return line_stack(one.drop_vars("layer", errors="ignore"), [row], caption, marks=marks, x=x)
