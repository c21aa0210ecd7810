"""Expert load: how a layer's router spreads its assignments over its experts.

Needs   router: assignments (step, layer, expert); tokens (step) where a window is asked for.
Yields  expert_load (step, layer, expert), fraction of that layer's assignments.

With top-k routing every token is assigned k times, so one layer's loads sum to 1 and not to k. A
fair load is 1/E, a dead expert's is 0. The counts are exact, over every training token: no
interval belongs to them.

It misleads where a trainer's padding or evaluation is counted (this record leaves both out), where
loads are pooled over layers, and where the mix of the data changed: see drift.py.

Source: `f_i` of the balance loss in Fedus et al. 2022, section 2.2, arXiv:2101.03961.
"""

from __future__ import annotations

import xarray as xr

from probes.inputs.pool import pooled_blocks
from probes.registry import probe
from probes.source import Source, group_of
from workbench.errors import UsageError

EXACT = "none: exact counts over every training token"


def expert_load(
    source: Source, window: int | None = None, *, points: int | None = None
) -> xr.DataArray:
    """The share of a layer's assignments that each expert received: 1/E is fair, 0 is dead.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        window: tokens to pool; consecutive steps are joined until they hold at least this many
            and carry the label of the last of them. None keeps every step, and then the result is
            as large as the counts: pool a long run.
        points: instead of a window, about so many bins of equally many steps, from what the store
            summarised as it was written: a million steps take no longer than ten thousand. Each
            carries the label of its last step, with first_step and rows (its steps) beside it.

    Returns:
        (step, layer, expert), fraction, sums to 1 over `expert`; NaN where no token was routed.
        Lazy if the source is chunked with dask and no window is asked for.
        attrs: chance_level = 1/E, n = tokens counted.

    Raises:
        UsageError: the source has no router record, or the window does not fit it.
        SchemaError: the record lacks `assignments`.

    Example:
        >>> counts = xr.DataArray([[[6, 2]]], dims=("step", "layer", "expert"))
        >>> expert_load(counts.to_dataset(name="assignments")).values.tolist()
        [[[0.75, 0.25]]]
    """
    if points is not None:
        return _described(*_from_overview(source, window, points), window)
    router = group_of(source, "router", ["assignments"])
    if window is None:
        counts = router["assignments"]
    else:
        blocks = pooled_blocks(router, ["assignments"], window)
        counts = xr.concat([pools["assignments"] for _, pools in blocks], dim="step")
    n = int(router["tokens"].sum()) if "tokens" in router else None
    return _described(counts, n, window)


def _from_overview(
    source: Source, window: int | None, points: int
) -> tuple[xr.DataArray, int | None]:
    """Mean assignments of each bin, and the tokens counted in all."""
    if window is not None or not hasattr(source, "overview"):
        raise UsageError(
            "points=... reads a run's overview: give a Run or a Window, and no window= beside it."
        )
    bins = source.overview("router", points=points, variables=["assignments", "tokens"])
    bins = bins.rename(bin="step").assign_coords(step=bins["last_step"].values)
    tokens = round(float((bins["tokens"] * bins["rows"]).sum())) if "tokens" in bins else None
    return bins["assignments"].drop_vars("last_step"), tokens


def _described(counts: xr.DataArray, n: int | None, window: int | None) -> xr.DataArray:
    """The load of `counts`, with its unit, chance level and origin."""
    total = counts.sum("expert")
    load = (counts / total.where(total > 0)).rename("expert_load")
    load.attrs = {
        "units": "1",
        "long_name": "share of the layer's assignments",
        "chance_level": 1 / counts.sizes["expert"],
        "chance_meaning": "fair share, 1/E",
        "interval": EXACT,
    }
    if n is not None:
        load.attrs["n"] = n
        load.attrs["n_meaning"] = "training tokens counted"
    if window is not None:
        load.attrs["window_tokens"] = window
    return load


@probe(
    "load",
    question="What share of a layer's assignments does each expert get?",
    reads="record",
    needs=("router",),
)
def load_probe(source: Source, window: int | None = None, points: int | None = None) -> xr.Dataset:
    """`expert_load` as a dataset of one variable, `load` (step, layer, expert)."""
    return expert_load(source, window, points=points).to_dataset(name="load")
