"""How one variable lies on disk: its chunks, codecs and checksum.

Needs   a Variable of the schema and the sizes of its fixed dims.
Yields  a Zarr array that grows along its first dim.

Chunks   A chunk holds at least 50 steps and more of a narrow variable (up to 1,000 where a row is a
         few bytes), so that reading a long run is not a walk over a million files, and at most
         about 1 MiB: a wide variable is split by layer, or by token. Rows that come in their
         hundreds (traces, interiors) fill chunks about as long as their first commit.
Codec    Blosc LZ4 with byte shuffle; bit shuffle for activations; then CRC-32C over the compressed
         bytes, without which a flipped bit reads as a number.
Strings  Zarr's variable-length "string" dtype, the only text dtype that zarr-python writes without
         an unstable-format warning; xarray opens it as numpy's StringDType. Text is only ever a
         label of a fixed dim, so it is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.dtype import VariableLengthUTF8

from workbench.store.schema import CLOCKS, GROWING, Variable

STEPS_AT_LEAST = 50
ROWS_AT_MOST = 1000
NARROW_BYTES = 4096
"""A chunk of more than 50 steps holds at most so many bytes: it is rewritten whole while it
fills.
"""
CHECKPOINTS_BYTES = 64 * 1024
"""The same for rows that come once a checkpoint or sample."""
CHUNK_BYTES = 1024 * 1024
BITSHUFFLED = ("activations", "interiors")
"""Groups of floats that a model computed in half precision as often as not."""
NUMBERED_AT_LEAST = 256
"""Rows in a chunk of traces or interiors."""


def chunk_shape(
    dims: tuple[str, ...], row: tuple[int, ...], itemsize: int, at_first: int = 0
) -> tuple[int, ...]:
    """Chunk lengths of an array with dims `dims`, the first growing, and rows of shape `row`.

    Args:
        at_first: rows of the array's first commit; asked where the growing dim has no labels.

    Example:
        >>> chunk_shape(("step", "layer", "expert"), (60, 256), 8)
        (50, 10, 256)
        >>> chunk_shape(("step",), (), 4)
        (1000,)
    """
    width = itemsize * int(np.prod(row, dtype=np.int64))
    if CLOCKS[dims[0]] != dims[0]:
        rows = max(NUMBERED_AT_LEAST, 1 << max(at_first - 1, 0).bit_length())
        return (max(1, min(rows, CHUNK_BYTES // width)), *row)
    if dims[0] == "step":
        rows = min(ROWS_AT_MOST, max(STEPS_AT_LEAST, NARROW_BYTES // width // 50 * 50))
    else:
        rows = min(ROWS_AT_MOST, max(1, CHECKPOINTS_BYTES // width))
    shape = [rows, *row]
    if "layer" in dims and rows * width > CHUNK_BYTES:
        axis = dims.index("layer")
        per_layer = rows * width // shape[axis]
        shape[axis] = max(1, CHUNK_BYTES // per_layer)
    elif dims[1:2] == ("token",) and rows * width > CHUNK_BYTES:
        shape[1] = max(1, CHUNK_BYTES // (width // row[0]))
    return tuple(shape)


def create_array(
    group: zarr.Group, name: str, variable: Variable, sizes: Mapping[str, int], at_first: int = 0
) -> zarr.Array[Any]:
    """An empty array for `variable`, with its unit and meaning as attributes, of length 0 where it
    grows; `at_first` as for `chunk_shape`.
    """
    kind = group.basename
    growing = variable.dims[0] in GROWING[kind]
    row = tuple(sizes[dim] for dim in variable.dims[1:] if growing) if growing else ()
    attributes: dict[str, Any] = dict(variable.attributes)
    if variable.dtype == "str":
        shape = tuple(sizes[dim] for dim in variable.dims)
        return group.create_array(
            name, shape=shape, chunks=shape, dtype=VariableLengthUTF8(),  # type: ignore[arg-type]
            compressors=Crc32cCodec(), dimension_names=variable.dims, attributes=attributes,
        )  # fmt: skip
    dtype = np.dtype(variable.dtype)
    if growing:
        shape = (0, *row)
        chunks = chunk_shape(variable.dims, row, dtype.itemsize, at_first)
    else:
        shape = chunks = tuple(sizes[dim] for dim in variable.dims)
    shuffle = "bitshuffle" if kind in BITSHUFFLED else "shuffle"
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=(
            BloscCodec(cname="lz4", clevel=5, shuffle=shuffle, typesize=dtype.itemsize),  # type: ignore[arg-type]
            Crc32cCodec(),
        ),
        fill_value=np.nan if dtype.kind == "f" else -1,
        dimension_names=variable.dims,
        attributes=attributes,
    )
