"""Items: those of some tasks, cut out of all, and the value of a model's answers to them.

Needs   the items of an exam (model/evaluation.py encodes them) and a model.
Yields  `items_of`: an ItemBatch of the wanted tasks alone; `values_of`, `all_values_of`: (item,)
        accuracy or log-probability of the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from model.evaluation import ItemBatch, choice_logprobs, scores_of
from probes.statistics.resample import Floats
from workbench.errors import RunNotFound, UsageError

Measure = Literal["logprob", "accuracy"]
MEASURES: dict[str, tuple[str, str]] = {
    "logprob": ("nats", "mean log-probability of the right answer"),
    "accuracy": ("1", "share of items answered right"),
}
"""Unit and meaning of each."""


def items_of(batch: ItemBatch | None, tasks: Sequence[str] | str | None = None) -> ItemBatch:
    """The items of some tasks, in the order asked for, their sequences cut to what they need.

    Args:
        batch: all items.
        tasks: one name, several, or None for all.

    Raises:
        UsageError: there are no items at all.
        RunNotFound: no such task.

    Example:
        >>> from workbench.planted.model import planted_model
        >>> batch = planted_model(homes={"a": (0, 2), "b": (1, 3)}, items=4).items
        >>> items_of(batch, "b").tasks, tuple(items_of(batch, "b").sequences.shape)
        (('b',), (4, 2))
    """
    if batch is None:
        raise UsageError(
            "this exam has no tasks; give it some: Exam(..., items=encode_items(...), "
            "chance={...})."
        )
    if tasks is None:
        return batch
    wanted = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    for task in wanted:
        if task not in batch.tasks:
            raise RunNotFound(f"no task {task!r}; the tasks are {', '.join(batch.tasks)}.")
    size = batch.items_per_task
    numbers = [batch.tasks.index(task) for task in wanted]
    choices = np.concatenate([np.flatnonzero(batch.item_of // size == n) for n in numbers])
    place = np.full(len(batch.tasks), -1)
    place[numbers] = np.arange(len(numbers))
    rows, row_of = np.unique(batch.sequence_of[choices], return_inverse=True)
    continuation = [batch.continuation[c] for c in choices]
    start = batch.start[choices]
    # The last token of a choice is found, not read.
    longest = max(int(s) + len(c) for s, c in zip(start, continuation, strict=True))
    item = batch.item_of[choices]
    return ItemBatch(
        tuple(wanted), batch.sequences[rows, :longest], row_of, start, continuation,
        place[item // size] * size + item % size, batch.is_right[choices], size,
    )  # fmt: skip


def values_of(model: nn.Module, batch: ItemBatch, measure: str = "logprob") -> Floats:
    """(item,), through all tasks: log-probability of the right answer in nats, or 1 right, 0 wrong.

    Args:
        model: tokens (row, pos) to logits, or to an object with `.logits`.
        measure: "logprob" or "accuracy".

    Raises:
        UsageError: no such measure, or a model whose answers are not numbers.
    """
    if measure not in MEASURES:
        raise UsageError(f"measure={measure!r}: expected one of {', '.join(MEASURES)}.")
    return all_values_of(model, batch)[measure]


def all_values_of(model: nn.Module, batch: ItemBatch) -> dict[str, Floats]:
    """Every measure -> (item,), from one pass.

    Raises:
        UsageError: a model whose answers are not numbers.
    """
    of_choice = choice_logprobs(model, batch)
    if not np.isfinite(of_choice).all():
        raise UsageError(
            f"{np.sum(~np.isfinite(of_choice))} of {len(of_choice)} log-probabilities are not "
            f"finite; expected a model whose logits are. Load it in float32."
        )
    scores = scores_of(batch, of_choice)
    return {
        "logprob": scores.logprob.astype(np.float64).ravel(),
        "accuracy": scores.correct.astype(np.float64).ravel(),
    }
