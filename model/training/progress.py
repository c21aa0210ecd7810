"""Progress of a training: a bar on a terminal, a line every 30 s elsewhere.

Needs   a Training that calls back.
Yields  text on a stream.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from model.training.callbacks import Callback, StepResult

if TYPE_CHECKING:
    from model.training.loop import Training

SECONDS_BETWEEN_LINES = 30.0


class Progress(Callback):
    """Shows step, loss and tokens a second.

    Args:
        label: what is trained, before the numbers.
        stream: where to; a bar is drawn if it is a terminal.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = stream if stream is not None else sys.stderr
        self._bar: tqdm[Any] | None = None

    def train_start(self, training: Training) -> None:
        self._last_line = self._began = time.monotonic()
        self._tokens_at_start = training.tokens_seen
        self._until = training.until
        if self.stream.isatty():
            self._bar = tqdm(
                total=training.until, initial=training.step, desc=self.label, unit="step",
                file=self.stream, dynamic_ncols=True,
            )  # fmt: skip

    def step_end(self, training: Training, result: StepResult) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {result.loss:.3f}", refresh=False)
            self._bar.update(1)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._line(result.step, result.loss, result.tokens_seen)

    def train_end(self, training: Training, *, finished: bool) -> None:
        if self._bar is not None:
            self._bar.close()
        elif finished and training.last_result is not None:
            self._line(training.step, training.last_result.loss, training.tokens_seen)

    def _line(self, step: int, loss: float, tokens_seen: int) -> None:
        rate = (tokens_seen - self._tokens_at_start) / max(time.monotonic() - self._began, 1e-9)
        self.stream.write(
            f"{self.label}: step {step}/{self._until}  loss {loss:.3f}  {rate:,.0f} tokens/s\n"
        )
        self.stream.flush()
