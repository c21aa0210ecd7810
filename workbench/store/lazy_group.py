"""Lazy group: a group of a snapshot as a dataset of which nothing is read before it is used.

Needs   a snapshot.
Yields  `open_group`: variables over the committed rows and, after them, those of the tail; the
        stored chunks are what dask will take at once.

Only labels of dims are read when a group is opened (xarray indexes them), and text. Everything
pickles, so dask's workers open the store for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from workbench import moe_accessor  # noqa: F401  (registers ds.moe)
from workbench.errors import RunNotFound
from workbench.store.damage import damage_told
from workbench.store.overviews import dims_of
from workbench.store.schema import COORDINATES, GROWING, SCHEMA, Variable

if TYPE_CHECKING:
    from workbench.store.snapshot import Snapshot

ORIGIN = "origin"
"""Entry of a dataset's encoding that holds its Origin."""


class Origin:
    """Where a dataset was opened: its snapshot and group. Copies of the dataset share it."""

    def __init__(self, snapshot: Snapshot, group: str) -> None:
        self.snapshot = snapshot
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self

    def __repr__(self) -> str:
        return f"group {self.group!r} of snapshot {self.snapshot.id}"


class StoredArray(BackendArray):
    """One stored array, and the rows after those that it has.

    Args:
        array: as committed.
        tail: rows to follow them; None: there are none.
        state: `Snapshot.state`, which tells its content from that of the same array at another
            time.
        name: group and variable, such as "train/loss".
    """

    def __init__(
        self,
        array: zarr.Array[Any] | np.ndarray,
        tail: np.ndarray | None = None,
        state: str = "",
        name: str = "",
    ) -> None:
        self._array = array
        self._tail = tail
        self.state = state
        self.name = name
        self.shape = (array.shape[0] + (0 if tail is None else len(tail)), *array.shape[1:])
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        # xarray stumbles over empty slices that go backwards.
        axes = zip(key.tuple, self.shape, strict=False)
        key = type(key)(
            tuple(slice(0) if isinstance(k, slice) and not range(n)[k] else k for k, n in axes)
        )
        support = indexing.IndexingSupport.OUTER
        read: Callable[[tuple[Any, ...]], Any] = self._read
        pointwise = isinstance(key, indexing.VectorizedIndexer)
        if pointwise and self._tail is None and isinstance(self._array, zarr.Array):
            support, read = indexing.IndexingSupport.VECTORIZED, self._array.vindex.__getitem__
        with damage_told(getattr(self._array, "path", "the rows that wait")):
            return indexing.explicit_indexing_adapter(key, self.shape, support, read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        if self._tail is None:
            return _taken(self._array, key)
        rows, *rest = key
        there = self._array.shape[0]
        if isinstance(rows, int | np.integer):
            if rows < there:
                return _taken(self._array, key)
            return _taken(self._tail, (rows - there, *rest))
        if isinstance(rows, slice):
            # xarray hands over no negative steps.
            start, stop, step = rows.indices(self.shape[0])
            first = max(start, start + -(-(there - start) // step) * step)
            parts = [
                _taken(self._array, (slice(start, min(stop, there), step), *rest)),
                _taken(self._tail, (slice(first - there, max(stop - there, 0), step), *rest)),
            ]
            return np.concatenate(parts)
        rows = np.asarray(rows)
        late = rows >= there
        early = _taken(self._array, (rows[~late], *rest))
        later = _taken(self._tail, (rows[late] - there, *rest))
        both = np.empty((len(rows), *early.shape[1:]), self.dtype)
        both[~late], both[late] = early, later
        return both


class StoredVariable(xr.Variable):
    """A variable over a StoredArray.

    xarray names dask arrays by the path that was opened and its time of change, which a commit
    leaves as it was: two openings of a running run would share their names, and dask would take the
    rows of the one for those of the other. Here the name says the state as well, and what the rows
    hold that wait.
    """

    __slots__ = ()

    def chunk(self, chunks: Any = {}, **how: Any) -> xr.Variable:  # type: ignore[override]  # noqa: B006
        inner: Any = self._data
        while not isinstance(inner, StoredArray) and hasattr(inner, "array"):
            inner = inner.array
        if isinstance(inner, StoredArray):
            within = dict(how.get("from_array_kwargs") or {})
            how["from_array_kwargs"] = within
            # Which of the two carries the name depends on xarray's version.
            for named in (how, within):
                if named.get("name"):
                    named["name"] = f"{named['name']}-{inner.state}"
        return super().chunk(chunks, **how)


def _taken(array: zarr.Array[Any] | np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    """Outer indexing: every axis by itself."""
    if isinstance(array, zarr.Array):
        plain = all(isinstance(k, slice | int | np.integer) for k in key)
        return np.asarray(array[key] if plain else array.oindex[key])
    for axis in reversed(range(len(key))):
        array = array[(slice(None),) * axis + (key[axis],)]
    return array


def open_group(snapshot: Snapshot, group: str, drop_variables: Collection[str] = ()) -> xr.Dataset:
    """`group` as a lazy dataset, its tail included.

    Args:
        snapshot: the state to read.
        group: "router", "train", ...: one of `snapshot.groups`.
        drop_variables: what to leave out.

    Returns:
        Variables with units and meanings; text labels as numpy strings. A variable's encoding says
        how it is stored; `preferred_chunks` are the stored ones.

    Raises:
        RunNotFound: nothing was recorded in that group; those that hold something are listed.

    Example:
        >>> import tempfile
        >>> from workbench.store.layout import Layout
        >>> from workbench.store.run_store import RunStore
        >>> store = RunStore.create(
        ...     tempfile.mkdtemp() + "/store", Layout(layers=(0,), experts=4, k=2)
        ... )
        >>> with store.writer() as w:
        ...     w.append("train", {"step": np.arange(3), "loss": np.zeros(3, "float32")})
        >>> open_group(store.read(), "train").loss.dims
        ('step',)
    """
    if group not in snapshot.groups:
        held = ", ".join(snapshot.groups)
        near = get_close_matches(str(group)[:80], snapshot.groups, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise RunNotFound(
            f"nothing is recorded in {ascii(group)[:80]}; "
            f"{f'the record holds {held}' if held else 'it is empty'}{hint}"
        )
    stored = snapshot.root.get(group)
    arrays = dict(stored.arrays()) if isinstance(stored, zarr.Group) else {}
    tails = {
        name: rows
        for dim in GROWING[group]
        for name, rows in rows_after(snapshot, group, dim).items()
    }
    known = {**COORDINATES[group], **SCHEMA[group]}
    rank = {name: place for place, name in enumerate(known)}
    variables: dict[str, xr.Variable] = {}
    state = snapshot.state
    for name in sorted({*arrays, *tails}, key=lambda n: (rank.get(n, len(rank)), n)):
        if name in drop_variables:
            continue
        array, tail = arrays.get(name), tails.get(name)
        if array is not None:
            tail = _padded(array, tail, arrays, tails)
            variables[name] = _variable(array, tail, state, f"{group}/{name}")
        elif tail is not None:
            variables[name] = _begun_late(known[name], tail, arrays, state, f"{group}/{name}")
    coords = {name: v for name, v in variables.items() if name in COORDINATES[group]}
    ds = xr.Dataset({name: v for name, v in variables.items() if name not in coords}, coords)
    ds.encoding[ORIGIN] = Origin(snapshot, group)
    return ds


def rows_after(snapshot: Snapshot, group: str, dim: str) -> dict[str, np.ndarray]:
    """The rows of the tail along `dim`, by name, all equally long: what began within the tail is
    missing before.
    """
    rows = dict(snapshot.tail.get(group, {}).get(dim, {}))
    count = max((len(values) for values in rows.values()), default=0)
    return {
        name: np.concatenate([nothing(count - len(values), values), values])
        if len(values) < count else values
        for name, values in rows.items()
    }  # fmt: skip


def nothing(rows: int, like: np.ndarray | zarr.Array[Any]) -> np.ndarray:
    """Rows shaped as those of `like` in which every value is missing; they take no memory."""
    dtype = np.dtype(like.dtype)
    missing = np.array(np.nan if dtype.kind == "f" else -1, dtype)
    return np.broadcast_to(missing, (rows, *like.shape[1:]))


def _padded(
    array: zarr.Array[Any],
    tail: np.ndarray | None,
    arrays: dict[str, zarr.Array[Any]],
    tails: dict[str, np.ndarray],
) -> np.ndarray | None:
    """The rows to follow `array`: those of the tail, or as many missing ones as others have."""
    if tail is not None or not tails:
        return tail
    dim = dims_of(array)[0]
    others = [len(rows) for name, rows in tails.items()
              if name in arrays and dims_of(arrays[name])[0] == dim]  # fmt: skip
    return nothing(others[0], array) if others else None


def _variable(
    array: zarr.Array[Any], tail: np.ndarray | None, state: str, name: str
) -> xr.Variable:
    dims, attrs = dims_of(array), dict(array.attrs)
    if array.dtype.kind in "TO":
        return xr.Variable(dims, np.array(np.asarray(array[:]).tolist(), dtype=str), attrs)
    encoding = {
        "chunks": array.chunks,
        "preferred_chunks": dict(zip(dims, array.chunks, strict=True)),
        "compressors": array.compressors,
        "filters": array.filters,
        "shards": array.shards,
        "serializer": array.serializer,
        "fill_value": array.fill_value,
        "dtype": array.dtype,
    }
    data = indexing.LazilyIndexedArray(StoredArray(array, tail, state, name))
    return StoredVariable(dims, data, attrs, encoding)


def _begun_late(
    known: Variable, tail: np.ndarray, arrays: dict[str, zarr.Array[Any]], state: str, name: str
) -> xr.Variable:
    """A variable that no commit holds yet: missing in the rows that are committed."""
    before = [a.shape[0] for a in arrays.values() if dims_of(a)[:1] == known.dims[:1]]
    data = StoredArray(nothing(before[0] if before else 0, tail), tail, state, name)
    return StoredVariable(known.dims, indexing.LazilyIndexedArray(data), known.attributes)
