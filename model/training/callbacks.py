"""What a training loop tells those who listen.

Needs   nothing.
Yields  Callback, whose methods do nothing until overridden; StepResult, what a step came to.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.mixture import Batch

if TYPE_CHECKING:
    from model.training.loop import Training


@dataclass(frozen=True)
class StepResult:
    """Numbers of one finished step, on the host."""

    step: int
    tokens_seen: int
    loss: float
    """Next-token cross-entropy, nats per token."""
    grad_norm: float
    """Before clipping."""
    lr: float


class Callback:
    """Override what is needed; a method that is not overridden costs nothing."""

    def train_start(self, training: Training) -> None:
        """Before the first step, the model in place."""

    def around_step(
        self, training: Training, step: int, batch: Batch
    ) -> AbstractContextManager[object]:
        """Entered before a step's forward and left after its update."""
        return nullcontext()

    def step_end(self, training: Training, result: StepResult) -> None:
        """After a step's update, inside `around_step`."""

    def checkpoint(self, training: Training, step: int, path: Path) -> None:
        """After a checkpoint is whole on the disk."""

    def train_end(self, training: Training, *, finished: bool) -> None:
        """At the end; `finished` is False when an error or an interrupt ended it."""
