"""Which experts take which domains? Every domain against the load of each expert, layer by layer.

Needs   share (layer, domain, expert), load (layer, expert); information with bounds and p where
        known; of a moment or along training.
Yields  a figure: one panel a layer; experts across, domains down; the colour is log2 of
        share / load: 1 is an expert that takes as much of the domain as of all text.

Shares of the training stream are exact. Those of fixed tokens have intervals, and a cell whose
interval holds the load is pale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import finish
from workbench.figures.layer_grid import Grid
from workbench.figures.moment import Moment, labelled, moment, one_layer, require
from workbench.figures.ratio_map import color_axis, leaves_out_one, ratio_heat, reach_of
from workbench.figures.tasks import by_family
from workbench.figures.wording import label, listed, many, number, plain

MOST_CELLS = 40_000
"""Cells that a page draws without effort; beyond them the domains nearest to the load are left."""

MOST_DOMAINS = 40
_ROW_PX = 17
_LETTERS = 22


@dataclass(frozen=True, eq=False)
class Lifts:
    """Shares of every domain over the expert's load, (layer, domain, expert)."""

    layers: np.ndarray
    domains: list[str]
    experts: np.ndarray
    share: np.ndarray
    load: np.ndarray
    """(layer, expert)."""
    low: np.ndarray | None
    """Bounds of `share`, where known."""
    high: np.ndarray | None

    @property
    def ratio(self) -> np.ndarray:
        """1 where the expert takes as much of the domain as of all text; NaN where it is dead."""
        return self.share / self._below

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Bounds of `ratio`, the load taken as exact."""
        if self.low is None or self.high is None:
            return None
        return self.low / self._below, self.high / self._below

    @property
    def _below(self) -> np.ndarray:
        return np.where(self.load > 0, self.load, np.nan)[:, None, :]

    def of(self, places: list[int]) -> Lifts:
        """The domains at those places, in that order."""
        low, high = (None if b is None else b[:, places] for b in (self.low, self.high))
        names = [self.domains[i] for i in places]
        return Lifts(self.layers, names, self.experts, self.share[:, places], self.load, low, high)


def domains(
    domains: xr.Dataset, *, layer: int | None = None, at: int | None = None,
    code: str = "workbench.figures.domains(probes.domains(run))",
) -> go.Figure:  # fmt: skip
    """How much more of a domain than of all text each expert takes.

    Args:
        domains: `probes.domains` (step, ...) or `probes.domains_fixed` (checkpoint, ...): share
            (layer, domain, expert), load (layer, expert); share_low, share_high, information,
            information_low, information_high and p where there are any.
        layer: one alone; None draws all.
        at: step of the window or checkpoint; None is the last.
        code: the Python that made the data, for "copy as code".

    Returns:
        Figure. Of very many domains those furthest from the load are drawn, and the caption says
        so.

    Raises:
        SchemaError: share or load are missing or have other dims.
        UsageError: no such layer or step, or nothing to draw.

    Example:
        >>> share = xr.DataArray([[[0.8, 0.2], [0.2, 0.8]]], dims=("layer", "domain", "expert"))
        >>> found = xr.Dataset({"share": share, "load": share.mean("domain")})
        >>> found = found.assign_coords(domain=["code", "prose"])
        >>> domains(found).layout.meta["caption"]["sentence"][-57:]
        ' times its share of all text (no interval: exact counts).'
    """
    dims = {"layer", "domain", "expert"}
    require(domains, "share", dims, "probes.domains(run)")
    require(domains, "load", {"layer", "expert"}, "probes.domains(run)")
    now = moment(labelled(domains, *sorted(dims)), at)
    ds = now.values
    if layer is not None:
        ds = one_layer(ds, layer, 0).expand_dims("layer", axis=0)
    whole = _lifts(ds)
    shown = _shown(whole)
    fig, grid = _draw(shown, now)
    caption = Caption(
        name="domain-experts",
        title="Domains and experts: share of a domain over the expert's share of all text",
        sentence=domain_sentence(whole, ds, now),
        notes=_notes(whole, shown),
        table=domain_table(whole),
        code=code,
        provenance=provenance_of(domains),
    )
    return finish(fig, caption, height=grid.height, top=24)


def _lifts(ds: xr.Dataset) -> Lifts:
    dims = ("layer", "domain", "expert")
    share = ds["share"].transpose(*dims).values.astype(np.float64)
    if not np.isfinite(share).any():
        raise UsageError(
            f"shares of {dict(ds['share'].sizes)} hold no number; widen what they were taken over."
        )
    if float(np.nanmax(share)) > 1 + 1e-6:
        raise SchemaError(
            f"share runs to {np.nanmax(share):.4g}; a share of a domain's tokens is 1 at most."
        )
    low, high = (
        ds[f"share_{end}"].transpose(*dims).values.astype(np.float64)
        if f"share_{end}" in ds and bool(ds[f"share_{end}"].notnull().any())
        else None
        for end in ("low", "high")
    )
    load = ds["load"].transpose("layer", "expert").values.astype(np.float64)
    names = [str(d) for d in ds["domain"].values]
    whole = Lifts(ds["layer"].values, names, ds["expert"].values, share, load, low, high)
    # Families together, by place: two domains may bear one name.
    order = [i for group in by_family_places(names) for i in group]
    return whole.of(order)


def by_family_places(names: list[str]) -> list[list[int]]:
    """Places of `names` by family, in the order of every other figure.

    Example:
        >>> by_family_places(["code/add", "prose", "knowledge/x", "code/mul"])
        [[2], [0, 3], [1]]
    """
    families = by_family(names)
    return [
        [i for i, name in enumerate(names) if name in set(members)] for members in families.values()
    ]


def _shown(whole: Lifts) -> Lifts:
    """As many domains as a page bears: those whose ratios lie furthest from 1."""
    cells = max(1, len(whole.layers) * len(whole.experts))
    most = max(4, min(MOST_DOMAINS, MOST_CELLS // cells))
    if len(whole.domains) <= most:
        return whole
    apart = np.abs(np.log2(np.maximum(whole.ratio, 2.0**-6)))
    weight = np.nanmean(np.where(np.isfinite(apart), apart, 0.0), axis=(0, 2))
    keep = sorted(np.argsort(-weight, kind="stable")[:most].tolist())
    return whole.of(keep)


def _columns(shown: Lifts) -> int:
    layers, wide = len(shown.layers), len(shown.experts)
    most = 2 if layers == 4 or (wide > 32 and layers <= 9) else 3
    return min(layers, most)


def _row_px(shown: Lifts) -> int:
    """Many layers get flatter rows, so that they can still be seen at once."""
    return _ROW_PX if len(shown.layers) <= 9 else 11


def _draw(shown: Lifts, now: Moment) -> tuple[go.Figure, Grid]:
    columns = _columns(shown)
    grid = Grid(
        panels=len(shown.layers), columns=columns, between=0.05, gap_px=46,
        panel_px=max(70, _row_px(shown) * len(shown.domains)),
    )  # fmt: skip
    fig = grid.figure([f"layer {int(n)}" for n in shown.layers])
    names = [label(name, _LETTERS) for name in shown.domains]
    text = np.repeat(
        np.array([label(name) for name in shown.domains], dtype=object)[:, None],
        len(shown.experts), axis=1,
    )  # fmt: skip
    ratio, bounds = shown.ratio, shown.bounds
    for i, layer in enumerate(shown.layers):
        experts = np.broadcast_to(shown.experts.astype(np.float64), ratio[i].shape)
        load = np.broadcast_to(shown.load[i], ratio[i].shape)
        told = [experts, ratio[i], shown.share[i], load]
        hover = f"layer {int(layer)}, expert %{{customdata[0]:d}}<br>%{{text}}"
        hover += f"<br>{now.clause}" if now.clause else ""
        hover += "<br>%{customdata[1]:.2f} × its share of all text"
        sure = None
        if bounds is not None:
            sure = leaves_out_one(bounds[0][i], bounds[1][i])
            told += [bounds[0][i], bounds[1][i]]
            hover += " [%{customdata[4]:.2f}, %{customdata[5]:.2f}] (95 %)"
        hover += "<br>takes %{customdata[2]:.1%} of its tokens, %{customdata[3]:.1%} of all"
        custom = np.stack(told, axis=-1).astype("float32")
        traces = ratio_heat(ratio[i], hover, sure=sure, customdata=custom, text=text)
        row, col = grid.place(i)
        fig.add_traces(traces, rows=[row] * len(traces), cols=[col] * len(traces))
    _dress(fig, grid, shown, names)
    fig.update_layout(coloraxis=color_axis("share ÷<br>load", reach_of(ratio), height=grid.height))
    return fig, grid


def _dress(fig: go.Figure, grid: Grid, shown: Lifts, names: list[str]) -> None:
    every = max(1, round(len(shown.experts) / (24 / grid.columns)))
    experts = range(0, len(shown.experts), every)
    rows = list(range(len(names)))
    ticks = {"tickvals": rows, "range": [len(names) - 0.5, -0.5], "showgrid": False}
    fig.update_yaxes(**ticks, showticklabels=False, ticks="")
    fig.update_xaxes(
        tickvals=list(experts), ticktext=[f"{int(shown.experts[e])}" for e in experts],
        range=[-0.5, len(shown.experts) - 0.5], showgrid=False,
    )  # fmt: skip
    sized = {"tickfont": {"size": 11 if _row_px(shown) == _ROW_PX else 9}}
    grid.axis_titles(
        fig, {"title_text": "expert"}, {"ticktext": names, "showticklabels": True, **sized}
    )


def domain_sentence(lifts: Lifts, ds: xr.Dataset, now: Moment) -> str:
    """What the domain says of the expert in bits, and the pair that stands out most."""
    size = (
        f"{many(len(lifts.domains), 'domain')}, {many(len(lifts.layers), 'layer')} of "
        f"{many(len(lifts.experts), 'expert')}{f', {now.clause}' if now.clause else ''}."
    )
    return " ".join(part for part in (size, _informed(ds), _most(lifts)) if part)


def _informed(ds: xr.Dataset) -> str:
    """In how many layers domain and expert are linked, and where most."""
    if "information_low" not in ds or not bool(ds["information_low"].notnull().any()):
        return ""
    low = ds["information_low"].values
    known = np.isfinite(low)
    linked = int((low > 0).sum())
    if not linked:
        return (
            "In no layer does a token's domain tell its expert: every interval of the information "
            "holds 0."
        )
    top = int(np.nanargmax(np.where(known, ds["information"].values, np.nan)))
    best = ds.isel(layer=top)
    told = [number(float(best[n])) for n in ("information", "information_low", "information_high")]
    head = f"In {linked} of {many(int(known.sum()), 'layer')}" if known.sum() > 1 else "Here"
    most = f", most in layer {int(best['layer'])}:" if known.sum() > 1 else ":"
    return (
        f"{head} a token's domain tells something of its expert{most} {told[0]} bits "
        f"[{told[1]}, {told[2]}]."
    )


def _most(lifts: Lifts) -> str:
    """The expert and domain that surely go together most."""
    ratio, bounds = lifts.ratio, lifts.bounds
    by = ratio if bounds is None else bounds[0]
    if not np.isfinite(by).any():
        return ""
    layer, domain, expert = np.unravel_index(int(np.nanargmax(by)), by.shape)
    if by[layer, domain, expert] <= 1:
        return "No expert surely takes more of a domain than of all text."
    told = f"{number(ratio[layer, domain, expert])} times its share of all text"
    if bounds is None:
        told += " (no interval: exact counts)"
    else:
        ends = [number(b[layer, domain, expert]) for b in bounds]
        told += f" [{ends[0]}, {ends[1]}]"
    return (
        f"The strongest is {plain(lifts.domains[domain], 40)} in expert "
        f"{int(lifts.experts[expert])} of layer {int(lifts.layers[layer])}, which takes {told}."
    )


def domain_table(lifts: Lifts) -> Table:
    """A row a layer and domain: the expert that takes most of it over its load, and its numbers."""
    ratio, bounds = lifts.ratio, lifts.bounds
    rows: list[tuple[Any, ...]] = []
    for i, layer in enumerate(lifts.layers):
        for j, name in enumerate(lifts.domains):
            if not np.isfinite(ratio[i, j]).any():
                rows.append((int(layer), plain(name, 200), None, None, None, None, None))
                continue
            e = int(np.nanargmax(ratio[i, j]))
            ends = (None, None) if bounds is None else tuple(float(b[i, j, e]) for b in bounds)
            rows.append(
                (int(layer), plain(name, 200), int(lifts.experts[e]), float(ratio[i, j, e]), *ends,
                 float(lifts.share[i, j, e]))
            )  # fmt: skip
    columns = ("layer", "domain", "strongest expert", "share ÷ load", "low", "high", "share")
    return Table(columns, tuple(rows))


def _notes(whole: Lifts, shown: Lifts) -> tuple[str, ...]:
    notes = []
    if whole.bounds is not None:
        notes.append(
            "Pale: the 95 % interval of the share holds the load. The load is taken as exact; of "
            "many cells one in twenty stands out by accident."
        )
    dead = int((whole.load == 0).sum())
    if dead:
        notes.append(f"Blank: {many(dead, 'expert')} without a token.")
    silent = [
        name for i, name in enumerate(whole.domains) if not np.isfinite(whole.share[:, i]).any()
    ]
    if silent:
        notes.append(f"No token here of {listed(silent, longest=30)}.")
    if len(shown.domains) < len(whole.domains):
        notes.append(
            f"Drawn are the {len(shown.domains)} of {len(whole.domains):,} domains that lie "
            "furthest from the load; the table has all."
        )
    return tuple(notes)
