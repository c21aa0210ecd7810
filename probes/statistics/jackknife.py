"""Jackknife: an estimate with its bias taken off and an interval, from sums over blocks of text.

Needs   sums (block, ...) whose total the statistic is a function of.
Yields  estimate, low, high: the statistic less its bias, and a 95 % interval by Student's t.

Each block is left out once. Sums of counts are biased by their finite number and by the likeness of
tokens of one text; leaving whole texts out sees both, where formulas such as Miller and Madow's see
the first alone. With one block there is nothing to leave out: NaN.

Sources: Quenouille 1956; Tukey 1958; Miller 1974, Biometrika 61(1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probes.statistics.resample import CONFIDENCE

Floats = NDArray[np.float64]


def jackknife(
    sums: Floats, statistic: Callable[[Floats], Floats], confidence: float = CONFIDENCE
) -> tuple[Floats, Floats, Floats]:
    """(estimate, low, high) of `statistic(total)`, where total is the sum over blocks.

    Args:
        sums: (block, ...).
        statistic: takes (block, ...) totals and gives (block, ...) numbers, block by block.

    Example:
        >>> sums = np.array([[1.0, 4], [3, 4], [2, 4], [2, 4]])
        >>> ends = jackknife(sums, lambda total: total[..., 0] / total[..., 1])
        >>> [round(float(x), 3) for x in ends]
        [0.5, 0.175, 0.825]
    """
    blocks = len(sums)
    total = sums.sum(axis=0, dtype=np.float64)
    whole = statistic(total[None])[0]
    if blocks < 2:
        undefined = np.full_like(whole, np.nan)
        return whole, undefined, undefined
    without = statistic(total[None] - sums)
    mean = without.mean(axis=0)
    estimate = blocks * whole - (blocks - 1) * mean
    half = half_width(without, confidence)
    return estimate, estimate - half, estimate + half


def half_width(without: Floats, confidence: float = CONFIDENCE) -> Floats:
    """(...): half of the interval, of the statistic with each block left out (block, ...).

    Example:
        >>> half_width(np.array([1.0])).item()
        nan
    """
    blocks = len(without)
    if blocks < 2:
        return np.full(without.shape[1:], np.nan)
    apart = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    error = np.sqrt((blocks - 1) / blocks * apart)
    return np.asarray(stats.t.ppf((1 + confidence) / 2, blocks - 1) * error)
