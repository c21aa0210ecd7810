"""Bracket: the checkpoints between which a learning curve came to stay at a level, with confidence.

Needs   curves (draw, checkpoint), any unit; row 0 is the data, the others its bootstrap over items.
Yields  the two checkpoints of the bracket.

Two questions, each answered by a test that errs in at most SIDE = 10 % of cases over all
checkpoints.
  Too early?  If the curve is at the level from checkpoint j on, no stretch after j averages less.
              The onset lies after the last j at which some stretch is significantly below.
  Too late?   If a rising curve is still below the level at checkpoint j, no stretch that ends
              there averages more. The onset lies before the first j at which some stretch is
              significantly above.
Many stretches are looked at, so the most extreme of them is compared with the most extreme of the
same stretches in the bootstrap (max-t). Nothing is assumed of the curve between two checkpoints;
that it rises is assumed only by the second question, and only after the last fall.

A test errs about as often as that only where a curve runs on exactly at the level for long
(measured: 16 % for 20 checkpoints of 60 items at 0.500; 5 % at 0.52, 1 % at 0.55), and then only
the one on that side of the crossing. Elsewhere the bracket's ends, being checkpoints, lie beyond
where the tests would put them, and it holds more than it promises: 98 to 100 % on smooth rises.
Tests lax enough to bring that down to 95 % miss a plateau at 0.52 in 11 %, at 0.500 in a third.

A percentile interval of the crossing itself is narrower, but misses where the curve dwells near
the level: tried on planted plateaus at 0.55, it held the truth in 65 % of draws.

Source: max-t, Westfall & Young 1993; stretches as in the min-max form of isotonic regression,
Barlow et al. 1972; leaving out what is clear, Andrews & Soares 2010, Econometrica 78(1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probes.statistics.resample import CONFIDENCE, Floats

SIDE = 0.10
"""How often each of the two tests may err."""

CLEARLY = 2.0
"""Standard errors at which a stretch is clearly on the other side of the level. It is then left out
of what chance could do; sqrt(ln n) of n items, 2.0 to 2.3 for 60 to 200, is the usual choice."""


def bracket(curves: Floats, level: float, least_error: float) -> tuple[int, int]:
    """(last checkpoint before the onset, first checkpoint after it), as positions.

    Args:
        curves: (draw, checkpoint); row 0 the data.
        level: the level, in the curves' unit.
        least_error: smallest standard error to believe of one checkpoint, in the same unit. A
            bootstrap of items that are all right, or all wrong, has none.

    Returns:
        (-1, ...) where the onset may precede the first checkpoint, (..., number of checkpoints)
        where it may follow the last one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> curves = np.repeat([0.0, 0.0, 1.0, 1.0], 500).reshape(4, 500).T
        >>> bracket(curves + rng.normal(0, 0.05, curves.shape), 0.5, 0.01)
        (1, 2)
    """
    last = curves.shape[1]
    # From the last checkpoint backward: below the level in some stretch that starts here or later?
    backward = _extreme(level - curves[:, ::-1], least_error)
    below = np.flatnonzero(backward[::-1])
    before = int(below[-1]) if len(below) else -1
    forward = _extreme(curves[:, before + 1 :] - level, least_error)
    above = np.flatnonzero(forward)
    return before, int(above[0]) + before + 1 if len(above) else last


def _extreme(excess: Floats, least_error: float) -> NDArray[np.bool_]:
    """(checkpoint,): is a stretch that ends here or earlier significantly above zero?"""
    draws, checkpoints = excess.shape
    sums = np.concatenate([np.zeros((draws, 1)), np.cumsum(excess, axis=1)], axis=1)
    most = np.empty(checkpoints)
    most_by_chance = np.full(draws - 1, -np.inf)
    for end in range(1, checkpoints + 1):
        # Means of all stretches that end here; the longest first.
        means = (sums[:, [end]] - sums[:, :end]) / np.arange(end, 0, -1)
        error = np.maximum(means[1:].std(axis=0), least_error)
        most[end - 1] = (means[0] / error).max()
        # A stretch that lies clearly on the other side will not be the most extreme by chance.
        near = means[0] / error > -CLEARLY
        if near.any():
            by_chance = ((means[1:, near] - means[0, near]) / error[near]).max(axis=1)
            most_by_chance = np.maximum(most_by_chance, by_chance)
    # One bar for all checkpoints: a bar that rose with the stretches seen so far would be looked
    # over anew at each, and on a plateau at the level be passed three times as often as stated.
    bar = np.quantile(most_by_chance, 1 - SIDE, method="higher")
    # Few items that happen to agree must not pass for proof.
    bar = max(bar, stats.norm.ppf((1 + CONFIDENCE) / 2))
    return np.asarray(np.maximum.accumulate(most) > bar)
