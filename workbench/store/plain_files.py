"""Plain files: groups of a record as a Zarr v3 folder, or as a NetCDF-4 file.

Needs   lazy datasets by group, and what they are of; h5netcdf for NetCDF.
Yields  `write_zarr`, `write_netcdf`.

Both hold one group for each of the record's, under its name, with `units` and `long_name` on every
variable. xarray reads them with its own engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.dtype import VariableLengthUTF8

from workbench.store.export import BLOCK_BYTES, blocks, stored_chunks

Groups = Mapping[str, xr.Dataset]


def _labels_off_axis(ds: xr.Dataset) -> dict[str, str]:
    """The attribute that tells xarray which variables are labels although no axis has their
    name.
    """
    names = [str(name) for name, label in ds.coords.items() if label.dims != (name,)]
    return {"coordinates": " ".join(names)} if names else {}


def write_zarr(target: Path, groups: Groups, origin: Mapping[str, Any]) -> None:
    """A Zarr v3 folder: chunks and checksums as in the store.

    Args:
        target: folder to make.
        groups: what to write.
        origin: attributes of the root and of every group; plain JSON.
    """
    root = zarr.create_group(target, zarr_format=3, attributes=dict(origin))
    for name, ds in groups.items():
        group = root.create_group(name, attributes={**origin, **_labels_off_axis(ds)})
        for label, variable in ds.variables.items():
            _write_array(group, str(label), variable)


def _write_array(group: zarr.Group, name: str, variable: xr.Variable) -> None:
    text = variable.dtype.kind == "U"
    chunks = stored_chunks(variable)
    size = variable.dtype.itemsize
    shuffled = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=size)
    kept = variable.encoding.get("compressors") or (shuffled, Crc32cCodec())
    array = group.create_array(
        name, shape=variable.shape, chunks=chunks, dimension_names=[str(d) for d in variable.dims],
        dtype=VariableLengthUTF8() if text else variable.dtype,  # type: ignore[arg-type]
        compressors=Crc32cCodec() if text else kept, attributes=dict(variable.attrs),
        fill_value="" if text else np.nan if variable.dtype.kind == "f" else -1,
    )  # fmt: skip
    for part in blocks(variable.shape, chunks, size, BLOCK_BYTES):
        values = variable[part].values
        array[part] = values.astype(object) if text else values


def write_netcdf(target: Path, groups: Groups, origin: Mapping[str, Any]) -> None:
    """A NetCDF-4 file with one group for each of the record's; deflated, with Fletcher checksums.

    Args:
        target: file to make.
        groups: what to write.
        origin: attributes of the file and of every group.
    """
    import h5netcdf
    import h5py

    with h5netcdf.File(target, "w") as file:
        file.attrs.update(origin)
        for name, ds in groups.items():
            group = file.create_group(name)
            group.attrs.update({**origin, **_labels_off_axis(ds)})
            group.dimensions = {str(dim): size for dim, size in ds.sizes.items()}
            for label, variable in ds.variables.items():
                text = variable.dtype.kind == "U"
                chunks = stored_chunks(variable)
                packed: dict[str, Any] = {
                    "chunks": chunks, "compression": "gzip", "compression_opts": 4,
                    "shuffle": True, "fletcher32": True,
                }  # fmt: skip
                made = group.create_variable(
                    str(label), tuple(map(str, variable.dims)),
                    h5py.string_dtype() if text else variable.dtype,
                    **({} if text or not variable.size else packed),
                )  # fmt: skip
                made.attrs.update(variable.attrs)
                for part in blocks(variable.shape, chunks, variable.dtype.itemsize, BLOCK_BYTES):
                    values = variable[part].values
                    made[part or ...] = values.astype(object) if text else values
