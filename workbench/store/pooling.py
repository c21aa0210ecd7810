"""Pooling: the statistics of many rows from those of few.

Needs   rows, or bins of rows: each bin's mean, least and greatest value, and how many rows had one.
Yields  `pool_rows`, `pool`: the same of wider bins; `segments`, `rows_a_bin`: which bins to take.

A value that is missing (NaN, or -1 in integers) counts for nothing; a bin without any value has
NaN. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVELS = (32, 256, 2048, 16384)
"""Rows of a stored bin, level by level; each is eight times as wide as the one before it."""
STATISTICS = ("mean", "min", "max", "valid")
"""As stored, in this order."""


class Pooled(NamedTuple):
    """The statistics of consecutive bins, each (bin, ...) float64."""

    mean: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    valid: np.ndarray


def pool_rows(rows: np.ndarray) -> Pooled:
    """Every row as a bin of its own; what is missing (NaN, or -1 in integers) counts for nothing.

    Example:
        >>> pool_rows(np.array([3, -1])).valid
        array([1., 0.])
    """
    there = ~np.isnan(rows) if rows.dtype.kind == "f" else rows != -1
    values = np.where(there, rows, np.nan)
    return Pooled(values, values, values, there.astype(np.float64))


def pool(bins: Pooled, starts: np.ndarray) -> Pooled:
    """Wider bins: the first begins at bins[starts[0]], the second at bins[starts[1]], ...

    Example:
        >>> pool(pool_rows(np.array([1.0, np.nan, 3.0, 5.0])), np.array([0, 2])).mean
        array([1., 4.])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        complete = bins.valid.min(initial=1) > 0
        weighed = bins.mean * bins.valid
        total = _reduced(
            np.add, weighed if complete else np.where(bins.valid > 0, weighed, 0.0), starts
        )
        valid = _reduced(np.add, bins.valid, starts)
        mean = total / valid
    least: np.ufunc = np.minimum if complete else np.fmin
    greatest: np.ufunc = np.maximum if complete else np.fmax
    return Pooled(
        mean, _reduced(least, bins.least, starts), _reduced(greatest, bins.greatest, starts), valid
    )


def _reduced(how: np.ufunc, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`how.reduceat(values, starts)`; bins of equal width, the usual ones, ten times as fast."""
    width, rest = divmod(len(values), max(len(starts), 1))
    if rest or not width or starts[0] or (np.diff(starts) != width).any():
        return how.reduceat(values, starts)
    return how.reduce(values.reshape(-1, width, *values.shape[1:]), axis=1)


def segments(
    first: int, stop: int, levels: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """The rows from `first` up to `stop` as stretches of whole bins, each as wide as there is.

    Args:
        levels: (rows of a bin, bins that are stored), the widest first.

    Returns:
        (rows of a bin, first bin, bin after the last), in the order of the rows; 1: rows as such.

    Example:
        >>> segments(30, 130, [(32, 3)])
        [(1, 30, 32), (32, 1, 3), (1, 96, 130)]
    """
    if first >= stop:
        return []
    if not levels:
        return [(1, first, stop)]
    (level, bins), *finer = levels
    a, b = -(-first // level), min(stop // level, bins)
    if a >= b:
        return segments(first, stop, finer)
    left, right = segments(first, a * level, finer), segments(b * level, stop, finer)
    return [*left, (level, a, b), *right]


def rows_a_bin(rows: int, points: int) -> int:
    """Rows of a bin for a stretch of `rows`, so that about `points` bins show it.

    1 up to twice the points; then the narrowest of 8, 32, 256, 2048, ... of which no more than
    twice as many are needed. 8 is not stored: it is pooled from the rows themselves.

    Example:
        >>> [rows_a_bin(rows, 1000) for rows in (2_000, 8_000, 60_000, 1_000_000)]
        [1, 8, 32, 2048]
    """
    if rows <= 2 * points:
        return 1
    if rows <= 8 * points:
        return 8
    width = LEVELS[0]
    while rows > 2 * points * width:
        width *= 8
    return width
