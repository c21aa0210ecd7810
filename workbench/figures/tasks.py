"""Tasks in the order of every figure and table: by family, then as recorded.

Needs   task names "<family>/<task>"; a dataset with a dim `task`.
Yields  family -> tasks; the name of a task within its family; one task of a dataset.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.wording import listed, plain

FAMILIES = ("knowledge", "reading", "logic", "code")


def by_family(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its tasks in the given order; the four known families first, others after them.

    Example:
        >>> by_family(["code/add", "zoo/cat", "knowledge/capitals", "code/mul"])
        {'knowledge': ['knowledge/capitals'], 'code': ['code/add', 'code/mul'], 'zoo': ['zoo/cat']}
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(family_of(task), []).append(str(task))
    known = [f for f in FAMILIES if f in groups]
    return {f: groups[f] for f in [*known, *(f for f in groups if f not in known)]}


def family_of(task: str) -> str:
    """What stands before the first slash; the name itself where there is none.

    Example:
        >>> family_of("logic/chain"), family_of("loose")
        ('logic', 'loose')
    """
    return str(task).partition("/")[0]


def short_name(task: str) -> str:
    """What stands after the first slash; the name itself where there is nothing.

    Example:
        >>> short_name("logic/chain"), short_name("loose")
        ('chain', 'loose')
    """
    return str(task).partition("/")[2] or str(task)


def one_task(ds: xr.Dataset, task: str | None, weight: xr.DataArray) -> xr.Dataset:
    """The dataset of one task, its name in the attribute `task`.

    Args:
        ds: with or without a dim `task`; without one it is of one task already.
        task: which; None takes the one at which `weight` is greatest anywhere.
        weight: a number for every task, at least.

    Raises:
        SchemaError: there is no such task.

    Example:
        >>> ds = xr.Dataset({"x": ("task", [1.0, 3.0])}, coords={"task": ["a", "b"]})
        >>> one_task(ds, None, ds["x"]).attrs["task"]
        'b'
    """
    if "task" not in ds.dims:
        return ds
    names = [str(t) for t in ds["task"].values]
    if task is None:
        others = [dim for dim in weight.dims if dim != "task"]
        known = weight.where(np.isfinite(weight), -np.inf).max(others)
        task = names[int(np.argmax(known.values))]
    if task not in names:
        raise SchemaError(f"no task {plain(task)!r}; there are {listed(names, most=12)}.")
    alone = ds.isel(task=names.index(task))
    return alone.assign_attrs(task=task)
