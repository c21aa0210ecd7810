"""Wandering: what a series does anyway, as a blend of three processes, and ramps seen against it.

Needs   a clock (time,), steps; durations of ramps.
Yields  blends, each with everything whitened by its covariance; the least remarkable of them.

The processes: AR(1); a random walk, as means over the steps of a bin if values were pooled; a slope
that walks, which makes a smooth bend. Likelihoods are restricted (REML): those of different blends
compare, with the trend, and the ramp if there is one, in the mean.

Sources: Working 1960, Econometrica 28 (means of a walk); Wahba 1978, J. R. Statist. Soc. B 40 (the
bend); Berger & Boos 1994, J. Am. Stat. Assoc. 89 (the worst case over a confidence region).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from probes.statistics.resample import Floats

Singles: TypeAlias = NDArray[np.float32]

MEMORIES = (0.0, 0.4, 0.7, 0.9)
"""Correlations of the AR(1) process from one value to the next that are tried."""

WALKS = (0.0, 1e-3, 1e-2, 0.1, 1.0)
"""Variances of a step of the random walk over that of the AR(1) process that are tried."""

BENDS = (0.0, 1e-6, 1e-4, 1e-2, 1.0)
"""The same of the slope's random walk, which makes a smooth bend."""

SLACK = 3.9
"""Log-likelihood that a blend may lose against the best: half the 95 % quantile of chi^2(3)."""


@dataclass(frozen=True)
class Ramps:
    """Every move that is looked for: from 0 to 1 around a time."""

    values: Floats
    """(time, ramp)"""
    at: Floats
    duration: Floats
    grain: Floats
    """(ramp,): steps from one ramp of its duration to the next."""
    trend: Floats
    """(time, regressor)"""

    @classmethod
    def of(cls, times: Floats, durations: tuple[float, ...]) -> Ramps:
        gap = float(np.median(np.diff(times)))
        # A move needs a before and an after to be told from the trend.
        edge = max(3, len(times) // 12)
        between = (times[:-1] + times[1:]) / 2
        values, at, lasting, grains = [], [], [], []
        for duration in sorted({max(float(d), gap) for d in durations}):
            # The time of a slow move is known less well: an eighth of it will do.
            stride = max(1, round(duration / (8 * gap)))
            middles = between[::stride]
            ramp = np.clip((times[:, None] - middles) / duration + 0.5, 0, 1)
            fits = ((ramp < 0.5).sum(axis=0) >= edge) & ((ramp > 0.5).sum(axis=0) >= edge)
            values.append(ramp[:, fits])
            at.append(middles[fits])
            lasting.append(np.full(fits.sum(), duration))
            grains.append(np.full(fits.sum(), stride * gap))
        clock = np.linspace(-1, 1, len(times)) if times[-1] == times[0] else times - times.mean()
        trend = np.stack([np.ones_like(clock), clock / np.abs(clock).max()], axis=1)
        at_R, lasting_R, grains_R = (np.concatenate(parts) for parts in (at, lasting, grains))
        return cls(np.concatenate(values, axis=1), at_R, lasting_R, grains_R, trend)


def _covariances(times: Floats, pooled: int) -> Iterator[tuple[float, Floats]]:
    """Each blend of an AR(1) process and a random walk: its walk, and its covariance."""
    clock = (times - times[0]) / np.median(np.diff(times))
    apart = np.abs(clock[:, None] - clock)
    # Of means over `pooled` steps of a walk that starts at 0 (Working 1960, Econometrica 28).
    walk = np.minimum(clock[:, None], clock) + 0.5 * (pooled + 1) / pooled
    np.fill_diagonal(walk, clock + (pooled + 1) * (2 * pooled + 1) / (6 * pooled**2))
    # A slope that walks: the smoothing spline's process (Wahba 1978, J. R. Statist. Soc. B 40).
    first, last = np.minimum(clock[:, None], clock), np.maximum(clock[:, None], clock)
    bend = first**2 * (3 * last - first) / 6
    for curl in BENDS:
        for memory in MEMORIES:
            stationary = np.where(apart == 0, 1.0, memory**apart)
            for share in WALKS:
                yield share, stationary + share * walk + curl * bend
        yield np.inf, walk + curl * bend


@dataclass(frozen=True)
class Best:
    """The best ramp of each draw under one blend; each (draw,)."""

    ramp: NDArray[np.intp]
    height: Floats
    """In whitened units."""
    squared: Floats
    """Square of its t."""
    likelihood: Floats
    """Restricted log-likelihood of the blend, the ramp in the mean."""


@dataclass(frozen=True)
class Blend:
    """One covariance, and everything whitened by it, the trend projected out."""

    walk: float
    root: Floats
    trend: Floats
    """(time, regressor), orthonormal"""
    ramps: Floats
    """(time, ramp), of length 1"""
    lengths: Floats
    fixed: float
    """The part of the log-likelihood that no series enters."""

    @classmethod
    def of(cls, walk: float, covariance: Floats, ramps: Ramps) -> Blend:
        """The blend of this covariance."""
        root: Any = np.linalg.cholesky(covariance)
        trend, upper = np.linalg.qr(solve_triangular(root, ramps.trend, lower=True))
        white = solve_triangular(root, ramps.values, lower=True)
        white -= trend @ (trend.T @ white)
        lengths = np.sqrt((white**2).sum(axis=0))
        fixed = -np.log(np.diag(root)).sum() - np.log(np.abs(np.diag(upper))).sum()
        return cls(walk, root, trend, white / lengths, lengths, float(fixed))

    @cached_property
    def operator(self) -> Singles:
        """(time, time): whitens draws (draw, time) from the right, in single precision, which a
        rank among random draws does not notice."""
        unit = np.eye(len(self.root))
        return np.ascontiguousarray(self.whitened(unit).T, dtype=np.float32)

    @cached_property
    def single_ramps(self) -> Singles:
        """The ramps in single precision."""
        return self.ramps.astype(np.float32)

    def whitened(self, values: Floats) -> Floats:
        """(time, ...), without trend."""
        white = solve_triangular(self.root, values, lower=True)
        return np.asarray(white - self.trend @ (self.trend.T @ white))

    def best(self, white: Floats | Singles) -> Best:
        """Of whitened draws (draw, time), without trend: the best ramp of each."""
        ramps = self.single_ramps if white.dtype == np.float32 else self.ramps
        heights = white @ ramps
        ramp = np.abs(heights).argmax(axis=1)
        height = heights[np.arange(len(white)), ramp]
        rest = np.maximum((white**2).sum(axis=1) - height**2, 1e-12)
        freedom = white.shape[1] - self.trend.shape[1] - 1
        likelihood = self.fixed - np.log(self.lengths[ramp]) - 0.5 * freedom * np.log(rest)
        return Best(ramp, height, height**2 / rest * freedom, likelihood)


@lru_cache(maxsize=2)
def prepared(times: bytes, durations: tuple[float, ...], pooled: int) -> tuple[Ramps, list[Blend]]:
    """What does not depend on the series."""
    clock = np.frombuffer(times)
    ramps = Ramps.of(clock, durations)
    return ramps, [Blend.of(*blend, ramps) for blend in _covariances(clock, pooled)]


def least_remarkable(
    blends: list[Blend], series: Floats | Singles
) -> tuple[NDArray[np.intp], Floats]:
    """(series,): of the blends that its likelihood allows, that with the least score; that score
    squared."""
    found = []
    for blend in blends:
        white: Any = (
            series @ blend.operator
            if series.dtype == np.float32
            else blend.whitened(np.asarray(series.T, dtype=np.float64)).T
        )
        found.append(blend.best(white))
    likelihood = np.array([best.likelihood for best in found])
    squared = np.array([best.squared for best in found])
    allowed = np.where(likelihood >= likelihood.max(axis=0) - SLACK, squared, np.inf)
    return allowed.argmin(axis=0), allowed.min(axis=0)


def likeliest_without_move(blends: list[Blend], values: Floats) -> Blend:
    """The blend that fits one series (time,) best if it makes no move at all."""

    def likelihood(blend: Blend) -> float:
        rest = float((blend.whitened(values) ** 2).sum())
        return blend.fixed - 0.5 * (len(values) - blend.trend.shape[1]) * np.log(max(rest, 1e-12))

    return max(blends, key=likelihood)
