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
is no move.

Score. The greatest t over all ramps: height over its standard error, with the sign of the height.

p. Blocks of the whitened series, its trend removed and its move left in, are put into random order
and the whole search is repeated. Blocks are as long as the whitened residual still remembers,
so that what memory the model missed survives. Leaving the move in costs power for steps in
a random walk, and is what keeps walks with heavy tails from false alarms. Where this p is under
DOUBT a second one is taken, and the greater counts: the series is whitened by the blend that fits
best without any move, its blocks put into random order, the wandering put back, and the blend
chosen anew in every arrangement. Floor 1 / (n_perm + 1).

Draws of `at`. Blocks of the residual are resampled around the fitted move, the search is repeated;
plus where in its bin each fell.

It misleads where a series moves twice: the greater move is reported, the other counts as wandering.
It is blind, for caution, to a step within one value of a series that remembers long: such a step
anywhere in the series looks as remarkable, and p stays large however high it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.statistics.resample import Floats
from probes.statistics.wandering import (
    Blend,
    Ramps,
    least_remarkable,
    likeliest_without_move,
    prepared,
)
from workbench.errors import UsageError

FEWEST = 16
"""Values of a series under which nothing is tested."""

MOST = 168
"""Values of a series on which it is tested; longer ones are pooled to that before."""

DOUBT = 0.05
"""p up to which the blend is estimated anew in every arrangement, which takes longer."""

BATCH = 250
"""Arrangements at a time."""

ENOUGH = 40
"""Arrangements at or beyond the score after which p is known well enough."""

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
        >>> series = 3.0 * (step >= 60) + 0.5 * rng.normal(size=100)
        >>> found = greatest_moves(step, series[None], (1.0,), n_perm=499)
        >>> float(found.at[0]), bool(found.p[0] < 0.05)
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
        ramps, blends = prepared((times - times[0]).tobytes(), tuple(durations), pooled)
        for s, chosen, values in zip(
            np.flatnonzero(moving), least_remarkable(blends, scaled)[0], scaled, strict=True
        ):
            _search(found, int(s), blends, int(chosen), values, ramps, n_perm, rng)
        for of_time in (found.at, found.draws):
            of_time += times[0]
        found.height[:] *= spread[:, 0]
    return found


def _search(
    found: Moves,
    s: int,
    blends: list[Blend],
    chosen: int,
    values: Floats,
    ramps: Ramps,
    n_perm: int,
    rng: np.random.Generator,
) -> None:
    """Fills in series `s`."""
    blend = blends[chosen]
    white = blend.whitened(values)
    best = blend.best(white[None])
    ramp, height, squared = int(best.ramp[0]), float(best.height[0]), float(best.squared[0])
    residual = white - height * blend.ramps[:, ramp]
    block = memory_of(residual)
    found.at[s], found.duration[s] = ramps.at[ramp], ramps.duration[ramp]
    found.height[s] = height / blend.lengths[ramp]
    found.score[s] = np.sign(height) * np.sqrt(squared)
    found.block[s], found.walk[s] = block, blend.walk
    trend = blend.trend.astype(np.float32)
    shuffled = shuffled_blocks(white.astype(np.float32), block, n_perm, rng)
    shuffled -= shuffled @ trend @ trend.T
    # A hair of slack, so that rounding does not part an arrangement from its equal.
    beyond = blend.best(shuffled).squared >= squared * (1 - 1e-5)
    found.p[s] = (1 + beyond.sum()) / (1 + n_perm)
    if found.p[s] <= DOUBT:
        found.p[s] = max(found.p[s], _anew(blends, values, squared, n_perm, rng))
    n_boot, n = len(found.draws), len(values)
    noise = drawn_blocks(residual, block, n_boot, rng) * np.sqrt(n / (n - 3))
    noise -= noise @ blend.trend @ blend.trend.T
    again = blend.best((height * blend.ramps[:, ramp] + noise).astype(np.float32)).ramp
    found.draws[:, s] = ramps.at[again] + rng.uniform(-0.5, 0.5, n_boot) * ramps.grain[again]


def _anew(
    blends: list[Blend], values: Floats, squared: float, n_perm: int, rng: np.random.Generator
) -> float:
    """p with the blend estimated anew in every arrangement, as it was for the series."""
    null = likeliest_without_move(blends, values)
    white = null.whitened(values)
    block = memory_of(white)
    beyond = done = 0
    while done < n_perm and beyond < ENOUGH:
        draws = min(BATCH, n_perm - done)
        shuffled = shuffled_blocks(white.astype(np.float32), block, draws, rng)
        again = shuffled @ null.root.T.astype(np.float32)
        beyond += int((least_remarkable(blends, again)[1] >= squared).sum())
        done += draws
    return (1 + beyond) / (1 + done)


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
