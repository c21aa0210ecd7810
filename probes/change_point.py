"""Change point: where a curve breaks, and whether a smooth rise with noise would look so too.

Needs   a capability dataset of one task (accuracy or log-probability with its items), or any curve
        (checkpoint,) or (step,), any unit.
Yields  ChangePoint: the gap between two checkpoints in which the level of the curve changes most,
        its 95 % interval in steps, the size of the change, a p-value.

Location. The one split into two levels that leaves the least squared error (library ruptures,
KernelCPD with the linear kernel: exact, and 50 times faster than its binary segmentation, which
for one change finds the same). One, because on a smooth rise PELT with its usual penalty finds a
staircase: how many changes there are depends on the penalty, not on the curve. A change must last
for two checkpoints at least: one odd checkpoint, the last or the first included, is none.

Interval. From the 2.5 % quantile of the gaps' beginnings to the 97.5 % quantile of their ends, over
draws of items, each the same at every checkpoint; where there are no items, over draws of AR(1)
noise about the two levels. It holds whole gaps, since nothing is known between two checkpoints: for
a clear jump it is the gap itself, and then holds the truth in nearly 100 % of cases. It answers
"where is the break, if there is one"; on a smooth rise there is no truth for it to hold.

p-value. How often a smooth rise (smooth_rise.py: no stretch under 1/5 of the window holds 2/3 of
the rise; constant included) with AR(1) noise would favour a step at least as much as the curve
does: n ln(squared error of the best smooth rise / of the best step, with or without a straight
trend), simulated from the best smooth rise and the largest plausible memory of the noise
(autoregression.py). At a p of 0.05 false alarms, 25 checkpoints, are at most 5 % on one smooth rise
of any of these shapes and on AR(1) noise up to phi = 0.9; tests/probes/rates_emergence.py measures
them.

It misleads where noise is a random walk, which steps at every checkpoint; where the noise is much
larger in one part of the window than in another; on a smooth rise that rests between two fast
stages (false alarms in 20 to 30 %); and it cannot see two changes: the larger counts.
A p under 0.05 says "steeper than any smooth rise of the family", not "instantaneous": a straight
rise over 1/10 of the window is called a change in about half of the cases.

Sources: Truong, Oudre & Vayatis 2020, Signal Processing 167 (ruptures), arXiv:1801.00718; test of
two non-nested accounts by simulation, Williams 1970, J. R. Stat. Soc. B 32.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from probes.inputs.item_curves import ItemCurves
from probes.statistics.autoregression import Losses, memory, noise
from probes.statistics.resample import BOOT, Floats, tails
from probes.statistics.smooth_rise import SmoothRises
from workbench.errors import SchemaError, UsageError

LASTS = 2
"""Checkpoints for which a change must last."""

FEWEST = 8
"""Checkpoints under which smooth and sudden cannot be told apart: p is then NaN."""

ALPHA = 0.05
"""The p at or under which a change counts as found."""

NULL = 399
"""Simulated curves behind a p-value; the smallest p is 1 / (NULL + 1)."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ChangePoint:
    """Where a curve breaks, with a 95 % interval and the p of a smooth rise looking so."""

    curve: str
    """Which curve: task and quantity."""

    before: float
    """Last checkpoint before the change, steps."""

    after: float
    """First checkpoint after it, steps."""

    low: float
    """Lower end of the 95 % interval, steps."""

    high: float
    """Upper end, steps."""

    size: float
    """Level after less level before, in the curve's unit; a trend counts into it."""

    p: float
    """Share of smooth rises with AR(1) noise that look at least as broken; NaN: cannot tell."""

    statistic: float
    """n ln(squared error of the best smooth rise / of the best step)."""

    memory: float
    """phi of the AR(1) noise that was granted to the smooth rise."""

    checkpoints: int
    """Checkpoints of the curve."""

    @property
    def step(self) -> float:
        """Middle of the gap in which the change lies."""
        return (self.before + self.after) / 2

    @property
    def found(self) -> bool:
        """Is p at or under ALPHA?"""
        return self.p <= ALPHA

    def __repr__(self) -> str:
        p = "p unknown: too few checkpoints" if np.isnan(self.p) else f"p = {self.p:.3g}"
        return (
            f"ChangePoint({self.curve}: by {self.size:+.3g} between steps {self.before:.0f} and "
            f"{self.after:.0f}, 95 % {self.low:.0f} to {self.high:.0f}; {p})"
        )


def change_point(
    curve: xr.Dataset | xr.DataArray,
    of: str = "accuracy",
    *,
    n_boot: int = BOOT,
    n_null: int = NULL,
    seed: int = 0,
) -> ChangePoint:
    """Where a curve breaks most, with interval and p; rules in the file's head.

    Args:
        curve: what `capability` returned, of one task; or one curve with one dim, whose coordinate
            is its clock (checkpoint, step). Points that are NaN are passed over.
        of: "accuracy" (chance-normalised) or "logprob" of a capability dataset. The latter is cut
            off below at guessing, ln(chance): the leap by which a model learns which tokens are
            answers at all is the largest change of nearly every task, and none of the task's.
        n_boot: draws behind the interval. n_null: simulated curves behind p. seed: of both.

    Returns:
        ChangePoint. A curve without any variation has p = 1.

    Raises:
        UsageError: under 4 points, a clock out of order, an unknown `of`, several tasks.
        SchemaError: neither a capability dataset nor a curve with one dim.

    Example:
        >>> steps = np.arange(0, 1000, 40)
        >>> noise = np.random.default_rng(0).normal(0, 0.05, 25)
        >>> jump = xr.DataArray((steps > 500) + noise, coords={"step": steps})
        >>> found = change_point(jump)
        >>> (found.before, found.after), found.found
        ((480.0, 520.0), True)
        >>> change_point(jump.copy(data=steps / 1000 + noise)).found
        False
    """
    name, steps, draws, n_items, floor = _read(curve, of, n_boot, seed)
    if len(steps) < 2 * LASTS:
        raise UsageError(
            f"found {len(steps)} points in {name}; a change point needs {2 * LASTS}. Widen the "
            "window."
        )
    accounts = _accounts(tuple(steps))
    values = draws[0]
    gap = split(values)
    p, statistic, phi = _tested(accounts, values, floor, n_null, seed)
    if n_items is None:
        left = values - _levels(values, gap)
        spread = left.std() * np.sqrt(len(left) / (len(left) - 2))
        phi_here = float(np.clip(memory(left[None])[0], 0, 0.95))
        wandering = spread * noise(phi_here, len(steps), n_boot, seed)
        draws = _levels(values, gap)[None] + wandering
    gaps = np.array([gap, *(split(draw) for draw in draws[1:])])
    tail_low, tail_high = tails(len(steps) if n_items is None else n_items)
    low = np.quantile(steps[gaps], tail_low, method="lower")
    high = np.quantile(steps[gaps + 1], tail_high, method="higher")
    return ChangePoint(
        curve=name,
        before=float(steps[gap]),
        after=float(steps[gap + 1]),
        low=float(low),
        high=float(high),
        size=float(values[gap + 1 :].mean() - values[: gap + 1].mean()),
        p=p,
        statistic=statistic,
        memory=phi,
        checkpoints=len(steps),
    )


def split(values: Floats) -> int:
    """Position of the last point before the change of level that leaves the least squared error.

    Example:
        >>> split(np.array([0.0, 0.1, 0.0, 0.9, 1.0]))
        2
    """
    try:
        from ruptures import KernelCPD
    except ImportError as error:  # pragma: no cover
        raise UsageError(
            "change points need the library ruptures, which is not installed: pip install ruptures."
        ) from error
    found = KernelCPD(kernel="linear", min_size=LASTS).fit(values[:, None]).predict(n_bkps=1)
    return int(found[0]) - 1


def _levels(values: Floats, gap: int) -> Floats:
    """The curve as two levels."""
    sides = values[: gap + 1], values[gap + 1 :]
    return np.concatenate([np.full(len(side), side.mean()) for side in sides])


@dataclass(frozen=True)
class _Accounts:
    """The two accounts of a curve on one clock, and what the smooth one takes from noise."""

    smooth: SmoothRises
    trend: Floats
    """(checkpoint,): straight, of mean 0 and length 1."""
    steps: Floats
    """(split, checkpoint): a step at each place, of mean 0 and length 1."""
    bent: Floats
    """(split, checkpoint): what of it a straight trend cannot say, of length 1."""
    losses: Losses

    @classmethod
    def on(cls, steps: Floats) -> _Accounts:
        n = len(steps)
        smooth = SmoothRises.on(steps)
        jumps = (np.arange(n) >= np.arange(LASTS, n - LASTS + 1)[:, None]).astype(np.float64)
        trend = _unit(steps[None] - steps.mean())[0]
        jumps = _unit(jumps - jumps.mean(axis=1, keepdims=True))
        bent = _unit(jumps - (jumps @ trend)[:, None] * trend)
        return cls(smooth, trend, jumps, bent, Losses.of(lambda y: smooth.fit(y)[1], n))

    def compared(self, curves: Floats, floor: float) -> tuple[Floats, Floats, Floats]:
        """(statistic, smooth fit, its residuals); `floor`: squared error always granted to both."""
        fit, left = self.smooth.fit(curves)
        centred = curves - curves.mean(axis=1, keepdims=True)
        total = (centred**2).sum(axis=1)
        stepped = total - ((centred @ self.steps.T) ** 2).max(axis=1)
        along = (centred @ self.trend) ** 2
        both = total - along - ((centred @ self.bent.T) ** 2).max(axis=1)
        # Rounding can leave less than nothing.
        least = np.maximum(np.minimum(stepped, both), 0.0) + floor + 1e-12 * total
        smooth = (left**2).sum(axis=1) + floor + 1e-12 * total
        ratio = np.divide(smooth, least, out=np.ones(len(least)), where=least > 0)
        return curves.shape[1] * np.log(ratio), fit, left


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@lru_cache(maxsize=32)
def _accounts(steps: tuple[float, ...]) -> _Accounts:
    return _Accounts.on(np.array(steps))


def _tested(
    accounts: _Accounts, values: Floats, floor: float, n_null: int, seed: int
) -> tuple[float, float, float]:
    """(p, statistic, phi) of one curve."""
    observed, fit, left = accounts.compared(values[None], floor)
    if len(values) < FEWEST:
        return float("nan"), float(observed[0]), float("nan")
    if np.ptp(values) == 0:
        return 1.0, 0.0, 0.0
    phi, spread = accounts.losses.undone(left)
    simulated = fit + spread * noise(phi, len(values), n_null, seed + 1)
    null = accounts.compared(simulated, floor)[0]
    p = (1 + np.count_nonzero(null >= observed[0])) / (n_null + 1)
    return float(p), float(observed[0]), phi


def _read(
    curve: Any, of: str, n_boot: int, seed: int
) -> tuple[str, Floats, Floats, int | None, float]:
    """(name, steps, curve and its draws, items, squared error that is always there)."""
    if isinstance(curve, xr.Dataset):
        items = ItemCurves.of(curve, n_boot, seed)
        if of not in ("accuracy", "logprob"):
            raise UsageError(f"of={of!r}: expected 'accuracy' or 'logprob'.")
        name = f"{items.task}, {of}"
        if of == "accuracy":
            floor = len(items.steps) * items.least_error() ** 2
            return name, items.steps, items.accuracy, items.n, floor
        if items.logprob is None:
            raise UsageError(f"{items.task}: no log-probability for every item; of='accuracy'.")
        values = items.logprob
        if items.chance > 0:
            values = np.maximum(values, np.log(items.chance))
        return name, items.steps, values, items.n, 0.0
    if not isinstance(curve, xr.DataArray) or curve.ndim != 1:
        raise SchemaError(
            f"found {getattr(curve, 'dims', type(curve).__name__)}, expected a capability dataset "
            "of one task or a curve with one dim: select the others, curve.sel(layer=0)."
        )
    dim: Hashable = curve.dims[0]
    steps, values = curve[dim].values.astype(np.float64), curve.values.astype(np.float64)
    there = np.isfinite(values)
    if (np.diff(steps) <= 0).any():
        raise UsageError(f"found {dim} out of order or twice; expected it rising: sortby({dim!r}).")
    return str(curve.name or "curve"), steps[there], values[there][None], None, 0.0
