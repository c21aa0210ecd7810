"""The x axis of a training: steps, tokens or UTC of the same samples.

Needs   a dataset along `step` or `checkpoint`, with `tokens_seen` and `utc` beside it where those
        clocks are wanted.
Yields  Clock: the x of every sample, the axis' title and number format.

A step that is no sample lands on the other clocks by linear interpolation between its neighbours.

A whole run is drawn over the logarithm of its steps or tokens: most of what happens, happens early.
A stretch of it, and whatever shows a fork, is drawn linearly: the end of a run would be a sliver of
the logarithm. `for_axis` is the one place where that is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.errors import SchemaError, UsageError

ClockName = Literal["step", "tokens", "utc"]
_TITLES = {"step": "optimizer step", "tokens": "training tokens", "utc": "UTC"}
DECADES = 100
"""The last of a whole run's steps over its first, at least, for a logarithmic axis."""
_COLUMNS = {"tokens": "tokens_seen", "utc": "utc"}


@dataclass(frozen=True)
class Clock:
    """Where on the chosen clock every sample stands."""

    name: ClockName
    steps: np.ndarray
    """(sample,) int64, optimizer steps."""
    x: np.ndarray
    """(sample,) position on the axis: steps, tokens, or datetime64[ms]."""
    tokens: np.ndarray | None
    """(sample,) training tokens seen, where the record says."""
    log: bool = False
    """Whether the axis is logarithmic."""

    def for_axis(self, forks: Iterable[float] = (), *, alone: bool = True) -> Clock:
        """This clock as the axis of a figure: logarithmic where a whole run is drawn.

        Args:
            forks: steps at which lines part; one within what is drawn keeps the axis linear.
            alone: whether one line of training is drawn; arms part somewhere.

        Example:
            >>> record = xr.Dataset(coords={"step": np.arange(1, 2001)})
            >>> clock_of(record).for_axis().log, clock_of(record).for_axis([1600]).log
            (True, False)
            >>> clock_of(record.isel(step=slice(1600, None))).for_axis().log
            False
        """
        x = self.x.astype("float64")
        seen = x[x > 0]
        whole = self.name != "utc" and len(seen) > 1 and seen[-1] >= DECADES * seen[0]
        # A sample at 0 has no place on the axis, and must not vanish from it.
        whole = whole and len(seen) == len(x)
        return replace(self, log=bool(whole and alone and not any(map(self.within, forks))))

    @property
    def log_x(self) -> np.ndarray | None:
        """`x` where the axis is logarithmic, for those who cut it into equal pieces."""
        return self.x if self.log else None

    def share(self, step: float) -> float:
        """How far along the axis `step` lies, from 0 to 1."""
        if not len(self.steps):
            return 0.0
        first, here, last = (
            float(np.log(max(s, 1e-9))) if self.log else float(s)
            for s in (self.steps[0], step, self.steps[-1])
        )
        return (here - first) / (last - first) if last > first else 0.0

    def place(self, step: float) -> Any:
        """The place of `step` as plotly wants it of a text: on a log axis its logarithm."""
        return float(np.log10(self.at(step))) if self.log else self.at(step)

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def axis(self) -> dict[str, Any]:
        """Title and number format for plotly's x axis."""
        formats = {"step": ",d", "tokens": "~s", "utc": None}
        axis = {"title_text": self.title, "tickformat": formats[self.name]}
        # Ticks at 1, 2 and 5 of a decade: nine would not fit beside each other.
        return {**axis, "type": "log", "dtick": "D2"} if self.log else axis

    def at(self, step: float) -> Any:
        """The place of `step` on this clock.

        Example:
            >>> ds = xr.Dataset(coords={"step": [10, 20], "tokens_seen": ("step", [1000, 2000])})
            >>> float(clock_of(ds, "tokens").at(15))
            1500.0
        """
        if self.name == "step" or not len(self.steps):
            return step
        found = np.interp(step, self.steps, self.x.astype("float64"))
        return found.astype("int64").astype(self.x.dtype) if self.name == "utc" else float(found)

    def within(self, step: float) -> bool:
        """Whether a mark at `step` falls into the stretch that is drawn."""
        return bool(len(self.steps)) and self.steps[0] <= step <= self.steps[-1]


def along(source: xr.Dataset | xr.DataArray) -> str:
    """The dim of `source` that training runs along: `step` or `checkpoint`."""
    for dim in ("step", "checkpoint"):
        if dim in source.dims:
            return dim
    raise SchemaError(
        f"dims are {tuple(source.dims)}; a figure over training needs 'step' or 'checkpoint' "
        "among them. Pass what the probe returned, before any mean over training."
    )


def clock_of(source: xr.Dataset | xr.DataArray, name: ClockName = "step") -> Clock:
    """The clock `name` of the samples of `source`.

    Raises:
        SchemaError: no dim `step` or `checkpoint`.
        UsageError: the clock is unknown, or the dataset does not carry it.

    Example:
        >>> clock_of(xr.Dataset(coords={"step": [10, 20]})).x.tolist()
        [10, 20]
    """
    if name not in _TITLES:
        raise UsageError(f"clock {name!r}; the clocks are {', '.join(_TITLES)}.")
    dim = along(source)
    steps = (
        source[dim].values if dim in source.coords else np.arange(source.sizes[dim], dtype="int64")
    )
    column = _column(source, "tokens_seen", dim)
    if name == "step":
        return Clock(name, steps, steps, column)
    x = _column(source, _COLUMNS[name], dim)
    if x is None:
        raise UsageError(
            f"x={name!r} needs {_COLUMNS[name]!r} along {dim!r} and the data has none; "
            f"use x='step', or attach it: data.assign_coords({_COLUMNS[name]}=('{dim}', ...))."
        )
    if name == "utc" and np.issubdtype(x.dtype, np.floating):
        x = (x * 1000).astype("datetime64[ms]")
    return Clock(name, steps, x, column)


def _column(source: xr.Dataset | xr.DataArray, name: str, dim: str) -> np.ndarray | None:
    inside = name in source.coords or (isinstance(source, xr.Dataset) and name in source)
    return source[name].values if inside and source[name].dims == (dim,) else None
