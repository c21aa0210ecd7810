"""The clocks of one run: optimizer step, tokens seen, UTC, and how to get from one to the other.

Needs   step (step), ascending; tokens_seen and utc at those steps, where they were recorded.
Yields  Clock: any of the three at any step, and the step at any instant of the three.

Steps count from 1: step 0 is the moment before training, with no tokens seen. Between two recorded
steps
nothing is known, so nothing is interpolated: an instant falls to the last recorded step at or
before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoints_index.errors import ClockError

NAMES = ("step", "tokens", "utc")
"""The clocks by name; utc in seconds since 1970."""


@dataclass(frozen=True, eq=False)
class Clock:
    """What each clock showed at the recorded steps.

    Example:
        >>> clock = Clock(np.array([1, 2, 3]), tokens=np.array([64, 128, 192]))
        >>> clock.step_at(130, on="tokens"), clock.reading(3, on="tokens")
        (2, 192)
    """

    step: np.ndarray
    """Recorded steps, ascending, int64."""

    tokens: np.ndarray | None = None
    """Training tokens up to and including each step."""

    utc: np.ndarray | None = None
    """UTC at the end of each step, s since 1970."""

    def __post_init__(self) -> None:
        step = np.asarray(self.step, np.int64)
        object.__setattr__(self, "step", step)
        if step.ndim != 1 or (np.diff(step) <= 0).any():
            raise ClockError("the steps of a clock must ascend; the record's are out of order.")
        for name in ("tokens", "utc"):
            values = getattr(self, name)
            if values is None:
                continue
            if np.shape(values) != step.shape:
                raise ClockError(
                    f"{name}: {np.shape(values)} readings for {step.shape} steps; give one a step."
                )
            # A host whose clock was set back would make time run backwards: an instant
            # then falls to the first step that reached it.
            object.__setattr__(self, name, np.maximum.accumulate(np.asarray(values)))

    def __len__(self) -> int:
        return len(self.step)

    def readings(self, on: str) -> np.ndarray:
        """All readings of the clock `on`; ClockError where it was not recorded."""
        if on not in NAMES:
            raise ClockError(f"no clock {on!r}; the clocks are {', '.join(NAMES)}.")
        values = getattr(self, on)
        if values is None or not len(self.step):
            have = [n for n in NAMES if getattr(self, n) is not None and len(self.step)]
            raise ClockError(
                f"the run did not record its {on} clock; "
                f"it has {', '.join(have) if have else 'no clock at all yet'}."
            )
        return values

    def reading(self, step: int, on: str) -> int | float:
        """What the clock `on` showed at `step`, or at the last recorded step before it."""
        readings = self.readings(on)
        at = int(np.searchsorted(self.step, step, side="right")) - 1
        if at < 0:
            return 0 if on != "utc" else float(readings[0])
        return readings[at].item()

    def step_at(self, instant: float, on: str) -> int:
        """The last recorded step whose reading is not after `instant`; the step before the first
        record where all of them are."""
        readings = self.readings(on)
        at = int(np.searchsorted(readings, instant, side="right")) - 1
        return int(self.step[at]) if at >= 0 else int(self.step[0]) - 1
