"""A long curve by as many of its points as a panel can show, the extremes among them.

Needs   a curve, or an overview's least and greatest of every bin.
Yields  Thinned: which points are drawn, and the sentence that says so; `thinned`, `single_steps`.

Averaging (bins.py) hides a spike of one step; taking every n-th point loses it by chance. Here the
curve is cut into equal stretches and of each the least and the greatest value are kept, so that no
spike is lost and none is moved. The price is that noise looks as wide as its extremes: a mean
belongs beside it.

Source: MinMax of tsdownsample (Van Der Donckt et al. 2022), in which its makers' MinMaxLTTB keeps
only points that look salient; here what is called kept must be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

MOST = 1200
"""Points of one line at most, about."""


@dataclass(frozen=True)
class Thinned:
    """Places of the points that are drawn, ascending, of `total` that there are."""

    places: np.ndarray
    total: int

    @property
    def note(self) -> str:
        """A sentence for the caption; empty where every point is drawn."""
        return note_of(len(self.places), self.total)


def note_of(drawn: int, total: int) -> str:
    """How many points are drawn, in words; empty where all are.

    Example:
        >>> note_of(1200, 100_000), note_of(5, 5)
        ('1,200 of 100,000 points drawn; extremes kept.', '')
    """
    return f"{drawn:,} of {total:,} points drawn; extremes kept." if drawn < total else ""


def thinned(
    *curves: np.ndarray, most: int = MOST, log_x: np.ndarray | None = None
) -> Thinned:  # fmt: skip
    """The points that keep the extremes of every curve: curves of one length, drawn over one x.

    Args:
        log_x: where the points stand on a logarithmic axis, above 0 and ascending: the stretches
            are then equally wide on that axis.

    Ends and the edges of gaps (values that are no numbers) are kept, so that no line crosses a gap;
    where there are more gaps than points to draw, gaps within a stretch may close.

    Example:
        >>> y = np.zeros(10_000); y[1234], y[7777] = 5, -5
        >>> kept = thinned(y, most=100)
        >>> {1234, 7777} <= set(kept.places.tolist()), len(kept.places) <= 102
        (True, True)
    """
    total = len(curves[0])
    if total <= most:
        return Thinned(np.arange(total), total)
    each = max(2, most // len(curves))
    kept = [np.array([0, total - 1])]
    for curve in curves:
        y = np.ascontiguousarray(curve, dtype="float64")
        there = np.isfinite(y)
        if not there.any():
            continue
        kept.append(_extremes(y, there, each, log_x))
        edges = np.flatnonzero(np.diff(there.astype(int)))
        # A gap is drawn by one point of it between its two neighbours.
        if len(edges) <= each // 2:
            kept += [edges, edges + 1]
    return Thinned(np.unique(np.concatenate(kept)), total)


def _extremes(
    y: np.ndarray, there: np.ndarray, most: int, log_x: np.ndarray | None
) -> np.ndarray:  # fmt: skip
    """Places of the least and greatest number of each of most/2 equal stretches."""
    from tsdownsample import MinMaxDownsampler

    whole = np.flatnonzero(there)
    # Its answer for infinities and NaN depends on the machine's instructions; it is shown none.
    along = () if log_x is None else (np.log2(log_x[whole].astype("float64")),)
    found = MinMaxDownsampler().downsample(*along, y[whole], n_out=most - most % 2)
    return whole[found.astype(np.int64)]


def single_steps(
    ds: xr.Dataset, name: str, dim: str = "step", log_x: np.ndarray | None = None
) -> tuple[xr.DataArray, Thinned]:  # fmt: skip
    """A variable by its single steps, thinned: of an overview the extremes of its bins.

    Args:
        ds: along `dim`; an overview carries <name>_min and <name>_max (bins.by_step).
        log_x: as for `thinned`, a value for each of `dim`.

    Returns:
        The variable at the points that are drawn, in the order of training; and what was thinned.

    Example:
        >>> ds = xr.Dataset({"y": ("step", np.arange(5000.0))})
        >>> drawn, kept = single_steps(ds, "y")
        >>> drawn.sizes["step"] == len(kept.places) < 1300, kept.total
        (True, 5000)
    """
    ends = [f"{name}_{end}" for end in ("min", "max")]
    if not all(end in ds for end in ends):
        kept = thinned(ds[name].values, log_x=log_x)
        return ds[name].isel({dim: kept.places}), kept
    pairs = xr.concat([ds[end].rename(name) for end in ends], dim="end").transpose(dim, "end")
    bins = np.repeat(np.arange(ds.sizes[dim]), 2)
    drawn = ds[name].isel({dim: bins}).copy(data=pairs.values.ravel())
    total = int(ds["rows"].sum()) if "rows" in ds.variables else len(bins)
    kept = thinned(drawn.values, log_x=None if log_x is None else log_x[bins])
    # Places count within the extremes; what they stand for is every step.
    return drawn.isel({dim: kept.places}), Thinned(kept.places, max(total, len(kept.places)))
