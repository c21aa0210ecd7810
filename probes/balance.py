"""Balance: is the work of each layer spread over its experts, and does the training loss say so?

Needs   router: assignments (step, layer, expert), tokens (step); prob_mass (step, layer, expert)
        for the balance loss, z_squared (step, layer) for the z-loss: left out where not recorded.
Yields  max_violation, cv, gini, normalized_entropy, effective_experts, dead_experts, balance_loss,
        z_loss, each (step, layer). Exact: over every training token, so without an interval.

Even a fair router deals unevenly at random: over N tokens each expert's count is near binomial
with rate k/E, so that CV is about sqrt((E/k - 1) / N). It is given as the attribute
`cv_at_random`; a CV near it says nothing against the router.

It misleads where few tokens fill a step (then every router looks uneven: `cv_at_random`), where an
average over steps hides that the favourite changes from step to step, and where evenness is taken
for health: a router that deals at random is perfectly even.

Sources: measures as in evenness.py; balance loss, Fedus et al. 2022, arXiv:2101.03961, eq. 4;
router z-loss, Zoph et al. 2022, arXiv:2202.08906, eq. 5. Never pooled over layers: two opposite
collapses pool to "uniform".
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.dead import Silence
from probes.inputs.pool import pool_edges, pooled_blocks
from probes.load import EXACT
from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics import evenness
from workbench.errors import SchemaError, UsageError

# name -> (unit, meaning, value under fair routing)
MEANING: dict[str, tuple[str, str, str]] = {
    "max_violation": ("1", "busiest expert's load over the mean, less 1 (MaxVio)", "0"),
    "cv": ("1", "coefficient of variation of the loads", "0"),
    "gini": ("1", "Gini coefficient of the loads", "0"),
    "normalized_entropy": ("1", "entropy of the loads over ln E", "1"),
    "effective_experts": ("experts", "exp(entropy) of the loads", "E"),
    "dead_experts": ("experts", "experts without any assignment in the trailing window", "0"),
    "balance_loss": ("1", "E sum f_i P_i of the layer", "1"),
    "z_loss": ("logits^2", "mean squared logsumexp of the router logits", "none"),
}


@probe(
    "balance",
    question="How evenly are each layer's experts used?",
    reads="record",
    needs=("router",),
)
def balance(
    source: Source, window: int | None = None, dead_window: int | None = None
) -> xr.Dataset:
    """How evenly each layer's experts are used, by every measure in use, layer by layer.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        window: tokens to pool before measuring (the balance over a window); None measures every
            step (the balance of a batch, which is noisier). The last step labels each pool.
        dead_window: W, the tokens without work after which an expert counts as dead; None takes
            1000 E/k. NaN until the record holds W tokens.

    Returns:
        Dataset (step, layer) of the measures above. In memory, and small: the counts are read a
        block at a time (8 MB), from numpy, a lazily opened store or dask alike.
        attrs: experts, k, n (tokens), window_tokens, dead_window_tokens, cv_at_random.

    Raises:
        UsageError: no router record in the source, or a window that does not fit it.
        SchemaError: `assignments` or `tokens` missing, or counts that are not k per token.

    Example:
        >>> counts = xr.DataArray([[[6, 2]]], dims=("step", "layer", "expert"))
        >>> router = xr.Dataset({"assignments": counts, "tokens": ("step", [8])})
        >>> balance(router)["gini"].item()
        0.25
    """
    router = group_of(source, "router", ["assignments", "tokens"])
    experts, layers = router.sizes["expert"], router.sizes["layer"]
    k = experts_per_token(router)
    silence = Silence.usual(layers, experts, k)
    if dead_window is not None:
        silence = Silence(dead_window, layers, experts)
    result = _over_the_record(router, window, k, silence)
    if "z_squared" in router:
        result["z_loss"] = (("step", "layer"), _z_loss(router, window))
    return _described(result, router, k, window, silence.window)


def experts_per_token(router: xr.Dataset) -> float:
    """k, from the record's attribute or from the first step that routed a token.

    Raises:
        SchemaError: the counts of a layer are not k per token.
        UsageError: no token was routed.
    """
    busy = np.flatnonzero(router["tokens"].values > 0)
    if not len(busy):
        raise UsageError("found no routed token in this router record; widen the window.")
    first = router[["assignments", "tokens"]].isel(step=int(busy[0])).load()
    per_token = (first["assignments"].sum("expert") / first["tokens"]).values
    k = float(router.attrs.get("k", np.round(per_token.mean(), 9)))
    if not np.allclose(per_token, k, rtol=1e-6):
        raise SchemaError(
            f"assignments per token are {per_token.min():.4g} to {per_token.max():.4g} over layers "
            f"in one step, expected k={k:g} in each: were some tokens dropped, or `tokens` "
            "counted on another rank set? Sum both over the same ranks."
        )
    return k


def _over_the_record(
    router: xr.Dataset, window: int | None, k: float, silence: Silence
) -> xr.Dataset:
    """The measures of the counts, filled in block by block: no second copy of the result."""
    names = ["assignments", "tokens", *(["prob_mass"] if "prob_mass" in router else [])]
    ends = np.asarray(pool_edges(router, window)[1:]) - 1
    columns: dict[str, NDArray[np.float64]] = {}
    done, read = 0, 0
    for steps, pools in pooled_blocks(router, names, window):
        there = slice(done, done + pools.sizes["step"])
        dead = silence.count(
            steps["assignments"].transpose("step", "layer", "expert").values,
            steps["tokens"].values,
        )
        rows = _measured(pools, k) | {"dead_experts": dead[ends[there] - read]}
        for name, values in rows.items():
            columns.setdefault(name, np.empty((len(ends), router.sizes["layer"])))[there] = values
        done, read = there.stop, read + steps.sizes["step"]
    coords = {
        str(n): c.isel(step=ends) if "step" in c.dims else c
        for n, c in router.coords.items()
        if set(c.dims) <= {"step", "layer"}
    }
    return xr.Dataset({n: (("step", "layer"), c) for n, c in columns.items()}, coords=coords)


def _measured(pools: xr.Dataset, k: float) -> dict[str, NDArray[np.float64]]:
    """Each measure (pool, layer) of one block."""
    counts = pools["assignments"]
    total = counts.sum("expert")
    load = counts / total.where(total > 0)
    measures = {
        "max_violation": evenness.max_violation(load),
        "cv": evenness.cv(load),
        "gini": evenness.gini(load),
        "normalized_entropy": evenness.normalized_entropy(load),
        "effective_experts": evenness.effective_experts(load),
    }
    if "prob_mass" in pools:
        tokens = pools["tokens"].where(pools["tokens"] > 0)
        chosen, probability = counts / (k * tokens), pools["prob_mass"] / tokens
        product = (chosen * probability).sum("expert", skipna=False)
        measures["balance_loss"] = counts.sizes["expert"] * product
    return {name: m.transpose("step", "layer").values for name, m in measures.items()}


def _z_loss(router: xr.Dataset, window: int | None) -> NDArray[np.float64]:
    squared = router["z_squared"].transpose("step", "layer").values.astype(np.float64)
    if window is None:
        return squared
    tokens = router["tokens"].values.astype(np.float64)
    edges = np.asarray(pool_edges(router, window))
    stop = edges[-1]
    mass = np.add.reduceat(squared[:stop] * tokens[:stop, None], edges[:-1], axis=0)
    return mass / np.add.reduceat(tokens[:stop], edges[:-1])[:, None]


def _described(
    result: xr.Dataset, router: xr.Dataset, k: float, window: int | None, dead_window: int
) -> xr.Dataset:
    tokens = router["tokens"].values
    experts = router.sizes["expert"]
    typical = float(np.median(tokens)) if window is None else float(window)
    for name in result.data_vars:
        unit, meaning, fair = MEANING[str(name)]
        result[name].attrs = {
            "units": unit,
            "long_name": meaning,
            "chance_level": fair.replace("E", str(experts)),
            "chance_meaning": "value under perfectly fair routing",
            "interval": EXACT,
        }
    result.attrs = {
        "experts": experts,
        "k": k,
        "n": int(tokens.sum()),
        "n_meaning": "training tokens counted",
        "window_tokens": window if window is not None else "each step",
        "dead_window_tokens": dead_window,
        "cv_at_random": float(np.sqrt(max(experts / k - 1, 0) / typical)) if typical else np.nan,
    }
    return result
