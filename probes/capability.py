"""Capability: how well a model does a task at each checkpoint, discrete and continuous.

Needs   evaluations: correct, logprob (checkpoint, task, item); coordinate chance (task).
Yields  accuracy (fraction), logprob (nats), normalized (0 chance, 1 perfect), each with a 95 %
        interval, (checkpoint[, task]); per item: correct, item_logprob.

accuracy    Wilson's interval: valid at 0 and at 1.
normalized  (accuracy - b) / (1 - b), b the chance level; the Gauntlet's score. Below 0 is worse
            than guessing. Its interval is the accuracy's, rescaled.
logprob     mean log-probability of the right answer; bootstrap over items.

The intervals are about items: another draw of questions of the same kind, put to the same
checkpoint. They say nothing about another training seed. Discrete and continuous belong together:
a threshold on a smooth quantity looks like a jump.

It misleads where the items were trained on, where the chance level is not that of the prompt's
format, and where a late rise of accuracy is taken for a late rise of knowledge: read logprob beside
it.

Sources: Schaeffer et al. 2023, arXiv:2304.15004; Miller 2024, arXiv:2411.00640; Wilson 1927.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.source import Source, group_of, pick
from probes.statistics.resample import (
    BOOT,
    OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
    wilson,
)
from workbench.errors import SchemaError

MEANING: dict[str, tuple[str, str]] = {
    "accuracy": ("1", "share of items answered right"),
    "accuracy_low": ("1", "lower bound of the accuracy"),
    "accuracy_high": ("1", "upper bound of the accuracy"),
    "normalized": ("1", "(accuracy - chance) / (1 - chance): 0 is chance, 1 is perfect"),
    "normalized_low": ("1", "lower bound of the normalised accuracy"),
    "normalized_high": ("1", "upper bound of the normalised accuracy"),
    "logprob": ("nats", "log-probability of the right answer, mean over items"),
    "logprob_low": ("nats", "lower bound of the mean log-probability"),
    "logprob_high": ("nats", "upper bound of the mean log-probability"),
    "n": ("items", "items that were put to the model"),
    "correct": ("1", "1 right, 0 wrong, -1 no such item"),
    "item_logprob": ("nats", "log-probability of the right answer, per item"),
}
WILSON = "95 %, Wilson: other items of the same kind, same checkpoint"
BOOTSTRAP = f"95 %, bootstrap over items ({OF_MEAN}): other items, same checkpoint"


@probe(
    "capability",
    question="How well does the model do each task?",
    reads="record",
    needs=("evaluations",),
    version=2,
)
def capability(
    source: Source,
    task: str | Sequence[str] | None = None,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Accuracy and log-probability of the right answer at each checkpoint, with intervals.

    Args:
        source: evaluations dataset, Run, Window, Checkpoints or anything with `.evaluations`.
        task: one task by name; several; or None for all. One name drops the `task` dim.
        n_boot, seed: bootstrap draws over items for the log-probability, and their seed.

    Returns:
        Dataset (checkpoint[, task]): accuracy, accuracy_low, accuracy_high, normalized (and
        bounds), logprob (and bounds), n; (checkpoint[, task], item): correct, item_logprob, kept
        for `onset`. Coordinates of the record (tokens_seen, family, chance) are kept. NaN where a
        task was not put to a checkpoint.

    Raises:
        UsageError: the source has no evaluations, or no checkpoint.
        RunNotFound: no such task; the known ones are listed.
        SchemaError: variables or the `chance` coordinate missing, or values out of range.

    Example:
        >>> record = xr.Dataset(
        ...     {
        ...         "correct": (("checkpoint", "task", "item"), np.ones((1, 1, 20), np.int8)),
        ...         "logprob": (("checkpoint", "task", "item"), np.full((1, 1, 20), -0.1)),
        ...     },
        ...     coords={"checkpoint": [100], "task": ["code/add"], "chance": ("task", [0.1])},
        ... )
        >>> skill = capability(record, task="code/add")
        >>> skill["accuracy"].item(), round(skill["accuracy_low"].item(), 2)
        (1.0, 0.84)
    """
    record = group_of(source, "evaluations", ["correct", "logprob"])
    _checked(record)
    record = record[["correct", "logprob"]].sel(task=pick(record, "task", task)).load()
    record = record.transpose("checkpoint", "task", "item")
    _in_range(record)
    there = record["correct"] >= 0
    n = there.sum("item")
    right = (record["correct"] > 0).sum("item")
    accuracy = right / n.where(n > 0)
    low, high = wilson(right.values.astype(np.float64), n.values)
    chance = record["chance"]
    skill = xr.Dataset(
        {
            "accuracy": accuracy,
            "accuracy_low": accuracy.copy(data=low).where(n > 0),
            "accuracy_high": accuracy.copy(data=high).where(n > 0),
            "n": n,
        }
    )
    for end in ("", "_low", "_high"):
        skill["normalized" + end] = (skill["accuracy" + end] - chance) / (1 - chance)
    mean, low, high = _mean_with_interval(record["logprob"].where(there).values, n_boot, seed)
    for name, values in (("logprob", mean), ("logprob_low", low), ("logprob_high", high)):
        skill[name] = accuracy.copy(data=values)
    skill["correct"] = record["correct"]
    skill["item_logprob"] = record["logprob"].where(there)
    described(skill)
    return skill.squeeze("task") if isinstance(task, str) else skill


def _mean_with_interval(values: Floats, n_boot: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Mean over the last axis of (checkpoint, task, item), NaN left out, with its bootstrap."""
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0).astype(np.float64)
    n = there.sum(axis=-1)
    mean = np.divide(filled.sum(-1), n, out=np.full(n.shape, np.nan), where=n > 0)
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    for t in range(values.shape[1]):
        used = there[:, t].any(axis=0)
        if not used.any():
            continue
        # The same draw of items at every checkpoint.
        weights = bootstrap_weights(int(used.sum()), n_boot, seed)
        mass = weights @ there[:, t, used].T.astype(np.float64)
        sums = weights @ filled[:, t, used].T
        draws = np.divide(sums, mass, out=np.full(mass.shape, np.nan), where=mass > 0)
        low[:, t], high[:, t] = percentile_interval(draws, int(used.sum()))
    return mean, low, high


def described(skill: xr.Dataset) -> None:
    """Attaches unit, meaning, chance level and what the interval means to each variable."""
    for name, (unit, meaning) in MEANING.items():
        skill[name].attrs = {"units": unit, "long_name": meaning}
        if name.startswith(("accuracy", "normalized", "logprob")):
            skill[name].attrs["interval"] = BOOTSTRAP if name.startswith("logprob") else WILSON
        if name.startswith("accuracy"):
            skill[name].attrs["chance_level"] = "coordinate `chance`"
        if name.startswith("normalized"):
            skill[name].attrs["chance_level"] = 0.0
    skill.attrs = {"n": "variable `n` (checkpoint, task)", "n_meaning": "items"}


def _checked(record: xr.Dataset) -> None:
    for dim in ("checkpoint", "task", "item"):
        if dim not in record["correct"].dims or dim not in record["logprob"].dims:
            raise SchemaError(
                f"correct has dims {record['correct'].dims}, logprob {record['logprob'].dims}; "
                "expected (checkpoint, task, item) in both. Keep the task dim: isel(task=[0])."
            )
    if "chance" not in record.coords:
        raise SchemaError(
            "evaluations lack the coordinate chance (task); without a chance level accuracy cannot "
            "be read. Add it: ds.assign_coords(chance=('task', [...]))."
        )


def _in_range(record: xr.Dataset) -> None:
    faults = []
    correct, chance = record["correct"].values, record["chance"].values
    if not np.isin(correct, (-1, 0, 1)).all():
        faults.append(f"correct has {np.unique(correct)[:5]}, expected 1, 0 or -1 (no such item)")
    if not ((chance >= 0) & (chance < 1)).all():
        faults.append(f"chance has {chance}, expected 0 or more and under 1")
    top = np.nanmax(record["logprob"].values, initial=-np.inf)
    # Float32 softmaxes round to slightly above 0.
    if top > 1e-3:
        faults.append(f"logprob reaches {top:.3g}, expected nats at or under 0")
    if faults:
        raise SchemaError("evaluations out of range: " + "; ".join(faults) + ".")
