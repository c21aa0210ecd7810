"""The course of a training: warm-up, stable, final phase; its learning rate and its data mixture at
every step.

Needs   a number of steps, the peak learning rate, weights of the two mixtures.
Yields  `Schedule`: phase, learning rate and domain shares of any step.

The learning rate rises linearly, stays, and falls linearly over the final phase (warm-up, stable,
decay: Hu et al. 2024, MiniCPM, arXiv:2404.06395). The mixture changes where the final phase begins,
as in Blakeney et al. 2024, arXiv:2406.03476.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from model.data.mixture import full_weights
from model.errors import ConfigError, DataError

MAIN_MIXTURE: Mapping[str, float] = {
    "knowledge": 0.12, "reading/repeat": 0.07, "reading/binding": 0.12, "reading/update": 0.12,
    "logic": 0.23, "code/arithmetic": 0.02, "code/index": 0.005, "code/variable": 0.015,
    "code_text": 0.16, "prose": 0.14,
}  # fmt: skip
"""What the main line trains on: everything, the tasks of the code family rarely."""

ARMS: dict[str, Mapping[str, float]] = {
    "continue": MAIN_MIXTURE,
    "curriculum": {
        "knowledge": 0.05, "reading": 0.15, "logic": 0.15, "code/arithmetic": 0.15,
        "code/index": 0.25, "code/variable": 0.15, "code_text": 0.05, "prose": 0.05,
    },
    "code": {
        "knowledge": 0.04, "reading": 0.04, "logic": 0.04, "code": 0.40, "code_text": 0.44,
        "prose": 0.04,
    },
}  # fmt: skip
"""Mixtures of the final phase, by arm: carry on, curated data, tune for code."""


def arm_mixture(name: str) -> Mapping[str, float]:
    """The final mixture of that arm.

    Raises:
        ConfigError: no such arm; the message lists those there are.

    Example:
        >>> arm_mixture("continue") == MAIN_MIXTURE
        True
    """
    if (found := ARMS.get(name)) is None:
        near = difflib.get_close_matches(name, ARMS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no arm {name!r}; the arms are {', '.join(ARMS)}.{hint}")
    return found


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate and mixture over the steps of one line of training. Steps count from 1."""

    steps: int
    """Optimizer steps in all, final phase included."""

    lr: float
    """Peak learning rate."""

    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0."""

    final_share: float = 0.2
    """Share of the steps that the final phase takes."""

    final_lr_share: float = 0.02
    """Learning rate of the very last step, as a share of the peak."""

    mixture: Mapping[str, float] = field(default_factory=lambda: dict(MAIN_MIXTURE))
    """Weights of warm-up and stable phase, by domain or family."""

    final_mixture: Mapping[str, float] = field(default_factory=lambda: dict(MAIN_MIXTURE))
    """Weights of the final phase."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}: must be 1 or more.")
        if not self.lr > 0:
            raise ConfigError(f"lr={self.lr}: must be above 0.")
        if not 0 < self.final_share < 1:
            raise ConfigError(f"final_share={self.final_share}: a share, between 0 and 1.")
        if not 0 <= self.final_lr_share <= 1:
            raise ConfigError(f"final_lr_share={self.final_lr_share}: a share of the peak, 0 to 1.")
        if not 0 <= self.warmup_steps <= self.fork_step:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps}: must lie between 0 and the final phase's start "
                f"at step {self.fork_step}."
            )
        for name in ("mixture", "final_mixture"):
            try:
                full_weights(getattr(self, name))
            except DataError as error:
                raise ConfigError(f"{name}: {error}") from error

    @property
    def fork_step(self) -> int:
        """The last step before the final phase: arms are forked from its checkpoint."""
        return self.steps - max(1, round(self.steps * self.final_share))

    def phase(self, step: int) -> str:
        """warm-up, stable or final."""
        if step <= self.warmup_steps:
            return "warm-up"
        return "stable" if step <= self.fork_step else "final"

    def phases(self) -> list[dict[str, str | int]]:
        """Name, first and last step of each phase, in order; a phase without steps is left out.

        Example:
            >>> Schedule(steps=10, lr=1.0, warmup_steps=2).phases()[-1]
            {'name': 'final', 'start': 9, 'stop': 10}
        """
        edges = [0, self.warmup_steps, self.fork_step, self.steps]
        names = ("warm-up", "stable", "final")
        return [
            {"name": n, "start": a + 1, "stop": b}
            for n, a, b in zip(names, edges, edges[1:], strict=False)
            if b > a
        ]

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step.

        Example:
            >>> s = Schedule(steps=100, lr=1.0, warmup_steps=10, final_lr_share=0.0)
            >>> s.learning_rate(5), s.learning_rate(50), s.learning_rate(90), s.learning_rate(100)
            (0.5, 1.0, 0.5, 0.0)
        """
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if step <= self.fork_step:
            return self.lr
        done = (step - self.fork_step) / (self.steps - self.fork_step)
        return self.lr * (1 - done * (1 - self.final_lr_share))

    def shares(self, step: int) -> dict[str, float]:
        """Share of each domain in a step's batch; they sum to 1."""
        return full_weights(self.mixture if step <= self.fork_step else self.final_mixture)
