"""The result of a probe in a few lines of text: first and last value of every quantity.

Needs   the dataset of a probe.
Yields  `as_text`, and `as_plain` for JSON.

A quantity that has one value at a checkpoint is shown with its interval; one that has many
(layers, experts, tasks) by their median and their range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from workbench.figures.wording import plain

ALONG = ("checkpoint", "step")
BOUNDS = ("_low", "_high")


def as_text(name: str, ds: xr.Dataset) -> str:
    """The result in lines.

    Example:
        >>> norm = ("checkpoint", [1.0, 2.5], {"units": "1"})
        >>> print(as_text("norm", xr.Dataset({"norm": norm}, coords={"checkpoint": [0, 80]})))
        norm: 2 checkpoints, 0 to 80
          norm                       1 -> 2.5
    """
    lines = [f"{plain(name, 64)}: {_extent(ds)}"]
    lines += [f"  {plain(v, 26):<26} {_course(ds, v)}" for v in quantities(ds)]
    if left := ds.attrs.get("left_out"):
        lines.append(f"  left out: {plain(str(left), 300)}")
    return "\n".join(lines)


def quantities(ds: xr.Dataset) -> list[str]:
    """The variables that are no bounds of others and hold numbers."""
    names = [str(name) for name in ds.data_vars]
    bounds = {f"{name}{end}" for name in names for end in BOUNDS}
    return [name for name in names if name not in bounds and ds[name].dtype.kind in "fiub"]


def as_plain(ds: xr.Dataset) -> dict[str, Any]:
    """Everything in plain data; what is not a number is null.

    Example:
        >>> as_plain(xr.Dataset({"x": ("step", [1.0, float("nan")])}))["data_vars"]["x"]["data"]
        [1.0, None]
    """
    plain_data: dict[str, Any] = _finite(ds.to_dict())
    return plain_data


def _extent(ds: xr.Dataset) -> str:
    sizes = [f"{size} {dim}" for dim, size in ds.sizes.items() if dim not in ALONG]
    along = next((dim for dim in ALONG if dim in ds.sizes), None)
    if along is None:
        return " x ".join(sizes) or "one value"
    count = ds.sizes[along]
    said = f"{count:,} {along}" + ("s" if count != 1 else "")
    if along in ds.coords and count:
        first, last = ds[along].values[[0, -1]]
        said += f", {first:,} to {last:,}" if count > 1 else f", {first:,}"
    return said + (f" x {' x '.join(sizes)}" if sizes else "")


def _course(ds: xr.Dataset, name: str) -> str:
    values = ds[name]
    unit = str(values.attrs.get("units", ""))
    after = f"  {plain(unit, 24)}" if unit not in ("", "1") else ""
    along = next((dim for dim in ALONG if dim in values.dims), None)
    if along is None or not values.sizes[along]:
        return _at(ds, name, {}) + after
    first, last = _at(ds, name, {along: 0}), _at(ds, name, {along: -1})
    return (f"{first} -> {last}" if values.sizes[along] > 1 else last) + after


def _at(ds: xr.Dataset, name: str, place: dict[str, int]) -> str:
    values = ds[name].isel(place).values.astype(np.float64)
    known = values[np.isfinite(values)]
    if not known.size:
        return "unknown"
    if values.size == 1:
        bounds = [ds[name + end].isel(place).values.item() for end in BOUNDS if name + end in ds]
        interval = f" ({_number(bounds[0])} to {_number(bounds[1])})" if len(bounds) == 2 else ""
        return _number(known.item()) + interval
    return f"{_number(np.median(known))} [{_number(known.min())} to {_number(known.max())}]"


def _number(value: float) -> str:
    return "open" if math.isinf(value) else f"{value:.4g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    return value if isinstance(value, str | int | bool | None) else str(value)
