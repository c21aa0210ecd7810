"""`route_stats` in plain torch: for devices without a kernel of their own, and to check the others
against.

Needs   what the op is given (route_stats.py), all on one device.
Yields  `add`, which never waits for the device: nothing is sized by the data.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from workbench.capture.accumulators import ACTIVE, ENTROPY_BINS, NEAR_TIE_LOGITS, SLOW, Table
from workbench.capture.adapters.router_site import Scores, probabilities

# Shapes: T tokens of this forward, E experts, K chosen a token.


def add(
    logits_TE: Tensor,
    ids_TK: Tensor,
    gates_TK: Tensor,
    domains: Tensor,
    keep: Tensor,
    scores: int,
    layers: int,
    place: int,
    num_domains: int,
    flags: Tensor,
    table: Tensor,
    slow: Tensor,
) -> None:
    """Adds one forward of one router to its accumulators; arguments as of `route_stats`."""
    T, E = logits_TE.shape
    z_TE, gates = logits_TE.detach().float(), gates_TK.detach().float()
    kept_T = flags[ACTIVE].bool().expand(T)
    if keep.numel():
        kept_T = kept_T & _per_token(keep, T)
    domain_T = _per_token(domains, T) if domains.numel() else torch.zeros_like(kept_T).long()
    ids = ids_TK.long()
    ids = torch.where(kept_T[:, None] & (ids < E), ids, -1)
    # Whatever does not count goes to one cell beyond the last, which is then cut off.
    cells = torch.where(
        (ids >= 0) & (domain_T < num_domains)[:, None],
        ids + E * domain_T[:, None],
        num_domains * E,
    )
    layout = Table(layers, num_domains, E)
    counts_LDE, tallies_L2, masses_L2E, sums_L4 = layout.parts(table)
    found = torch.zeros(num_domains * E + 1, dtype=torch.int64, device=table.device)
    found.index_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
    counts_LDE[place] += found[:-1].view(num_domains, E)
    hot_TE = torch.zeros(T, E + 1, dtype=torch.float64, device=table.device)
    hot_TE.scatter_(1, torch.where(ids >= 0, ids, E), 1.0)
    hot_TE = hot_TE[:, :E]
    gate_TE = torch.zeros(T, E + 1, dtype=torch.float64, device=table.device)
    gate_TE.scatter_add_(1, torch.where(ids >= 0, ids, E), gates.double())
    masses_L2E[place, 0] += gate_TE[:, :E].sum(0)

    p_TE = probabilities(z_TE, scores)
    lse_T = z_TE.logsumexp(-1)
    if scores == Scores.PROBABILITIES:
        z_TE, lse_T = z_TE.log(), torch.full_like(lse_T, torch.nan)
    masses_L2E[place, 1] += torch.where(kept_T[:, None], p_TE, 0).double().sum(0)
    entropy_T = -torch.where(p_TE > 0, p_TE * p_TE.log(), torch.where(p_TE == 0, 0, p_TE)).sum(-1)
    chosen_TE = hot_TE > 0
    infinite = float("inf")
    margin_T = z_TE.masked_fill(~chosen_TE, infinite).amin(-1) - z_TE.masked_fill(
        chosen_TE, -infinite
    ).amax(-1)
    # Nothing left out, or nothing chosen: there is no tie to be near.
    near_T = (margin_T.abs() < NEAR_TIE_LOGITS) & kept_T
    margin_T = torch.where(margin_T.isinf(), 0, margin_T)
    topk_T = torch.where(chosen_TE, p_TE, 0).sum(-1)
    tallies_L2[place] += torch.stack([kept_T.sum(), near_T.sum()])
    per_token = torch.stack([entropy_T, margin_T, lse_T.square(), topk_T])
    sums_L4[place] += torch.where(kept_T, per_token, 0).double().sum(-1)

    pairs_LEE, histogram_LB = layout.slow_parts(slow)
    wanted = flags[SLOW]
    pairs_LEE[place] += wanted * (hot_TE.T @ hot_TE).round().long()
    share_T = entropy_T / log(max(E, 2)) * ENTROPY_BINS
    bins_T = share_T.nan_to_num().long().clamp(0, ENTROPY_BINS - 1)
    counted_T = (kept_T & entropy_T.isfinite()).long() * wanted
    histogram_LB[place].index_add_(0, bins_T, counted_T)


def _per_token(labels: Tensor, tokens: int) -> Tensor:
    """Labels of rows spread over the rows' tokens."""
    labels = labels.flatten()
    return labels if len(labels) == tokens else labels.repeat_interleave(tokens // len(labels))
