"""Which experts go together? Every pair of one layer, against what their loads alone would give.

Needs   lift, lift_low, lift_high, chance (layer, expert, expert2), of a moment or along training.
Yields  a figure: experts across and down, ordered so that those which go together stand together;
        the colour is log2 of lift / chance.

Chance is not a lift of 1: a router that takes k different experts has fewer places left for the
second. Where the data does not know chance, 1 stands for it and the caption says so.

The order is the leaves of an average-linkage tree over the pairs' ratios, turned so that neighbours
are alike: Bar-Joseph, Gifford & Jaakkola 2001, Bioinformatics 17 (scipy's optimal_leaf_ordering).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.errors import UsageError
from workbench.figures.caption import Caption, Table, provenance_of
from workbench.figures.figure import Figure, finish
from workbench.figures.moment import Moment, labelled, moment, one_layer, require
from workbench.figures.ratio_map import color_axis, leaves_out_one, ratio_heat, reach_of
from workbench.figures.wording import count, many, number

_SIDE_PX = 560
_PAGE_PX = 1090
"""Width of the drawing on a page of ours; on another the colour bar moves a little."""

_FURTHEST = 3.0
"""Octaves beyond which a pair is not told further apart by the order."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """One layer's pairs of experts, ratio to chance."""

    layer: int
    experts: np.ndarray
    ratio: np.ndarray
    """(expert, expert): lift / chance; NaN on the diagonal and for experts never chosen."""
    low: np.ndarray
    high: np.ndarray
    chance_known: bool

    @property
    def size(self) -> int:
        return len(self.experts)

    @property
    def sure(self) -> np.ndarray:
        """Whether the pair's interval leaves chance out."""
        return leaves_out_one(self.low, self.high)

    @property
    def each(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of every pair of different experts with a ratio, each pair once."""
        first, second = np.nonzero(np.triu(np.isfinite(self.ratio), 1))
        return first, second


def coactivation(
    coactivation: xr.Dataset, *, layer: int | None = None, at: int | None = None,
    code: str = "workbench.figures.coactivation(probes.coactivation(run))",
) -> go.Figure:  # fmt: skip
    """Pairs of experts of one layer that are chosen together more, or less, than by chance.

    Args:
        coactivation: `probes.coactivation` (sample, ...) or `probes.coactivation_fixed`
            (checkpoint, ...): lift, lift_low, lift_high, chance (layer, expert, expert2).
        layer: which; None takes the one with most pairs apart from chance.
        at: step of the sample or checkpoint; None is the last.
        code: the Python that made the data, for "copy as code".

    Returns:
        Figure. A pair whose interval holds chance is pale.

    Raises:
        SchemaError: lift is missing or has other dims.
        UsageError: no such layer or step; one expert; k = 1, so that nothing goes together.

    Example:
        >>> lift = np.full((1, 3, 3), 0.5)
        >>> lift[0, 0, 1] = lift[0, 1, 0] = 2.0
        >>> dims = ("layer", "expert", "expert2")
        >>> found = xr.Dataset({n: (dims, lift) for n in ("lift", "lift_low", "lift_high")})
        >>> found["chance"] = (dims, np.full((1, 3, 3), 1.0))
        >>> coactivation(found).layout.meta["caption"]["sentence"][:53]
        'Of the 3 pairs of 3 experts in layer 0, 1 is chosen t'
    """
    require(coactivation, "lift", {"layer", "expert", "expert2"}, "probes.coactivation(run)")
    now = moment(labelled(coactivation, "layer", "expert", "expert2"), at)
    pairs = _pairs(now.values, layer)
    order = leaf_order(pairs.ratio)
    fig = _draw(pairs, order, now)
    caption = Caption(
        name="coactivation",
        title=f"Experts chosen together, layer {pairs.layer}: over what their loads would give",
        sentence=coactivation_sentence(pairs, now),
        notes=_notes(pairs, coactivation, layer),
        table=coactivation_table(pairs),
        code=code,
        provenance=provenance_of(coactivation),
    )
    return finish(fig, caption, height=_side(pairs), top=10)


def _pairs(ds: xr.Dataset, layer: int | None) -> Pairs:
    if ds.sizes["expert"] < 2:
        raise UsageError(
            f"found {many(ds.sizes['expert'], 'expert')} a layer, expected 2 or more: one expert "
            "goes together with nobody."
        )
    if not bool(ds["lift"].notnull().any()):
        raise UsageError("no pair of experts has a lift here; widen what it was taken over.")
    if ds.sizes["layer"] and float(ds["lift"].max()) == 0 and str(ds.attrs.get("k", 1)) == "1":
        raise UsageError(
            "every token takes k = 1 expert, so that no two are ever chosen together; ask "
            "probes.flow(run) which follow each other from layer to layer."
        )
    found = [_layer(ds.isel(layer=i)) for i in range(ds.sizes["layer"])]
    apart = [int((p.sure & np.isfinite(p.ratio)).sum()) for p in found]
    chosen = one_layer(ds, layer, int(np.argmax(apart)))
    return found[[p.layer for p in found].index(int(chosen["layer"]))]


def _layer(ds: xr.Dataset) -> Pairs:
    lift = ds["lift"].transpose("expert", "expert2").values.astype(np.float64)
    chance = np.ones_like(lift)
    known = "chance" in ds and bool(ds["chance"].notnull().any())
    if known:
        chance = ds["chance"].transpose("expert", "expert2").values.astype(np.float64)
    chance = np.where(chance > 0, chance, np.nan)
    low, high = (
        ds[f"lift_{end}"].transpose("expert", "expert2").values / chance
        if f"lift_{end}" in ds
        else np.full_like(lift, np.nan)
        for end in ("low", "high")
    )
    ratio = lift / chance
    np.fill_diagonal(ratio, np.nan)
    return Pairs(int(ds["layer"]), ds["expert"].values, ratio, low, high, known)


def leaf_order(ratio: np.ndarray) -> np.ndarray:
    """Places of the experts in an order in which those that go together are neighbours.

    Args:
        ratio: (expert, expert), symmetric, 1 as expected; NaN counts as 1.

    Example:
        >>> ratio = np.ones((4, 4))
        >>> ratio[0, 2] = ratio[2, 0] = ratio[1, 3] = ratio[3, 1] = 4.0
        >>> order = leaf_order(ratio).tolist()
        >>> abs(order.index(0) - order.index(2)), abs(order.index(1) - order.index(3))
        (1, 1)
    """
    # Here and not above: scipy.cluster takes a while to load, and no other figure needs it.
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(ratio) < 3:
        return np.arange(len(ratio))
    octaves = np.log2(np.maximum(np.where(np.isfinite(ratio), ratio, 1.0), 2.0**-_FURTHEST))
    near = np.clip((octaves + octaves.T) / 2, -_FURTHEST, _FURTHEST)
    distance = _FURTHEST - near
    np.fill_diagonal(distance, 0.0)
    flat = squareform(distance, checks=False)
    return np.asarray(leaves_list(optimal_leaf_ordering(linkage(flat, "average"), flat)))


def _draw(pairs: Pairs, order: np.ndarray, now: Moment) -> Figure:
    grid = np.ix_(order, order)
    ratio, low, high = (part[grid] for part in (pairs.ratio, pairs.low, pairs.high))
    names = pairs.experts[order].astype(np.float64)
    first = np.broadcast_to(names[:, None], ratio.shape)
    told = [first, first.T, ratio]
    hover = f"layer {pairs.layer}, {now.clause}<br>".replace(", <br>", "<br>")
    hover += "experts %{customdata[0]:d} and %{customdata[1]:d}<br>%{customdata[2]:.2f} × chance"
    if bool(np.isfinite(low).any()):
        told += [low, high]
        hover += " [%{customdata[3]:.2f}, %{customdata[4]:.2f}] (95 %)"
    if "n" in now.values.attrs:
        hover += f"<br>n = {count(float(now.values.attrs['n']))} tokens"
    reach = reach_of(ratio)
    sure = pairs.sure[grid] if bool(np.isfinite(low).any()) else None
    fig = Figure(ratio_heat(ratio, hover, sure=sure, customdata=np.stack(told, axis=-1)))
    ticks: dict[str, Any] = {
        "tickvals": list(range(pairs.size)), "ticktext": [f"{int(e)}" for e in names],
        "showgrid": False, "tickfont": {"size": 11 if pairs.size <= 32 else 8}, "title_text":
        "expert", "range": [-0.5, pairs.size - 0.5], "constrain": "domain",
    }  # fmt: skip
    fig.update_xaxes(**ticks, tickangle=0 if pairs.size <= 32 else -90)
    fig.update_yaxes(
        **{**ticks, "range": ticks["range"][::-1]}, scaleanchor="x", scaleratio=1,
    )  # fmt: skip
    # Beside the map, which is as wide as it is high on any page, and not at the page's far end.
    right = min(0.9, (_side(pairs) + 60) / _PAGE_PX)
    fig.update_xaxes(domain=[0, right], constraintoward="left")
    what = "chance" if pairs.chance_known else "independence"
    fig.update_layout(coloraxis=color_axis(f"lift ÷<br>{what}", reach, x=right + 0.01))
    return fig


def _side(pairs: Pairs) -> int:
    return min(_SIDE_PX, max(200, 26 * pairs.size))


def coactivation_sentence(pairs: Pairs, now: Moment) -> str:
    """How many pairs stand out, how many would by accident, and which goes together most."""
    each = pairs.each
    total = len(each[0])
    when = f" {now.clause}" if now.clause else ""
    head = (
        f"Of the {many(total, 'pair')} of {many(pairs.size, 'expert')} in layer "
        f"{pairs.layer}{when}, "
    )
    ratio, low, high = (part[each] for part in (pairs.ratio, pairs.low, pairs.high))
    what = "chance" if pairs.chance_known else "independent experts would be"
    if not bool(np.isfinite(low).any()):
        top = _named(pairs, each, int(np.nanargmax(ratio)), bounds=False)
        return f"{head}no interval is known; most often over {what} come {top}."
    more, less = int((low > 1).sum()), int((high < 1).sum())
    verb = "is" if more == 1 else "are"
    said = (
        f"{head}{more:,} {verb} chosen together more often than {what} and {less:,} less often, "
        f"by their 95 % intervals; about {number(0.05 * total)} would seem so by accident."
    )
    if not more:
        return said
    # The pair that is surely high, not the one that a few tokens threw highest.
    best = int(np.nanargmax(low))
    return f"{said} Most surely together: {_named(pairs, each, best, bounds=True)}."


def _named(pairs: Pairs, each: tuple[np.ndarray, np.ndarray], i: int, *, bounds: bool) -> str:
    a, b = each[0][i], each[1][i]
    told = f"{number(pairs.ratio[a, b])} times"
    if bounds:
        told += f" [{number(pairs.low[a, b])}, {number(pairs.high[a, b])}]"
    return f"experts {int(pairs.experts[a])} and {int(pairs.experts[b])}, {told}"


def coactivation_table(pairs: Pairs, most: int = 40) -> Table:
    """The pairs furthest from chance, first by the bound nearer to it."""
    first, second = pairs.each
    rows: list[tuple[Any, ...]] = []
    for a, b in zip(first, second, strict=True):
        bounds = (float(pairs.low[a, b]), float(pairs.high[a, b]))
        rows.append(
            (int(pairs.experts[a]), int(pairs.experts[b]), float(pairs.ratio[a, b]), *bounds)
        )
    rows.sort(key=lambda row: -_surely_apart(row[3], row[4], row[2]))
    return Table(("expert", "expert 2", "lift ÷ chance", "low", "high"), tuple(rows[:most]))


def _surely_apart(low: float, high: float, ratio: float) -> float:
    """Octaves between 1 and the nearer bound; without bounds, the ratio's own."""
    if not np.isfinite(low):
        return abs(float(np.log2(max(ratio, 2.0**-16)))) - 100
    if low > 1:
        return float(np.log2(low))
    return -float(np.log2(max(high, 2.0**-16))) if high < 1 else -1.0


def _notes(pairs: Pairs, source: xr.Dataset, layer: int | None) -> tuple[str, ...]:
    notes = []
    if pairs.chance_known:
        notes.append("Chance: what these loads and the number chosen a token would give.")
    else:
        notes.append(
            "Chance is not known here (k is not recorded): 1 is independence, which a router that "
            "takes different experts cannot reach."
        )
    if bool(np.isfinite(pairs.low).any()):
        notes.append("Pale: the interval holds chance.")
    nobody = int((~np.isfinite(pairs.ratio).any(axis=1)).sum())
    if nobody:
        notes.append(f"Blank: {many(nobody, 'expert')} that no token chose.")
    notes.append("Experts stand in the order of their likeness.")
    if layer is None and source.sizes.get("layer", 1) > 1:
        notes.append(
            f"Of {many(source.sizes['layer'], 'layer')} this one has most pairs apart from chance."
        )
    return tuple(notes)
