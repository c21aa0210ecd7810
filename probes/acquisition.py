"""Acquisition: the age at which a capability was half acquired, from a logistic fit.

Needs   a capability dataset of one task: correct (checkpoint, item), chance.
Yields  Acquisition: age (step of the 50 % crossing), 95 % interval in steps, width of the rise, the
        plateau.

Model. The number of items answered right at a checkpoint is binomial with the probability
    chance + (1 - chance) * plateau * logistic((step - age) / scale),
plateau in (0, 1], scale > 0: at `age` half of the way from guessing to the task's own plateau is
done. It is fitted by maximum likelihood (scipy.optimize.minimize). The onset, by contrast, is a
crossing of a fixed level: a task that ends at 0.4 has an age, and no onset at 0.5.

Interval. Percentiles over draws of items, each the same at every checkpoint, so that the likeness
of an item to itself over time counts; every draw is fitted anew by Fisher scoring from the first
fit. It answers "other items, same training run". A rise that is over within a gap between two
checkpoints lies anywhere in it: the interval then takes in the gap but for 2.5 % at either end.

Refused, with the reason in place of a number: a task that does not rise (its plateau's likelihood
ratio against the best constant has p over 0.01); one of which more than a quarter was there at the
first checkpoint, or less than half at the last, where a fit would extrapolate.

It misleads where the course is not logistic: on a rise in two stages the age lies between them.
Compare `share_explained`, of the deviance that a constant leaves.

Source: age of acquisition of words in language models, Chang & Bergen 2022, arXiv:2110.02406;
there of the surprisal, here of the answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import optimize, special, stats

from probes.inputs.item_curves import ItemCurves
from probes.statistics.resample import CONFIDENCE, Floats, percentile_interval

FITS = 300
"""Draws of items that are fitted."""

RISES = 0.01
"""The p at or under which a task is said to rise."""

BEGUN = 1 / 4
"""Share of the rise that may be done at the first checkpoint: what came before is extrapolated."""

ROUNDS = 25
"""Rounds of Fisher scoring of a draw; it starts at the fit to all items, and needs about 6."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Acquisition:
    """When a capability was half acquired, or why that cannot be said."""

    task: str
    """Which task."""

    age: float
    """Step at which half of the way from guessing to the plateau is done; NaN where refused."""

    low: float
    """Lower end of the 95 % interval, steps."""

    high: float
    """Upper end, steps."""

    width: float
    """Steps from 10 % to 90 % of the rise."""

    plateau: float
    """Chance-normalised accuracy to which it rises."""

    share_explained: float
    """Share of the deviance that the fit takes away from that of a constant, 0 to 1."""

    p: float
    """Likelihood ratio test of the rise against a constant (chi-squared, 3 degrees of freedom)."""

    reason: str = ""
    """Why there is no age; empty where there is one."""

    def __repr__(self) -> str:
        if self.reason:
            return f"Acquisition({self.task}: no age; {self.reason})"
        return (
            f"Acquisition({self.task}: half acquired at step {self.age:.0f}, 95 % {self.low:.0f} "
            f"to {self.high:.0f}; 10 to 90 % in {self.width:.0f} steps, to {self.plateau:.2f})"
        )


def age_of_acquisition(skill: xr.Dataset, *, n_boot: int = FITS, seed: int = 0) -> Acquisition:
    """The step at which half of a capability was acquired; model and refusals in the file's head.

    Args:
        skill: what `capability` returned, of one task: (checkpoint, item).
        n_boot, seed: draws of items, and their seed.

    Returns:
        Acquisition, in optimizer steps.

    Raises:
        As `onset`.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> from probes.capability import capability
        >>> skill = {"code/add": PlantedSkill("logistic", at=500, width=300)}
        >>> found = age_of_acquisition(capability(evaluations_record(skill), task="code/add"))
        >>> found.low <= 500 <= found.high, found.reason
        (True, '')
    """
    curves = ItemCurves.of(skill, n_boot, seed)
    clock, last = curves.steps - curves.steps[0], curves.steps[-1] - curves.steps[0]
    course = _Course(clock / last, curves.chance, curves.n)
    fitted, deviance = course.fit(curves.right[0])
    constant = course.deviance_of_constant(curves.right[0])
    p = float(stats.chi2.sf(max(constant - deviance, 0.0), 3))
    middle, scale, plateau = _natural(fitted)
    found = Acquisition(
        task=curves.task,
        age=float(curves.steps[0] + middle * last),
        low=float("nan"),
        high=float("nan"),
        width=float(2 * np.log(9) * scale * last),
        plateau=float(plateau),
        share_explained=float(1 - deviance / constant) if constant > 0 else 0.0,
        p=p,
    )
    reason = _refusal(curves, p, float(middle), float(special.expit(-middle / scale)))
    if reason:
        nothing = dict.fromkeys(("age", "width", "plateau"), float("nan"))
        return Acquisition(**{**vars(found), **nothing, "reason": reason})
    draws = course.refit(fitted, curves.right[1:])
    ages = curves.steps[0] + _natural(draws)[0] * last
    low, high = percentile_interval(ages, curves.n, of_mean=False)
    if found.width < np.diff(curves.steps).max():
        low, high = _with_its_gap(curves.steps, found, float(low), float(high))
    return Acquisition(**{**vars(found), "low": float(low), "high": float(high)})


def _refusal(curves: ItemCurves, p: float, middle: float, begun: float) -> str:
    accuracy = curves.accuracy[0]
    third = max(len(accuracy) // 3, 1)
    if len(accuracy) < 4:
        return f"{len(accuracy)} checkpoints; a rise has three numbers and needs 4"
    if p > RISES or accuracy[-third:].mean() <= accuracy[:third].mean():
        return "it does not rise"
    if middle < 0:
        return "half of it was there before the first checkpoint"
    if middle > 1:
        return "it has not come half way by the last checkpoint"
    if begun > BEGUN or accuracy[:2].mean() > BEGUN * accuracy.max():
        return "too much of it was there at the first checkpoint"
    return ""


def _with_its_gap(
    steps: Floats, found: Acquisition, low: float, high: float
) -> tuple[float, float]:
    """Where the rise is over within a gap, its middle is anywhere in it: 95 % of the gap."""
    after = int(np.clip(np.searchsorted(steps, found.age), 1, len(steps) - 1))
    gap = float(steps[after] - steps[after - 1])
    if found.width < gap:
        cut = (1 - CONFIDENCE) / 2 * gap
        return min(low, float(steps[after - 1]) + cut), max(high, float(steps[after]) - cut)
    return low, high


def _natural(parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """(middle, scale, plateau) in windows, from (..., [middle, ln scale, logit plateau])."""
    return parameters[..., 0], np.exp(parameters[..., 1]), special.expit(parameters[..., 2])


@dataclass(frozen=True)
class _Course:
    """The logistic course on one clock, in windows, and its binomial likelihood."""

    clock: Floats
    chance: float
    n: int

    @property
    def bounds(self) -> list[tuple[float, float]]:
        # A rise in a tenth of a gap cannot be told from a sharper one.
        return [(-1.0, 2.0), (float(np.log(np.diff(self.clock).min() / 40)), 1.0), (-6.0, 8.0)]

    def probability(self, parameters: Floats) -> tuple[Floats, Floats]:
        """(draw, checkpoint) and its derivative (draw, checkpoint, 3)."""
        middle, scale, plateau = (x[:, None] for x in _natural(parameters))
        z = (self.clock - middle) / scale
        done = special.expit(z)
        slope = done * (1 - done)
        height = (1 - self.chance) * plateau
        derivative = np.stack(
            [-height * slope / scale, -height * slope * z, height * (1 - plateau) * done], axis=-1
        )
        return np.clip(self.chance + height * done, 1e-6, 1 - 1e-6), derivative

    def loss(self, parameters: Floats, right: Floats) -> tuple[float, Floats]:
        p, derivative = (x[0] for x in self.probability(parameters[None]))
        value = -self.n * (right * np.log(p) + (1 - right) * np.log1p(-p)).sum()
        return float(value), -self.n * ((right - p) / (p * (1 - p))) @ derivative

    def fit(self, right: Floats) -> tuple[Floats, float]:
        """(parameters, deviance) of the share right (checkpoint,)."""
        top = np.clip((right.max() - self.chance) / (1 - self.chance), 0.05, 0.98)
        starts = [
            np.array([middle, np.log(width / 4.4), special.logit(top)])
            for middle in np.linspace(0.05, 0.95, 10)
            for width in (0.05, 0.4)
        ]
        # From the likeliest starts only: the likelihood has a second mode where noise looks steep.
        starts.sort(key=lambda start: self.loss(start, right)[0])
        fits = [
            optimize.minimize(
                self.loss, start, args=(right,), jac=True, method="L-BFGS-B", bounds=self.bounds
            )
            for start in starts[:3]
        ]
        best = min(fits, key=lambda fit: fit.fun)
        return best.x, 2 * (float(best.fun) - self._saturated(right))

    def refit(self, start: Floats, right: Floats) -> Floats:
        """(draw, 3): the fit to each draw's share right, by damped Fisher scoring."""
        now = np.repeat(start[None], len(right), axis=0)
        low, high = np.array(self.bounds).T
        damping = np.full(len(right), 1e-3)
        value = self._log_likelihood(now, right)
        for _ in range(ROUNDS):
            p, derivative = self.probability(now)
            weight = self.n / (p * (1 - p))
            information = np.einsum("dc,dci,dcj->dij", weight, derivative, derivative)
            score = np.einsum("dc,dci->di", weight * (right - p), derivative)
            scale = np.trace(information, axis1=1, axis2=2) * damping + 1e-9
            step = np.linalg.solve(information + scale[:, None, None] * np.eye(3), score[..., None])
            tried = np.clip(now + step[..., 0], low, high)
            gained = self._log_likelihood(tried, right)
            # Where the data say nothing of a parameter, the sharpness of a jump, a step may
            # overshoot: it is then taken back, and the next is shorter.
            better = gained > value
            done = not (gained > value + 1e-9).any() and damping.min() > 1e-2
            now = np.where(better[:, None], tried, now)
            value = np.where(better, gained, value)
            damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e3)
            if done:
                break
        return now

    def _log_likelihood(self, parameters: Floats, right: Floats) -> Floats:
        p = self.probability(parameters)[0]
        return np.asarray((right * np.log(p) + (1 - right) * np.log1p(-p)).sum(axis=1))

    def deviance_of_constant(self, right: Floats) -> float:
        mean = np.clip(right.mean(), 1e-6, 1 - 1e-6)
        value = -self.n * (right * np.log(mean) + (1 - right) * np.log1p(-mean)).sum()
        return 2 * (float(value) - self._saturated(right))

    def _saturated(self, right: Floats) -> float:
        return float(
            -self.n * (special.xlogy(right, right) + special.xlog1py(1 - right, -right)).sum()
        )
