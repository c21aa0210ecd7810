"""Moves: when did a series change most, and is that change more than its usual wandering?

Needs   series (series, time) on one clock, any unit, in which nothing is missing.
Yields  Moves: at (steps), height (unit of the series), duration (steps), score, p, draws of `at`.

Model. A series is a straight trend, one move (a ramp that takes some duration; a step is a short
one) and wandering: an AR(1) process, a random walk and a slope that walks (a smooth bend), the
blend estimated for each series by restricted likelihood with the move in it. Everything is whitened
with the estimated covariance, so that a random walk is compared by its differences, a bend by its
second differences and a stationary series by its values: whether to difference or to detrend does
not have to be decided beforehand, and neither walks nor trends, straight or bent, are moves.

Which blend. Of all blends within a 95 % confidence region (likelihood ratio, three parameters) the
one in which the move is least remarkable: where a move and a random walk cannot be told apart, it
is no move (after Berger & Boos 1994, J. Am. Stat. Assoc. 89, without their correction by the
region's 5 %; what remains is measured by tests/probes/rates_lead_lag.py).

Score. The greatest t over all ramps: height over its standard error, with the sign of the height.

p. Blocks of the whitened series, its trend removed and its move left in, are put into random order
and the whole search is repeated. Blocks are as long as the whitened residual still remembers,
so that what memory the model missed survives. Leaving the move in costs power for steps in
a random walk, and is what keeps walks with heavy tails from false alarms. Floor 1/(n_perm + 1).

Draws of `at`. Blocks of the residual are resampled around the fitted move, the search is repeated;
plus where in its bin each fell.

It misleads where a series moves twice: the greater move is reported, the other counts as wandering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from probes.resample import Floats
from workbench.errors import UsageError

FEWEST = 16
"""Values of a series under which nothing is tested."""

MOST = 168
"""Values of a series on which it is tested; longer ones are pooled to that before."""

MEMORIES = (0.0, 0.4, 0.7, 0.9)
"""Correlations of the AR(1) process from one value to the next that are tried."""

WALKS = (0.0, 1e-3, 1e-2, 0.1, 1.0)
"""Variances of a step of the random walk over that of the AR(1) process that are tried."""

BENDS = (0.0, 1e-6, 1e-4, 1e-2, 1.0)
"""The same of the slope's random walk, which makes a smooth bend."""

SLACK = 3.9
"""Log-likelihood that a blend may lose against the best: half the 95 % quantile of chi^2(3)."""

# Shapes: S series, N times, G ramps, T regressors of the trend, D draws.


@dataclass(frozen=True)
class Moves:
    """The greatest move of each series."""

    at: Floats
    """(series,): its middle, steps."""

    height: Floats
    """(series,): how far, in the unit of the series; negative is down."""

    duration: Floats
    """(series,): steps that it takes, of those tried."""

    score: Floats
    """(series,): height over its standard error."""

    p: Floats
    """(series,): by permutation of blocks."""

    draws: Floats
    """(draw, series): `at` on another draw of the noise."""

    block: NDArray[np.int64]
    """(series,): values in a block."""

    walk: Floats
    """(series,): share of the random walk in the blend that was taken; inf: no AR(1) process."""

    @classmethod
    def none(cls, series: int, n_boot: int) -> Moves:
        """Of so many series, nothing known yet."""
        at, height, duration, score, p, walk = (np.full(series, np.nan) for _ in range(6))
        draws, block = np.full((n_boot, series), np.nan), np.zeros(series, dtype=np.int64)
        return cls(at, height, duration, score, p, draws, block, walk)

    def put(self, members: NDArray[np.intp], of: Moves) -> None:
        """Fills in those of some of the series."""
        for name in ("at", "height", "duration", "score", "p", "draws", "block", "walk"):
            getattr(self, name)[..., members] = getattr(of, name)


def greatest_moves(
    times: Floats,
    series: Floats,
    durations: tuple[float, ...],
    *,
    pooled: int = 1,
    n_perm: int = 1999,
    n_boot: int = 400,
    seed: int = 0,
) -> Moves:
    """The greatest move of each series, with its p-value and draws of when it was.

    Args:
        times: (time,), steps, rising.
        series: (series, time), finite.
        durations: steps that a move may take; none is taken as shorter than a gap between times.
        pooled: values that each given value is the mean of: the mean of a random walk is none.
        n_perm, n_boot, seed: arrangements under the null, draws of the time, and their seed.

    Returns:
        Moves. NaN for a series that is constant or straight.

    Raises:
        UsageError: under FEWEST times, values that are missing, or times out of order.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> step = np.arange(100.0)
        >>> found = greatest_moves(step, (step >= 60)[None] + 0.2 * rng.normal(size=100), (1.0,))
        >>> float(found.at[0]), bool(found.p[0] < 0.01)
        (59.5, True)
    """
    times, series = np.asarray(times, dtype=np.float64), np.asarray(series, dtype=np.float64)
    if len(times) < FEWEST or series.shape[1:] != times.shape:
        raise UsageError(
            f"found {series.shape} values at {len(times)} times; expected (series, time) with "
            f"{FEWEST} times or more."
        )
    if (np.diff(times) <= 0).any() or not np.isfinite(series).all():
        raise UsageError("found times out of order or values missing; sort, and drop the missing.")
    # In units of its own spread, so that no unit is too small for the arithmetic.
    spread = series.std(axis=1, keepdims=True)
    level = series.mean(axis=1, keepdims=True)
    moving = _moving(times, series)
    scaled = (series - level)[moving] / spread[moving]
    rng = np.random.default_rng(seed)
    found = Moves.none(len(series), n_boot)
    if moving.any():
        # Only the gaps matter, and those are the same around most onsets of a run.
        ramps, blends = _prepared((times - times[0]).tobytes(), tuple(durations), pooled)
        for s, chosen, values in zip(
            np.flatnonzero(moving), _least_remarkable(blends, scaled), scaled, strict=True
        ):
            _search(found, int(s), blends[chosen], values, ramps, n_perm, rng)
        for of_time in (found.at, found.draws):
            of_time += times[0]
        found.height[:] *= spread[:, 0]
    return found


@dataclass(frozen=True)
class _Ramps:
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
    def of(cls, times: Floats, durations: tuple[float, ...]) -> _Ramps:
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
class _Blend:
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
    def of(cls, walk: float, covariance: Floats, ramps: _Ramps) -> _Blend:
        """The blend of this covariance."""
        root: Any = np.linalg.cholesky(covariance)
        trend, upper = np.linalg.qr(solve_triangular(root, ramps.trend, lower=True))
        white = solve_triangular(root, ramps.values, lower=True)
        white -= trend @ (trend.T @ white)
        lengths = np.sqrt((white**2).sum(axis=0))
        fixed = -np.log(np.diag(root)).sum() - np.log(np.abs(np.diag(upper))).sum()
        return cls(walk, root, trend, white / lengths, lengths, float(fixed))

    def whitened(self, values: Floats) -> Floats:
        """(time, ...), without trend."""
        white = solve_triangular(self.root, values, lower=True)
        return np.asarray(white - self.trend @ (self.trend.T @ white))

    def best(self, white: NDArray[np.floating[Any]]) -> tuple[NDArray[np.intp], Floats, Floats]:
        """Of whitened draws (draw, time): the best ramp, its height, its squared t."""
        heights = white @ self.ramps
        best = np.abs(heights).argmax(axis=1)
        height = heights[np.arange(len(white)), best]
        rest = np.maximum((white**2).sum(axis=1) - height**2, 1e-12)
        freedom = white.shape[1] - self.trend.shape[1] - 1
        return best, height, height**2 / rest * freedom


@lru_cache(maxsize=2)
def _prepared(
    times: bytes, durations: tuple[float, ...], pooled: int
) -> tuple[_Ramps, list[_Blend]]:
    """What does not depend on the series."""
    clock = np.frombuffer(times)
    ramps = _Ramps.of(clock, durations)
    return ramps, [_Blend.of(*blend, ramps) for blend in _covariances(clock, pooled)]


def _least_remarkable(blends: list[_Blend], series: Floats) -> NDArray[np.intp]:
    """(series,): of the blends that its likelihood allows, that with the least score."""
    likelihoods, squared = [], []
    for blend in blends:
        white = blend.whitened(series.T).T
        best, height, t_squared = blend.best(white)
        rest = np.maximum((white**2).sum(axis=1) - height**2, 1e-12)
        freedom = white.shape[1] - blend.trend.shape[1] - 1
        likelihoods.append(blend.fixed - np.log(blend.lengths[best]) - 0.5 * freedom * np.log(rest))
        squared.append(t_squared)
    likelihood = np.array(likelihoods)
    allowed = likelihood >= likelihood.max(axis=0) - SLACK
    return np.where(allowed, np.array(squared), np.inf).argmin(axis=0)


def _search(
    found: Moves,
    s: int,
    blend: _Blend,
    values: Floats,
    ramps: _Ramps,
    n_perm: int,
    rng: np.random.Generator,
) -> None:
    """Fills in series `s`."""
    white = blend.whitened(values)
    best, height, squared = (x[0] for x in blend.best(white[None]))
    residual = white - height * blend.ramps[:, best]
    block = memory_of(residual)
    found.at[s], found.duration[s] = ramps.at[best], ramps.duration[best]
    found.height[s] = height / blend.lengths[best]
    found.score[s] = np.sign(height) * np.sqrt(squared)
    found.block[s], found.walk[s] = block, blend.walk
    single = _single(blend)
    shuffled = shuffled_blocks(white.astype(np.float32), block, n_perm, rng)
    shuffled -= shuffled @ single.trend @ single.trend.T
    # A hair of slack, so that rounding does not part an arrangement from its equal.
    beyond = single.best(shuffled)[2] >= squared * (1 - 1e-5)
    found.p[s] = (1 + beyond.sum()) / (1 + n_perm)
    n_boot, n = len(found.draws), len(values)
    noise = drawn_blocks(residual, block, n_boot, rng) * np.sqrt(n / (n - 3))
    noise -= noise @ blend.trend @ blend.trend.T
    again = single.best((height * blend.ramps[:, best] + noise).astype(np.float32))[0]
    found.draws[:, s] = ramps.at[again] + rng.uniform(-0.5, 0.5, n_boot) * ramps.grain[again]


def _single(blend: _Blend) -> _Blend:
    """In single precision, which a rank among random draws does not notice."""
    trend: Any = blend.trend.astype(np.float32)
    ramps: Any = blend.ramps.astype(np.float32)
    return replace(blend, trend=trend, ramps=ramps)


def pooled_by(width: int, times: Floats, series: Floats) -> tuple[Floats, Floats]:
    """Means of `width` values each, of times (time,) and series (series, time); the earliest few
    that fill no bin are left out.

    Example:
        >>> pooled_by(2, np.arange(5.0), np.arange(5.0)[None])[1].tolist()
        [[1.5, 3.5]]
    """
    bins = len(times) // width
    kept = slice(len(times) - bins * width, None)
    return (
        times[kept].reshape(bins, width).mean(axis=1),
        series[:, kept].reshape(len(series), bins, width).mean(axis=2),
    )


def memory_of(residual: Floats) -> int:
    """Values after which a residual has forgotten: where three autocorrelations in a row are within
    1.96 / sqrt(n); at least 3, at most a sixth of its length.

    Example:
        >>> memory_of(np.random.default_rng(0).normal(size=100))
        3
    """
    n = len(residual)
    centred = residual - residual.mean()
    power = float(centred @ centred)
    if power <= 0:
        return 1
    longest = max(n // 6, 1)
    correlation = np.array(
        [centred[lag:] @ centred[:-lag] / power for lag in range(1, min(longest + 3, n))]
    )
    small = np.abs(correlation) < 1.96 / np.sqrt(n)
    for lag in range(len(small)):
        if small[lag : lag + 3].all():
            return int(np.clip(lag + 1, 3, max(longest, 1)))
    return longest


def shuffled_blocks(
    values: NDArray[np.float32], block: int, draws: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(draw, time): the same values, cut into blocks at a random phase, in random order."""
    n = len(values)
    count = -(-n // block)
    order = rng.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    place = order[:, :, None] * block + np.arange(block)
    place = place.reshape(draws, -1)
    # The last block is shorter: what it lacks is left out of each row.
    place = place[place < n].reshape(draws, n)
    return values[(place + rng.integers(n, size=(draws, 1))) % n]


def drawn_blocks(values: Floats, block: int, draws: int, rng: np.random.Generator) -> Floats:
    """(draw, time): blocks of the values, centred, drawn with replacement on a circle."""
    n = len(values)
    starts = rng.integers(n, size=(draws, -(-n // block)))
    place = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :n]
    return np.asarray((values - values.mean())[place % n])


def _moving(times: Floats, series: Floats) -> NDArray[np.bool_]:
    """Which series are more than a straight line?"""
    centred = times - times.mean()
    around = series - series.mean(axis=1, keepdims=True)
    slope = around @ centred / (centred @ centred)
    rest = around - slope[:, None] * centred
    scale = np.abs(series).max(axis=1)
    return np.asarray(np.abs(rest).max(axis=1) > 1e-9 * np.maximum(scale, 1e-300))
