"""Source: whatever a probe reads from, reduced to the one labelled dataset it needs.

Needs   an xr.Dataset of the wanted group, an xr.DataTree with a node of that name, or any object
        that has it as an attribute: Run, Window, Checkpoints.
Yields  that xr.Dataset, with the variables the probe asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from workbench.errors import RunNotFound, SchemaError, UsageError

# A run, a window, checkpoints: known by the attribute they carry, not by their class, because
# others may be the user's own.
Source: TypeAlias = Any


def group_of(source: Source, group: str, needs: Sequence[str] = ()) -> xr.Dataset:
    """The dataset `group` of a source: itself if it is one, else its attribute of that name.

    Args:
        source: xr.Dataset, xr.DataTree, or an object with the attribute `group`: Run, Window.
        group: "router", "train", "evaluations" or "activations".
        needs: variables that must be there.

    Raises:
        UsageError: the source has no such dataset, or the window holds no step of it.
        SchemaError: the dataset lacks a variable the probe reads.

    Example:
        >>> group_of(xr.Dataset({"tokens": ("step", [8, 8])}), "router", ["tokens"]).sizes["step"]
        2
    """
    found = source if isinstance(source, xr.Dataset) else _attribute(source, group)
    missing = [name for name in needs if name not in found]
    if missing:
        have = ", ".join(map(str, found.data_vars)) or "nothing"
        raise SchemaError(
            f"{group} lacks {', '.join(missing)}; it has {have}. Record the variable, or pass the "
            f"{group!r} dataset of a run that has it."
        )
    for dim in ("step", "checkpoint"):
        if any(found[name].sizes.get(dim) == 0 for name in needs):
            raise UsageError(f"found no {dim} in this {group} record; widen the window.")
    return found


def _attribute(source: Source, group: str) -> xr.Dataset:
    node = getattr(source, group, None)
    if isinstance(node, xr.DataTree):
        node = node.to_dataset()
    if not isinstance(node, xr.Dataset):
        raise UsageError(
            f"found a {type(source).__name__} without {group!r}; expected an xr.Dataset or an "
            f"object with .{group} (Run, Window, Checkpoints): workbench.open_run(path) opens one."
        )
    return node


def pick(ds: xr.Dataset, dim: str, wanted: str | Sequence[str] | None) -> list[str]:
    """The labels of `dim` that were asked for, each checked against what is there; None: all.

    Raises:
        RunNotFound: a label that is not there; the message lists the known ones and the nearest.

    Example:
        >>> pick(xr.Dataset(coords={"task": ["code/add", "logic/chain"]}), "task", "code/add")
        ['code/add']
    """
    known = [str(name) for name in np.atleast_1d(ds[dim].values)]
    if wanted is None:
        return known
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RunNotFound(f"no {dim} {name!r}; the known ones are {', '.join(known)}.{hint}")
    return names
