"""An interval of a run on a named clock, as steps.

Needs   a run's Clock, and the interval as people say it: the last fifth, the last week, the last
        2e9 tokens.
Yields  Interval: the clock's name, and the steps after `start` up to and including `stop`.

"The final week" of a big run is a time; of a small one it is a share of the tokens, which is what
compares across runs. The interval is half-open, (start, stop]: the checkpoint at `start` is where
it sets out from, and neighbouring windows share no step.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real

from checkpoints_index.clock import Clock
from checkpoints_index.errors import ClockError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


@dataclass(frozen=True)
class Interval:
    """Steps s with start < s <= stop, told by `clock`."""

    clock: str
    """Clock that the interval was asked on: "tokens", "utc" or "step"."""
    start: int
    stop: int

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self.start < step <= self.stop


def seconds(duration: str) -> float:
    """A duration such as "7d" or "1.5h" in seconds; units s, m, h, d, w.

    Example:
        >>> seconds("7d")
        604800.0
    """
    match = _DURATION.fullmatch(duration.strip())
    if not match or not float(match[1]):
        raise ClockError(
            f"duration {ascii(duration)[:40]}: expected a number and one of s, m, h, d, w; "
            f"for example '7d'."
        )
    return float(match[1]) * _SECONDS[match[2]]


def interval(
    clock: Clock,
    *,
    last: float | str | None = None,
    last_tokens: float | None = None,
    start: int | None = None,
    stop: int | None = None,
) -> Interval:
    """The interval that was asked for. Give one of `last`, `last_tokens`, or `start` and/or `stop`.

    Args:
        last: share of the run's tokens in (0, 1], or a duration such as "7d" of UTC.
        last_tokens: training tokens.
        start, stop: steps; the interval excludes `start` and includes `stop`.

    Raises:
        ClockError: nothing or too much was asked, or the clock was not recorded.

    Example:
        >>> import numpy as np
        >>> clock = Clock(np.arange(1, 11), tokens=np.arange(1, 11) * 64)
        >>> interval(clock, last=0.2)
        Interval(clock='tokens', start=8, stop=10)
    """
    asked = [last is not None, last_tokens is not None, start is not None or stop is not None]
    if sum(asked) != 1:
        raise ClockError(
            "a window is asked for by one of: last=0.2 (share of tokens), last='7d', "
            "last_tokens=2e9, or start= and stop= (steps)."
        )
    if not len(clock):
        raise ClockError("the run has no recorded steps yet, so it has no windows.")
    final = int(clock.step[-1])
    if isinstance(last, str):
        instant = clock.reading(final, "utc") - seconds(last)
        return Interval("utc", clock.step_at(instant, "utc"), final)
    if last is not None:
        if not isinstance(last, Real) or not 0 < last <= 1:
            raise ClockError(f"last={last}: a share of the run lies in (0, 1]; or say last='7d'.")
        # Tokens are whole: rounding keeps 0.2 of 640 from falling a hair, and a step, short.
        return _by_tokens(clock, round((1 - last) * clock.reading(final, "tokens")))
    if last_tokens is not None:
        if not math.isfinite(last_tokens) or last_tokens <= 0:
            raise ClockError(f"last_tokens={last_tokens}: expected a positive number of tokens.")
        return _by_tokens(clock, clock.reading(final, "tokens") - last_tokens)
    first = int(clock.step[0]) - 1
    begin, end = first if start is None else int(start), final if stop is None else int(stop)
    if begin >= end:
        raise ClockError(
            f"window from {begin} to {end} holds no step; the run has steps {first + 1} to {final}."
        )
    return Interval("step", begin, end)


def _by_tokens(clock: Clock, instant: float) -> Interval:
    return Interval("tokens", clock.step_at(instant, "tokens"), int(clock.step[-1]))
