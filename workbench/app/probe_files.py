"""The result of one probe as a file.

Needs   a path, the dataset of a probe.
Yields  `ResultFile`: made sure of before anything is computed, there when it is whole.

    .csv   long: one row a value; columns variable, the dims, coordinates along them, value, low,
           high (its bounds), unit. A dim that a variable does not have is empty in its rows, and so
           is what is not a number.
    .json  everything, as xarray's `Dataset.to_dict`; what is not a number is null.
    .nc    everything, as NetCDF.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from workbench.errors import SchemaError, UsageError

BOUNDS = ("_low", "_high")


class ResultFile:
    """A file to be written, in a place where it can be.

    Its text goes into a file beside it that takes its name in the end: a failure leaves what was
    there before, and nothing else.

    Args:
        path: ends in .csv, .json or .nc; folders above it are made.

    Raises:
        UsageError: no such file can be made there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in WRITERS:
            raise UsageError(f"-o {path}: expected a file {', '.join(WRITERS)}.")
        if path.suffix == ".nc":
            _check_netcdf(path)
        try:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            self._target = path.resolve()
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(f"{path} may not be written")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._beside().unlink()
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"-o {path}: cannot be written there: {error}.") from None

    def write(self, ds: xr.Dataset) -> None:
        """Writes it whole or not at all.

        Raises:
            SchemaError: this form cannot hold it.
            UsageError: the place no longer takes it.
        """
        beside = None
        try:
            beside = self._beside()
            WRITERS[self.path.suffix](ds, beside)
            beside.replace(self._target)
        except OSError as error:
            raise UsageError(f"-o {self.path}: could not be written: {error}.") from None
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"-o {self.path}: this result does not fit into {self.path.suffix}: {error}. "
                f".json holds everything."
            ) from None
        finally:
            if beside is not None:
                beside.unlink(missing_ok=True)

    def _beside(self) -> Path:
        beside = self._target.with_name(f"{self._target.name}.part{os.getpid()}")
        beside.touch()
        return beside


def _csv(ds: xr.Dataset, out: Path) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(long_rows(ds))


def long_rows(ds: xr.Dataset) -> Iterator[list[Any]]:
    """A row a value, after a row of names.

    Example:
        >>> share = xr.Dataset({"a": ("n", [0.5]), "a_low": ("n", [0.25]), "b": ((), 2.0)})
        >>> list(long_rows(share))[1:]
        [['a', 0, 0.5, 0.25, '', ''], ['b', '', 2.0, '', '', '']]
    """
    dims = [str(dim) for dim in ds.dims]
    beside = [str(c) for c in ds.coords if c not in ds.dims]
    yield ["variable", *dims, *beside, "value", "low", "high", "unit"]
    bounds = {f"{v}{end}" for v in ds.data_vars for end in BOUNDS}
    for name in ds.data_vars:
        if name in bounds:
            continue
        values = ds[name]
        labels = [_along(ds[dim], values) if dim in values.dims else None for dim in dims]
        labels += [
            _along(ds[c], values) if set(ds[c].dims) <= set(values.dims) else None for c in beside
        ]
        ends = [_bound(ds, f"{name}{end}", values) for end in BOUNDS]
        columns = [*labels, _along(values, values), *ends]
        unit = values.attrs.get("units", "")
        for row in zip(*([""] * values.size if c is None else c for c in columns), strict=True):
            yield [name, *map(_cell, row), unit]


def _along(labels: xr.DataArray, values: xr.DataArray) -> list[Any]:
    """A label for every value, in the values' order."""
    if labels.dtype.kind in "mM":
        labels = labels.astype(str).where(labels.notnull(), "")
    spread = labels.variable.set_dims({dim: values.sizes[dim] for dim in values.dims})
    every: list[Any] = spread.transpose(*values.dims).values.ravel().tolist()
    return every


def _bound(ds: xr.Dataset, name: str, values: xr.DataArray) -> list[Any] | None:
    if name not in ds.data_vars:
        return None
    if not set(ds[name].dims) <= set(values.dims):
        raise ValueError(f"{name!r} has a dim that what it bounds has not")
    return _along(ds[name], values)


def _cell(value: Any) -> Any:
    return "" if value is None or value != value else value


def _json(ds: xr.Dataset, out: Path) -> None:
    from workbench.app.probe_text import as_plain

    out.write_text(json.dumps(as_plain(ds)))


def _netcdf(ds: xr.Dataset, out: Path) -> None:
    ds.to_netcdf(out, engine="h5netcdf")


def _check_netcdf(out: Path) -> None:
    from importlib.util import find_spec

    if find_spec("h5netcdf") is None:
        raise UsageError(
            f"-o {out}: needs h5netcdf: pip install 'training-dynamics-workbench[export]'."
        )


WRITERS = {".csv": _csv, ".json": _json, ".nc": _netcdf}
