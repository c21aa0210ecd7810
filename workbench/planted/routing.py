"""Routing: expert choices of a fixed token set whose saturation is known at every checkpoint.

Needs   sizes, a seed, and the share of training at which all routing has frozen.
Yields  a dataset like run.activations.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.planted.router import TASKS
from workbench.store.schema import conform


def activations_record(
    *,
    checkpoints: int = 11,
    tokens: int = 1024,
    layers: int = 2,
    experts: int = 16,
    k: int = 4,
    freeze_at: float | None = 0.6,
    skew: float = 0.0,
    document_tokens: int = 1,
    every: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Routing of a fixed token set that freezes: its saturation is known at every checkpoint.

    Each document freezes at a time drawn evenly from the first `freeze_at` of training. Before
    that its tokens are routed afresh, independently, at every checkpoint; from then on as at the
    end. At share u of training kappa against the final routing is therefore min(1, u/freeze_at),
    whatever the loads; and kappa from one checkpoint to the next is that of the earlier one.

    Args:
        checkpoints, tokens, layers, experts, k: sizes; checkpoint c is at step c x `every`, and
            the first at step 0.
        freeze_at: share of training by which all is frozen; None: never, and kappa is 0 before
            the last checkpoint.
        skew: sd over experts of a bias on the logits: unequal loads, so that chance is not k/E.
        document_tokens: tokens of a document, which freeze together; over 1 makes neighbouring
            tokens dependent, as text does.

    Returns:
        Dataset of the group "activations" with coordinates checkpoint, tokens_seen, token, layer,
        k, expert, token_id (token), domain (token); attrs k, branch, run.

    Example:
        >>> routing = activations_record(checkpoints=3, tokens=8)
        >>> routing["expert_ids"].dims
        ('checkpoint', 'token', 'layer', 'k')
    """
    rng = np.random.default_rng(seed)
    # Its own stream: the loads stay the same when the sizes change.
    bias = np.random.default_rng(seed + 1).normal(0, skew, (layers, experts))
    documents = -(-tokens // document_tokens)
    frozen_from = rng.uniform(0, 1, documents).repeat(document_tokens)[:tokens]
    final = bias + rng.gumbel(size=(tokens, layers, experts))
    ids = np.empty((checkpoints, tokens, layers, k), dtype=np.int16)
    probs = np.empty((checkpoints, tokens, layers, experts), dtype=np.float32)
    for c in range(checkpoints):
        share = c / max(checkpoints - 1, 1)
        settled = np.zeros(tokens, dtype=bool)
        if freeze_at is not None:
            settled = frozen_from * freeze_at <= share
        if c == checkpoints - 1:
            settled[:] = True
        fresh = bias + rng.gumbel(size=final.shape)
        logits = np.where(settled[:, None, None], final, fresh)
        ids[c] = np.argsort(-logits, axis=-1)[..., :k]
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probs[c] = weights / weights.sum(axis=-1, keepdims=True)
    steps = np.arange(checkpoints, dtype=np.int64) * every
    names = np.asarray(TASKS)
    record = xr.Dataset(
        {
            "expert_ids": (("checkpoint", "token", "layer", "k"), ids),
            "router_probs": (("checkpoint", "token", "layer", "expert"), probs),
        },
        coords={
            "checkpoint": steps,
            "tokens_seen": ("checkpoint", steps * 4096),
            "token": np.arange(tokens),
            "layer": np.arange(layers),
            "k": np.arange(k),
            "expert": np.arange(experts),
            "token_id": ("token", rng.integers(0, 1000, tokens)),
            "domain": ("token", names[np.arange(tokens) * len(names) // tokens]),
        },
    )
    return conform(record, "activations").assign_attrs({"run": "planted", "branch": "main", "k": k})
