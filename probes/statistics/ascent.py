"""Ascent: a learning curve with its noise smoothed out, where it crosses a level, how steeply.

Needs   curves (draw, checkpoint), any unit; the first row is the data, the others its bootstrap.
Yields  the monotone curve nearest to each; its crossing of a level, steps; the share of its rise
        that falls into the steepest stretch of a given length, fraction.

A curve is read through its isotonic fit: the non-decreasing curve with the least squared error.
The fit is at or over a level from a checkpoint on exactly when every stretch that starts there
averages at least the level: "it stays above", said without being fooled by one noisy checkpoint.

Sources: isotonic regression, Barlow et al. 1972; linearity and breakthroughness, BIG-bench,
Srivastava et al. 2022, arXiv:2206.04615, with checkpoints of one run in the place of model sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from probes.statistics.resample import Floats


def monotone(curves: Floats) -> Floats:
    """(draw, checkpoint): each row's isotonic fit, non-decreasing along the checkpoints.

    Example:
        >>> monotone(np.array([[0.0, 0.4, 0.2, 1.0]])).round(3).tolist()
        [[0.0, 0.3, 0.3, 1.0]]
    """
    return np.stack([isotonic_regression(row).x for row in curves])


def crossings(fits: Floats, steps: Floats, level: float) -> tuple[Floats, Floats, Floats]:
    """Where each monotone row first reaches `level`: (step, gap's left end, gap's right end).

    The step is interpolated linearly in the gap between two checkpoints. A row that never reaches
    it gives (inf, last checkpoint, inf); one that starts at or above gives the first checkpoint
    three times.

    Example:
        >>> step, left, right = crossings(np.array([[0.0, 0.4, 0.8]]), np.array([0, 10, 20]), 0.5)
        >>> step.item(), left.item(), right.item()
        (12.5, 10.0, 20.0)
    """
    below = (fits < level).sum(axis=1)
    last = len(steps) - 1
    after, before = np.minimum(below, last), np.clip(below - 1, 0, last)
    rows = np.arange(len(fits))
    left, right = steps[before].astype(np.float64), steps[after].astype(np.float64)
    rise = fits[rows, after] - fits[rows, before]
    part = np.divide(level - fits[rows, before], rise, out=np.zeros(len(fits)), where=rise > 0)
    step = left + np.clip(part, 0, 1) * (right - left)
    never = below > last
    step[never], right[never] = np.inf, np.inf
    return step, left, right


@dataclass(frozen=True)
class Stretches:
    """All stretches of one length on a clock of checkpoints, as seen from inside and outside.

    Between two checkpoints a curve is unknown. The rise between two checkpoints at most `length`
    apart surely fell into one stretch (inside); any stretch lies between two checkpoints that
    enclose it (outside), so that no more than their rise can have fallen into it.
    """

    begin: NDArray[np.intp]
    """(stretch,): the checkpoint at which each begins."""

    inside: NDArray[np.intp]
    """(stretch,): the last checkpoint no further than `length` from `begin`."""

    outside: NDArray[np.intp]
    """(stretch,): the first checkpoint that no stretch starting in the gap after `begin` passes."""

    around: NDArray[np.intp]
    """(2, stretch): the checkpoints that bound the stretch's surroundings, three lengths long."""

    @classmethod
    def of(cls, steps: Floats, length: float) -> Stretches:
        """The stretches of `length` steps on these checkpoints."""
        last = len(steps) - 1
        slack = 1e-9 * (steps[-1] - steps[0])
        begin = np.arange(last)
        inside = np.searchsorted(steps, steps[begin] + length + slack, side="right") - 1
        outside = np.searchsorted(steps, steps[begin + 1] + length - slack, side="left")
        # One length to either side; at an edge of the clock the surroundings move in, not shrink.
        start = np.clip(steps[begin] - length, steps[0], max(steps[-1] - 3 * length, steps[0]))
        low = np.searchsorted(steps, start + slack, side="right") - 1
        high = np.searchsorted(
            steps, np.minimum(start + 3 * length, steps[-1]) - slack, side="left"
        )
        return cls(
            begin, inside, np.minimum(outside, last), np.stack([low, np.minimum(high, last)])
        )

    def rise_inside(self, fits: Floats) -> Floats:
        """(draw, stretch): rise that surely fell into one stretch that begins here."""
        return fits[:, self.inside] - fits[:, self.begin]

    def rise_outside(self, fits: Floats) -> Floats:
        """(draw, stretch): rise that at most fell into a stretch that begins in the next gap."""
        return fits[:, self.outside] - fits[:, self.begin]

    def rise_around(self, fits: Floats) -> Floats:
        """(draw, stretch): rise of the surroundings."""
        return fits[:, self.around[1]] - fits[:, self.around[0]]


def share(part: Floats, whole: Floats, unknown: float) -> Floats:
    """part / whole in [0, 1]; `unknown` where there is no rise to share out."""
    part, whole = np.broadcast_arrays(part, whole)
    fraction = np.divide(part, whole, out=np.full(part.shape, unknown), where=whole > 1e-9)
    return np.clip(fraction, 0, 1)


def linearity(curve: Floats) -> float:
    """BIG-bench linearity, I / RMS(Δy): over n gaps, n for a straight line, sqrt(n) for a step.

    Example:
        >>> round(linearity(np.linspace(0, 1, 5)), 6)
        4.0
    """
    return _improvement(curve, float(np.sqrt(np.mean(np.diff(curve) ** 2))))


def breakthroughness(curve: Floats) -> float:
    """BIG-bench breakthroughness, I / sqrt(median Δy²): large where most gaps see no change.

    It grows as the noise shrinks and as checkpoints get denser: compare it only between curves
    with the same items and checkpoints. inf where over half of the gaps see no change at all.

    Example:
        >>> breakthroughness(np.array([0.0, 0.0, 0.0, 1.0, 1.0]))
        inf
    """
    return _improvement(curve, float(np.sqrt(np.median(np.diff(curve) ** 2))))


def _improvement(curve: Floats, typical: float) -> float:
    gain = np.sign(int(np.argmax(curve)) - int(np.argmin(curve))) * float(np.ptp(curve))
    if gain == 0:
        return 0.0
    return float(gain / typical) if typical > 0 else float(np.sign(gain) * np.inf)
