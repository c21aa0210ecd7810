"""Information: how much one label of a token says about another, from their joint counts.

Needs   joint counts (..., label, other).
Yields  mutual information in bits, plug-in; Miller and Madow's bias of it; p-values.

The plug-in estimate is too high: labels that have nothing to do with each other still agree by
accident. To first order, and for independent tokens, by (I - 1)(J - 1) / (2 N ln 2) bits.

Sources: Shannon 1948; Miller 1955; Panzeri & Treves 1996, Network 7(1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mutual_information(joint: Floats) -> Floats:
    """(...), bits, at least 0; NaN where nothing was counted.

    Args:
        joint: (..., label, other), counts or weights of any total.

    Example:
        >>> float(mutual_information(np.array([[4.0, 0], [0, 4]])))
        1.0
    """
    total = joint.sum(axis=(-2, -1), dtype=np.float64)
    cells = _n_log_n(joint).sum(axis=(-2, -1), dtype=np.float64)
    rows = _n_log_n(joint.sum(axis=-1, dtype=np.float64)).sum(axis=-1)
    columns = _n_log_n(joint.sum(axis=-2, dtype=np.float64)).sum(axis=-1)
    bits = cells - rows - columns + _n_log_n(total)
    found = np.divide(bits, total, out=np.full_like(total, np.nan), where=total > 0)
    return np.maximum(found, 0)


def entropy(counts: Floats) -> Floats:
    """(...), bits, of counts (..., label); NaN where nothing was counted.

    Example:
        >>> float(entropy(np.array([4.0, 4, 4, 4])))
        2.0
    """
    total = counts.sum(axis=-1, dtype=np.float64)
    bits = _n_log_n(total) - _n_log_n(counts).sum(axis=-1, dtype=np.float64)
    return np.divide(bits, total, out=np.full_like(total, np.nan), where=total > 0)


def miller_madow(joint: Floats) -> Floats:
    """(...), bits: (I - 1)(J - 1) / (2 N ln 2), I and J the labels that occur at all.

    Example:
        >>> round(float(miller_madow(np.full((2, 2), 25.0))), 5)
        0.00721
    """
    total = joint.sum(axis=(-2, -1), dtype=np.float64)
    rows = (joint.sum(axis=-1) > 0).sum(axis=-1)
    columns = (joint.sum(axis=-2) > 0).sum(axis=-1)
    room = (rows - 1) * (columns - 1) / (2 * np.log(2))
    return np.divide(room, total, out=np.full_like(total, np.nan), where=total > 0)


PER_CELL = 10
"""Counts that a cell of the table needs on average for the bias to be taken off it."""


def too_thin(joint: Floats) -> NDArray[np.bool_]:
    """(...): whether the counts are too few for their table: under 10 a cell, on average.

    There the bias is as large as what is sought, and neither a formula nor the jackknife takes it
    off; only a comparison with a null has a meaning.

    Example:
        >>> bool(too_thin(np.full((2, 2), 9.0)))
        True
    """
    rows = (joint.sum(axis=-1) > 0).sum(axis=-1)
    columns = (joint.sum(axis=-2) > 0).sum(axis=-1)
    return np.asarray(joint.sum(axis=(-2, -1)) < PER_CELL * rows * columns)


def p_value(found: Floats, null: Floats) -> Floats:
    """(...): share of draws under the null (draw, ...) at least as large, the finding among them.

    Example:
        >>> float(p_value(np.array(0.9), np.array([0.1, 0.2, 0.3])))
        0.25
    """
    # Rounding must not decide between two arrangements that are truly equal.
    as_large = null >= found - 1e-12
    p = (1 + as_large.sum(axis=0)) / (1 + len(null))
    return np.where(np.isnan(found), np.nan, p)


def _n_log_n(n: Floats) -> Floats:
    n = np.asarray(n, dtype=np.float64)
    logs = np.log2(np.maximum(n, np.finfo(np.float64).tiny))
    return np.asarray(logs * n)
