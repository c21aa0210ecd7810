"""Evaluations: answers of a model whose skills are known, at every checkpoint, in one arm or two.

Needs   planted skills, or the gain of one arm over the other; sizes and a seed.
Yields  datasets like run.evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workbench.errors import UsageError
from workbench.planted.router import TASKS
from workbench.planted.skill import PlantedSkill
from workbench.store.schema import conform

Floats = NDArray[np.float64]

# Shapes: C checkpoints, T tasks.


def evaluations_record(
    skills: Mapping[str, PlantedSkill],
    *,
    checkpoints: int | Sequence[int] = 25,
    every: int = 40,
    items: int | Mapping[str, int] = 200,
    chance: float = 0.1,
    persistence: float = 0.5,
    format_nats: float = 0.0,
    seed: int = 0,
) -> xr.Dataset:
    """Evaluations of tasks whose success probability at every checkpoint is known.

    An item is answered right where a number drawn for it lies under the success probability.
    With probability `persistence` that number is the item's own at all checkpoints (an easy item
    stays easy), else drawn afresh; either way each checkpoint's probability is exact.

    Args:
        skills: task name ("family/task") -> its course.
        checkpoints: how many (at 0, `every`, 2 `every`, ...), or their steps.
        items: per task, or one number for all; shorter tasks are padded with -1 and NaN.
        chance: success probability of guessing.
        persistence: 0, every checkpoint is a new draw; 1, items are learned once and kept.
        format_nats: extra cost at the start, gone within a twentieth of the window: before a
            model knows which tokens are answers at all.

    Returns:
        Dataset of the group "evaluations" with coordinates checkpoint, task, item, tokens_seen,
        family, chance.

    Raises:
        UsageError: no skill, or a chance outside [0, 1).

    Example:
        >>> record = evaluations_record({"code/add": PlantedSkill("jump", at=500)}, items=50)
        >>> dict(record.sizes)
        {'checkpoint': 25, 'task': 1, 'item': 50}
    """
    if not skills or not 0 <= chance < 1:
        raise UsageError(
            f"{len(skills)} skills at chance {chance}; expected one or more, at 0 <= chance < 1."
        )
    steps = (
        np.arange(checkpoints, dtype=np.int64) * every
        if isinstance(checkpoints, int)
        else np.asarray(checkpoints, dtype=np.int64)
    )
    sizes = {task: items if isinstance(items, int) else items[task] for task in skills}
    longest = max(sizes.values())
    correct = np.full((len(steps), len(skills), longest), -1, dtype=np.int8)
    logprob = np.full(correct.shape, np.nan, dtype=np.float32)
    for t, (task, skill) in enumerate(skills.items()):
        rng = np.random.default_rng([seed, t])
        n = sizes[task]
        draws = _luck(rng, len(steps), n, persistence)
        answers = _answers(skill, steps, draws, chance)
        correct[:, t, :n] = answers
        logprob[:, t, :n] = _log_probabilities(rng, skill, steps, n, chance, format_nats)
    return _evaluations(correct, logprob, steps, list(skills), chance, branch="main")


def two_arms(
    *,
    gain: Mapping[str, float],
    tasks: Sequence[str] = TASKS,
    base: float = 0.4,
    fork: int = 800,
    checkpoints: int = 11,
    every: int = 100,
    items: int = 400,
    chance: float = 0.1,
    persistence: float = 0.7,
    seed: int = 0,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Evaluations of two arms forked from one checkpoint, with a known difference.

    Up to `fork` they are the same to the last bit. After it arm b's accuracy exceeds arm a's by
    `gain[task]` exactly in expectation, at every checkpoint; its log-probability by
    -ln(chance) x gain nats in the mean. An item that is easy in one arm is easy in the other.

    Args:
        gain: task -> difference in accuracy, b less a; 0 for the tasks not named.
        base: accuracy of arm a (and of both before the fork).
        persistence: share of an item's luck that the arms have in common.

    Returns:
        (a, b), each a Dataset of the group "evaluations"; attrs branch "continue" and
        "curriculum".

    Raises:
        UsageError: an accuracy outside [0, 1].

    Example:
        >>> a, b = two_arms(gain={"code/add": 0.2})
        >>> bool((a["correct"].sel(checkpoint=800) == b["correct"].sel(checkpoint=800)).all())
        True
    """
    tasks = list(dict.fromkeys([*tasks, *gain]))
    for task, extra in gain.items():
        if not 0 <= base + extra <= 1:
            raise UsageError(f"{task}: base {base} + gain {extra} is no accuracy.")
    steps = np.arange(checkpoints, dtype=np.int64) * every
    shape = (len(steps), len(tasks), items)
    after = (steps > fork)[:, None, None]
    common = np.random.default_rng([seed, 0])
    luck, ease = common.random(shape[1:]), common.gamma(4.0, 0.25, shape[1:])
    shared = _own_luck(common, shape, luck, persistence)
    arms = []
    for number, branch in enumerate(("continue", "curriculum")):
        own = _own_luck(np.random.default_rng([seed, 1 + number]), shape, luck, persistence)
        draws, noise = (np.where(after, o, s) for o, s in zip(own, shared, strict=True))
        extra_CT = np.array([gain.get(task, 0.0) * number for task in tasks])[:, None] * after
        correct = (draws < base + extra_CT).astype(np.int8)
        nats = -np.log(max(chance, 1e-3)) * (1 - base - extra_CT)
        logprob = (-nats * (ease + noise) / 2).astype(np.float32)
        arms.append(_evaluations(correct, logprob, steps, tasks, chance, branch=branch))
    return arms[0], arms[1]


def _own_luck(
    rng: np.random.Generator, shape: tuple[int, ...], luck: Floats, persistence: float
) -> tuple[Floats, Floats]:
    """One arm's draws per item, partly the common ones, and its noise on the log-probability."""
    draws = np.where(rng.random(shape) < persistence, luck, rng.random(shape))
    return draws, rng.gamma(4.0, 0.25, shape)


def _luck(rng: np.random.Generator, checkpoints: int, items: int, persistence: float) -> Floats:
    """(checkpoint, item): uniform numbers; kept over checkpoints with this probability."""
    own = rng.random((1, items))
    return np.where(
        rng.random((checkpoints, items)) < persistence, own, rng.random((checkpoints, items))
    )


def _answers(
    skill: PlantedSkill, steps: NDArray[np.int64], luck: Floats, chance: float
) -> NDArray[np.int8]:
    probability = chance + (1 - chance) * skill.success(steps.astype(np.float64))
    return (luck < probability[:, None]).astype(np.int8)


def _log_probabilities(
    rng: np.random.Generator,
    skill: PlantedSkill,
    steps: NDArray[np.int64],
    items: int,
    chance: float,
    format_nats: float,
) -> NDArray[np.float32]:
    """(checkpoint, item), nats: from guessing (ln chance) to nearly sure, times an item's ease."""
    clock = steps.astype(np.float64)
    progress = skill.success(clock)
    if skill.logprob == "ahead":
        # Evenly from the first checkpoint to the last: no step is special.
        progress = skill.top * (clock - clock[0]) / max(clock[-1] - clock[0], 1)
    start = clock[0] + (clock[-1] - clock[0]) / 20
    cost = -np.log(max(chance, 1e-3)) * (1 - progress) + 0.02 + format_nats * (clock < start)
    ease = (rng.gamma(4.0, 0.25, (1, items)) + rng.gamma(4.0, 0.25, (len(steps), items))) / 2
    return (-cost[:, None] * ease).astype(np.float32)


def _evaluations(
    correct: NDArray[np.int8],
    logprob: NDArray[np.float32],
    steps: NDArray[np.int64],
    tasks: Sequence[str],
    chance: float,
    branch: str,
) -> xr.Dataset:
    dims = ("checkpoint", "task", "item")
    record = xr.Dataset(
        {"correct": (dims, correct), "logprob": (dims, logprob)},
        coords={
            "checkpoint": steps,
            "task": list(tasks),
            "tokens_seen": ("checkpoint", steps * 4096),
            "family": ("task", [task.split("/")[0] for task in tasks]),
            "chance": ("task", np.full(len(tasks), float(chance))),
        },
    )
    return conform(record, "evaluations").assign_attrs({"run": "planted", "branch": branch})
