"""Skill: the course of one capability over training, as a formula.

Needs   its kind and where it happens, steps.
Yields  the success probability at any step (chance-normalised), and the true onset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PlantedSkill:
    """A capability whose course over training is known."""

    kind: Literal["jump", "logistic", "linear", "never", "always"]
    """Course of the chance-normalised success probability: a step at `at`; a logistic or straight
    rise centred there; at `bottom` or at `top` throughout."""

    at: float = 500.0
    """Step of the jump: the first step with the skill; of the others, the middle of the rise."""

    width: float = 0.0
    """Steps from 10 % to 90 % of the rise (logistic), or from its start to its end (linear)."""

    top: float = 0.95
    """Chance-normalised success probability once there."""

    bottom: float = 0.0
    """Before."""

    logprob: Literal["with", "ahead"] = "with"
    """Does the log-probability move with the accuracy, or rise evenly all along the way to it?"""

    def __post_init__(self) -> None:
        if not 0 <= self.bottom <= self.top <= 1:
            raise UsageError(
                f"bottom={self.bottom}, top={self.top}: expected 0 <= bottom <= top <= 1."
            )
        if self.kind in ("logistic", "linear") and self.width <= 0:
            raise UsageError(f"width={self.width}: a {self.kind} rise takes more than 0 steps.")

    def success(self, step: Floats) -> Floats:
        """Chance-normalised success probability at these steps."""
        return self.bottom + (self.top - self.bottom) * self.progress(step)

    def progress(self, step: Floats) -> Floats:
        """Share of the rise that is done at these steps, 0 to 1."""
        step = np.asarray(step, dtype=np.float64)
        if self.kind == "jump":
            return (step >= self.at).astype(np.float64)
        if self.kind == "logistic":
            # 10 % to 90 % of a logistic is 2 ln 9 of its scales.
            return 1 / (1 + np.exp(-(step - self.at) * 2 * np.log(9) / self.width))
        if self.kind == "linear":
            return np.clip((step - self.at) / self.width + 0.5, 0, 1)
        return np.full(step.shape, float(self.kind == "always"))

    def onset(self, level: float = 0.5) -> float:
        """The true step at which the success reaches `level`; NaN where it never does.

        Example:
            >>> PlantedSkill("linear", at=500, width=200, top=1.0).onset(0.75)
            550.0
        """
        share = (level - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 2.0
        if self.kind == "never" or not 0 < share < 1:
            return float("nan")
        if self.kind == "always":
            return 0.0
        if self.kind == "jump":
            return float(self.at)
        if self.kind == "linear":
            return float(self.at + (share - 0.5) * self.width)
        return float(self.at + np.log(share / (1 - share)) * self.width / (2 * np.log(9)))
