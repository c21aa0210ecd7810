"""RouterSite: one router of a model, and how to read it.

Needs   nothing but torch: a site is made by an adapter (the other files of this folder).
Yields  Scores, what a router's scores mean; Reading, what one forward shows; RouterSite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Shapes: T tokens of all rows of one forward, row by row; E experts; K chosen a token.


class Scores(IntEnum):
    """What a router's scores are, and so how a distribution over all experts comes from them."""

    LOGITS = 0
    """Raw logits: their softmax over all experts is the distribution."""
    SIGMOID = 1
    """Logits of independent sigmoids: the sigmoids divided by their sum are the distribution
    (DeepSeek-AI 2024, arXiv:2412.19437, its balance loss)."""
    PROBABILITIES = 2
    """A distribution already: the logits, and so the z-loss, cannot be known."""


def probabilities(logits_TE: Tensor, scores: int) -> Tensor:
    """The distribution over all experts (T, E) float32 that scores stand for.

    Example:
        >>> import torch
        >>> probabilities(torch.zeros(1, 2), Scores.SIGMOID).tolist()
        [[0.5, 0.5]]
    """
    values_TE = logits_TE.float()
    if scores == Scores.LOGITS:
        return values_TE.softmax(-1)
    shares_TE = values_TE.sigmoid() if scores == Scores.SIGMOID else values_TE
    return shares_TE / shares_TE.sum(-1, keepdim=True)


class Reading(NamedTuple):
    """What one router showed in one forward, detached from the graph."""

    logits_TE: Tensor
    """Scores of all experts before any bias of the selection, as `Scores` says."""
    ids_TK: Tensor
    """Chosen experts, integers; -1 where an assignment was dropped."""
    gates_TK: Tensor
    """The weights with which the chosen experts' outputs are summed."""


Show = Callable[[Reading], None]


@dataclass(frozen=True)
class RouterSite:
    """One router of a model."""

    name: str
    """Dotted path of `module` in the model."""
    module: nn.Module
    """The router, or the module that holds it: its `training` flag tells evaluation apart."""
    num_experts: int
    """Experts of the layer over all ranks."""
    experts_per_token: int
    scores: Scores
    attach: Callable[[Show], Sequence[RemovableHandle]]
    """Hooks the model so that `show` is called exactly once a forward; the handles undo it."""
    drops: bool = False
    """Whether it may drop assignments (ids of -1), so that a token has fewer than k."""


def on_output(
    module: nn.Module, read: Callable[[Any], Reading]
) -> Callable[[Show], Sequence[RemovableHandle]]:
    """The `attach` of a router whose output alone makes a Reading."""

    def attach(show: Show) -> Sequence[RemovableHandle]:
        def hook(called: nn.Module, inputs: Any, output: Any) -> None:
            # A deep copy of the model (a moving average, a reference) has taken the hook along.
            # By id: the compiler sets no guard on `is`, and would run one's code for the other.
            if id(called) == id(module):
                show(read(output))

        return [module.register_forward_hook(hook)]

    return attach
