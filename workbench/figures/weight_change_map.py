"""Which parts of the model moved? Its parts by size, coloured by how far each went; and as dots.

Needs   weight_change of one checkpoint (part): change; coordinates kind, layer_of_part and, where
        there, parameters; expert_change (layer, expert) where there.
Yields  a figure: a treemap (area: parameters, colour: change as a share of the part's own size),
        and beside it the same numbers as dots, a row a kind.

Areas are read badly and colours worse: the dots are for comparing, the map for seeing what part of
the model a number is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from workbench.errors import SchemaError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.template import INK, MAGNITUDE, MUTED
from workbench.figures.wording import count, label, many, number, plain

MOST_EXPERTS = 512
"""Experts with a cell of their own; beyond that a layer's experts are one cell."""
OUTSIDE = "outside the blocks"

_ROW_PX, _LEAST_PX = 46, 330


@dataclass(frozen=True)
class Cell:
    """One cell of the map."""

    id: str
    parent: str
    text: str
    about: str
    """What it is, in full."""
    size: float
    """Parameters; NaN where they were not counted."""
    change: float


def weight_changes(
    moved: xr.Dataset, *, checkpoint: int | None = None,
    code: str = "workbench.figures.weight_changes(found)",
) -> go.Figure:  # fmt: skip
    """Treemap and dot plot of how far each part moved.

    Args:
        moved: what the probe "weight-change" found, over checkpoints or of one.
        checkpoint: which step, of several; None takes the last.
        code: Python that makes the figure, for the caption.

    Raises:
        SchemaError: change (part), kind or layer_of_part is missing.

    Example:
        >>> moved = xr.Dataset(
        ...     {"change": ("part", [0.2, 0.1, 0.3])},
        ...     coords={"part": ["model", "router", "experts"], "kind": ("part", ["model", "router",
        ...             "experts"]), "layer_of_part": ("part", [-1, -1, -1])},
        ... )
        >>> weight_changes(moved).layout.meta["caption"]["sentence"][:60]
        'The model moved by 0.2 of its own norm. Of its kinds experts'
    """
    one = _one(moved, checkpoint)
    cells = _cells(one)
    kinds = _kinds(one)
    top = max((c.change for c in cells if np.isfinite(c.change)), default=0.0) or 1.0
    fig = Figure()
    fig.add_trace(_treemap(cells, top))
    fig.add_trace(_scale(top))
    height = max(_LEAST_PX, _ROW_PX * len(kinds) + 40)
    _draw_dots(fig, one, kinds)
    caption = Caption(
        name="weight-change",
        title=f"How far each part of the model moved{_since(one)}",
        sentence=weight_sentence(one),
        notes=_notes(one, cells),
        table=weight_table(one),
        code=code,
        provenance=provenance_of(moved),
    )
    return finish(fig, caption, height=height, top=18)


def _one(moved: xr.Dataset, checkpoint: int | None) -> xr.Dataset:
    lacking = [n for n in ("change", "kind", "layer_of_part", "part") if n not in moved.variables]
    if not lacking and "checkpoint" in moved.dims:
        if not moved.sizes["checkpoint"]:
            raise SchemaError("weight change of no checkpoint; expected one or more.")
        steps = moved["checkpoint"].values.tolist() if "checkpoint" in moved.coords else []
        if checkpoint is not None and checkpoint not in steps:
            raise SchemaError(f"no checkpoint {checkpoint}; there are {steps[:8]}.")
        moved = moved.isel(checkpoint=-1 if checkpoint is None else steps.index(checkpoint))
    if lacking or moved["change"].dims != ("part",):
        have = {str(n): tuple(v.dims) for n, v in moved.variables.items()}
        raise SchemaError(
            f"found {have or 'nothing'}; expected change (part) with kind and layer_of_part, as "
            "the probe 'weight-change' returns them."
        )
    return moved


def _rows(one: xr.Dataset) -> list[dict[str, Any]]:
    """A part each: name, kind, layer, change, parameters; without the whole model."""
    sizes = one["parameters"].values if "parameters" in one.coords else None
    return [
        {
            "name": plain(name, 64), "kind": plain(kind, 32), "layer": int(layer),
            "change": float(change), "size": float(sizes[i]) if sizes is not None else np.nan,
        }
        for i, (name, kind, layer, change) in enumerate(
            zip(
                one["part"].values, one["kind"].values, one["layer_of_part"].values,
                one["change"].values, strict=True,
            )
        )
        if str(kind) != "model"
    ]  # fmt: skip


def _kinds(one: xr.Dataset) -> list[dict[str, Any]]:
    """The kinds as wholes, the one that moved most first."""
    found = [row for row in _rows(one) if row["name"] == row["kind"]]
    return sorted(found, key=lambda row: -np.nan_to_num(row["change"], nan=-1.0))


def _leaves(one: xr.Dataset) -> list[dict[str, Any]]:
    """The finest parts: those of blocks, and kinds that are in no block."""
    rows = _rows(one)
    cut = {row["kind"] for row in rows if row["name"] != row["kind"]}
    return [row for row in rows if row["name"] != row["kind"] or row["kind"] not in cut]


def _cells(one: xr.Dataset) -> list[Cell]:
    """The whole, its blocks, their kinds, and of these the experts; a parent before its parts."""
    leaves = _leaves(one)
    known = all(np.isfinite(row["size"]) for row in leaves)
    whole = [float(v) for k, v in zip(one["kind"].values, one["change"].values, strict=True)
             if str(k) == "model"]  # fmt: skip
    places: dict[int, list[dict[str, Any]]] = {}
    for row in leaves:
        places.setdefault(row["layer"], []).append({**row, "size": row["size"] if known else 1.0})
    total = sum(row["size"] for rows in places.values() for row in rows)
    cells = [Cell("model", "", "model", "the whole model", total, whole[0] if whole else np.nan)]
    for layer, rows in sorted(places.items(), key=lambda it: (it[0] < 0, it[0])):
        block = f"layer {layer}" if layer >= 0 else OUTSIDE
        size = sum(row["size"] for row in rows)
        cells.append(Cell(block, "model", block, block, size, _together(rows)))
        for row in sorted(rows, key=lambda r: -r["size"]):
            name = f"{block}/{row['name']}"
            about = f"{row['kind']}, {block}"
            cells.append(Cell(name, block, row["kind"], about, row["size"], row["change"]))
            if row["kind"] == "experts" and layer >= 0:
                cells += _experts(one, layer, name, row["size"])
    return cells


def _together(rows: list[dict[str, Any]]) -> float:
    """A block's own change is not among the numbers; with one part it is that part's."""
    return rows[0]["change"] if len(rows) == 1 else np.nan


def _experts(one: xr.Dataset, layer: int, parent: str, size: float) -> list[Cell]:
    if "expert_change" not in one or one["expert_change"].size > MOST_EXPERTS:
        return []
    if layer not in one["layer"].values:
        return []
    changes = one["expert_change"].sel(layer=layer)
    there = np.flatnonzero(np.isfinite(changes.values))
    return [
        Cell(f"{parent}/{i}", parent, f"{changes['expert'].values[i]}",
             f"expert {changes['expert'].values[i]}, layer {layer}", size / len(there),
             float(changes.values[i]))
        for i in there
    ]  # fmt: skip


def _treemap(cells: list[Cell], top: float) -> go.Treemap:
    told = [
        [f"moved {number(c.change, 3)}" if np.isfinite(c.change) else "its parts in colour",
         f"{count(c.size)} parameters" if c.size != 1 else ""]
        for c in cells
    ]  # fmt: skip
    shares = [min(1.0, c.change / top) if np.isfinite(c.change) else np.nan for c in cells]
    scale = sample_colorscale(MAGNITUDE, [0.0 if np.isnan(s) else s for s in shares])
    # Cells that only hold others are grey: a colour there would be read as a number.
    colors = ["#ececec" if np.isnan(s) else c for s, c in zip(shares, scale, strict=True)]
    colors[0] = "#ffffff"
    return go.Treemap(
        ids=[c.id for c in cells], parents=[c.parent for c in cells],
        labels=[label(c.text, 24) for c in cells], values=[c.size for c in cells],
        branchvalues="total", sort=False, pathbar={"visible": False}, customdata=told,
        text=[label(c.about, 60) for c in cells], textinfo="label",
        hovertemplate="%{text}<br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        marker={"colors": colors, "line": {"width": 0.5, "color": "#ffffff"},
                "pad": {"t": 15, "l": 2, "r": 2, "b": 2}},
        textfont={"size": 11}, domain={"x": [0, 0.54], "y": [0, 1]},
        root={"color": "#ffffff"},
    )  # fmt: skip


def _scale(top: float) -> go.Scatter:
    """The colours of the map, in a bar under it; a treemap's own would stand over the dots."""
    bar = {
        "orientation": "h", "x": 0.27, "xanchor": "center", "y": -0.015, "yanchor": "top",
        "len": 0.52, "thickness": 8, "outlinewidth": 0, "ticklen": 2,
        "tickfont": {"size": 10, "color": MUTED},
    }  # fmt: skip
    marker = {"color": [0], "cmin": 0, "cmax": top, "colorscale": MAGNITUDE, "showscale": True,
              "colorbar": bar}  # fmt: skip
    return go.Scatter(
        x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip"
    )


def _draw_dots(fig: Figure, one: xr.Dataset, kinds: list[dict[str, Any]]) -> None:
    """A row a kind: a dot a block, light to dark with depth, and a ring for the kind as a whole."""
    parts = _leaves(one)
    layers = sorted({row["layer"] for row in parts if row["layer"] >= 0})
    shade = dict(zip(layers, _shades(len(layers)), strict=True))
    top = max((r["change"] for r in (*parts, *kinds) if np.isfinite(r["change"])), default=0) or 1
    for y, kind in enumerate(kinds):
        own = [r for r in parts if r["kind"] == kind["kind"] and np.isfinite(r["change"])]
        fig.add_trace(
            go.Scatter(
                x=[r["change"] for r in own], y=[y] * len(own), mode="markers", showlegend=False,
                marker={"size": 9, "opacity": 0.9,
                        "color": [shade.get(r["layer"], MUTED) for r in own]},
                text=[_place(r) for r in own], customdata=[_said(r) for r in own],
                hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            )
        )  # fmt: skip
        fig.add_trace(
            go.Scatter(
                x=[kind["change"]], y=[y], mode="markers", showlegend=False,
                marker={"size": 16, "symbol": "circle-open", "color": INK, "line": {"width": 1.6}},
                text=[f"all {label(kind['kind'])}"], customdata=[_said(kind)],
                hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            )
        )  # fmt: skip
    fig.update_layout(
        xaxis={
            "domain": [0.66, 1], "range": [-0.04 * top, 1.08 * top],
            "title_text": "distance moved over the part's own norm",
        },
        yaxis={
            "tickvals": list(range(len(kinds))), "ticktext": [label(k["kind"], 24) for k in kinds],
            "range": [len(kinds) - 0.4, -0.6], "showgrid": True, "ticks": "",
            "tickfont": {"color": INK},
        },
    )  # fmt: skip
    _whole(fig, one)


def _whole(fig: Figure, one: xr.Dataset) -> None:
    """A line where the whole model stands."""
    whole = _whole_change(one)
    if not np.isfinite(whole):
        return
    fig.add_shape(
        type="line", xref="x", yref="y domain", x0=whole, x1=whole, y0=0, y1=1, layer="below",
        line={"color": MUTED, "width": 1, "dash": "dot"},
    )  # fmt: skip
    fig.add_annotation(
        xref="x", yref="y domain", x=whole, y=1, text="whole model", showarrow=False,
        yanchor="bottom", font={"size": 10, "color": MUTED},
    )  # fmt: skip


def _whole_change(one: xr.Dataset) -> float:
    at = [i for i, kind in enumerate(one["kind"].values) if str(kind) == "model"]
    return float(one["change"].values[at[0]]) if at else float("nan")


def _shades(n: int) -> list[str]:
    places = [0.8 * (1 - i / max(1, n - 1)) for i in range(n)]
    return list(sample_colorscale(MAGNITUDE, places)) if n else []


def _place(row: Mapping[str, Any]) -> str:
    where = f"layer {row['layer']}" if row["layer"] >= 0 else OUTSIDE
    return f"{label(row['kind'])}, {where}"


def _said(row: Mapping[str, Any]) -> str:
    size = f"<br>{count(row['size'])} parameters" if np.isfinite(row["size"]) else ""
    return f"moved {number(row['change'], 3)} of its own norm{size}"


def _since(one: xr.Dataset) -> str:
    if "checkpoint" not in one.coords:
        return ""
    to = int(one["checkpoint"])
    if "against" not in one.coords:
        return f", step {to:,}"
    return f" from step {int(one['against']):,} to {to:,}"


def weight_sentence(one: xr.Dataset) -> str:
    """How far the whole went, which kind most and least, and which part of a block."""
    whole = _whole_change(one)
    when = _since(one).lstrip(", ")
    said = f"{when[:1].upper()}{when[1:]} the model" if when.startswith("from") else "The model"
    told = [f"{said} moved by {number(whole, 3)} of its own norm."] if np.isfinite(whole) else []
    kinds = [k for k in _kinds(one) if np.isfinite(k["change"])]
    if len(kinds) > 1:
        first, last = kinds[0], kinds[-1]
        told.append(
            f"Of its kinds {first['kind']} moved most, by {number(first['change'], 3)}, and "
            f"{last['kind']} least, by {number(last['change'], 3)}."
        )
    parts = [r for r in _leaves(one) if r["layer"] >= 0 and np.isfinite(r["change"])]
    if len(parts) > 1:
        most = max(parts, key=lambda r: r["change"])
        told.append(
            f"Of {many(len(parts), 'part')} of blocks it is the {most['kind']} of layer "
            f"{most['layer']} that moved most, by {number(most['change'], 3)}."
        )
    return " ".join(told) or "No part has a size to which its change could be compared."


def _notes(one: xr.Dataset, cells: list[Cell]) -> tuple[str, ...]:
    area = "parameters" if "parameters" in one.coords else "the same for all: they were not counted"
    notes = [
        f"Left, area: {area}; colour: change. Right: a ring is a kind as a whole, a dot its part "
        "of one block, light to dark with depth.",
        "Exact: it follows from the weights; 1.41 is about what weights drawn anew would show.",
    ]
    if any(c.id.count("/") == 2 for c in cells):
        notes.append("The experts of a layer share its area evenly.")
    blank = sum(not np.isfinite(r["change"]) for r in _leaves(one))
    if blank:
        notes.append(f"Grey: {many(blank, 'part')} that had no size before.")
    return tuple(notes)


def weight_table(one: xr.Dataset) -> Table:
    """A row a part: kind, layer, change, parameters; then a row an expert."""
    rows: list[tuple[Any, ...]] = []
    whole = _whole_change(one)
    rows.append(("model", None, None, whole if np.isfinite(whole) else None, None))
    for row in _rows(one):
        layer = row["layer"] if row["layer"] >= 0 else None
        size = int(row["size"]) if np.isfinite(row["size"]) else None
        change = row["change"] if np.isfinite(row["change"]) else None
        rows.append((row["name"], row["kind"], layer, change, size))
    if "expert_change" in one:
        changes = one["expert_change"].transpose("layer", "expert")
        for layer, line in zip(changes["layer"].values, changes.values, strict=True):
            for expert, value in zip(changes["expert"].values, line, strict=True):
                if np.isfinite(value):
                    rows.append((f"expert {expert}", "experts", int(layer), float(value), None))
    return Table(("part", "kind", "layer", "change (share of its norm)", "parameters"), tuple(rows))
