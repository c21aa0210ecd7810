"""The x axis of a training: steps, tokens or UTC of the same samples.

Needs   a dataset along `step` or `checkpoint`, with `tokens_seen` and `utc` beside it where those
        clocks are wanted.
Yields  Clock: the x of every sample, the axis' title and number format.

A step that is no sample lands on the other clocks by linear interpolation between its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.errors import SchemaError, UsageError

ClockName = Literal["step", "tokens", "utc"]
_TITLES = {"step": "optimizer step", "tokens": "training tokens", "utc": "UTC"}
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

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def axis(self) -> dict[str, Any]:
        """Title and number format for plotly's x axis."""
        formats = {"step": ",d", "tokens": "~s", "utc": None}
        return {"title_text": self.title, "tickformat": formats[self.name]}

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
