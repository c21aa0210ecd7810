"""View: whether a dataset still shows what is stored where it was opened.

Needs   a dataset whose encoding holds an Origin.
Yields  View: `check`, that variables show the stored rows from the dataset's first step to its
        last; `is_of_origin`, that its rows are those of its origin.

xarray keeps a dataset's encoding through arithmetic, assignments, new labels and concatenation: the
Origin in it says where a dataset came from, and not what it shows by now. What is not read yet
knows its place in the store, which is compared with its labels. What is in memory is compared with
what is stored, in pieces. Of dask arrays only whole ones tell: their graph is not looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core import indexing

from workbench.errors import SchemaError
from workbench.store.lazy_group import ORIGIN, Origin, StoredArray

PIECE_BYTES = 64 << 20
SPOTS = 9
"""Rows of a variable that `is_of_origin` looks at where its values would have to be read."""

REMEDY = (
    "take it of the opened dataset, or of a part of it, before anything is computed "
    "(run.router.moe, or run.overview('router', start=, stop=)), or compute on this dataset itself."
)


class View:
    """What `ds` shows of the group that it was opened from.

    Args:
        ds: any dataset.

    Attributes:
        origin: where it was opened; None: it does not say.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.ds = ds
        self.origin: Origin | None = ds.encoding.get(ORIGIN)
        self._known: dict[str, np.ndarray] = {}

    def check(self, names: Sequence[str]) -> None:
        """That the variables `names` are those of the store at the dataset's labels, for every
        stored step from its first to its last.

        Raises:
            SchemaError: they are not, or it cannot be told; what differs is named.
        """
        steps = self._places("step")
        if (np.diff(steps) != 1).any():
            raise SchemaError(
                f"this dataset leaves out steps between its first and its last; {REMEDY}"
            )
        for name in names:
            if not self._shows(name):
                raise SchemaError(
                    f"{name!r} of this dataset is not, or cannot be told to be, what is stored at "
                    f"its labels (it was computed, replaced, transposed before it was read, or cut "
                    f"after chunks= were given); {REMEDY}"
                )

    def is_of_origin(self) -> bool:
        """Whether the dataset's steps, in their order, are rows of its origin: its labels are
        there, and every variable that the store has too shows the same, in some rows at least where
        values have to be read for that.
        """
        try:
            self._places("step")
            own = [n for n, v in self.ds.data_vars.items() if v.dims and "step" in v.dims]
            return all(self._shows(str(n), SPOTS) for n in own if n in self._stored)
        except SchemaError:
            return False

    @cached_property
    def _stored(self) -> xr.Dataset:
        assert self.origin is not None
        return self.origin.snapshot.dataset(self.origin.group)

    def _places(self, dim: str) -> np.ndarray:
        """Where the dataset's labels of `dim` are in the store's; SchemaError where they are not,
        or do not ascend along "step".
        """
        if dim not in self._known:
            self._known[dim] = self._find(dim)
        return self._known[dim]

    def _find(self, dim: str) -> np.ndarray:
        if dim not in self._stored.coords:
            # It has no labels, so only the whole of it can be recognised.
            return np.arange(self._stored.sizes[dim])
        if dim not in self.ds.coords:
            raise SchemaError(f"this dataset has no labels of {dim!r}; {REMEDY}")
        there = pd.Index(self._stored[dim].values)
        own = np.atleast_1d(self.ds[dim].values)
        places = there.get_indexer(own) if there.is_unique else np.full(len(own), -1)
        if (places < 0).any():
            raise SchemaError(
                f"{dim} {own[places < 0].tolist()[0]!r} of this dataset is not in "
                f"{self.origin}, from which it was opened; {REMEDY}"
            )
        if dim == "step" and (np.diff(places) <= 0).any():
            raise SchemaError(f"the steps of this dataset do not ascend; {REMEDY}")
        return np.asarray(places)

    def _shows(self, name: str, spots: int = 0) -> bool:
        """Whether the variable is the stored one of that name at the dataset's labels.

        Args:
            spots: where it does not know its place, and has more than one value a step, compare so
                many rows; 0: all of them if they are in memory.
        """
        if name not in self._stored:
            return False
        stored, own = self._stored[name].variable, self.ds[name].variable
        places = {str(d): self._places(str(d)) for d in stored.dims}
        for dim in stored.dims:
            if dim not in own.dims and (dim not in self.ds.coords or self.ds[dim].ndim):
                return False
        if not set(own.dims) <= set(stored.dims):
            return False
        if any(len(places[str(dim)]) != own.sizes[dim] for dim in own.dims):
            return False
        data, key = _unwrapped(own)
        if isinstance(data, StoredArray) and key is not None:
            axes = zip(key, data.shape, places.values(), strict=True)
            return self._is_own(data, name) and all(
                np.array_equal(np.atleast_1d(np.arange(size)[k]), at) for k, size, at in axes
            )
        if not isinstance(data, np.ndarray) and not spots:
            return False
        rows = np.arange(own.sizes["step"])
        if spots and stored.ndim > 1:
            rows = (
                np.unique(np.linspace(0, len(rows) - 1, spots).astype(int)) if len(rows) else rows
            )
        return _equal(own, stored, places, rows)

    def _is_own(self, array: StoredArray, name: str) -> bool:
        assert self.origin is not None
        whole = f"{self.origin.group}/{name}"
        return (array.state, array.name) == (self.origin.snapshot.state, whole)


def _equal(
    own: xr.Variable, stored: xr.Variable, places: dict[str, np.ndarray], rows: np.ndarray
) -> bool:
    """Whether `own` at `rows` has the values of `stored` at the places of its labels."""
    if own.dtype != stored.dtype:
        return False
    own = own.transpose(*(dim for dim in stored.dims if dim in own.dims))
    rest = {d: at if d in own.dims else int(at[0]) for d, at in places.items() if d != "step"}
    width = own.dtype.itemsize * (own.size // max(own.sizes["step"], 1))
    many = max(PIECE_BYTES // max(width, 1), 1)
    for first in range(0, len(rows), many):
        part = rows[first : first + many]
        there = stored.isel({"step": places["step"][part], **rest})
        if not np.array_equal(own.isel(step=part).values, there.values, equal_nan=True):
            return False
    return True


def _unwrapped(variable: xr.Variable) -> tuple[Any, tuple[Any, ...] | None]:
    """What holds a variable's values: a StoredArray with the part of it that is shown, along each
    of its axes, or an array in memory, or something else; the part is None where it is not known.
    """
    inner: Any = variable._data
    if variable.chunks is not None:
        inner = _undivided(inner)
    key: tuple[Any, ...] | None = None
    while not isinstance(inner, StoredArray | np.ndarray) and hasattr(inner, "array"):
        if isinstance(inner, indexing.LazilyVectorizedIndexedArray):
            return None, None
        if isinstance(inner, indexing.LazilyIndexedArray):
            key = inner.key.tuple
        inner = inner.array
    return inner, key


def _undivided(data: Any) -> Any:
    """What a dask array was made of if it is the whole of that, else None."""
    layers = getattr(data.__dask_graph__(), "layers", {})
    origin = f"original-{data.name}"
    if set(layers) != {data.name, origin}:
        return None
    held = dict(layers[origin]).get(origin)
    # Newer versions of dask wrap it.
    return getattr(held, "value", held)
