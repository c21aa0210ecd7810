"""Overviews against what they summarise.

Needs   the arrays of a state: overviews/<group>/<level>/<variable> and the rows below them.
Yields  `overview_faults`: bins that are not what the finer level, or the rows, give.

The finest level is held against the rows, every other against the level below it. A sample of each
array: its first, its last and one block between; or all blocks. What is read here was read against
its checksum elsewhere, so a piece that cannot be read is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from workbench.store.overviews import BLOCK, HOME, read_bins
from workbench.store.pooling import LEVELS, STATISTICS, Pooled, pool, pool_rows
from workbench.store.verification.chunk_reader import ChunkReader
from workbench.store.verification.fault import Fault

CLOSE = 1e-4
"""Means are pooled level by level and held in float32."""
HELD_BYTES = 64 * 1024 * 1024
"""Rows that are summarised at once; wider ones are looked at in their first columns."""


def overview_faults(
    reader: ChunkReader,
    arrays: Mapping[str, zarr.Array[Any]],
    branch: str,
    since: int,
    *,
    deep: bool,
) -> Iterator[Fault]:
    """Bins that are wrong; `since`: rows below this one were looked at in another state."""
    for path, array in arrays.items():
        match path.split("/"):
            case [home, group, level, name] if home == HOME and level.isdecimal():
                found = _below(arrays, group, int(level), name)
            case _:
                continue
        if found is None or not array.shape[0]:
            continue
        blocks = range(since // (int(level) * BLOCK), -(-array.shape[0] // BLOCK))
        places = list(blocks)
        if not deep and len(places) > 3:
            places = [places[0], places[len(places) // 2], places[-1]]
        for place in places:
            reader.report.count("overview blocks")
            wrong = _block_fault(array, *found, name, place)
            if wrong is not None:
                place_text, told, due = wrong
                yield Fault(
                    kind="overview", branch=branch, group=f"{HOME}/{group}/{level}", variable=name,
                    place=place_text, found=told, expected=f"{due}, as the rows below it give",
                    remedy="the rows themselves are not touched by this: read them, not the "
                    "overview",
                )  # fmt: skip


def _below(
    arrays: Mapping[str, zarr.Array[Any]], group: str, level: int, name: str
) -> tuple[zarr.Array[Any], int, bool] | None:
    """What a level is made from, how many of its rows make a bin, and whether they are bins."""
    if level not in LEVELS:
        return None
    at = LEVELS.index(level)
    if at:
        finer = arrays.get(f"{HOME}/{group}/{LEVELS[at - 1]}/{name}")
        return None if finer is None else (finer, level // LEVELS[at - 1], True)
    rows = arrays.get(f"{group}/{'step' if name in ('first_step', 'last_step') else name}")
    return None if rows is None else (rows, level, False)


def _block_fault(
    array: zarr.Array[Any], below: zarr.Array[Any], ratio: int, are_bins: bool, name: str,
    place: int,
) -> tuple[str, str, str] | None:  # fmt: skip
    """Where a block of bins is wrong, what it says and what is due."""
    first, stop = place * BLOCK, min((place + 1) * BLOCK, array.shape[0])
    try:
        if array.ndim == 1:
            said = np.asarray(array[first:stop])
            rows = np.asarray(below[first * ratio : stop * ratio]).reshape(-1, ratio)
            due = rows[:, 0 if name == "first_step" else -1]
            wrong = said != due
        else:
            columns = _columns(below, (stop - first) * ratio, skip=2 if are_bins else 1)
            bins = slice(first * ratio, stop * ratio)
            if are_bins:
                finer = read_bins(below, bins, columns)
            else:
                finer = pool_rows(np.asarray(below[(bins, *columns)]))
            due = _stacked(pool(finer, np.arange(0, len(finer.valid), ratio)))
            said = np.asarray(array[(slice(first, stop), slice(None), *columns)], np.float64)
            wrong = ~_close(said, due)
    except Exception:
        return None
    if not wrong.any():
        return None
    at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    statistic = f", {STATISTICS[at[1]]}" if array.ndim > 1 else ""
    return f"bin {first + at[0]}{statistic}", f"{said[at]:.6g}", f"{due[at]:.6g}"


def _columns(array: zarr.Array[Any], rows: int, skip: int) -> tuple[slice, ...]:
    """Columns of `array`, all of them where that many rows fit."""
    dims = list(array.shape[skip:])
    while dims and rows * 8 * int(np.prod(dims)) > HELD_BYTES and max(dims) > 1:
        widest = dims.index(max(dims))
        dims[widest] = -(-dims[widest] // 2)
    return tuple(slice(0, n) for n in dims)


def _stacked(bins: Pooled) -> np.ndarray:
    return np.stack([bins.mean, bins.least, bins.greatest, bins.valid], axis=1)


def _close(said: np.ndarray, due: np.ndarray) -> np.ndarray:
    """Equal to float32's precision, measured by the largest value of the bin: a mean of values of
    both signs may be small.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.fmax(np.abs(due[:, 1]), np.abs(due[:, 2]))[:, None]
        near = np.abs(said - due) <= CLOSE * np.nan_to_num(size, nan=0.0) + 1e-30
    return near | (said == due) | (np.isnan(said) & np.isnan(due))
