"""Overview: a whole run, or a stretch of it, in as many bins as a figure has use for.

Needs   a snapshot; its overviews (overviews.py) where it has any.
Yields  `overview`: mean, least and greatest of every bin, with the steps that it is of.

Bins of the widest level that fits are read where they are stored, finer ones and at last rows at
the ends, and the rows that are not committed yet. So what is read is bounded, whatever the run's
length; a store without overviews (written by an older version, and not written since) is
summarised from all its rows, some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from workbench.errors import RunNotFound, UsageError
from workbench.store.lazy_group import nothing, rows_after
from workbench.store.overviews import BLOCK, HOME, PIECE_BYTES, dims_of, read_bins
from workbench.store.pooling import LEVELS, Pooled, pool, pool_rows, rows_a_bin, segments
from workbench.store.schema import SCHEMA

if TYPE_CHECKING:
    from workbench.store.snapshot import Snapshot


class _Record:
    """What is stored of one group's rows along "step", tail included, and their overviews."""

    def __init__(self, snapshot: Snapshot, group: str) -> None:
        self.group = group
        here, home = snapshot.root.get(group), snapshot.root.get(f"{HOME}/{group}")
        self.raw = here if isinstance(here, zarr.Group) else None
        self.tail = rows_after(snapshot, group, "step")
        self.levels: dict[int, zarr.Group] = {}
        for level in LEVELS if isinstance(home, zarr.Group) else ():
            assert isinstance(home, zarr.Group)
            found = home.get(str(level))
            if isinstance(found, zarr.Group):
                self.levels[level] = found
        self.committed = self._length("step")
        self.rows = self.committed + len(self.tail.get("step", ()))

    def _length(self, name: str) -> int:
        array = self.raw.get(name) if self.raw is not None else None
        return array.shape[0] if isinstance(array, zarr.Array) else 0

    def at(self, level: int, name: str) -> zarr.Array[Any] | None:
        home = self.raw if level == 1 else self.levels.get(level)
        array = home.get(name) if home is not None else None
        return array if isinstance(array, zarr.Array) else None

    def read(self, array: zarr.Array[Any] | None, name: str, first: int, stop: int) -> np.ndarray:
        """Rows as they were recorded; missing where a variable had begun on one side only."""
        there, late = self.committed, self.tail.get(name)
        like = late if late is not None else array
        assert like is not None
        parts = []
        if first < there:
            end = min(stop, there)
            parts.append(
                nothing(end - first, like) if array is None else np.asarray(array[first:end])
            )
        if stop > there:
            begin, end = max(first - there, 0), stop - there
            parts.append(nothing(end - begin, like) if late is None else late[begin:end])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def row_after(self, step: int) -> int:
        """Rows whose step is `step` or lower."""
        low, high = 0, self.rows
        for level in sorted(self.levels, reverse=True):
            firsts = self.at(level, "first_step")
            a, b = -(-low // level), min(high // level, firsts.shape[0] if firsts else 0)
            if firsts is None or a >= b:
                continue
            n = int(np.searchsorted(np.asarray(firsts[a:b]), step, side="right"))
            if n:
                low = (a + n - 1) * level
            if n < b - a:
                high = (a + n) * level
        steps = self.read(self.at(1, "step"), "step", low, high) if high > low else np.empty(0)
        return low + int(np.searchsorted(steps, step, side="right"))


def overview(
    snapshot: Snapshot,
    group: str,
    *,
    points: int = 1000,
    start: int | None = None,
    stop: int | None = None,
    variables: Sequence[str] | None = None,
) -> xr.Dataset:
    """A stretch of a run in few bins, read in a time that hardly depends on its length.

    Args:
        snapshot: the state to read; rows of its tail are in it.
        group: "router" or "train".
        points: bins that are wanted. There are at most twice as many, and a quarter at least where
            the stretch has that many rows.
        start, stop: steps s with start < s <= stop; None: from the first, to the last.
        variables: only these; None: all that have a step. Wide ones are large: ask for those that
            are drawn.

    Returns:
        For every variable x, over (bin, ...its own dims): x, the mean of the rows that have a
        value, x_min and x_max, in the unit of x; NaN where no row has one. Coordinates first_step,
        last_step and rows (bin). The attribute rows_a_bin says how wide bins are; those at the ends
        may be narrower.

    Raises:
        RunNotFound: the group holds no steps, or no such variable.
        UsageError: points below 1.

    Example:
        >>> import tempfile
        >>> from workbench.store.layout import Layout
        >>> from workbench.store.run_store import RunStore
        >>> store = RunStore.create(
        ...     tempfile.mkdtemp() + "/store", Layout(layers=(0,), experts=4, k=2)
        ... )
        >>> with store.writer() as w:
        ...     loss = np.arange(64, dtype="float32")
        ...     w.append("train", {"step": np.arange(1, 65), "loss": loss})
        >>> seen = overview(store.read(), "train", points=2)
        >>> seen.loss.values, seen.loss_max.values
        (array([15.5, 47.5]), array([31., 63.]))
    """
    if points < 1:
        raise UsageError(f"points={points}: ask for 1 or more.")
    record = _Record(snapshot, group)
    names = _names(record, group, variables)
    first = record.row_after(start) if start is not None else 0
    end = record.row_after(stop) if stop is not None else record.rows
    width = rows_a_bin(end - first, points)
    found: dict[str, Any] = {}
    for name in names:
        found |= _summary(record, name, first, end, width)
    ds = xr.Dataset(found, coords=_bins(record, first, end, width))
    labels = {d: label for d in ds.dims if (label := _label(record, str(d))) is not None}
    return ds.assign_coords(labels).assign_attrs(group=group, rows_a_bin=width)


def _names(record: _Record, group: str, asked: Sequence[str] | None) -> list[str]:
    if not record.rows:
        raise RunNotFound(
            f"nothing is recorded by step in {group!r}; overviews are of 'router' and 'train'."
        )
    committed = record.raw.arrays() if record.raw is not None else ()
    known = {n for n, a in committed if dims_of(a)[:1] == ("step",)} | {*record.tail}
    known.discard("step")
    for name in asked or ():
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RunNotFound(
                f"no variable {ascii(name)[:80]} by step in {group!r}; it has "
                f"{', '.join(sorted(known))}{hint}"
            )
    return sorted(known) if asked is None else list(dict.fromkeys(asked))


def _stretches(
    record: _Record, name: str, first: int, stop: int, width: int
) -> list[tuple[int, int, int, zarr.Array[Any] | None]]:
    """As `segments`, each with the array that holds it."""
    there = {level: record.at(level, name) for level in sorted(record.levels, reverse=True)}
    usable = [(n, a.shape[0]) for n, a in there.items() if a is not None and n <= width]
    there[1] = record.at(1, name)
    return [(*part, there[part[0]]) for part in segments(first, stop, usable)]


def _summary(
    record: _Record, name: str, first: int, stop: int, width: int
) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]:
    """The variables of one name, as (dims, values, attributes)."""
    parts: list[Pooled] = []
    places: list[np.ndarray] = []
    for level, a, b, array in _stretches(record, name, first, stop, width):
        for at, piece in _read_pieces(record, name, level, a, b, array):
            place = np.arange(at, at + len(piece.valid)) * level // width
            starts = np.flatnonzero(np.diff(place, prepend=-1))
            parts.append(pool(piece, starts))
            places.append(place[starts])
    raw = record.at(1, name)
    dims, noted = _described(record, name, raw)
    dtype = "float64" if len(dims) == 1 else "float32"
    if parts:
        joined = Pooled(*(np.concatenate(statistic) for statistic in zip(*parts, strict=True)))
        pooled = pool(joined, np.flatnonzero(np.diff(np.concatenate(places), prepend=-1)))
    else:
        empty = np.empty((0, *(raw.shape[1:] if raw is not None else ())))
        pooled = Pooled(empty, empty, empty, empty)
    kinds = {"": "mean", "_min": "least", "_max": "greatest"}
    units, meaning = noted.get("units", "1"), noted.get("long_name", name)
    with np.errstate(over="ignore"):
        return {
            name + suffix: (
                ("bin", *dims[1:]),
                getattr(pooled, kind).astype(dtype),
                {"units": units, "long_name": f"{meaning} ({kind} of the bin's steps)"},
            )
            for suffix, kind in kinds.items()
        }


def _described(
    record: _Record, name: str, raw: zarr.Array[Any] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Dims, and unit and meaning; of the schema where only the tail has the variable so far."""
    if raw is not None:
        return dims_of(raw), {key: str(value) for key, value in raw.attrs.items()}
    variable = SCHEMA[record.group][name]
    return variable.dims, variable.attributes


def _read_pieces(
    record: _Record, name: str, level: int, a: int, b: int, array: zarr.Array[Any] | None
) -> Iterator[tuple[int, Pooled]]:
    """Bins a up to b of a level, some at a time, each with the number of its first."""
    row = array.shape[2 if level > 1 else 1 :] if array is not None else record.tail[name].shape[1:]
    step = max(BLOCK, PIECE_BYTES // (8 * int(np.prod(row, dtype=np.int64))))
    chunk = array.chunks[0] if array is not None else 1
    # Pieces end where chunks do, or each chunk at a seam would be read twice.
    step = max(chunk, step // chunk * chunk)
    at = a
    while at < b:
        stop = min(b, (at // step + 1) * step)
        if level > 1:
            assert array is not None
            yield at, read_bins(array, slice(at, stop))
        else:
            yield at, pool_rows(record.read(array, name, at, stop))
        at = stop


def _bins(record: _Record, first: int, stop: int, width: int) -> dict[str, Any]:
    """first_step, last_step and rows of every bin."""
    firsts, lasts, places = [], [], []
    for level, a, b, _ in _stretches(record, "first_step", first, stop, width):
        if level == 1:
            steps = record.read(record.at(1, "step"), "step", a, b)
            firsts.append(steps)
            lasts.append(steps)
        else:
            for name, kept in (("first_step", firsts), ("last_step", lasts)):
                array = record.at(level, name)
                assert array is not None
                kept.append(np.asarray(array[a:b]))
        places.append(np.arange(a, b) * level // width)
    place = np.concatenate([*places, np.empty(0, np.int64)])
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(place))[: len(starts)] - 1
    number = place[starts]
    rows = np.minimum((number + 1) * width, stop) - np.maximum(number * width, first)
    empty = np.empty(0, np.int64)
    begun, ended = np.concatenate([*firsts, empty])[starts], np.concatenate([*lasts, empty])[ends]
    return {
        "first_step": ("bin", begun, {"units": "1", "long_name": "First step of the bin."}),
        "last_step": ("bin", ended, {"units": "1", "long_name": "Last step of the bin."}),
        "rows": ("bin", rows, {"units": "rows", "long_name": "Recorded steps in the bin."}),
    }


def _label(record: _Record, dim: str) -> tuple[str, np.ndarray, dict[str, Any]] | None:
    array = record.at(1, dim)
    if array is None or dim == "bin":
        return None
    values = np.asarray(array[:])
    if values.dtype.kind in "TO":
        values = np.array(values.tolist(), dtype=str)
    return dim, values, dict(array.attrs)
