"""Strands: the lines of several arms, with the history that they share drawn once.

Needs   arm name -> dataset along `step` or `checkpoint`; the variables that are drawn.
Yields  Strand: a stretch of one line, with its name and colour.

Two arms that were forked from one checkpoint carry the same samples up to the fork. Drawn twice,
the arm drawn last would hide the other; so the longest stretch on which all arms agree exactly
becomes one strand of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import UsageError
from workbench.figures.clock import along
from workbench.figures.template import TRUNK, arm_colors

SHARED = "shared history"


@dataclass(frozen=True)
class Strand:
    """One stretch of line."""

    name: str
    """The arm's name, unescaped, or SHARED."""
    values: xr.Dataset
    color: str
    dash: str
    shared: bool


def arms_of(source: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Arm name -> dataset; a dataset alone is the arm that its attrs name, else "main".

    Example:
        >>> list(arms_of(xr.Dataset(attrs={"branch": "code"})))
        ['code']
    """
    # A Dataset is itself a Mapping, of variables.
    if isinstance(source, xr.Dataset):
        return {str(source.attrs.get("branch", "main")): source}
    if not source:
        raise UsageError("no arm was given; pass arm name -> dataset, for example {'main': ...}.")
    return dict(source)


def strands(
    arms: Mapping[str, xr.Dataset], drawn: list[str], colors: Mapping[str, str] | None = None
) -> list[Strand]:
    """The arms as strands: the shared history first, then each arm from the last shared sample on.

    Args:
        arms: arm name -> dataset; one arm alone has no shared history.
        drawn: variables that must agree for a sample to count as shared.
        colors: arm name -> hex colour; by default `arm_colors`.

    Example:
        >>> def arm(*y):
        ...     return xr.Dataset({"y": ("step", list(y))}, coords={"step": range(len(y))})
        >>> parts = strands({"a": arm(1, 2, 3), "b": arm(1, 2, 9)}, ["y"])
        >>> [(p.name, p.values.y.values.tolist()) for p in parts]
        [('shared history', [1, 2]), ('a', [2, 3]), ('b', [2, 9])]
    """
    colors = {**arm_colors(arms), **(colors or {})}
    n = shared_samples(list(arms.values()), drawn) if len(arms) > 1 else 0
    found = []
    if n > 1:
        first = next(iter(arms.values()))
        found.append(Strand(SHARED, first.isel({along(first): slice(0, n)}), TRUNK, "solid", True))
    for i, (name, values) in enumerate(arms.items()):
        rest = values.isel({along(values): slice(max(0, n - 1), None)}) if n > 1 else values
        found.append(Strand(name, rest, colors[name], _DASHES[i % len(_DASHES)], False))
    return found


_DASHES = ("solid", "5px,2px", "2px,2px", "8px,2px,2px,2px")


def shared_samples(arms: list[xr.Dataset], drawn: list[str]) -> int:
    """Samples from the start on which all `arms` agree exactly, in step and `drawn`."""
    dim = along(arms[0])
    n = min(arm.sizes[dim] for arm in arms)
    alike = np.ones(n, dtype=bool)
    for other in arms[1:]:
        for name in [dim, *drawn]:
            if name not in arms[0] or name not in other:
                continue
            a, b = (
                arm[name].isel({dim: slice(0, n)}).transpose(dim, ...).values.reshape(n, -1)
                for arm in (arms[0], other)
            )
            if a.shape != b.shape:
                return 0
            alike &= np.array(
                [np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True)]
            )
    return int(n if alike.all() else alike.argmin())
