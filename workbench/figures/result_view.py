"""Any variable of any dataset as lines that can be drawn: a label each, samples, bounds, chance.

Needs   a dataset, as probes return them; nothing in it is required but a variable.
Yields  View; `variables`, the names that stand for themselves; `view_of`.

What is no number becomes one: false and true 0 and 1, words the order in which they first occur,
with the words kept for the axis. Values that cannot be drawn at all are left to the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures.bins import Binned, binned
from workbench.figures.clock import Clock, ClockName, clock_of
from workbench.figures.wording import number, plain

ENDS = ("_low", "_high")
BESIDE = (*ENDS, "_q", "_p", "_se", "_real", "_chance")
"""What follows the name of a variable in those that say something about it."""
ALONG = ("checkpoint", "step")
MOST_WORDS = 24
"""Different words that an axis can bear."""


@dataclass(frozen=True)
class View:
    """One variable, drawn as `labels` lines of `samples` points. L labels, S samples."""

    name: str
    title: str
    """Its long_name, else its name."""
    unit: str
    """Empty where it has none or is 1."""
    dims: tuple[str, ...]
    """Dims that the labels run over; empty for a single line."""
    sizes: tuple[int, ...]
    """How many labels on each of `dims`."""
    keys: tuple[tuple[Any, ...], ...]
    """(L,) a label's value on each of `dims`."""
    values_LS: np.ndarray
    band_LS: tuple[np.ndarray, np.ndarray] | None
    chance_L: np.ndarray
    """NaN where there is none."""
    clock: Clock | None
    """Where the samples stand in training; None where there is one sample only."""
    short: Binned | None = None
    """What a point stands for, where steps were averaged to be drawn."""
    words: tuple[str, ...] = ()
    """Word i stands for value i."""
    interval: str = ""
    """What the band means, or why there is none."""
    chance_note: str = ""
    """Chance level in words, where it is no number."""

    @property
    def labels(self) -> list[str]:
        """A label as text: "3" becomes "layer 3", names stand alone."""
        return [
            ", ".join(_with_dim(dim, part) for dim, part in zip(self.dims, key, strict=True))
            for key in self.keys
        ]

    @property
    def with_unit(self) -> str:
        """The title with its unit in brackets."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def say(self, value: float) -> str:
        """One value in words."""
        if self.words and value in range(len(self.words)):
            return plain(self.words[int(value)])
        return number(value, 3)


def variables(ds: xr.Dataset) -> list[str]:
    """The variables that stand for themselves, with numbers first: no bounds, no q of others.

    Example:
        >>> variables(xr.Dataset({"verdict": "jump", "drop": 0.5, "drop_low": 0.1}))
        ['drop', 'verdict']
    """
    names = [str(name) for name in ds.data_vars]
    beside = {name + end for name in names for end in BESIDE}
    own = [name for name in names if name not in beside]
    return sorted(own, key=lambda name: ds[name].dtype.kind not in "fiub")


def view_of(ds: xr.Dataset, variable: str | None = None, x: ClockName = "step") -> View:
    """A variable as lines.

    Args:
        ds: any dataset.
        variable: its name; None takes the first of `variables`.
        x: clock of the x axis, where the variable has a dim `step` or `checkpoint`.

    Raises:
        SchemaError: there is no such variable, or none at all.

    Example:
        >>> view = view_of(xr.Dataset({"kept": ("layer", [True, False])}))
        >>> view.labels, view.values_LS.tolist(), view.words
        (['layer 0', 'layer 1'], [[1.0], [0.0]], ('no', 'yes'))
    """
    names = variables(ds)
    if variable is None and not names:
        raise SchemaError("this dataset has no variable; a probe returns at least one.")
    name = names[0] if variable is None else str(variable)
    if name not in ds.data_vars:
        have = ", ".join(plain(n) for n in names) or "none"
        raise SchemaError(f"no variable {plain(name)!r}; this dataset has {have}.")
    array = ds[name]
    numbers, words = _numbers(array)
    bounds = [_like(ds[name + end], array) for end in ENDS if name + end in ds.data_vars]
    parts = [numbers, *(b for b in bounds if b is not None)] if not words else [numbers]
    along = _training(array)
    dims = tuple(str(d) for d in array.dims if d != along)
    chance, chance_note = _chance(ds, array)
    if words and array.dtype.kind != "b":
        chance = xr.full_like(chance, np.nan)
    flat = [_flat(part, dims, along) for part in (*parts, chance)]
    clock, short, flat = _timed(ds, along, flat, x)
    *shown, chance_LS = flat
    attrs = array.attrs
    unit = str(attrs.get("units", ""))
    return View(
        name=name, title=plain(attrs.get("long_name") or name, 160),
        unit="" if unit in ("1", "dimensionless") else plain(unit, 24), dims=dims,
        sizes=tuple(array.sizes[d] for d in dims), keys=_keys(array, dims), values_LS=shown[0],
        band_LS=(shown[1], shown[2]) if len(shown) == 3 else None,
        chance_L=chance_LS[:, 0] if chance_LS.shape[1] else np.full(len(chance_LS), np.nan),
        clock=clock, short=short, words=words, interval=plain(attrs.get("interval", ""), 300),
        chance_note=chance_note,
    )  # fmt: skip


def _with_dim(dim: str, part: Any) -> str:
    if isinstance(part, bool | int | float | np.number):
        return f"{plain(dim, 24)} {part:g}" if not isinstance(part, bool) else f"{dim} {part}"
    return plain(part)


def _training(array: xr.DataArray) -> str | None:
    """The dim that training runs along, where its positions are numbers."""
    for dim in ALONG:
        if dim in array.dims:
            return dim if dim not in array.coords or array[dim].dtype.kind in "iuf" else None
    return None


def _numbers(array: xr.DataArray) -> tuple[xr.DataArray, tuple[str, ...]]:
    """The array as floats, and the words that they stand for."""
    kind = array.dtype.kind
    if kind in "fiu":
        return array.astype("float64"), ()
    if kind == "b":
        return array.astype("float64"), ("no", "yes")
    if kind == "m":
        return (array / np.timedelta64(1, "s")).astype("float64"), ()
    told = [_word(value) for value in array.values.ravel().tolist()]
    try:
        if kind == "O":
            return array.copy(data=np.array(told, dtype="float64").reshape(array.shape)), ()
    except ValueError:
        pass
    words = list(dict.fromkeys(word for word in told if word))
    places = {word: i for i, word in enumerate(words)} if len(words) <= MOST_WORDS else {}
    codes = np.array([places.get(word, np.nan) for word in told], dtype="float64")
    return array.copy(data=codes.reshape(array.shape)), tuple(words[: len(places)])


def _word(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if missing else plain(value, 64)


def _like(other: xr.DataArray, array: xr.DataArray) -> xr.DataArray | None:
    """`other` with the dims of `array`; None where it has others or is no number."""
    if other.dtype.kind not in "fiub" or not set(other.dims) <= set(array.dims):
        return None
    spread = xr.broadcast(array, other, exclude=())[1].transpose(*array.dims)
    return spread.astype("float64") if spread.shape == array.shape else None


def _chance(ds: xr.Dataset, array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Chance level like `array`, from beside it or from its attributes; and in words."""
    blank = xr.full_like(array, np.nan, dtype="float64")
    told = array.attrs.get("chance_level")
    for name in (f"{array.name}_chance", "chance"):
        if (
            name in ds.variables
            and (found := _like(ds[name].reset_coords(drop=True), blank)) is not None
        ):
            return found, ""
    try:
        level = float(told)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return blank, plain(told, 120) if told is not None else ""
    return xr.full_like(blank, level), ""


def _flat(array: xr.DataArray, dims: tuple[str, ...], along: str | None) -> np.ndarray:
    """(label, sample)."""
    ordered = array.transpose(*dims, along) if along else array.transpose(*dims)
    samples = array.sizes[along] if along else 1
    labels = int(np.prod([array.sizes[d] for d in dims], dtype=int))
    return ordered.values.reshape(labels, samples)


def _timed(
    ds: xr.Dataset, along: str | None, flat: list[np.ndarray], x: ClockName
) -> tuple[Clock | None, Binned | None, list[np.ndarray]]:
    """Samples in the order of training, averaged over steps where there are too many to draw."""
    if along is None or not flat[0].shape[1]:
        return None, None, flat
    beside = {
        n: ds[n] for n in ("tokens_seen", "utc") if n in ds.variables and ds[n].dims == (along,)
    }
    where = xr.Dataset(
        coords={along: ds[along].values, **{n: (along, v.values) for n, v in beside.items()}}
    )
    for i, part in enumerate(flat):
        where[f"part{i}"] = (("label", along), part)
    where = where.isel({along: np.argsort(where[along].values, kind="stable")})
    short = binned(where)
    where = short.mean
    known = (
        x if x == "step" or {"tokens": "tokens_seen", "utc": "utc"}[x] in where.coords else "step"
    )
    parts = [where[f"part{i}"].values for i in range(len(flat))]
    return clock_of(where, known), short if short.note else None, parts


def _keys(array: xr.DataArray, dims: tuple[str, ...]) -> tuple[tuple[Any, ...], ...]:
    """A label's coordinates; positions where there are none."""
    columns = []
    for dim in dims:
        size = array.sizes[dim]
        values = array[dim].values.tolist() if dim in array.coords else list(range(size))
        columns.append([v if isinstance(v, int | float) else plain(v, 64) for v in values])
    grids = np.indices([len(c) for c in columns]).reshape(len(columns), -1).T if columns else [()]
    return tuple(
        tuple(column[i] for column, i in zip(columns, place, strict=True)) for place in grids
    )
