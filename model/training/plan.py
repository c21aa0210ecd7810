"""Everything that decides one training, as one frozen value that can be written down and read back.

Needs   nothing.
Yields  TrainingPlan; PLANS, one for each preset that trains without a cluster.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from model.config import NANO, MoEConfig, preset
from model.errors import ConfigError
from model.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Model, data, schedule and cadences of a run."""

    model: MoEConfig
    schedule: Schedule
    seed: int = 0
    """Decides the world, the initial weights and every batch."""

    batch_rows: int = 64
    """Sequences in a step."""

    row_tokens: int = 64
    """Training tokens in a sequence."""

    weight_decay: float = 0.05
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this Euclidean norm."""

    checkpoint_every: int = 56
    """Steps between two checkpoints before the final phase."""

    checkpoint_every_final: int = 28
    """Steps between two checkpoints in the final phase, where things are looked at closely."""

    items_per_task: int = 64
    """Held-out items of each task, scored at every checkpoint."""

    probe_rows: int = 2
    """Held-out rows of each domain in the fixed probe set."""

    def __post_init__(self) -> None:
        for name in ("batch_rows", "row_tokens", "checkpoint_every", "checkpoint_every_final",
                     "items_per_task", "probe_rows"):  # fmt: skip
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name}={value}: must be 1 or more.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed}: must lie between 0 and 2^63 - 1.")
        if self.row_tokens > self.model.n_ctx:
            raise ConfigError(
                f"row_tokens={self.row_tokens}: the model takes at most n_ctx={self.model.n_ctx}."
            )
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm={self.clip_norm}: must be above 0.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay={self.weight_decay}: must be 0 or more.")

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one step."""
        return self.batch_rows * self.row_tokens

    def is_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is saved after this step; the start, the fork and the end always
        are.
        """
        s = self.schedule
        if step in (0, s.fork_step, s.steps):
            return True
        if step < s.fork_step:
            return step % self.checkpoint_every == 0
        return (step - s.fork_step) % self.checkpoint_every_final == 0

    def scaled(self, steps: int) -> TrainingPlan:
        """The same course in another number of steps: warm-up and checkpoints keep their shares.

        Example:
            >>> plan_for("nano").scaled(100).schedule.steps
            100
        """
        if steps < 1:
            raise ConfigError(f"steps={steps}: must be 1 or more.")
        ratio = steps / self.schedule.steps
        return replace(
            self,
            schedule=replace(
                self.schedule, steps=steps, warmup_steps=int(self.schedule.warmup_steps * ratio)
            ),
            checkpoint_every=max(1, round(self.checkpoint_every * ratio)),
            checkpoint_every_final=max(1, round(self.checkpoint_every_final * ratio)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingPlan:
        """The plan with these values.

        Raises:
            ConfigError: an unknown name, or a value that cannot be.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [n for n in values if n not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."
            raise ConfigError(f"unknown field {unknown[0]!r} in a training plan{hint}")
        rest = {k: v for k, v in values.items() if k not in ("model", "schedule")}
        try:
            return cls(
                model=MoEConfig.from_dict(values["model"]),
                schedule=Schedule(**values["schedule"]),
                **rest,
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"training plan is not complete: {error}.") from error


PLANS: dict[str, TrainingPlan] = {
    "nano": TrainingPlan(model=NANO, schedule=Schedule(steps=1400, lr=3e-3)),
}


def plan_for(name: str) -> TrainingPlan:
    """The training plan of a preset.

    Raises:
        ConfigError: no such preset, or it has no plan for one machine.

    Example:
        >>> plan_for("nano").tokens_per_step
        4096
    """
    shape = preset(name)
    if name.lower() not in PLANS:
        raise ConfigError(
            f"preset {name!r} has a model of {shape.n_layers} layers x {shape.d_model} but no "
            f"training plan; there are plans for {', '.join(PLANS)}."
        )
    return PLANS[name.lower()]
