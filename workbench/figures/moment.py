"""Moment: one point of training out of a result that runs along it, and one layer of that.

Needs   a dataset along `checkpoint`, `step` or `sample`, or of one moment already.
Yields  Moment: the values there, the step, and the words for it; `one_layer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures.wording import count, listed, many

_DIMS = ("checkpoint", "step", "sample")


@dataclass(frozen=True)
class Moment:
    """What a result says at one point of training."""

    values: xr.Dataset
    """Without the dim that training runs along."""
    step: int | None
    """Optimizer step, where known."""
    clause: str
    """ "at step 1,120 (4.6M tokens)"; empty where the step is not known."""


def moment(ds: xr.Dataset, at: int | None = None) -> Moment:
    """The values of `ds` at step `at`; by default at its last.

    Raises:
        UsageError: nothing stands at that step, or the dataset is empty along training.

    Example:
        >>> ds = xr.Dataset({"p": ("checkpoint", [0.5, 0.1])}, coords={"checkpoint": [0, 1120]})
        >>> moment(ds).clause, float(moment(ds, at=0).values["p"])
        ('at step 1,120', 0.5)
    """
    dim = next((d for d in _DIMS if d in ds.dims), None)
    if dim is None:
        return _fixed(ds, at)
    steps = ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim])
    if not len(steps):
        raise UsageError(f"the result is empty along {dim!r}; widen the window it was taken over.")
    where = len(steps) - 1
    if at is not None:
        found = np.flatnonzero(steps == at)
        if not len(found):
            raise UsageError(
                f"nothing stands at step {at:,}; there are {listed(map(str, steps), most=12)}."
            )
        where = int(found[0])
    step = int(steps[where])
    values = ds.isel({dim: where}, drop=False)
    clause = f"at step {step:,}"
    if dim == "sample":
        clause = f"over {many(int(ds.attrs.get('samples', 1)), 'sample')} up to step {step:,}"
    elif dim == "step" and "window_steps" in ds.attrs:
        clause = f"over the {many(int(ds.attrs['window_steps']), 'step')} up to step {step:,}"
    return Moment(values, step, clause + _tokens(values))


def _fixed(ds: xr.Dataset, at: int | None) -> Moment:
    """A dataset of one moment, which may say when that was."""
    known = [d for d in _DIMS if d in ds.coords and ds[d].ndim == 0]
    step = int(ds[known[0]]) if known else None
    if at is not None and at != step:
        raise UsageError(
            f"at={at:,}: this result is of one moment"
            + (f", step {step:,}." if step is not None else " and does not say which.")
            + " Leave `at` out, or give a result over checkpoints."
        )
    clause = "" if step is None else f"at step {step:,}{_tokens(ds)}"
    return Moment(ds, step, clause)


def _tokens(values: xr.Dataset) -> str:
    """The tokens seen by then, in brackets, where the data says."""
    if "tokens_seen" not in values.coords or values["tokens_seen"].ndim:
        return ""
    return f" ({count(float(values['tokens_seen']))} tokens)"


def one_layer(ds: xr.Dataset, layer: int | None, otherwise: int) -> xr.Dataset:
    """One layer of `ds` by its label; where None is asked for, the one at place `otherwise`.

    Raises:
        UsageError: no such layer, or none at all.
        SchemaError: no dim `layer`.

    Example:
        >>> ds = xr.Dataset({"p": ("layer", [0.5, 0.1])}, coords={"layer": [3, 4]})
        >>> float(one_layer(ds, 4, otherwise=0)["p"])
        0.1
    """
    ds = labelled(ds, "layer")
    labels = [int(n) for n in ds["layer"].values]
    if not labels:
        raise UsageError("the result holds no layer; widen what it was taken over.")
    if layer is None:
        return ds.isel(layer=otherwise)
    if layer not in labels:
        raise UsageError(f"no layer {layer}; there are {listed(map(str, labels), most=12)}.")
    return ds.isel(layer=labels.index(layer))


def labelled(ds: xr.Dataset, *dims: str) -> xr.Dataset:
    """`ds` with a label for each place of `dims`: their own, or 0, 1, 2 and so on.

    Raises:
        SchemaError: one of the dims is missing.
    """
    for dim in dims:
        if dim not in ds.dims:
            raise SchemaError(
                f"dims are {tuple(map(str, ds.dims))}; expected {dim!r} among them, as the probe "
                "returns it."
            )
        if dim not in ds.coords:
            ds = ds.assign_coords({dim: np.arange(ds.sizes[dim])})
    return ds


def require(ds: xr.Dataset, name: str, dims: set[str], source: str) -> None:
    """Refuse `ds` unless it holds `name` with `dims`, and perhaps a dim of training.

    Raises:
        SchemaError: it does not; `source` says which call returns it.
    """
    if name not in ds or not dims <= set(map(str, ds[name].dims)) <= dims | set(_DIMS):
        have = {str(n): tuple(map(str, v.dims)) for n, v in ds.data_vars.items()}
        raise SchemaError(
            f"found {have or 'an empty dataset'}; expected {name} ({', '.join(sorted(dims))}), as "
            f"{source} gives."
        )
