"""Confidence: how sure the routers are of their choice.

Needs   of the stream: router: entropy, margin, topk_mass, near_tie, z_squared (step, layer),
        tokens (step);
        of the fixed tokens: a checkpoint's router_probs and expert_ids.
Yields  entropy (nats, 0 to ln E), margin (logits), topk_mass (0 to 1), near_tie (share of tokens),
        and logsumexp_rms (stream) or logit_rms (fixed tokens), in logits; (step, layer) or (layer).

entropy   H(p) of the softmax over all experts; ln E is a router that knows nothing.
margin    lowest logit chosen less the highest left out. No expert is left out where k = E: NaN.
topk_mass what the softmax gives to the chosen experts; k/E is a router that knows nothing.
near_tie  share of tokens whose margin is within 0.1 logits of 0: a small change (another precision,
          recomputation, a step of training) reroutes them. Read it before churn.
logit_rms root mean square of the logits about their mean over experts: the softmax does not see the
          mean. The record keeps (logsumexp)^2 alone, whose root is given as logsumexp_rms.

Stream: means over every training token of the step or window, exact, without an interval. Fixed
tokens: 95 %, bootstrap over blocks of text. Logits come back from probabilities up to a constant,
which none of the measures sees; probabilities under 1e-38 count as 1e-38, so that no margin is over
87. Of a sigmoid router these are logs of its normalised scores. Tokens that lost an assignment are
left out of margin and near_tie on the fixed tokens; the stream takes what was kept as chosen.

It misleads between models of different E or k (normalise by ln E), where the router's scale grows
without a choice changing, and where a mean hides two sorts of tokens, certain and undecided.

Sources: near ties and precision, section "Confidence" of the measures; router z-loss, Zoph et al.
2022, arXiv:2202.08906.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.caption import Caption, captioned
from probes.inputs.pool import pool_edges
from probes.inputs.routing import Routing, over_checkpoints
from probes.load import EXACT
from probes.registry import probe
from probes.source import Source, group_of
from probes.statistics.clustered import block_mean
from probes.statistics.resample import BOOT, OF_MEAN

if TYPE_CHECKING:
    from probes.subject import Subject

Floats = NDArray[np.float64]

NEAR_TIE_LOGITS = 0.1
"""A margin within this of 0 is a near tie; the record counts them by the same width."""

STREAM = {
    "entropy": "entropy of the softmax over all experts",
    "margin": "lowest logit chosen less the highest left out",
    "topk_mass": "probability of the chosen experts together",
    "near_tie": "share of tokens within 0.1 logits of a tie",
    "logsumexp_rms": "root mean square of the logsumexp of the logits",
}
SMALLEST = 1e-38
"""The smallest normal float32; what is under it has no logarithm to trust."""


def captions(experts: int, k: int, interval: str) -> dict[str, Caption]:
    """What each measure is, for E experts of which k are chosen."""
    units = {"entropy": "nats", "topk_mass": "1", "near_tie": "1"}
    chance: dict[str, float] = {"entropy": float(np.log(experts)), "topk_mass": k / experts}
    meaning = STREAM | {"logit_rms": "root mean square of the logits about their mean over experts"}
    return {
        name: Caption(units.get(name, "logits"), what, interval, chance.get(name))
        for name, what in meaning.items()
    }


@probe(
    "confidence",
    question="How sure are the routers of their choice, over the training stream?",
    reads="record",
    needs=("router",),
)
def confidence(source: Source, *, window: int | None = None) -> xr.Dataset:
    """How sure the routers were of their choice, over every training token, layer by layer.

    Args:
        source: router dataset, Run, Window or anything with `.router`.
        window: tokens to pool; consecutive steps are joined until they hold this many and carry the
            label of the last. None keeps every step.

    Returns:
        Dataset (step, layer) of the measures that the record holds. attrs: n (tokens).

    Raises:
        UsageError: no router record, or a window that does not fit it.
        SchemaError: the record lacks `entropy` or `tokens`.

    Example:
        >>> from workbench.testing import router_record
        >>> found = confidence(router_record(steps=4, tokens=100), window=200)
        >>> found.sizes["step"], bool(found["entropy"].max() < np.log(8))
        (2, True)
    """
    router = group_of(source, "router", ["entropy", "tokens"])
    edges = np.asarray(pool_edges(router, window))
    tokens = router["tokens"].values[: edges[-1]].astype(np.float64)
    columns = {}
    for name in ("entropy", "margin", "topk_mass", "near_tie", "z_squared"):
        if name in router:
            values = router[name].transpose("step", "layer").values[: edges[-1]]
            columns[name] = _pooled(values.astype(np.float64), tokens, edges)
    if "z_squared" in columns:
        columns["logsumexp_rms"] = np.sqrt(columns.pop("z_squared"))
    ends = edges[1:] - 1
    coords = {
        str(name): coord.isel(step=ends) if "step" in coord.dims else coord
        for name, coord in router.coords.items()
        if set(coord.dims) <= {"step", "layer"}
    }
    result = xr.Dataset(
        {name: (("step", "layer"), column) for name, column in columns.items()}, coords=coords
    )
    experts, k = int(router.sizes.get("expert", 0)), router.attrs.get("k")
    known = captions(experts or 1, int(k or 0), EXACT)
    if not (experts and k):
        known = {name: caption._replace(chance=None) for name, caption in known.items()}
    return captioned(result, known).assign_attrs(
        n=int(tokens.sum()),
        n_meaning="training tokens counted",
        near_tie_logits=NEAR_TIE_LOGITS,
        window_tokens=window if window is not None else "each step",
    )


def _pooled(values: Floats, tokens: Floats, edges: NDArray[np.intp]) -> Floats:
    """Means over the tokens of each pool; a step without tokens has no say."""
    weighted = np.where(tokens[:, None] > 0, values * tokens[:, None], 0.0)
    held = np.add.reduceat(tokens, edges[:-1])[:, None]
    summed = np.add.reduceat(weighted, edges[:-1], axis=0)
    return np.divide(summed, held, out=np.full_like(summed, np.nan), where=held > 0)


@probe(
    "confidence-fixed",
    question="How sure is each checkpoint's router of its choice, on the fixed tokens?",
    reads="checkpoint",
    needs=("router_probs", "expert_ids"),
    version=2,
)
def confidence_fixed(source: Source | Subject, *, n_boot: int = BOOT, seed: int = 0) -> xr.Dataset:
    """How sure the routers are of their choice on the fixed tokens, layer by layer.

    Args:
        source: a Subject; or a record with `.activations` (every checkpoint of it).
        n_boot, seed: bootstrap draws over blocks of text, and their seed.

    Returns:
        Dataset (layer), of a record (checkpoint, layer): entropy, margin, topk_mass, near_tie,
        logit_rms with bounds. attrs: n (tokens), blocks, block_tokens.

    Raises:
        SchemaError: router_probs were not recorded.

    Example:
        >>> from workbench.testing import activations_record
        >>> found = confidence_fixed(activations_record(checkpoints=2, tokens=80))
        >>> bool((found["topk_mass"] > 4 / 16).all())
        True
    """

    def measure(routing: Routing) -> xr.Dataset:
        return _of(routing, n_boot, seed)

    return over_checkpoints(source, measure, probs=True)


def _of(routing: Routing, n_boot: int, seed: int) -> xr.Dataset:
    tokens = routing.tokens
    columns = per_token(routing.probabilities(), routing.chosen, routing.k)
    names = list(columns)
    values = np.stack([columns[name] for name in names], axis=-1).astype(np.float64)
    there = ~np.isnan(values)
    cut = (tokens.starts, 1)
    sums = np.add.reduceat(np.where(there, values, 0.0), *cut).swapaxes(0, 1)
    sizes = np.add.reduceat(there, *cut, dtype=np.float64).swapaxes(0, 1)
    ends = block_mean(sums, sizes, n_boot, seed)
    found = {}
    for i, name in enumerate(names):
        for suffix, column in zip(("", "_low", "_high"), ends, strict=True):
            of_layer = column[..., i]
            found[name + suffix] = ("layer", of_layer)
    for suffix in ("", "_low", "_high"):
        found[f"logit_rms{suffix}"] = ("layer", np.sqrt(found.pop(f"logit_square{suffix}")[1]))
    interval = (
        f"95 %, bootstrap over {len(tokens.starts)} {tokens.blocks_are} ({OF_MEAN}): "
        "other text of the same kind, same checkpoint"
    )
    result = routing.result(found, {}).assign_attrs(near_tie_logits=NEAR_TIE_LOGITS)
    return captioned(result, captions(routing.experts, routing.k, interval))


def per_token(
    probs: NDArray[np.float32], chosen: NDArray[np.float32], k: int
) -> dict[str, NDArray[np.float32]]:
    """Each measure (layer, token) of p (layer, token, expert); NaN where it has no meaning."""
    logits = np.log(np.maximum(probs, np.float32(SMALLEST)))
    inside = chosen > 0
    lowest = np.where(inside, logits, np.inf).min(axis=-1)
    highest = np.where(inside, -np.inf, logits).max(axis=-1)
    margin = lowest - highest
    whole = (chosen.sum(axis=-1) == k) & np.isfinite(margin)
    margin = np.where(whole, margin, np.nan)
    centred = logits - logits.mean(axis=-1, keepdims=True)
    return {
        "entropy": -(probs * logits).sum(axis=-1),
        "margin": margin,
        "topk_mass": (probs * chosen).sum(axis=-1),
        "near_tie": np.where(whole, np.abs(margin) < NEAR_TIE_LOGITS, np.nan),
        "logit_square": np.einsum("lte,lte->lt", centred, centred) / probs.shape[-1],
    }
