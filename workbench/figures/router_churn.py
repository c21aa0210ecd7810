"""How much does the routing still change? Each layer's churn from checkpoint to checkpoint.

Needs   arm name -> churn (checkpoint, layer): kappa with bounds, since (checkpoint); churn beside.
Yields  a figure: one panel a layer, an arm a line with its band. 0: every token kept its experts;
        1: no more was kept than two routings share that have the same loads and nothing else.

What is drawn is 1 - kappa: the share of choices that moved over the share that chance would move.
Layers of different loads, and arms, can be compared; the plain share is in the hover and the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.figure import finish
from workbench.figures.layer_grid import Grid, columns_for
from workbench.figures.lines import Line, band_of, draw_line, hover_of
from workbench.figures.marks import Mark, draw_marks
from workbench.figures.panels import LEGEND_PX
from workbench.figures.strands import Strand, arms_of, strands
from workbench.figures.template import MUTED
from workbench.figures.wording import listed, many, number, per_arm, plain

_PANEL_PX, _WIDE_PX = 150, 220


def churn(
    churn: xr.Dataset | Mapping[str, xr.Dataset], *, marks: Sequence[Mark] = (),
    x: ClockName = "step", colors: Mapping[str, str] | None = None,
    code: str = "workbench.figures.churn(probes.churn(run))",
) -> go.Figure:  # fmt: skip
    """How much of the routing changed since the checkpoint before, layer by layer.

    Args:
        churn: `probes.churn`, (checkpoint, layer): kappa, kappa_low, kappa_high, churn; coordinate
            `since`; or arm name -> such a dataset.
        marks: fork and phases to point at.
        x: "step", "tokens" or "utc"; the last two need the coordinate `tokens_seen` or `utc`.
        colors: arm name -> hex colour; by default each arm's own.
        code: the Python that made the data, for "copy as code".

    Raises:
        SchemaError: kappa is missing or has other dims.
        UsageError: no checkpoint or no layer.

    Example:
        >>> found = xr.Dataset(
        ...     {"kappa": (("checkpoint", "layer"), [[0.2], [0.9]])},
        ...     coords={"checkpoint": [50, 100]},
        ... )
        >>> churn(found).layout.meta["caption"]["sentence"][:58]
        'Up to the last checkpoint, step 100, the median layer rero'
    """
    arms = {name: _checked(ds) for name, ds in arms_of(churn).items()}
    layers = next(iter(arms.values()))["layer"].values
    for name, ds in arms.items():
        if not np.array_equal(ds["layer"].values, layers):
            raise SchemaError(
                f"arm {plain(name)!r} has {many(ds.sizes['layer'], 'layer')} and another "
                f"{many(len(layers), 'layer')}; draw arms of one model."
            )
    grid = Grid(
        panels=len(layers), columns=columns_for(len(layers)),
        panel_px=_PANEL_PX if len(layers) > 3 else _WIDE_PX,
    )  # fmt: skip
    fig = grid.figure([f"layer {int(n)}" for n in layers], shared_xaxes="all", shared_yaxes="all")
    for strand in strands(arms, ["moved"], colors):
        clock = clock_of(strand.values, x)
        for i in range(len(layers)):
            row, col = grid.place(i)
            draw_line(fig, _line(strand, clock, i), row=row, col=col)
    longest = clock_of(max(arms.values(), key=lambda ds: ds.sizes["checkpoint"]), x)
    _dress(fig, grid, arms, longest)
    top = max(20, draw_marks(fig, marks, longest, grid.axes, width=960 // grid.columns, above=18))
    fig.update_layout(
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1 + top / grid.height,
                "yanchor": "bottom"}
    )  # fmt: skip
    caption = Caption(
        name="churn",
        title="Router churn: choices that moved since the checkpoint before, against chance",
        sentence=churn_sentence(arms),
        notes=_notes(arms),
        table=churn_table(arms),
        code=code,
        provenance=provenance_of(*arms.values()),
    )
    return finish(fig, caption, height=grid.height, top=top + LEGEND_PX)


def _checked(ds: xr.Dataset) -> xr.Dataset:
    """With `moved` = 1 - kappa and its bounds, and a label for every layer."""
    if "kappa" not in ds or set(ds["kappa"].dims) != {"checkpoint", "layer"}:
        have = {str(n): tuple(v.dims) for n, v in ds.data_vars.items()}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected kappa (checkpoint, layer), as "
            "probes.churn(run) gives."
        )
    if not ds["kappa"].size:
        raise UsageError(
            f"churn of {dict(ds['kappa'].sizes)} holds no number; it needs two checkpoints: widen "
            "the window."
        )
    for dim in ("checkpoint", "layer"):
        if dim not in ds.coords:
            ds = ds.assign_coords({dim: np.arange(ds.sizes[dim])})
    bounds: dict[str, Any] = {
        f"moved_{end}": 1 - ds[f"kappa_{other}"]
        for end, other in (("low", "high"), ("high", "low"))
        if f"kappa_{other}" in ds
    }
    return ds.assign(moved=1 - ds["kappa"], **bounds)


def _line(strand: Strand, clock: Clock, i: int) -> Line:
    one = strand.values.isel(layer=i)
    y, band = one["moved"].values, band_of(one, "moved")
    n = f"n = {many(int(one.attrs['n']), 'token')}" if "n" in one.attrs else ""
    head = f"layer {int(one['layer'])}\n{plain(strand.name)}: churn over what chance would move"
    hover = hover_of(head, clock, y, "× chance", n=n, band=band)
    since = one["since"].values if "since" in one.coords else None
    plainly = one["churn"].values if "churn" in one else None
    for j in range(len(y)):
        if since is not None:
            hover.where[j] += f"<br>since step {int(since[j]):,}"
        if plainly is not None and np.isfinite(plainly[j]):
            hover.where[j] += f"<br>{100 * plainly[j]:.1f} % of choices moved"
    return Line(
        name=strand.name, x=clock.x, y=y, color=strand.color, dash=strand.dash, markers=True,
        legend=i == 0, band=band, hover=hover,
    )  # fmt: skip


def _dress(fig: go.Figure, grid: Grid, arms: Mapping[str, xr.Dataset], clock: Clock) -> None:
    names = ("moved", "moved_low", "moved_high")
    drawn = [ds[name] for ds in arms.values() for name in names if name in ds]
    highest = max(1.0, *(float(d.max()) for d in drawn if bool(d.notnull().any())), 1.0)
    lowest = min(0.0, *(float(d.min()) for d in drawn if bool(d.notnull().any())), 0.0)
    fig.update_yaxes(range=[lowest - 0.05, highest + 0.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    fig.add_hline(y=1, line={"color": MUTED, "width": 1, "dash": "dot"})
    fig.add_annotation(
        xref="x domain", yref="y", x=1, y=1, text="chance", showarrow=False, xanchor="right",
        yanchor="bottom", font={"size": 10, "color": MUTED},
    )  # fmt: skip
    grid.axis_titles(fig, clock.axis, {"title_text": "churn ÷ chance"})


def churn_sentence(arms: Mapping[str, xr.Dataset]) -> str:
    """How much moved up to the last checkpoint, in which layer most, and how it was at first."""
    told, first, most = {}, {}, {}
    for arm, ds in arms.items():
        last = ds.isel(checkpoint=-1)
        told[arm] = f"{number(float(last['moved'].median('layer')))} times what chance would move"
        if "churn" in ds:
            share = 100 * float(last["churn"].median("layer"))
            told[arm] = f"{number(share)} % of its choices, {told[arm]},"
        first[arm] = number(float(ds["moved"].isel(checkpoint=0).median("layer")))
        if ds.sizes["layer"] > 1 and float(last["moved"].max()) > 0:
            most[arm] = _most(last)
    steps = {int(ds["checkpoint"][-1]) for ds in arms.values()}
    when = f", step {steps.pop():,}," if len(steps) == 1 else ""
    said = f"Up to the last checkpoint{when} the median layer rerouted {per_arm(told)}".rstrip(",")
    longer = any(ds.sizes["checkpoint"] > 1 for ds in arms.values())
    said += f" (at first: {per_arm(first)})" if longer else ""
    where = f" Most moved in {per_arm(most)}." if len(most) == len(arms) else ""
    return f"{said}.{where}"


def _most(last: xr.Dataset) -> str:
    """The layer that moved most, with its interval."""
    place = int(last["moved"].argmax("layer"))
    one = last.isel(layer=place)
    told = number(float(one["moved"]))
    if "moved_low" in last and bool(one["moved_low"].notnull()):
        told += f" [{number(float(one['moved_low']))}, {number(float(one['moved_high']))}]"
    return f"layer {int(one['layer'])}, {told}"


def churn_table(arms: Mapping[str, xr.Dataset]) -> Table:
    """A row an arm and layer: what moved up to the first, the middle and the last checkpoint."""
    rows: list[tuple[Any, ...]] = []
    for arm, ds in arms.items():
        places = sorted({0, (ds.sizes["checkpoint"] - 1) // 2, ds.sizes["checkpoint"] - 1})
        for i, layer in enumerate(ds["layer"].values):
            for place in places:
                one = ds.isel(checkpoint=place, layer=i)
                since = int(one["since"]) if "since" in one.coords else None
                values = (
                    float(one[n]) if n in one else None
                    for n in ("churn", "moved", "moved_low", "moved_high")
                )
                rows.append((arm, int(layer), since, int(one["checkpoint"]), *values))
    columns = ("arm", "layer", "from step", "to step", "choices moved", "over chance", "low",
               "high")  # fmt: skip
    return Table(columns, tuple(rows))


def _notes(arms: Mapping[str, xr.Dataset]) -> tuple[str, ...]:
    tokens = {int(ds.attrs["n"]) for ds in arms.values() if "n" in ds.attrs}
    on = f" on {listed([f'{n:,}' for n in sorted(tokens)])} fixed tokens" if tokens else ""
    notes = [
        f"0: every token kept its experts{on}; 1: no more kept than by the loads alone. "
        "Bands: 95 % over text."
    ]
    uneven = any(
        len(set(np.diff(ds["checkpoint"].values))) > 1
        or ("since" in ds.coords and len(set(ds["checkpoint"].values - ds["since"].values)) > 1)
        for ds in arms.values()
    )
    if uneven:
        notes.append("Checkpoints lie unequally far apart: over a longer way more moves.")
    return tuple(notes)
