"""Growing bins: many steps in few numbers, to which further steps are added as they come.

Needs   an overview of the steps so far; then the steps that come, in order.
Yields  GrowingBins: mean, least and greatest of every bin. It stays between `points` and twice as
        many bins, however many steps are added.

All bins but those at the ends hold w rows. When there are too many, w doubles and neighbours are
pooled, so that nothing needs to be read again.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.store.pooling import Pooled, pool

_SUFFIXES = ("", "_min", "_max")


class GrowingBins:
    """The bins of one group.

    Args:
        overview: what there is so far, as `Run.overview` gives it.
        points: the fewest bins that are kept once there are as many.

    Example:
        >>> def steps(*s):
        ...     s = np.array(s)
        ...     loss = {"loss" + end: ("bin", s * 1.0) for end in ("", "_min", "_max")}
        ...     ends = {"first_step": ("bin", s), "last_step": ("bin", s)}
        ...     rows = {"rows": ("bin", np.ones(len(s), int))}
        ...     return xr.Dataset(loss, coords=ends | rows, attrs={"rows_a_bin": 1})
        >>> bins = GrowingBins(steps(1, 2), points=1)
        >>> bins.add(steps(3, 4))
        >>> bins.dataset.loss.values.tolist(), bins.dataset.rows.values.tolist()
        ([1.5, 3.5], [2, 2])
    """

    def __init__(self, overview: xr.Dataset, *, points: int) -> None:
        self.points = points
        self.width = int(overview.attrs["rows_a_bin"])
        self._like = overview.isel(bin=slice(0))
        self._names = [n for n in map(str, overview.data_vars) if f"{n}_min" in overview]
        self._rows = overview["rows"].values
        # Bins lie on the grid of the record's rows, so the first one's size says where it begins.
        first_row = -int(self._rows[0]) % self.width if len(self._rows) > 1 else 0
        ends = first_row + np.cumsum(self._rows)
        self._next_row = int(ends[-1]) if len(ends) else 0
        self._place = (ends - self._rows) // self.width
        self._first = overview["first_step"].values
        self._last = overview["last_step"].values
        self._values = {n: _pooled(overview, n) for n in self._names}
        self._narrow()

    def __len__(self) -> int:
        return len(self._place)

    @property
    def last_step(self) -> int | None:
        """The last step that is in; None where there is none."""
        return int(self._last[-1]) if len(self) else None

    def copy(self) -> GrowingBins:
        """One that can be added to without changing this."""
        other = object.__new__(GrowingBins)
        other.__dict__.update(self.__dict__)
        other._values = dict(self._values)
        return other

    def add(self, rows: xr.Dataset) -> None:
        """Further steps, one a bin, as an overview of them gives them."""
        many = rows.sizes["bin"]
        if not many:
            return
        place = (self._next_row + np.arange(many)) // self.width
        self._place = np.concatenate([self._place, place])
        self._rows = np.concatenate([self._rows, rows["rows"].values])
        self._first = np.concatenate([self._first, rows["first_step"].values])
        self._last = np.concatenate([self._last, rows["last_step"].values])
        for name in self._names:
            had = self._values[name]
            new = _pooled(rows, name) if name in rows else _nothing(had, many)
            parts = zip(had, new, strict=True)
            self._values[name] = Pooled(*(np.concatenate(both) for both in parts))
        self._next_row += many
        self._join()
        self._narrow()

    @property
    def dataset(self) -> xr.Dataset:
        """As `Run.overview` gives it: x, x_min, x_max (bin, ...), first_step, last_step, rows."""
        found = {}
        for name, values in self._values.items():
            like = self._like[name]
            for suffix, part in zip(_SUFFIXES, values[:3], strict=True):
                note = self._like[name + suffix].attrs
                found[name + suffix] = (like.dims, part.astype(like.dtype), note)
        ends = {"first_step": self._first, "last_step": self._last, "rows": self._rows}
        labels = {n: c for n, c in self._like.coords.items() if "bin" not in c.dims}
        coords = {n: ("bin", v) for n, v in ends.items()} | labels
        return xr.Dataset(
            found, coords=coords, attrs={**self._like.attrs, "rows_a_bin": self.width}
        )

    def _narrow(self) -> None:
        while len(self) > 2 * self.points:
            self.width *= 2
            self._place = self._place // 2
            self._join()

    def _join(self) -> None:
        """Pools what has come to lie in the same place."""
        starts = np.flatnonzero(np.diff(self._place, prepend=-1))
        if len(starts) == len(self._place):
            return
        ends = np.append(starts[1:], len(self._place)) - 1
        self._values = {n: pool(v, starts) for n, v in self._values.items()}
        self._rows = np.add.reduceat(self._rows, starts)
        self._first, self._last = self._first[starts], self._last[ends]
        self._place = self._place[starts]


def _nothing(like: Pooled, many: int) -> Pooled:
    """Bins without a value, of a variable that the rows do not have."""
    missing = np.full((many, *like.mean.shape[1:]), np.nan)
    return Pooled(missing, missing, missing, np.zeros_like(missing))


def _pooled(ds: xr.Dataset, name: str) -> Pooled:
    """A variable's bins; how many rows had a value is not told, so all or none are taken to."""
    mean, least, greatest = (ds[name + s].values.astype("float64") for s in _SUFFIXES)
    rows = ds["rows"].values.reshape(-1, *[1] * (mean.ndim - 1))
    return Pooled(mean, least, greatest, np.where(np.isnan(mean), 0.0, rows))
