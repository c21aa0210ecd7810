"""When does the routing settle? Each layer's agreement with its final routing, beyond chance.

Needs   arm name -> saturation (checkpoint, layer): kappa with bounds.
Yields  a figure: one panel a layer, an arm a line with its band; 0 is chance, 1 is the final
        routing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import Figure, finish
from workbench.figures.lines import Line, band_of, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import LEGEND_PX, axis_names
from workbench.figures.strands import arms_of, strands
from workbench.figures.template import INK, MUTED
from workbench.figures.wording import listed, many, number, per_arm, plain

_PANEL_PX, _GAP_PX = 150, 38


def saturation(
    saturation: xr.Dataset | Mapping[str, xr.Dataset], *, marks: Sequence[Mark] = (),
    x: ClockName = "step", colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.saturation(probes.saturation(run))",
) -> go.Figure:  # fmt: skip
    """Router saturation per layer over the checkpoints.

    Args:
        saturation: `probes.saturation`, (checkpoint, layer): kappa, kappa_low, kappa_high; or arm
            name -> such a dataset. Each arm is compared with its own last checkpoint, so arms
            differ before their fork too.
        marks, x, code: as for `expert_load`. colors: arm name -> hex colour.

    Raises:
        SchemaError: kappa is missing or has other dims.

    Example:
        >>> settled = xr.Dataset(
        ...     {"kappa": (("checkpoint", "layer"), [[0.0], [0.6], [1.0]])},
        ...     coords={"checkpoint": [0, 50, 100]},
        ... )
        >>> fig = saturation(settled)
        >>> fig.layout.meta["caption"]["sentence"][-43:]
        'agrees with its final routing to kappa 0.6.'
    """
    arms = {name: _checked(ds) for name, ds in arms_of(saturation).items()}
    first = next(iter(arms.values()))
    layers = first.sizes["layer"]
    columns = min(layers, 4 if layers > 9 else 3)
    rows = math.ceil(layers / columns)
    height = rows * _PANEL_PX + (rows - 1) * _GAP_PX
    fig = Figure(
        make_subplots(
            rows=rows, cols=columns, shared_xaxes="all", shared_yaxes="all",
            horizontal_spacing=0.1 / columns, vertical_spacing=_GAP_PX / height if rows > 1 else 0,
            subplot_titles=[f"layer {n}" for n in first["layer"].values],
        )
    )  # fmt: skip
    fig.update_annotations(font={"size": 12, "color": INK})
    for part in strands(arms, ["kappa"], colors):
        clock = clock_of(part.values, x)
        for i in range(layers):
            line = _line(part.values.isel(layer=i), part.name, part.color, part.dash, clock, i)
            draw_line(fig, line, row=i // columns + 1, col=i % columns + 1)
    axes = [axis_names(i) for i in range(layers)]
    longest = clock_of(max(arms.values(), key=lambda ds: ds.sizes["checkpoint"]), x)
    _dress(fig, arms, layers, columns, longest)
    top = max(20, draw_marks(fig, marks, longest, axes, width=960 // columns, above=18))
    fig.update_layout(
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1 + top / height,
            "yanchor": "bottom",
        }
    )
    caption = Caption(
        name="saturation",
        title="Router saturation: agreement with the final routing, beyond chance",
        sentence=saturation_sentence(arms),
        notes=_notes(arms),
        table=saturation_table(arms),
        code=code,
        provenance=provenance_of(*arms.values()),
    )
    return finish(fig, caption, height=height, top=top + LEGEND_PX)


def _checked(ds: xr.Dataset) -> xr.Dataset:
    if "kappa" not in ds or set(ds["kappa"].dims) != {"checkpoint", "layer"}:
        have = {str(n): tuple(v.dims) for n, v in ds.data_vars.items()}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected kappa (checkpoint, layer), as "
            "probes.saturation(run) gives."
        )
    if "layer" not in ds.coords:
        ds = ds.assign_coords(layer=np.arange(ds.sizes["layer"]))
    return ds


def _line(one: xr.Dataset, arm: str, color: str, dash: str, clock: Clock, i: int) -> Line:
    y = one["kappa"].values
    band = band_of(one, "kappa")
    n = f"n = {many(int(one.attrs['n']), 'token')}" if "n" in one.attrs else ""
    head = f"layer {int(one['layer'])}\n{plain(arm)}: kappa with the final routing"
    return Line(
        name=arm, x=clock.x, y=y, color=color, dash=dash, markers=True, legend=i == 0, band=band,
        hover=hover_of(head, clock, y, "", n=n, band=band),
    )  # fmt: skip


def _dress(
    fig: go.Figure, arms: Mapping[str, xr.Dataset], layers: int, columns: int, clock: Clock
) -> None:
    lowest = min(
        float(ds[name].min())
        for ds in arms.values()
        for name in ("kappa", "kappa_low")
        if name in ds
    )
    for i, title in enumerate(fig.layout.annotations[:layers]):
        title.update(x=fig.layout["xaxis" + (str(i + 1) if i else "")].domain[0], xanchor="left")
    fig.update_yaxes(range=[min(-0.04, lowest - 0.04), 1.06], tickvals=[0, 0.25, 0.5, 0.75, 1])
    fig.add_hline(y=0, line={"color": MUTED, "width": 1, "dash": "dot"})
    fig.add_annotation(
        xref="x domain", yref="y", x=1, y=0, text="chance", showarrow=False, xanchor="right",
        yanchor="bottom", font={"size": 10, "color": MUTED},
    )  # fmt: skip
    for row in range(1, math.ceil(layers / columns) + 1):
        fig.update_yaxes(title_text="kappa", row=row, col=1)
    for col in range(1, columns + 1):
        last = max(i for i in range(layers) if i % columns == col - 1) // columns + 1
        fig.update_xaxes(**clock.axis, showticklabels=True, row=last, col=col)


def saturation_sentence(arms: Mapping[str, xr.Dataset]) -> str:
    """How settled the routing is half-way, and in which layer most and least."""
    told, layers, steps = {}, [], []
    for arm, ds in arms.items():
        # Of the last checkpoint it is 1 by definition.
        place = min(ds.sizes["checkpoint"] // 2, max(0, ds.sizes["checkpoint"] - 2))
        half = ds["kappa"].isel(checkpoint=place)
        steps.append(int(half["checkpoint"]) if "checkpoint" in half.coords else place)
        told[arm] = number(float(half.median("layer")))
        if len(np.unique(half.values[np.isfinite(half.values)])) > 1:
            layers.append(
                f"layer {int(half.idxmin('layer'))} least, {int(half.idxmax('layer'))} most"
            )
    if max(ds.sizes["checkpoint"] for ds in arms.values()) < 2:
        return "One checkpoint alone agrees with itself: when the routing settled is not known."
    each = f" ({per_arm(dict(zip(arms, layers, strict=True)))})" if len(layers) == len(arms) else ""
    at = per_arm({arm: f"{step:,}" for arm, step in zip(arms, steps, strict=True)})
    return (
        f"Half-way through the checkpoints, at step {at}, the routing of the median layer "
        f"agrees with its final routing to kappa {per_arm(told)}{each}."
    )


def saturation_table(arms: Mapping[str, xr.Dataset]) -> Table:
    """A row an arm and layer: kappa at a quarter, a half and three quarters of the checkpoints."""
    rows = []
    for arm, ds in arms.items():
        last = ds.sizes["checkpoint"] - 1
        for layer in ds["layer"].values:
            kappa = ds["kappa"].sel(layer=layer).values
            rows.append(
                (arm, int(layer), *(float(kappa[round(q * last)]) for q in (0.25, 0.5, 0.75)))
            )
    return Table(
        ("arm", "layer", "kappa at 25 %", "at 50 %", "at 75 % of checkpoints"), tuple(rows)
    )


def _notes(arms: Mapping[str, xr.Dataset]) -> tuple[str, ...]:
    tokens = {int(ds.attrs["n"]) for ds in arms.values() if "n" in ds.attrs}
    on = f", on {listed([f'{n:,}' for n in sorted(tokens)])} fixed tokens" if tokens else ""
    notes = [
        f"0 is what the loads alone would give, 1 the routing of the last checkpoint{on}; "
        "bands: 95 % over text.",
        "The last point is 1 by definition.",
    ]
    if len(arms) > 1:
        notes.append("Each arm is held against its own end.")
    return tuple(notes)
