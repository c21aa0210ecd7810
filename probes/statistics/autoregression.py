"""Autoregression: noise that remembers, AR(1), and how much memory a short curve may have.

Needs   residuals (draw, checkpoint), any unit, from some fit to a curve.
Yields  the lag-1 correlation that is still plausible, and the spread of the noise behind it.

x_t = phi x_(t-1) + e_t, stationary. A fit to a short curve takes part of its noise away, the more
the longer the noise remembers: the residuals then look less correlated, and smaller, than the
noise was. Both losses are known by letting the same fit work on noise of known phi (`Losses`), and
undone.

phi is not the best guess but the largest that is plausible: noise with more memory makes more and
steeper wanderings, so that a test which grants too much of it errs on the safe side. A bound above
which the true phi lies in at most 5 % of cases keeps such a test near its level (Berger & Boos
1994, J. Am. Stat. Assoc. 89); the best guess does not: with it, tried on 25 checkpoints of noise
with phi = 0.8, a test at 5 % alarmed in 21 to 36 %.

It counts checkpoints, not steps: where the gaps differ, phi is that of a typical gap.

Source: bias of short series, Kendall 1954; matching by simulation, Gouriéroux et al. 1993.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probes.statistics.resample import Floats

MEMORY = np.array([-0.2, *np.arange(0.0, 0.96, 0.05), 0.97, 0.985])
"""Values of phi that are considered; nearer to 1 noise is a random walk, which any step fits."""

MISSED = 0.05
"""How often the true phi may lie above the plausible one."""

DRAWS = 400
"""Draws of noise at each phi from which the losses are read."""


def noise(phi: float, checkpoints: int, draws: int, seed: int) -> Floats:
    """(draw, checkpoint): stationary AR(1) noise of standard deviation 1.

    Example:
        >>> x = noise(0.8, 5000, 1, seed=0)[0]
        >>> [round(v, 1) for v in (x.std().item(), np.corrcoef(x[1:], x[:-1])[0, 1].item())]
        [1.0, 0.8]
    """
    innovation = np.random.default_rng(seed).normal(size=(draws, checkpoints))
    series = np.empty_like(innovation)
    series[:, 0] = innovation[:, 0]
    for now in range(1, checkpoints):
        series[:, now] = phi * series[:, now - 1] + np.sqrt(1 - phi**2) * innovation[:, now]
    return series


def memory(residuals: Floats) -> Floats:
    """(draw,): lag-1 correlation as it is in each row; 0 where the row is all zeros."""
    power = (residuals**2).sum(axis=1)
    lagged = (residuals[:, 1:] * residuals[:, :-1]).sum(axis=1)
    return np.divide(lagged, power, out=np.zeros(len(power)), where=power > 0)


@dataclass(frozen=True)
class Losses:
    """What a fit leaves of AR(1) noise, for each phi in MEMORY."""

    memory: Floats
    """Lag-1 correlation of the residuals, that is undercut in MISSED of the draws."""

    spread: Floats
    """Root mean square of the residuals over that of the noise, median."""

    @classmethod
    def of(cls, residuals_of: Callable[[Floats], Floats], checkpoints: int) -> Losses:
        """The losses of the fit `residuals_of`: curves (draw, checkpoint) to their residuals."""
        lowest, spread = [], []
        for phi in MEMORY:
            left = residuals_of(noise(float(phi), checkpoints, DRAWS, seed=5))
            lowest.append(np.quantile(memory(left), MISSED))
            spread.append(np.median(np.sqrt((left**2).mean(axis=1))))
        # Strictly rising, so that it can be read backwards.
        rising = np.maximum.accumulate(lowest) + 1e-9 * np.arange(len(MEMORY))
        return cls(rising, np.array(spread))

    def undone(self, residuals: Floats) -> tuple[float, float]:
        """(largest plausible phi, spread of the noise) behind the residuals (1, checkpoint)."""
        phi = float(np.interp(memory(residuals)[0], self.memory, MEMORY))
        kept = float(np.interp(phi, MEMORY, self.spread))
        return phi, float(np.sqrt((residuals**2).mean())) / max(kept, 1e-6)
