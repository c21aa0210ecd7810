"""Smooth rise: the best account of a curve without any step in it.

Needs   curves (draw, checkpoint), any unit; the steps of the checkpoints.
Yields  the smooth monotone curve near each, and what it leaves over.

Smooth: a sum of rises, all up or all down, each of which takes at least SHORT = 1/5 of the window
for MOST = 2/3 of its way, wherever it begins; the same numbers as in the verdict (emergence.py).
The rises are straight, logistic, and Gompertz early and late; a sum of up to RISES of them comes
near any course that is nowhere steeper, also the end of a rise that began before the window. One
that rests between two stages, each as fast as allowed, it follows to within 8 % of the rise. The
sum is found greedily (matching pursuit), which is fast for thousands of curves at once.

Source: matching pursuit, Mallat & Zhang 1993, IEEE Trans. Signal Process. 41(12).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.statistics.resample import Floats

MOST = 2 / 3
"""Share of a rise that counts as most of it."""

SHORT = 1 / 5
"""Length of a short stretch, as a share of the evaluated window."""

RISES = 8
"""Rises that are summed up."""

CAUTION = 0.5
"""Share of its best height that each rise gets: none is taken back, so none may come too high."""

SLOWER = np.array([1.0, 1.4, 2.0, 3.0, 5.0])
"""Lengths of the rises, in SHORT."""

MIDDLES = np.linspace(-0.3, 1.3, 81)
"""Where the rises may lie, in windows: beyond its ends as well."""


@dataclass(frozen=True)
class SmoothRises:
    """Every smooth rise on one clock of checkpoints, each of mean 0 and length 1."""

    rises: Floats
    """(rise, checkpoint)."""

    @classmethod
    def on(cls, steps: Floats) -> SmoothRises:
        """The rises on these checkpoints (two or more, rising)."""
        clock = (steps - steps[0]) / (steps[-1] - steps[0])
        away = clock[None] - MIDDLES[:, None]
        shapes = [clock[None]]
        for length in SHORT * SLOWER:
            shapes.append(np.clip(away * MOST / length + 0.5, 0, 1))
            logistic = away * (4 * np.arctanh(MOST)) / length
            shapes.append(1 / (1 + np.exp(-np.clip(logistic, -500, 500))))
            skewed = np.clip(away * _gompertz_length() / length, -500, 500)
            shapes.append(np.exp(-np.exp(np.minimum(-skewed, 50))))
            shapes.append(1 - np.exp(-np.exp(np.minimum(skewed, 50))))
        every = np.concatenate(shapes)
        every = every - every.mean(axis=1, keepdims=True)
        length = np.linalg.norm(every, axis=1, keepdims=True)
        # A rise of which the window sees next to nothing is not smooth in what it sees.
        seen = length[:, 0] > 1e-3 * np.sqrt(len(steps))
        return cls(every[seen] / length[seen])

    def fit(self, curves: Floats) -> tuple[Floats, Floats]:
        """(smooth curve, what it leaves over), each (draw, checkpoint).

        Example:
            >>> clock = np.arange(25.0)
            >>> smooth, left = SmoothRises.on(clock).fit(clock[None] ** 2)
            >>> bool(abs(left).max() < 0.03 * np.ptp(smooth))
            True
        """
        left = curves - curves.mean(axis=1, keepdims=True)
        rows = np.arange(len(curves))
        direction = np.ones(len(curves))
        for number in range(RISES):
            along = left @ self.rises.T
            if number == 0:
                best = np.abs(along).argmax(axis=1)
                direction = np.sign(along[rows, best])
            else:
                best = (along * direction[:, None]).argmax(axis=1)
            height = along[rows, best]
            # Nothing left in this direction: the sum stands.
            height = np.where(height * direction > 0, height, 0.0)
            left = left - CAUTION * height[:, None] * self.rises[best]
        return curves - left, left


def _gompertz_length() -> float:
    """Shortest stretch that holds MOST of a Gompertz rise, in its scales."""
    begin = np.linspace(1e-3, 1 - MOST - 1e-3, 2000)
    ends = -np.log(-np.log(np.stack([begin, begin + MOST])))
    return float((ends[1] - ends[0]).min())
