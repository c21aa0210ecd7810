"""Item curves: one task's answers item by item, and its curves on other draws of items.

Needs   a capability dataset of one task: correct, item_logprob (checkpoint, item), chance.
Yields  accuracy (chance-normalised) and log-probability (nats), each (draw, checkpoint); row 0 is
        the data, the others its bootstrap over items, the same items at every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from probes.statistics.resample import Floats, bootstrap_weights
from workbench.errors import SchemaError, UsageError


@dataclass(frozen=True)
class ItemCurves:
    """The two curves of one task, with their bootstrap."""

    task: str
    """Which task."""

    steps: Floats
    """(checkpoint,): steps of the evaluated checkpoints."""

    right: Floats
    """(draw, checkpoint): share of items answered right."""

    logprob: Floats | None
    """(draw, checkpoint), nats; None where it was not recorded for every item."""

    chance: float
    """Accuracy of guessing."""

    n: int
    """Items that were put to every evaluated checkpoint."""

    @classmethod
    def of(cls, skill: xr.Dataset, n_boot: int, seed: int) -> ItemCurves:
        """The curves of what `capability` returned, of one task.

        Raises:
            UsageError: several tasks, under two items or evaluated checkpoints, or checkpoints
                out of order.
            SchemaError: not a capability dataset.
        """
        skill = one_task(skill)
        correct = skill["correct"].transpose("checkpoint", "item").values
        evaluated = (correct >= 0).any(axis=1)
        items = (correct[evaluated] >= 0).all(axis=0)
        if evaluated.sum() < 2 or items.sum() < 2:
            raise UsageError(
                f"found {items.sum()} items at each of {evaluated.sum()} checkpoints; an onset "
                "needs 2 of both at least. Widen the window."
            )
        steps = skill["checkpoint"].values[evaluated].astype(np.float64)
        if (np.diff(steps) <= 0).any():
            raise UsageError(
                "found checkpoints out of order or twice; expected rising steps. Use "
                "skill.sortby('checkpoint').drop_duplicates('checkpoint')."
            )
        right = correct[evaluated][:, items].astype(np.float64)
        n = right.shape[1]
        # Row 0 weighs every item once: the data.
        weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, n_boot, seed)]) / n
        values = skill["item_logprob"].transpose("checkpoint", "item").values
        values = values[evaluated][:, items].astype(np.float64)
        return cls(
            task=str(skill["task"].item()) if "task" in skill.coords else "task",
            steps=steps,
            right=weights @ right.T,
            logprob=weights @ values.T if np.isfinite(values).all() else None,
            chance=float(skill["chance"]),
            n=n,
        )

    @property
    def accuracy(self) -> Floats:
        """(draw, checkpoint), chance-normalised: 0 is guessing, 1 is perfect."""
        return (self.right - self.chance) / (1 - self.chance)

    def least_error(self) -> float:
        """Standard error of a checkpoint at which all items but one imagined one agree."""
        rare = 1 / (self.n + 2)
        return float(np.sqrt(rare * (1 - rare) / self.n) / (1 - self.chance))


def one_task(skill: xr.Dataset) -> xr.Dataset:
    """The capability dataset of one task, without the dim `task`."""
    missing = [name for name in ("correct", "item_logprob", "chance") if name not in skill]
    if missing:
        raise SchemaError(
            f"found a dataset without {', '.join(missing)}; expected what probes.capability(run, "
            "task=...) returns."
        )
    if "task" in skill.dims:
        if skill.sizes["task"] != 1:
            names = ", ".join(map(str, skill["task"].values))
            raise UsageError(
                f"found {skill.sizes['task']} tasks, expected one: skill.sel(task=...) with one of "
                f"{names}; or probes.onsets(skill) for all."
            )
        skill = skill.squeeze("task")
    return skill
