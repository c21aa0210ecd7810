"""Parquet tables: a record as tidy tables, one row a cell.

Needs   lazy datasets by group, and what they are of; pyarrow.
Yields  `write_parquet`: a folder with one table for every group and set of dims.

A table holds the variables of a group that share their dims, such as router.step.layer.expert: a
column for each dim (its labels, or numbers from 0 where it has none), one for each label that
belongs to those dims (tokens_seen of a checkpoint, family of a task), one for each variable. Rows
follow the dims, the last fastest. Text is dictionary-encoded: pandas reads it as categories. Units
and meanings are metadata of the columns, run, branch and snapshot of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from workbench.store.export import blocks, stored_chunks

ROWS_AT_ONCE = 500_000
"""Rows of a table that are made and written together; they become its row groups."""

Dims = tuple[str, ...]


def write_parquet(
    target: Path, groups: Mapping[str, xr.Dataset], origin: Mapping[str, Any]
) -> None:
    """The folder `target` with one table for every group and set of dims.

    Args:
        target: folder to make.
        groups: what to write.
        origin: metadata of every table.
    """
    target.mkdir()
    for name, ds in groups.items():
        for dims in _signatures(ds):
            _write_table(target / f"{'.'.join([name, *dims])}.parquet", ds, dims, origin)


def _signatures(ds: xr.Dataset) -> list[Dims]:
    """The sets of dims that variables of `ds` have; labels alone make no table."""
    return list(dict.fromkeys(tuple(map(str, v.dims)) for v in ds.data_vars.values() if v.dims))


def _write_table(path: Path, ds: xr.Dataset, dims: Dims, origin: Mapping[str, Any]) -> None:
    variables = {str(n): v.variable for n, v in ds.data_vars.items() if v.dims == dims}
    labels: dict[str, xr.Variable] = {}
    for dim in dims:
        plain = xr.Variable((dim,), np.arange(ds.sizes[dim]), {"long_name": f"{dim}, from 0"})
        labels[dim] = ds[dim].variable if dim in ds.coords else plain
    for name, label in ds.coords.items():
        if name not in labels and label.dims and set(label.dims) <= set(dims):
            labels[str(name)] = label.variable
    columns = {**labels, **variables}
    schema = pa.schema(
        [pa.field(n, _type(v), metadata=_noted(v.attrs)) for n, v in columns.items()],
        metadata=_noted(origin),
    )
    shape = tuple(ds.sizes[dim] for dim in dims)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in _parts(shape, next(iter(variables.values()))):
            taken = dict(zip(dims, part, strict=False))
            sizes = tuple(len(range(*s.indices(n))) for s, n in zip(part, shape, strict=False))
            sizes += shape[len(part) :]
            arrays = [_column(v, dims, taken, sizes) for v in columns.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _parts(shape: tuple[int, ...], like: xr.Variable) -> Iterator[tuple[slice, ...]]:
    """Row-major parts of at most about ROWS_AT_ONCE cells."""
    chunks = stored_chunks(like)
    if math.prod(shape[1:]) * chunks[0] > ROWS_AT_ONCE:
        # The order of rows allows the second axis to be divided only within one of the first.
        chunks = (1, *(1 for _ in chunks[1:]))
    return blocks(shape, chunks, 1, ROWS_AT_ONCE)


def _type(variable: xr.Variable) -> pa.DataType:
    if variable.dtype.kind == "U":
        return pa.dictionary(pa.int32(), pa.string())
    return pa.from_numpy_dtype(variable.dtype)


def _noted(attrs: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in attrs.items()}


def _column(
    variable: xr.Variable, dims: Dims, taken: Mapping[str, slice], sizes: tuple[int, ...]
) -> pa.Array:
    """The variable's values in the rows of one part."""
    own = variable.isel({d: s for d, s in taken.items() if d in variable.dims}).values
    names: np.ndarray | None = None
    if variable.dtype.kind == "U":
        names, places = np.unique(own, return_inverse=True)
        own = places.reshape(own.shape).astype(np.int32)
    # Axes in the table's order, 1 long where the variable does not have them.
    own = np.transpose(own, [variable.dims.index(d) for d in dims if d in variable.dims])
    own = own.reshape([n if d in variable.dims else 1 for d, n in zip(dims, sizes, strict=True)])
    values = pa.array(np.broadcast_to(own, sizes).ravel())
    return values if names is None else pa.DictionaryArray.from_arrays(values, pa.array(names))
