"""Ragged rows: what each expert received at each checkpoint, laid end to end.

Needs   the group `interiors`: rows (row, d_mlp), and offsets (checkpoint, layer, bound) into them.
Yields  `faults_of_offsets`, for who writes; `expert_rows`, for who reads.

An expert receives as many probe tokens as the router sends it, so no rectangular array holds what
all of them did. Rows of all experts, layers and checkpoints lie one after the other; expert e of a
layer at a checkpoint has those from offsets[e] up to, without, offsets[e + 1].
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.errors import RunNotFound


def faults_of_offsets(offsets: np.ndarray, rows: int) -> list[str]:
    """Why offsets (checkpoint, layer, bound) do not divide `rows` rows; empty where they do.

    Layers follow each other without a gap: one ends where the next begins.

    Example:
        >>> faults_of_offsets(np.array([[[0, 2, 2], [2, 5, 6]]]), rows=6)
        []
        >>> faults_of_offsets(np.array([[[0, 2, 1]]]), rows=1)
        ['offsets: they descend; an expert has 0 rows or more']
    """
    stretches = offsets.reshape(-1, offsets.shape[-1])
    if (np.diff(stretches, axis=1) < 0).any():
        return ["offsets: they descend; an expert has 0 rows or more"]
    ends = [0, *stretches[:, -1].tolist()]
    if stretches[:, 0].tolist() != ends[:-1] or ends[-1] != rows:
        return [
            f"offsets: layers from {stretches[:, 0].tolist()} to {ends[1:]}; each begins where the "
            f"one before it ends, the first at 0, and the last ends at {rows}, the rows given"
        ]
    return []


def expert_rows(
    interiors: xr.Dataset, *, layer: int, expert: int, checkpoint: int | None = None
) -> xr.Dataset:
    """The rows of one expert at one checkpoint, still lazy.

    Args:
        interiors: the group, as `run.interiors` gives it.
        layer, expert: from 0.
        checkpoint: its step; None: the last.

    Returns:
        values (row, d_mlp), token (row), gate (row).

    Raises:
        RunNotFound: no such checkpoint, layer or expert; those near by are listed.
    """
    saved = interiors.checkpoint.values.tolist()
    step = saved[-1] if checkpoint is None else checkpoint
    experts = interiors.sizes["bound"] - 1
    for what, asked, there in (
        ("checkpoint", step, saved),
        ("layer", layer, interiors.layer.values.tolist()),
        ("expert", expert, range(experts)),
    ):
        if asked not in there:
            near = sorted(sorted(there, key=lambda known: abs(known - asked))[:5])
            raise RunNotFound(
                f"no interiors of {what} {asked}; near it: {', '.join(map(str, near))}."
            )
    bounds = interiors.offsets.sel(checkpoint=step, layer=layer)
    first, stop = (int(n) for n in bounds.isel(bound=[expert, expert + 1]).values)
    rows = interiors[["values", "token", "gate"]].isel(row=slice(first, stop))
    return rows.drop_vars(
        [name for name in rows.coords if "row" not in rows[name].dims]
    ).assign_attrs({"checkpoint": step, "layer": layer, "expert": expert})
