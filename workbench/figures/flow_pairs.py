"""Flow pairs: how often tokens of an expert go to each expert of the next layer, against chance.

Needs   `probes.flow` of one moment: transition (layer, expert, expert2), next_layer (layer); load
        (layer, expert) of the lower layer where known.
Yields  Step, one layer to the next: ratio to chance, the share of all tokens on each way, the order
        of the upper experts in which those who follow each other stand opposite.

Chance for a way is the load of the upper expert. The result of the probe holds no loads: where none
are given, every expert of the lower layer counts alike, and chance is the mean of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.moment import Moment, labelled, moment, require
from workbench.figures.ratio_map import octaves
from workbench.figures.wording import many, number


@dataclass(frozen=True, eq=False)
class Step:
    """From the experts of one layer to those of the next."""

    layer: int
    next_layer: int
    experts: np.ndarray
    next_experts: np.ndarray
    transition: np.ndarray
    """(expert, expert2): share of expert2 in what the tokens of expert take; NaN: no token."""
    weight: np.ndarray
    """(expert,): share of the lower layer's choices; equal where loads are not known."""
    loads_known: bool
    information: tuple[float, float, float]
    """Bits, with bounds; NaN where not known."""
    p: float
    attainable: float

    @property
    def flow(self) -> np.ndarray:
        """(expert, expert2): share of all choices on each way; sums to 1."""
        return self.weight[:, None] * np.nan_to_num(self.transition)

    @property
    def next_load(self) -> np.ndarray:
        """(expert2,): share of the upper layer's choices."""
        return np.asarray(self.flow.sum(axis=0))

    @property
    def ratio(self) -> np.ndarray:
        """Way over chance; NaN where the lower or the upper expert has no token."""
        below = np.where(self.next_load > 0, self.next_load, np.nan)
        return np.asarray(self.transition / below)

    @property
    def order(self) -> np.ndarray:
        """Places of the upper experts that put who follows whom most on the diagonal."""
        from scipy.optimize import linear_sum_assignment

        gain = np.clip(np.nan_to_num(octaves(self.ratio)), -4, 4)
        return np.asarray(linear_sum_assignment(-gain)[1])

    @property
    def linked(self) -> bool | None:
        """Whether the layers are linked: the interval of the information lies over 0, or, where
        there is none, the null says so; None where neither is known.
        """
        if np.isfinite(self.information[1]):
            return self.information[1] > 0
        return self.p < 0.05 if np.isfinite(self.p) else None

    @property
    def said(self) -> str:
        """How much one layer says of the next, in words."""
        way = f"layer {self.layer} to {self.next_layer}"
        found, low, high = self.information
        if np.isfinite(low):
            told = f"{number(found)} bits [{number(low)}, {number(high)}]"
            if np.isfinite(self.attainable):
                told += f" of {number(self.attainable)} attainable"
        elif np.isfinite(self.p):
            told = f"p = {number(self.p)} against texts dealt anew"
        else:
            return f"from {way}, how sure is not known"
        return f"from {way}, {told}"


def steps_of(
    flow: xr.Dataset, at: int | None = None, load: xr.DataArray | None = None
) -> tuple[list[Step], Moment]:
    """Every layer to the next, at one moment.

    Args:
        flow: `probes.flow`; `checkpoint` first, or of one moment.
        at: step of the checkpoint; None is the last.
        load: (layer, expert), of the lower layer, in any unit; else the variable `load` of `flow`.

    Raises:
        SchemaError: no transition, one of another shape, or a load that does not fit it.
        UsageError: no layer, or nothing known of any.
    """
    require(flow, "transition", {"layer", "expert", "expert2"}, "probes.flow(run)")
    now = moment(labelled(flow, "layer", "expert", "expert2"), at)
    ds = now.values
    if load is None and "load" in ds:
        load = ds["load"]
    found = [_step(ds.isel(layer=i), load) for i in range(ds.sizes["layer"])]
    if not any(np.isfinite(step.transition).any() for step in found):
        raise UsageError(
            f"the transitions of {many(len(found), 'layer')} hold no number; widen what they were "
            "taken over."
        )
    return found, now


def _step(ds: xr.Dataset, load: xr.DataArray | None) -> Step:
    layer = int(ds["layer"])
    transition = ds["transition"].transpose("expert", "expert2").values.astype(np.float64)
    there = np.isfinite(transition).any(axis=1)
    weight = np.asarray(there, dtype=np.float64)
    if load is not None:
        weight = np.asarray(_weights(load, layer, ds["expert"].values) * there)
    if weight.sum() > 0:
        weight = np.asarray(weight / weight.sum())

    def one(name: str) -> float:
        return float(ds[name]) if name in ds and ds[name].ndim == 0 else float("nan")

    names = ("information", "information_low", "information_high")
    return Step(
        layer=layer,
        next_layer=int(ds["next_layer"]) if "next_layer" in ds.coords else layer + 1,
        experts=ds["expert"].values, next_experts=ds["expert2"].values, transition=transition,
        weight=weight, loads_known=load is not None,
        information=tuple(one(n) for n in names),  # type: ignore[arg-type]
        p=one("p"), attainable=one("attainable"),
    )  # fmt: skip


def _weights(load: xr.DataArray, layer: int, experts: np.ndarray) -> np.ndarray:
    if set(load.dims) - {"layer"} != {"expert"} or load.sizes["expert"] != len(experts):
        raise SchemaError(
            f"load has dims {dict(load.sizes)}; expected (layer, expert) of {len(experts)} experts "
            "at one moment: the lower layers' share of choices, on the same tokens."
        )
    if "layer" in load.dims:
        labels = load["layer"].values if "layer" in load.coords else np.arange(load.sizes["layer"])
        place = np.flatnonzero(labels == layer)
        if not len(place):
            raise SchemaError(f"load has no layer {layer}, which the flow starts from.")
        load = load.isel(layer=int(place[0]))
    return np.nan_to_num(load.values.astype(np.float64))
