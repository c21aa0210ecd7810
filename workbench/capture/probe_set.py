"""The fixed probe set: the same held-out tokens at every checkpoint, and how the routers treat
them.

Needs   rows of tokens with the domain of each, the routers of a model.
Yields  ProbeSet; `route`, expert ids (token, layer, k) and probabilities (token, layer, expert).

On the training stream a router's load drifts because the router changes and because the data do; on
fixed tokens only the first remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from workbench.capture.adapters.router_site import Reading, RouterSite, probabilities


@dataclass(frozen=True)
class ProbeSet:
    """Held-out rows, and the domain each comes from."""

    tokens: np.ndarray
    """(row, pos), int64."""
    domains: tuple[str, ...]
    """One name a row."""


@torch.no_grad()
def route(
    model: nn.Module, sites: Sequence[RouterSite], probe: ProbeSet, rows_at_once: int = 32
) -> dict[str, np.ndarray]:
    """How each router treats the probe set, in evaluation mode; model and hooks are left as they
    were.

    Returns:
        expert_ids (token, layer, k) int16; router_probs (token, layer, expert) float32; tokens row
        by row.
    """
    seen: list[list[Reading]] = [[] for _ in sites]

    device = next(model.parameters()).device
    handles = [
        handle for shown, s in zip(seen, sites, strict=True) for handle in s.attach(shown.append)
    ]
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(probe.tokens), rows_at_once):
            model(torch.from_numpy(probe.tokens[first : first + rows_at_once]).to(device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    ids = [torch.cat([r.ids_TK for r in of_site]).cpu().numpy() for of_site in seen]
    probs = [
        torch.cat([probabilities(r.logits_TE, s.scores) for r in of_site]).cpu().numpy()
        for of_site, s in zip(seen, sites, strict=True)
    ]
    return {
        "expert_ids": np.stack(ids, axis=1).astype(np.int16),
        "router_probs": np.stack(probs, axis=1).astype(np.float32),
    }
