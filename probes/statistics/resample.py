"""Resample: what the same probe would have read on another draw of items, or of stretches of text.

Needs   the number of units (items, blocks of text) that were drawn independently.
Yields  weights (draw, unit): how often each unit is in each bootstrap draw; and intervals.

One draw of units serves every checkpoint, because every checkpoint was measured on the same units;
differences between checkpoints then keep their (smaller) paired uncertainty.

Source: Efron 1979; the small-sample widening is the expanded percentile interval of Hesterberg
2015, arXiv:1411.5279.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""Confidence of every two-sided interval that a probe returns."""

BOOT = 1000
"""Bootstrap draws. At 1000 a 2.5 % quantile lies truly between 1.5 % and 3.5 %."""


def bootstrap_weights(n_units: int, n_boot: int = BOOT, seed: int = 0) -> Floats:
    """(draw, unit): multinomial counts; each row sums to `n_units`. Same seed, same draws.

    Example:
        >>> bootstrap_weights(10, n_boot=3).sum(axis=1)
        array([10., 10., 10.])
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_boot).astype(np.float64)


def tails(n_units: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two quantiles of the bootstrap draws that bound the interval, widened for few units.

    A bootstrap of n units has a spread that is too small by sqrt((n-1)/n), and quantiles of a
    normal where those of Student's t belong; the levels are moved outward to make up for both.
    At n = 20, 2.5 % becomes 1.6 %.

    Example:
        >>> [round(q, 3) for q in tails(1000)]
        [0.025, 0.975]
    """
    if n_units < 2:
        return 0.0, 1.0
    t = stats.t.ppf((1 - confidence) / 2, n_units - 1) * np.sqrt(n_units / (n_units - 1))
    low = float(stats.norm.cdf(t))
    return low, 1 - low


def percentile_interval(draws: Floats, n_units: int, confidence: float = CONFIDENCE) -> Floats:
    """(2, ...): lower and upper bound from draws (draw, ...). NaN where no draw is defined.

    Where some draws are undefined the quantiles are taken over the others.
    """
    low, high = tails(n_units, confidence)
    if not np.isnan(draws).any():
        return np.quantile(draws, [low, high], axis=0)
    defined = ~np.isnan(draws).all(axis=0)
    bounds = np.full((2, *draws.shape[1:]), np.nan)
    bounds[:, defined] = np.nanquantile(draws[:, defined], [low, high], axis=0)
    return bounds


def wilson(successes: Floats, n: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Wilson's score interval of a proportion; at 0 and at 1 it keeps a width, as it should.

    Args:
        successes, n: counts of the same shape; n = 0 gives (0, 1), all that is known.

    Source: Wilson 1927; recommended for small n by Brown, Cai & DasGupta 2001, Statist. Sci. 16(2).

    Example:
        >>> low, high = wilson(np.array([0.0]), np.array([20.0]))
        >>> round(low.item(), 3), round(high.item(), 3)
        (0.0, 0.161)
    """
    z = stats.norm.ppf((1 + confidence) / 2)
    n = np.asarray(n, dtype=np.float64)
    p = np.divide(successes, n, out=np.full(np.shape(n), 0.5), where=n > 0)
    centre = (n * p + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(n * p * (1 - p) + z**2 / 4) / (n + z**2)
    # Exactly 0 and 1 at the ends, where rounding would leave 1 - 1e-16.
    low = np.where(successes <= 0, 0.0, np.clip(centre - half, 0, 1))
    high = np.where(successes >= n, 1.0, np.clip(centre + half, 0, 1))
    return low, high
