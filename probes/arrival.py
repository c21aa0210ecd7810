"""Arrival: when a capability came, as a step and as draws of it that others can reckon with.

Needs   evaluations: correct, logprob (checkpoint, task, item); coordinate chance (task).
Yields  Arrival: step, 95 % interval, draws, in optimizer steps.

The step and its interval are those of `probes.onset`. Draws are over items, and even within the gap
between the two checkpoints in which a draw's curve crossed: between checkpoints nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.capability import capability
from probes.emergence import onset as find_onset
from probes.source import Source, group_of
from probes.statistics.ascent import crossings, monotone
from probes.statistics.resample import Floats, bootstrap_weights

SPACINGS = 4
"""Gaps between checkpoints that are looked at around an onset, to say how far apart they are."""


@dataclass(frozen=True)
class Arrival:
    """When a capability came: a step, and draws of it."""

    step: float
    """Optimizer step of the onset; NaN where there is none."""

    low: float
    """Lower end of its 95 % interval, steps."""

    high: float
    """Upper end, steps; inf where it is open."""

    draws: Floats
    """(draw,), steps: over items, and even within the gap between two checkpoints."""

    spacing: float
    """Gap between the checkpoints around it, steps."""

    n: int
    """Items that were put to every checkpoint."""

    reason: str = ""
    """Why there is no onset, where there is none."""


def arrival_of(
    source: Source,
    task: str,
    given: float | None = None,
    level: float = 0.5,
    n_boot: int = 400,
    seed: int = 0,
) -> Arrival:
    """The onset of one task, and draws of it.

    Args:
        source: evaluations dataset, Run, Window or anything with `.evaluations`.
        task: which.
        given: a step to take as the onset, exactly, in place of the one that is found.
        level: on the chance-normalised scale, as in `probes.onset`.
        n_boot, seed: draws, and their seed.

    Raises:
        RunNotFound: no such task.
        UsageError: under two items or checkpoints.

    Example:
        >>> from workbench.testing import PlantedSkill, evaluations_record
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)})
        >>> arrived = arrival_of(record, "code/add", n_boot=100)
        >>> bool(480 <= arrived.draws.min() and arrived.draws.max() <= 520)
        True
    """
    skill = capability(group_of(source, "evaluations"), task=task, n_boot=2)
    correct = skill["correct"].transpose("checkpoint", "item").values
    evaluated = (correct >= 0).any(axis=1)
    steps = skill["checkpoint"].values[evaluated].astype(np.float64)
    n = int((correct[evaluated] >= 0).all(axis=0).sum())
    if given is not None:
        step = float(given)
        return Arrival(step, step, step, np.full(n_boot, step), _spacing(steps, step), n)
    came = find_onset(skill, level, seed=seed)
    bounds = came.step, came.low, came.high
    nothing = np.full(n_boot, np.nan)
    if not came.reached:
        return Arrival(*bounds, nothing, np.nan, n, f"level {level:g} was not reached")
    if came.step <= steps[0]:
        return Arrival(*bounds, nothing, np.nan, n, f"level {level:g} was reached from the start")
    items = (correct[evaluated] >= 0).all(axis=0)
    right = correct[evaluated][:, items].astype(np.float64)
    chance = float(skill["chance"])
    curves = (bootstrap_weights(n, n_boot, seed) @ right.T / n - chance) / (1 - chance)
    _, left, high = crossings(monotone(curves), steps, level)
    high = np.minimum(high, steps[-1])
    rng = np.random.default_rng([seed, 1])
    # What a fall undid lies outside the onset's own interval.
    draws = np.clip(rng.uniform(np.minimum(left, high), high), came.low, min(came.high, steps[-1]))
    return Arrival(*bounds, draws, _spacing(steps, came.step), n)


def _spacing(steps: Floats, step: float) -> float:
    """Gap between the checkpoints around a step: the median of the nearest SPACINGS gaps."""
    if len(steps) < 2:
        return float("nan")
    gaps, middles = np.diff(steps), (steps[1:] + steps[:-1]) / 2
    return float(np.median(gaps[np.argsort(np.abs(middles - step))[:SPACINGS]]))
