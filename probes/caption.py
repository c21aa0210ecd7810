"""Caption: what every variable of a result says of itself: unit, meaning, chance level, interval.

Needs   a result, and a row of text a variable.
Yields  the same result with `units`, `long_name`, `chance_level` and `interval` on each variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import xarray as xr


class Caption(NamedTuple):
    """One variable's caption."""

    units: str
    meaning: str
    interval: str
    """What the interval means, or why there is none."""
    chance: float | str | None = None
    """The value of a router that does nothing of the kind; None: there is no such value."""


def captioned(result: xr.Dataset, captions: Mapping[str, Caption]) -> xr.Dataset:
    """`result` with its captions; <name>_low and <name>_high take theirs from <name>.

    Raises:
        KeyError: a variable without a caption: a number nobody could read.

    Example:
        >>> rate = xr.Dataset({"rate": 0.5, "rate_low": 0.4})
        >>> captioned(rate, {"rate": Caption("1", "rate", "none")})["rate_low"].attrs["long_name"]
        'rate, lower bound'
    """
    for name in map(str, result.data_vars):
        stem = name.removesuffix("_low").removesuffix("_high")
        known = captions[name] if name in captions else captions[stem]
        end = {"_low": ", lower bound", "_high": ", upper bound"}.get(name[len(stem) :], "")
        attrs: dict[str, object] = {
            "units": known.units,
            "long_name": known.meaning + (end if name not in captions else ""),
            "interval": known.interval,
        }
        if known.chance is not None:
            attrs["chance_level"] = known.chance
        result[name].attrs = attrs
    return result
