"""Scoring of held-out items: which choice the model finds most probable, and how probable the right
one is.

Needs   a model, its tokenizer, items.
Yields  Scores: correct (task, item) 0 or 1, and log-probability (task, item) of the right
        continuation, nats.

A choice's log-probability is the sum over its tokens given the prompt, over the whole vocabulary.
Discrete and continuous come from one pass, so that a jump in the one can be held against the other
(Schaeffer et al. 2023, arXiv:2304.15004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from model.data.tokenizer import DOCUMENT, PADDING
from model.data.world import Item


@dataclass(frozen=True)
class Scores:
    """How a model did on every item."""

    tasks: tuple[str, ...]
    correct: np.ndarray
    """(task, item), int8."""
    logprob: np.ndarray
    """(task, item), float32, nats."""


@dataclass(frozen=True)
class ItemBatch:
    """Items as token sequences, one for each choice that needs its own, made once for a whole
    run.
    """

    tasks: tuple[str, ...]
    sequences: Tensor
    """(sequence, pos), padded at the end."""
    sequence_of: np.ndarray
    """(choice,): the sequence that scores this choice."""
    start: np.ndarray
    """(choice,): position whose next token is the choice's first."""
    continuation: list[list[int]]
    """Tokens of each choice."""
    item_of: np.ndarray
    """(choice,): the item, counted through all tasks."""
    is_right: np.ndarray
    """(choice,): whether it is the right one."""
    items_per_task: int


def encode_items(items: Mapping[str, Sequence[Item]], tokenizer: Tokenizer) -> ItemBatch:
    """Tokenises items; choices that differ only in their last token share a sequence.

    Args:
        items: task to its items, the same number for each task.
    """
    start_id, pad_id = (tokenizer.encode(t).ids[0] for t in (DOCUMENT, PADDING))
    sequences: list[list[int]] = []
    sequence_of: list[int] = []
    start: list[int] = []
    continuation: list[list[int]] = []
    item_of: list[int] = []
    is_right: list[bool] = []
    every = [item for task in items.values() for item in task]
    for number, item in enumerate(every):
        prompt = [start_id, *tokenizer.encode(item.prompt).ids]
        # Choices that differ only in their last token share a sequence; most are one token long.
        shared: dict[tuple[int, ...], int] = {}
        for index, choice in enumerate(item.choices):
            tokens = tokenizer.encode(choice).ids
            head = tuple(tokens[:-1])
            if head not in shared:
                shared[head] = len(sequences)
                sequences.append(prompt + tokens[:-1])
            sequence_of.append(shared[head])
            start.append(len(prompt) - 1)
            continuation.append(tokens)
            item_of.append(number)
            is_right.append(index == item.answer)
    longest = max(map(len, sequences))
    padded = torch.tensor([s + [pad_id] * (longest - len(s)) for s in sequences])
    return ItemBatch(
        tuple(items), padded, np.array(sequence_of), np.array(start), continuation,
        np.array(item_of), np.array(is_right), len(every) // len(items),
    )  # fmt: skip


def score(model: nn.Module, batch: ItemBatch, rows_at_once: int = 256) -> Scores:
    """Scores every item; the model's mode and its hooks are left as they were.

    Args:
        model: tokens (batch, pos) to logits, or to an object that has `.logits`.
    """
    return scores_of(batch, choice_logprobs(model, batch, rows_at_once))


@torch.no_grad()
def choice_logprobs(model: nn.Module, batch: ItemBatch, rows_at_once: int = 256) -> np.ndarray:
    """Log-probability of every choice of every item, (choice,), nats; which item and whether it is
    the right one stand in the batch.
    """
    was_training = model.training
    model.eval()
    try:
        return _of_choices(model, batch, rows_at_once)
    finally:
        model.train(was_training)


def _of_choices(model: nn.Module, batch: ItemBatch, rows_at_once: int) -> np.ndarray:
    device = next(model.parameters()).device
    found = np.zeros(len(batch.continuation))
    for first in range(0, len(batch.sequences), rows_at_once):
        rows = batch.sequences[first : first + rows_at_once].to(device)
        output = model(rows)
        logprobs = getattr(output, "logits", output).float().log_softmax(-1).cpu()
        here = (batch.sequence_of >= first) & (batch.sequence_of < first + rows_at_once)
        for c in np.flatnonzero(here):
            tokens, row = batch.continuation[c], batch.sequence_of[c] - first
            at = batch.start[c] + np.arange(len(tokens))
            found[c] = logprobs[row, at, tokens].double().sum().item()
    return found


def scores_of(batch: ItemBatch, of_choice: np.ndarray) -> Scores:
    """The scores that follow from every choice's log-probability (choice,)."""
    items = len(batch.tasks) * batch.items_per_task
    best = np.full(items, -np.inf)
    np.maximum.at(best, batch.item_of[~batch.is_right], of_choice[~batch.is_right])
    right = np.empty(items)
    right[batch.item_of[batch.is_right]] = of_choice[batch.is_right]
    shape = (len(batch.tasks), batch.items_per_task)
    # A tie is not a right answer: a model that says nothing must not score.
    correct = (right > best).astype(np.int8).reshape(shape)
    return Scores(batch.tasks, correct, right.astype(np.float32).reshape(shape))
