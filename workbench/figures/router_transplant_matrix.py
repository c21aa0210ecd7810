"""Is it the routing that was learned, or what is routed to? Routers of checkpoints in bodies of
others.

Needs   router_transplant ([task,] router_from, body_from): accuracy, logprob or loss, and of it
        <measure>_change with bounds; attrs n, n_meaning.
Yields  a figure: a cell for every router in every body, its value in the cell; a frame where the
        change against the body's own router has an interval that leaves out 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.tasks import one_task
from workbench.figures.template import INK, MAGNITUDE
from workbench.figures.wording import label, number, plain, signed

Measure = Literal["accuracy", "logprob", "loss"]
MEASURES = {
    "accuracy": ("accuracy", "", 1),
    "logprob": ("log-probability of the right answer", "nats", 1),
    "loss": ("loss", "nats/token", -1),
}
"""Name in words, unit, and whether more is better."""
GRID = ("router_from", "body_from")
_CELL_PX = 46


def router_grid(
    grid: xr.Dataset, task: str | None = None, *, measure: Measure | None = None,
    code: str = "workbench.figures.router_grid(probes.router_transplant(run))",
) -> go.Figure:  # fmt: skip
    """Heat map of a measure with the routers of each checkpoint in the body of each.

    Args:
        grid: what the probe "router-transplant" found.
        task: which, of several; None takes the one at which the ends differ most.
        measure: None takes accuracy, where there are tasks; else the loss.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: no such measure over (router_from, body_from), or no such task.

    Example:
        >>> grid = xr.Dataset(
        ...     {"accuracy": (("router_from", "body_from"), [[0.1, 0.2], [0.6, 0.9]])},
        ...     coords={"router_from": [0, 80], "body_from": [0, 80]},
        ... )
        >>> router_grid(grid).layout.meta["caption"]["sentence"][-62:]
        '; the early router in the late body 0.2, 12 % of the gap kept.'
    """
    measure = measure or ("accuracy" if "accuracy" in grid else "loss")
    one = _one(grid, task, measure)
    fig = Figure(_heat(one, measure))
    size = one.sizes["body_from"]
    _frames(fig, one, measure)
    _axes(fig, one)
    caption = Caption(
        name="router-transplant",
        title=f"Routers in other bodies: {_what(one, measure)}",
        sentence=grid_sentence(one, measure),
        notes=_notes(one, measure),
        table=grid_table(one, measure),
        code=code,
        provenance=provenance_of(grid),
    )
    return finish(fig, caption, height=max(220, _CELL_PX * size), top=14)


def _one(grid: xr.Dataset, task: str | None, measure: str) -> xr.Dataset:
    if measure not in MEASURES or measure not in grid or not set(GRID) <= set(grid[measure].dims):
        have = {str(n): tuple(v.dims) for n, v in grid.data_vars.items()}
        raise SchemaError(
            f"no {plain(measure)!r} over (router_from, body_from) in {have or 'an empty dataset'}; "
            "expected accuracy, logprob or loss, as probes.router_transplant returns them."
        )
    names = [measure + end for end in ("", "_change", "_change_low", "_change_high")]
    kept = grid[[n for n in names if n in grid]]
    if "task" in kept[measure].dims:
        spread = kept[measure].max(GRID) - kept[measure].min(GRID)
        kept = one_task(kept, task, spread)
    if kept[measure].ndim != 2 or min(kept.sizes[d] for d in GRID) < 1:
        raise SchemaError(
            f"{measure} has dims {kept[measure].dims}; expected (router_from, body_from)."
        )
    return kept.transpose(*GRID)


def _names(one: xr.Dataset, dim: str) -> list[str]:
    """A checkpoint each: its step, and its branch where they are not all of one."""
    branch = f"{dim.removesuffix('_from')}_branch"
    steps = one[dim].values if dim in one.coords else range(one.sizes[dim])
    names = [f"step {int(step):,}" for step in steps]
    # A comma and a space stand between step and branch alone.
    if branch in one.coords and len(set(map(str, one[branch].values))) > 1:
        return [
            f"{n}, {plain(b, 16).replace(', ', ' ')}"
            for n, b in zip(names, one[branch].values, strict=True)
        ]
    return names


def _heat(one: xr.Dataset, measure: Measure) -> go.Heatmap:
    what, unit, better = MEASURES[measure]
    values = one[measure].values.astype("float64")
    routers, bodies = _names(one, "router_from"), _names(one, "body_from")
    n = f"<br>{label(said)}" if (said := _n(one, measure)) else ""
    told = [
        [
            f"router of {label(routers[i], 48)}<br>body of {label(bodies[j], 48)}<br>"
            f"{what} {number(values[i, j], 3)} {unit}{_change(one, measure, i, j)}{n}"
            for j in range(len(bodies))
        ]
        for i in range(len(routers))
    ]
    return go.Heatmap(
        z=values, x=np.arange(len(bodies)), y=np.arange(len(routers)), customdata=told,
        text=[[number(v, 3) if np.isfinite(v) else "" for v in row] for row in values],
        texttemplate="%{text}", textfont={"size": 11 if len(bodies) <= 8 else 9},
        hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
        colorscale=MAGNITUDE if better > 0 else f"{MAGNITUDE}_r", xgap=2, ygap=2,
        colorbar={"title": {"text": unit or what}, "thickness": 12, "outlinewidth": 0},
    )  # fmt: skip


def _bounds(one: xr.Dataset, measure: str, i: int, j: int) -> tuple[float, float, float]:
    """Change against the body's own router, low and high; NaN where they are not known."""
    ends = ("_change", "_change_low", "_change_high")
    found = [float(one[measure + e].values[i, j]) if measure + e in one else np.nan for e in ends]
    return found[0], found[1], found[2]


def _change(one: xr.Dataset, measure: str, i: int, j: int) -> str:
    value, low, high = _bounds(one, measure, i, j)
    if not np.isfinite(value) or i == j:
        return "<br>its own router" if i == j else ""
    band = f" [{signed(low)}, {signed(high)}]" if np.isfinite(low) else ""
    return f"<br>{signed(value)}{band} against the body's own router"


def _n(one: xr.Dataset, measure: str) -> str:
    """What the number rests on, in words; empty where the data does not say."""
    rows = measure == "loss" and "rows" in one.attrs
    n = one.attrs.get("rows" if rows else "n")
    what = "rows of text" if rows else plain(one.attrs.get("n_meaning", ""), 40)
    return f"n = {int(n):,} {what}".rstrip() if n else ""


def _frames(fig: Figure, one: xr.Dataset, measure: str) -> None:
    """A frame around each cell that differs from the body's own router."""
    for i in range(one.sizes["router_from"]):
        for j in range(one.sizes["body_from"]):
            _, low, high = _bounds(one, measure, i, j)
            if low > 0 or high < 0:
                fig.add_shape(
                    type="rect", x0=j - 0.46, x1=j + 0.46, y0=i - 0.46, y1=i + 0.46,
                    line={"color": INK, "width": 2},
                )  # fmt: skip


def _axes(fig: Figure, one: xr.Dataset) -> None:
    bodies, routers = _names(one, "body_from"), _names(one, "router_from")
    fig.update_xaxes(
        title_text="body of", tickvals=np.arange(len(bodies)), showgrid=False, ticks="",
        # The branch under its step: side by side they would run into their neighbours.
        ticktext=["<br>".join(label(part, 16) for part in n.split(", ")) for n in bodies],
        tickangle=0, tickfont={"size": 11 if len(bodies) <= 10 else 8},
    )  # fmt: skip
    fig.update_yaxes(
        title_text="router of", tickvals=np.arange(len(routers)), showgrid=False, ticks="",
        ticktext=[label(n, 34) for n in routers],
    )  # fmt: skip


def _what(one: xr.Dataset, measure: str) -> str:
    task = one.attrs.get("task")
    what = MEASURES[measure][0]
    return f"{what} on {plain(task)}" if task and measure != "loss" else what


def grid_sentence(one: xr.Dataset, measure: Measure) -> str:
    """What the late router gives the early body, and the early router leaves of the late one."""
    _, unit, better = MEASURES[measure]
    values = one[measure].values.astype("float64")
    last = len(values) - 1
    if last < 1 or values.shape[0] != values.shape[1]:
        return "One checkpoint alone: there is no other body for its router."
    routers = _names(one, "router_from")
    early, late = values[0, 0], values[last, last]
    gap = late - early
    head = (
        f"From {routers[0]} to {routers[last]} the {_what(one, measure)} goes from "
        f"{number(early, 3)} to {number(late, 3)}{' ' + unit if unit else ''}"
    )
    if not np.isfinite(gap):
        return f"{head}: without both ends there is no gap to recover."
    forth = _says(one, measure, last, 0)
    back = _says(one, measure, 0, last)
    share = ""
    # A share of next to nothing would be a large number about noise.
    if abs(gap) > 0.02 and better * gap > 0:
        share = f", {_share(values[last, 0] - early, gap)} of the gap"
        kept = f", {_share(values[0, last] - early, gap)} of the gap kept"
    else:
        kept = ""
        share = ": there is no gain to be recovered" if better * gap <= 0 else ""
    return (
        f"{head}. The late router in the early body gives {number(values[last, 0], 3)}{forth}"
        f"{share}; the early router in the late body {number(values[0, last], 3)}{back}{kept}."
    )


def _share(part: float, gap: float) -> str:
    return f"{100 * part / gap:.0f} %".replace("-", "−")


def _says(one: xr.Dataset, measure: str, i: int, j: int) -> str:
    """The change of one cell with its interval, and whether that leaves out 0."""
    value, low, high = _bounds(one, measure, i, j)
    if not np.isfinite(low):
        return ""
    clear = "" if low > 0 or high < 0 else "; includes 0"
    return f" ({signed(value)} [{signed(low)}, {signed(high)}]{clear})"


def _notes(one: xr.Dataset, measure: str) -> tuple[str, ...]:
    notes = ["Down a column the body stays and its router changes; on the diagonal it is its own."]
    cells = one.sizes["router_from"] * one.sizes["body_from"]
    if f"{measure}_change_low" in one:
        notes.append(
            "Framed: the 95 % interval of the change against the body's own router leaves out 0; "
            f"of {cells - one.sizes['body_from']} such intervals about one in twenty would by "
            "chance."
        )
    if n := _n(one, measure):
        notes.append(f"{n}.")
    return tuple(notes)


def grid_table(one: xr.Dataset, measure: Measure) -> Table:
    """A row a cell: router, body, value, change against the body's own router with bounds."""
    what, unit, _ = MEASURES[measure]
    unit = f" ({unit})" if unit else ""
    rows: list[tuple[Any, ...]] = []
    values = one[measure].values.astype("float64")
    for i, router in enumerate(_names(one, "router_from")):
        for j, body in enumerate(_names(one, "body_from")):
            cells = (values[i, j], *_bounds(one, measure, i, j))
            rows.append((router, body, *(float(c) if np.isfinite(c) else None for c in cells)))
    return Table(
        ("router of", "body of", f"{what}{unit}", f"change{unit}", "low", "high"), tuple(rows)
    )
