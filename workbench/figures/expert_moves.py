"""Which experts lost tokens to which? What moved between two checkpoints, without what stayed.

Needs   `probes.rerouting`: moved (layer, expert, expert2), load (layer, expert), kept (layer);
        since; of one moment or with `checkpoint` first.
Yields  a figure: a panel a layer; the expert that had the choice down, the one that has it now
        across; the diagonal, what stayed, is taken out and told in the panel's title.

Between two checkpoints of one layer an expert's number means the same expert. The numbers are exact
on these tokens; whether the routing moved by more than chance is said by the churn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.layer_grid import Grid
from workbench.figures.moment import labelled, moment, one_layer, require
from workbench.figures.template import MAGNITUDE, MUTED
from workbench.figures.wording import count, many, number

MOST_CELLS = 40_000
"""Cells that a page draws without effort; beyond them the layers that moved least are left out."""

_PAGE_PX = 1060


@dataclass(frozen=True, eq=False)
class Moves:
    """One layer between two checkpoints."""

    layer: int
    experts: np.ndarray
    share: np.ndarray
    """(expert, expert): share of the choices of one that the other has now; NaN: it had none, and
    on the diagonal."""
    load: np.ndarray
    """(expert,): share of the layer's choices before."""
    kept: float
    """Share of all choices that stayed."""

    @property
    def flow(self) -> np.ndarray:
        """(expert, expert): share of the layer's choices on each way; 0 on the diagonal."""
        return self.load[:, None] * np.nan_to_num(self.share)

    @property
    def most(self) -> tuple[int, int] | None:
        """Places of the way that carries most choices; None where nothing moved."""
        flow = self.flow
        if not flow.any():
            return None
        a, b = np.unravel_index(int(flow.argmax()), flow.shape)
        return int(a), int(b)


def rerouting(
    rerouting: xr.Dataset, *, layer: int | None = None, at: int | None = None,
    code: str = "workbench.figures.rerouting(probes.rerouting(run))",
) -> go.Figure:  # fmt: skip
    """What moved from expert to expert between two checkpoints, layer by layer.

    Args:
        rerouting: `probes.rerouting`, of one moment or with `checkpoint` first.
        layer: one alone; None draws all.
        at: step of the later checkpoint; None is the last.
        code: the Python that made the data, for "copy as code".

    Raises:
        SchemaError: moved, load or kept are missing or have other dims.
        UsageError: no such layer or step, or nothing known.

    Example:
        >>> dims = ("layer", "expert", "expert2")
        >>> found = xr.Dataset(
        ...     {"moved": (dims, [[[0.5, 0.5], [0.0, 1.0]]]), "kept": ("layer", [0.75]),
        ...      "load": (("layer", "expert"), [[0.5, 0.5]])}
        ... )
        >>> rerouting(found).layout.meta["caption"]["sentence"][:40]
        'In layer 0 75 % of the choices stayed. M'
    """
    dims = {"layer", "expert", "expert2"}
    require(rerouting, "moved", dims, "probes.rerouting(run)")
    require(rerouting, "load", {"layer", "expert"}, "probes.rerouting(run)")
    require(rerouting, "kept", {"layer"}, "probes.rerouting(run)")
    now = moment(labelled(rerouting, *sorted(dims)), at)
    ds = now.values
    if layer is not None:
        ds = one_layer(ds, layer, 0).expand_dims("layer", axis=0)
    found = [_moves(ds.isel(layer=i)) for i in range(ds.sizes["layer"])]
    if not any(np.isfinite(m.kept) for m in found):
        raise UsageError(
            f"the moves of {many(len(found), 'layer')} hold no number; widen what they were taken "
            "over."
        )
    shown = _shown(found)
    grid = _grid(shown)
    between = _between(ds, now.step)
    fig = _draw(grid, shown, between, rerouting)
    caption = Caption(
        name="rerouting",
        title=f"Rerouting{f' {between}' if between else ''}: what experts lost, and to whom",
        sentence=moves_sentence(found, between),
        notes=_notes(found, shown),
        table=moves_table(found),
        code=code,
        provenance=provenance_of(rerouting),
    )
    return finish(fig, caption, height=grid.height, top=24)


def _between(ds: xr.Dataset, step: int | None) -> str:
    if step is None or "since" not in ds.coords or ds["since"].ndim:
        return ""
    return f"from step {int(ds['since']):,} to {step:,}"


def _moves(ds: xr.Dataset) -> Moves:
    share = ds["moved"].transpose("expert", "expert2").values.astype(np.float64)
    if share.shape[0] != share.shape[1]:
        raise SchemaError(
            f"moved goes from {share.shape[0]} experts to {share.shape[1]}; between two "
            "checkpoints of a layer they are the same."
        )
    np.fill_diagonal(share, np.nan)
    load = np.nan_to_num(ds["load"].values.astype(np.float64))
    return Moves(int(ds["layer"]), ds["expert"].values, share, load, float(ds["kept"]))


def _shown(found: list[Moves]) -> list[Moves]:
    """As many layers as a page bears: those that moved most, by depth."""
    most = max(1, MOST_CELLS // max(1, found[0].share.size))
    if len(found) <= most:
        return found
    kept = [np.nan_to_num(m.kept, nan=1.0) for m in found]
    return [found[i] for i in sorted(np.argsort(kept, kind="stable")[:most].tolist())]


def _grid(shown: list[Moves]) -> Grid:
    columns = min(len(shown), 3)
    side = min(_PAGE_PX / columns - 30, 26 * len(shown[0].experts), 560)
    return Grid(
        panels=len(shown), columns=columns, panel_px=round(max(side, 150)), between=0.12, gap_px=54
    )


def _draw(grid: Grid, shown: list[Moves], between: str, source: xr.Dataset) -> Figure:
    titles = [
        f"layer {m.layer}: {100 * m.kept:.0f} % stayed"
        if np.isfinite(m.kept) else f"layer {m.layer}: not known"
        for m in shown
    ]  # fmt: skip
    fig = grid.figure(titles)
    tokens = f"<br>n = {count(float(source.attrs['n']))} tokens" if "n" in source.attrs else ""
    for i, moves in enumerate(shown):
        row, col = grid.place(i)
        fig.add_trace(_heat(moves, between, tokens), row=row, col=col)
        _axes(fig, moves, row, col, alone=len(shown) == 1)
        if grid.bottom(i) == i:
            fig.update_xaxes(title_text="expert that has it now", row=row, col=col)
        if col == 1:
            fig.update_yaxes(title_text="expert that had it", row=row, col=col)
    right = 1.0
    if len(shown) == 1:
        right = min(0.9, (grid.panel_px + 70) / _PAGE_PX)
        fig.update_xaxes(domain=[0, right], constraintoward="left")
    fig.update_layout(coloraxis=_scale(shown, right))
    return fig


def _scale(shown: list[Moves], right: float) -> dict[str, Any]:
    values = np.concatenate([m.share[np.isfinite(m.share)] for m in shown])
    # One expert that gave all it had away must not turn every other panel dark.
    top = float(np.quantile(values, 0.995)) if values.size else 0.0
    beyond = values.size > 0 and float(values.max()) > top * 1.01
    return {
        "colorscale": MAGNITUDE, "cmin": 0, "cmax": top or 1.0,
        "colorbar": {
            "title": {"text": f"share of<br>its choices{'<br>(≥ at top)' if beyond else ''}<br>"
                      "&nbsp;", "font": {"size": 11}},
            "tickformat": ".1~%", "tickfont": {"size": 11, "color": MUTED}, "thickness": 12,
            "lenmode": "pixels", "len": 190, "y": 1, "yanchor": "top", "x": right + 0.01,
            "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "nticks": 5,
        },
    }  # fmt: skip


def _heat(moves: Moves, between: str, tokens: str) -> go.Heatmap:
    size = moves.share.shape
    had = np.broadcast_to(moves.experts[:, None].astype(np.float64), size)
    custom = np.stack([had, had.T, np.broadcast_to(moves.load[:, None], size)], axis=-1)
    hover = (
        f"layer {moves.layer}{f', {between}' if between else ''}"
        "<br>expert %{customdata[0]:d} → %{customdata[1]:d}: %{z:.2%} of its choices"
        f"<br>it had %{{customdata[2]:.2%}} of all{tokens}<extra></extra>"
    )
    gap = 1 if size[0] <= 40 else 0
    return go.Heatmap(
        z=moves.share.astype("float32"), customdata=custom.astype("float32"), xgap=gap, ygap=gap,
        coloraxis="coloraxis", hoverongaps=False, hovertemplate=hover,
    )  # fmt: skip


def _axes(fig: Figure, moves: Moves, row: int, col: int, *, alone: bool) -> None:
    size = len(moves.experts)
    few = size <= 16 or alone
    places = list(range(0, size, 1 if few else 8))
    ticks = {
        "tickvals": places, "ticktext": [f"{int(moves.experts[p])}" for p in places],
        "showgrid": False, "constrain": "domain",
        "tickfont": {"size": 11 if size <= 16 else 9 if size <= 32 else 8},
    }  # fmt: skip
    fig.update_xaxes(
        **ticks, range=[-0.5, size - 0.5], tickangle=-90 if few and size > 32 else 0,
        row=row, col=col,
    )  # fmt: skip
    fig.update_yaxes(**ticks, range=[size - 0.5, -0.5], row=row, col=col)


def moves_sentence(found: list[Moves], between: str) -> str:
    """How much stayed, in which layer least, and the way that carried most."""
    known = [m for m in found if np.isfinite(m.kept)]
    stayed = float(np.median([m.kept for m in known]))
    when = f"{between[:1].upper()}{between[1:]}, in" if between else "In"
    layer = "the median layer" if len(known) > 1 else f"layer {known[0].layer}"
    said = f"{when} {layer} {number(100 * stayed)} % of the choices stayed"
    least = min(known, key=lambda m: m.kept)
    if len(known) > 1 and least.kept < stayed:
        said += f", fewest in layer {least.layer}, {number(100 * least.kept)} %"
    moved = [m for m in known if m.most is not None]
    if not moved:
        return f"{said}. Nothing moved on these tokens."
    best = max(moved, key=lambda m: float(m.flow.max()))
    a, b = best.most or (0, 0)
    return (
        f"{said}. Most moved from expert {int(best.experts[a])} to expert {int(best.experts[b])} "
        f"of layer {best.layer}: {number(100 * best.share[a, b])} % of what it had."
    )


def moves_table(found: list[Moves]) -> Table:
    """A row a layer: what stayed, and the way that carried most."""
    rows: list[tuple[Any, ...]] = []
    for m in found:
        if m.most is None:
            rows.append((m.layer, m.kept, None, None, None, None))
            continue
        a, b = m.most
        rows.append(
            (m.layer, m.kept, int(m.experts[a]), int(m.experts[b]), float(m.share[a, b]),
             float(m.flow[a, b]))
        )  # fmt: skip
    columns = ("layer", "stayed", "most from expert", "to expert", "share of its choices",
               "share of all")  # fmt: skip
    return Table(columns, tuple(rows))


def _notes(found: list[Moves], shown: list[Moves]) -> tuple[str, ...]:
    notes = ["The diagonal, what an expert kept, is taken out. Exact on these tokens."]
    none = sum(int((m.load == 0).sum()) for m in shown)
    if none:
        notes.append(f"Blank rows: {many(none, 'expert')} that had no token.")
    if len(shown) < len(found):
        notes.append(
            f"Drawn are the {len(shown)} of {many(len(found), 'layer')} that moved most; the table "
            "has all."
        )
    return tuple(notes)
