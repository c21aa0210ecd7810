"""Signals: captured signals whose moves are known, beside a capability whose onset is known.

Needs   signals, each with its lead on a skill; the skill, the clock, a seed.
Yields  a dataset like that of probes.signals: value (step, signal).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.signal import lfilter

from workbench.errors import UsageError
from workbench.planted.skill import PlantedSkill

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlantedSignal:
    """A signal whose course over training is known, but for its noise."""

    lead: float | None = None
    """Steps by which it moves ahead of the skill; under 0 it lags, 0 is together; None: it has
    nothing to do with the skill."""

    height: float = 1.0
    """How far it moves with the skill, in its own unit."""

    noise: float = 0.3
    """Standard deviation of its noise, an AR(1) process, in its own unit."""

    memory: float = 0.8
    """Correlation of the noise from one step to the next."""

    walk: float = 0.0
    """Standard deviation of one step of a random walk on top."""

    trend: float = 0.0
    """Straight rise over the whole record, in its own unit."""

    curve: float = 0.0
    """Rise that slows down, 1 - exp(-4 u) over the share u of the record, in its own unit."""

    jump: float = 0.0
    """Height of a change at `jump_at` that has nothing to do with the skill."""

    jump_at: float = 0.0
    """Step of that change, such as a fork at which the data mix changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1 or self.noise < 0 or self.walk < 0:
            raise UsageError(
                f"memory={self.memory}, noise={self.noise}, walk={self.walk}: expected a memory "
                "from 0 to under 1 and no negative size."
            )

    def course(self, step: Floats, skill: PlantedSkill) -> Floats:
        """Its values at these steps without noise.

        Example:
            >>> skill = PlantedSkill("jump", at=500)
            >>> PlantedSignal(lead=40).course(np.array([459.0, 460.0]), skill).tolist()
            [0.0, 1.0]
        """
        share = (step - step[0]) / max(float(step[-1] - step[0]), 1.0)
        values = self.trend * share + self.curve * (1 - np.exp(-4 * share))
        if self.lead is not None:
            values = values + self.height * skill.progress(step + self.lead)
        return np.asarray(values + self.jump * (step >= self.jump_at), dtype=np.float64)


def signals_record(
    signals: Mapping[str, PlantedSignal],
    skill: PlantedSkill,
    *,
    steps: int = 1120,
    every: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Signals at every step of a run, each with its own noise.

    Args:
        signals: name -> its course.
        skill: the capability that some of them lead or lag; give the same to `evaluations_record`.
        steps: length of the run; signals are known at every, 2 every, ... to `steps`.
        every: steps between two values.

    Returns:
        Dataset: value (step, signal), in each signal's own unit; coordinates kind, layer and units
        of each signal, as `probes.signals` gives them.

    Raises:
        UsageError: no signal, or under two steps.

    Example:
        >>> planted = {"ahead": PlantedSignal(lead=40), "noise": PlantedSignal()}
        >>> dict(signals_record(planted, PlantedSkill("jump", at=500)).sizes)
        {'step': 1120, 'signal': 2}
    """
    if not signals or steps // every < 2:
        raise UsageError(
            f"{len(signals)} signals at {steps // every} steps; expected one or more, at two or "
            "more."
        )
    clock = np.arange(every, steps + 1, every, dtype=np.int64)
    values = np.empty((len(clock), len(signals)))
    for s, signal in enumerate(signals.values()):
        rng = np.random.default_rng([seed, s])
        fresh = rng.normal(size=len(clock)) * signal.noise
        # The first value is drawn from the stationary distribution already.
        fresh[1:] *= np.sqrt(1 - signal.memory**2)
        noise = lfilter([1.0], [1.0, -signal.memory], fresh)
        walk = np.cumsum(rng.normal(size=len(clock))) * signal.walk
        values[:, s] = signal.course(clock.astype(np.float64), skill) + noise + walk
    names = list(signals)
    return xr.Dataset(
        {"value": (("step", "signal"), values)},
        coords={
            "step": clock,
            "signal": names,
            "kind": ("signal", names),
            "layer": ("signal", np.full(len(names), -1)),
            "units": ("signal", ["1"] * len(names)),
        },
        attrs={"run": "planted", "branch": "main"},
    )
