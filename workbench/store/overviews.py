"""Overviews: mean, least and greatest of many steps at once, kept beside the steps themselves.

Needs   the rows of `router` and `train`, as they are committed.
Yields  `extend_overviews`, for the writer; overview.py reads them.

On disk   overviews/<group>/<level>/<variable>, dims (bin, statistic, ...the variable's own): bin i
          of level f summarises rows i f up to, without, (i + 1) f. statistic: mean, min, max, and
          valid, the number of rows that had a value. NaN, and -1 in integers, is no value; a bin
          without any is NaN. first_step and last_step (bin) say which steps a bin is of. float64
          for variables of one number a step, float32 for the wider ones.
Levels    Each has bins eight times as wide as the one before it: of any stretch of a run some level
          has between a quarter of and twice the bins that a figure asks for.
Blocks    Bins are written 32 at a time, one chunk, when all their rows are there. No chunk is
          written twice, so overviews leave nothing behind for gc. Rows after the last block are
          summarised when they are read: at most a block of every level.
Errors    A mean is pooled from the means of the finer level, each rounded to its dtype and weighted
          by its rows: right to a few float32 roundings of the largest value in the bin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from workbench.store.pooling import LEVELS, STATISTICS, Pooled, pool, pool_rows

HOME = "overviews"
"""Group at the root that holds the overviews."""
BLOCK = 32
"""Bins of a chunk, which is written once and whole."""
PIECE_BYTES = 8 * 1024 * 1024
"""Values that are summarised at once, as float64; some five arrays of that size are held."""
_EDGES = {"first_step": 0, "last_step": -1}


def dims_of(array: zarr.Array[Any]) -> tuple[str, ...]:
    """The names of a stored array's dims."""
    return tuple(str(d) for d in array.metadata.dimension_names or ())  # type: ignore[union-attr]


def read_bins(array: zarr.Array[Any], bins: slice, columns: tuple[slice, ...] = ()) -> Pooled:
    """Stored bins, as numbers to pool."""
    block = np.asarray(array[(bins, slice(None), *columns)])
    return Pooled(*(block[:, i].astype(np.float64) for i in range(len(STATISTICS))))


def extend_overviews(root: zarr.Group, group: str) -> int:
    """Write every block of bins whose rows are all there and that is not written yet.

    Args:
        root: root group of a writable session, rows included; nothing but overviews is written.
        group: "router" or "train"; other groups have no steps and are left alone.

    Returns:
        Blocks written, of all levels and variables. 0: nothing was missing.
    """
    source = root.get(group)
    if not isinstance(source, zarr.Group):
        return 0
    arrays = {n: a for n, a in sorted(source.arrays()) if dims_of(a)[:1] == ("step",)}
    steps = arrays.pop("step", None)
    if steps is None or steps.shape[0] < LEVELS[0] * BLOCK:
        return 0
    home = root.require_group(f"{HOME}/{group}")
    written = 0
    finer: zarr.Group | None = None
    for level, below in zip(LEVELS, (1, *LEVELS), strict=False):
        bins = steps.shape[0] // (level * BLOCK) * BLOCK
        if not bins:
            break
        here = home.require_group(str(level))
        for name, end in _EDGES.items():
            edges = _source(finer, name, steps)
            written += _extend_edges(here, name, edges, bins, level // below, end)
        for name, array in arrays.items():
            below_it = _source(finer, name, array)
            written += _extend_one(here, name, array, below_it, bins, level // below)
        finer = here
    home.attrs.update({"levels": sorted(map(int, home.group_keys())), "statistic": STATISTICS})
    return written


def _source(finer: zarr.Group | None, name: str, raw: zarr.Array[Any]) -> zarr.Array[Any]:
    found = raw if finer is None else finer[name]
    assert isinstance(found, zarr.Array)
    return found


def _grown(
    home: zarr.Group, name: str, bins: int, row: tuple[int, ...], like: dict[str, Any]
) -> tuple[zarr.Array[Any], int]:
    """The array of `name`, `bins` long, and how long it was."""
    array = home.get(name)
    if isinstance(array, zarr.Array):
        had = array.shape[0]
        if bins > had:
            array.resize((bins, *row))
        return array, had
    dtype = np.dtype(like["dtype"])
    codecs = (
        BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=dtype.itemsize),
        Crc32cCodec(),
    )
    return home.create_array(name, shape=(bins, *row), compressors=codecs, **like), 0


def _extend_edges(
    home: zarr.Group, name: str, finer: zarr.Array[Any], bins: int, ratio: int, end: int
) -> int:
    """First or last steps of the bins: those of the first or last of the finer bins in each."""
    note = {"units": "1", "long_name": f"{'Last' if end else 'First'} step of the bin."}
    like = {"dtype": "int64", "chunks": (BLOCK,), "fill_value": -1, "attributes": note}
    array, had = _grown(home, name, bins, (), like | {"dimension_names": ("bin",)})
    if had >= bins:
        return 0
    inside = np.asarray(finer[had * ratio : bins * ratio]).reshape(-1, ratio)
    array[had:] = inside[:, end]
    return (bins - had) // BLOCK


def _extend_one(
    home: zarr.Group,
    name: str,
    raw: zarr.Array[Any],
    finer: zarr.Array[Any],
    bins: int,
    ratio: int,
) -> int:
    narrow = raw.ndim == 1
    note = {key: raw.attrs[key] for key in ("units", "long_name") if key in raw.attrs}
    like = {
        "dtype": "float64" if narrow else "float32",
        "chunks": (BLOCK, len(STATISTICS), *raw.chunks[1:]),
        "fill_value": np.nan,
        "attributes": note,
        "dimension_names": ("bin", "statistic", *dims_of(raw)[1:]),
    }
    array, had = _grown(home, name, bins, (len(STATISTICS), *raw.shape[1:]), like)
    for columns, row_bytes in _columns(raw):
        # Whole blocks, as many as make one piece of what they are read from.
        step = BLOCK * max(1, PIECE_BYTES // (row_bytes * ratio * BLOCK))
        for first in range(had, bins, step):
            stop = min(first + step, bins)
            parts = [
                pool(piece, np.arange(0, len(piece.valid), ratio))
                for piece in _pieces(finer, first * ratio, stop * ratio, columns, row_bytes, ratio)
            ]
            joined = [np.concatenate(statistic) for statistic in zip(*parts, strict=True)]
            with np.errstate(over="ignore"):
                array[(slice(first, stop), slice(None), *columns)] = np.stack(joined, axis=1)
    return max(0, bins - had) // BLOCK


def _columns(raw: zarr.Array[Any]) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Stretches of a row of which a block can be held, and their bytes; mostly one: the row."""
    if raw.ndim == 1:
        yield (), 8
        return
    length, width = raw.shape[1], raw.chunks[1]
    cell = 8 * int(np.prod(raw.shape[2:], dtype=np.int64))
    if length * cell * BLOCK <= PIECE_BYTES:
        width = length
    for first in range(0, length, width):
        yield (slice(first, min(first + width, length)),), width * cell


def _pieces(
    array: zarr.Array[Any],
    first: int,
    stop: int,
    columns: tuple[slice, ...],
    row_bytes: int,
    multiple: int,
) -> Iterator[Pooled]:
    """Rows, or finer bins, from `first` up to `stop`, some at a time, as bins."""
    step = multiple * max(1, PIECE_BYTES // (row_bytes * multiple))
    for at in range(first, stop, step):
        rows = slice(at, min(at + step, stop))
        if dims_of(array)[0] == "bin":
            yield read_bins(array, rows, columns)
        else:
            yield pool_rows(np.asarray(array[(rows, *columns)]))
