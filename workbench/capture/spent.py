"""What capture's own ops have cost: the time of the threads that called them.

Needs   the functions that run as ops.
Yields  `timed`, which counts a function's time in; `spent`, the sum so far.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

_seconds = [0.0]


def spent() -> float:
    """Seconds that this process's threads have spent in capture's ops; on a GPU in launching them.

    Example:
        >>> spent() >= 0
        True
    """
    return _seconds[0]


def timed(work: Callable[..., None]) -> Callable[..., None]:
    """`work`, its time counted in."""

    @wraps(work)
    def counted(*arguments: Any) -> None:
        began = perf_counter()
        work(*arguments)
        _seconds[0] += perf_counter() - began

    return counted
