"""A long record reduced to as many points as a panel can show.

Needs   an array along `step`.
Yields  the array averaged over equal runs of consecutive steps, and how many steps each point
        stands for.

Averaging hides single steps; whoever draws the result says so, with `Binned.note`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xarray as xr

from workbench.figures.clock import along

MOST = 400
"""Points across one panel, by default."""

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


@dataclass(frozen=True)
class Binned:
    """Steps in bins: what is drawn, and what each point stands for."""

    mean: xr.Dataset
    """The given variables, mean over each bin, NaN left out; the step is the bin's middle."""
    first: np.ndarray
    """(bin,) first sample's step."""
    last: np.ndarray
    """(bin,) last sample's step."""
    n: np.ndarray
    """(bin,) samples averaged."""

    @property
    def note(self) -> str:
        """A sentence for the caption; empty where nothing was averaged."""
        if not len(self.n) or self.n.max() == 1:
            return ""
        return (
            f"{int(self.n.sum()):,} steps are drawn as {len(self.n):,} points, each the mean of "
            f"up to {int(self.n.max()):,} consecutive steps."
        )


def by_step(ds: xr.Dataset) -> xr.Dataset:
    """A dataset along `step`: `ds` itself, or an overview's means at the last step of each bin,
    their extremes beside them.

    Clocks count to the end of a bin, so of these the greatest is taken.
    """
    if "bin" not in ds.dims:
        return ds
    ends = {n: ds[f"{n}_max"] for n in ("tokens_seen", "utc") if f"{n}_max" in ds}
    apart = {f"{n}_{end}" for n in ends for end in ("min", "max")}
    short = ds[[n for n in map(str, ds.data_vars) if n not in apart]].assign(ends)
    short = short.rename(bin="step")
    return short.assign_coords(step=ds["last_step"].values).drop_vars("last_step")


def width_for(samples: int, most: int = MOST) -> int:
    """Samples to a bin so that no more than `most` bins come out.

    Example:
        >>> width_for(1000, most=400), width_for(10)
        (3, 1)
    """
    return max(1, -(-samples // most))


def binned(
    source: xr.Dataset | xr.DataArray, most: int = MOST, *, each: int | None = None,
    log_x: np.ndarray | None = None,
) -> Binned:  # fmt: skip
    """`source` averaged over bins of `each` samples; by default as few as give `most` bins.

    Args:
        log_x: (sample,) where the samples stand on a logarithmic axis, above 0 and ascending: bins
            are then equally wide on that axis, at most `most`. Bins of equally many samples would
            draw the first decades of a long run as one point.

    Example:
        >>> loss = xr.DataArray([4.0, 2.0, 2.0, 0.0], coords={"step": [1, 2, 3, 4]}, name="loss")
        >>> short = binned(loss, most=2)
        >>> short.mean["loss"].values.tolist(), short.n.tolist()
        ([3.0, 1.0], [2, 2])
        >>> binned(loss, most=2, log_x=np.array([1, 2, 3, 4])).n.tolist()
        [1, 3]
    """
    ds = source
    if isinstance(ds, xr.DataArray):
        ds = ds.to_dataset(name=ds.name or "value")
    dim = along(ds)
    size = ds.sizes[dim]
    if dim not in ds.coords:
        ds = ds.assign_coords({dim: np.arange(size)})
    steps = ds[dim].values
    # What comes from an overview is binned already, and says of how many steps each row is.
    rows = ds["rows"].values if "rows" in ds.coords else np.ones(size, np.int64)
    begins = ds["first_step"].values if "first_step" in ds.coords else steps
    ds = ds.drop_vars(["rows", "first_step"], errors="ignore")
    each = width_for(size, most) if each is None else each
    starts = np.arange(0, size, each) if log_x is None else _log_starts(log_x, most)
    stops = np.append(starts[1:], size).astype("int64") if size else starts
    counts = np.add.reduceat(rows, starts) if size else rows
    if len(starts) < size:
        varying = {n: v for n, v in ds.variables.items() if dim in v.dims and n != dim}
        fixed = ds.drop_dims(dim)
        averaged = {n: _mean(v, dim, starts) for n, v in varying.items()}
        coords = {dim: (steps[starts] + steps[stops - 1]) / 2}
        names = set(ds.coords) & set(averaged)
        ds = xr.Dataset(averaged, coords=coords, attrs=ds.attrs).set_coords(names).merge(fixed)
    return Binned(ds, begins[starts], steps[stops - 1], counts)


def _log_starts(x: np.ndarray, most: int) -> np.ndarray:
    """First sample of each bin, where bins are equally wide in the logarithm of x."""
    if len(x) <= most:
        return np.arange(len(x))
    octaves = np.log2(x.astype("float64"))
    place = (octaves - octaves[0]) / (octaves[-1] - octaves[0]) * most
    # The last sample lies on the last bin's upper edge.
    bins = np.minimum(place.astype("int64"), most - 1)
    return np.flatnonzero(np.diff(bins, prepend=-1))


def _mean(variable: xr.Variable, dim: str, starts: np.ndarray) -> xr.Variable:
    axis = variable.dims.index(dim)
    if not np.issubdtype(variable.dtype, np.number):
        return variable.isel({dim: starts})
    values = variable.values.astype("float64")
    there = np.isfinite(values)
    total = np.add.reduceat(np.where(there, values, 0.0), starts, axis=axis)
    n = np.add.reduceat(there.astype("int64"), starts, axis=axis)
    mean = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
    return xr.Variable(variable.dims, mean, variable.attrs)
