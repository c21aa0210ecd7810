"""Resample: what the same probe would have read on another draw of items, or of stretches of text.

Needs   the number of units (items, blocks of text) that were drawn independently.
Yields  weights (draw, unit): how often each unit is in each bootstrap draw; and intervals.

One draw of units serves every checkpoint, because every checkpoint was measured on the same units;
differences between checkpoints then keep their (smaller) paired uncertainty.

Source: Efron 1979; the small-sample widening is the expanded percentile interval of Hesterberg
2015, arXiv:1411.5279; Student's t for few units, Student 1908.
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

FEW_UNITS = 10
"""Under this many units the quantiles of a bootstrap are too narrow, at two units by half."""

OF_MEAN = "expanded percentile; Student's t under 10 of them, none under 2"
NOT_OF_MEAN = "expanded percentile; none under 10 of them"
"""How `percentile_interval` bounds what is a mean, and what is none, for `interval` attributes."""


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


def percentile_interval(
    draws: Floats,
    n_units: int,
    confidence: float = CONFIDENCE,
    *,
    of_mean: bool = True,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Floats:
    """(2, ...): lower and upper bound from draws (draw, ...). NaN where no draw is defined.

    Where some draws are undefined the quantiles are taken over the others. From fewer than two
    units there are no bounds: NaN. From fewer than ten the quantiles of the draws are too narrow
    however far out they are taken (two units have three different draws): bounds of a mean are
    Student's t around it, with the spread of the draws; whatever is no mean has none.

    Args:
        n_units: units that were drawn.
        of_mean: whether it is a mean, or a ratio or smooth function of means, over units; and not
            a count, a maximum, a threshold or a fit.
        within: the range of the quantity; bounds are cut to it.

    Example:
        >>> draws = bootstrap_weights(3, 4000) @ np.array([1.0, 2.0, 3.0]) / 3
        >>> np.round(percentile_interval(draws, 3), 1).tolist()  # scipy.stats.t.interval
        [-0.5, 4.5]
    """
    undefined = np.full((2, *draws.shape[1:]), np.nan)
    if n_units < 2 or (n_units < FEW_UNITS and not of_mean):
        return undefined
    missing = np.isnan(draws).any()
    if n_units >= FEW_UNITS and not missing:
        return np.quantile(draws, tails(n_units, confidence), axis=0).clip(*within)
    defined = ~np.isnan(draws).all(axis=0)
    kept, bounds = draws[:, defined], undefined
    if n_units < FEW_UNITS:
        # The spread of a bootstrap of n units is too small by sqrt((n - 1) / n).
        error = np.nanstd(kept, axis=0) * np.sqrt(n_units / (n_units - 1))
        found = student_bounds(np.nanmean(kept, axis=0), error, n_units, confidence)
    else:
        found = np.nanquantile(kept, tails(n_units, confidence), axis=0)
    bounds[:, defined] = found.clip(*within)
    return bounds


def student_bounds(
    mean: Floats, standard_error: Floats, n_units: int, confidence: float = CONFIDENCE
) -> Floats:
    """(2, ...): Student's t bounds of a mean over `n_units` units.

    Example:
        >>> np.round(student_bounds(np.array(2.0), np.array(3**-0.5), 3), 2).tolist()
        [-0.48, 4.48]
    """
    half = stats.t.ppf((1 + confidence) / 2, n_units - 1) * standard_error
    return np.stack([mean - half, mean + half])


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
