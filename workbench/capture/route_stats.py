"""`route_stats`: the one op that reads a router, and adds what it saw to accumulators.

Needs   router logits (token, expert), chosen ids and gates (token, k), and optionally each token's
        domain and whether it counts.
Yields  nothing: counts, masses and sums grow in place.

It is one opaque `torch.library` op, so that a compiler neither splits its graph there nor looks
inside. Two decisions are therefore taken anew at every call, inside its body: whether this forward
is a recomputation for activation checkpointing (then it adds nothing, or every count would double),
and what the switches say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.store.schema import NEAR_TIE_LOGITS

# Shapes: T tokens of this forward, E experts, K chosen a token, D domains.

SUMS = ("tokens", "entropy", "margin", "z_squared", "topk_mass", "near_tie")
"""What the columns of the per-layer sums hold."""
ACTIVE, COACTIVATION = 0, 1
"""Places in the switches: count this forward at all; count pairs of experts too."""


@torch.library.custom_op(
    "workbench::route_stats", mutates_args=("counts_DE", "masses_2E", "sums_S", "pairs_EE")
)
def route_stats(
    logits_TE: Tensor,
    ids_TK: Tensor,
    gates_TK: Tensor,
    domains: Tensor,
    keep: Tensor,
    switches: Tensor,
    counts_DE: Tensor,
    masses_2E: Tensor,
    sums_S: Tensor,
    pairs_EE: Tensor,
) -> None:
    """Adds one forward of one router to its accumulators.

    Args:
        logits_TE: router logits, any float dtype; the statistics are computed in float32.
        ids_TK: chosen experts, integers in [0, E).
        gates_TK: their weights.
        domains: (T,), or (rows,) where T is a multiple of rows and each row's tokens lie together;
            empty: domain 0.
        keep: like `domains`, bool: tokens that count (padding does not); empty: all.
        switches: (2,) int64 on the host: ACTIVE, COACTIVATION.
        counts_DE: int64, assignments by domain and expert.
        masses_2E: float64, gate mass and probability mass by expert.
        sums_S: float64, the sums named in SUMS.
        pairs_EE: int64, tokens for which both experts were chosen.
    """
    # A backward pass is under way: this forward is a recomputation, and was counted before.
    if torch._C._current_graph_task_id() != -1 or not switches[ACTIVE]:
        return
    T, E = logits_TE.shape
    logits = logits_TE.float()
    ids, gates = ids_TK.long(), gates_TK.float()
    domain_T = _per_token(domains, T)
    if keep.numel():
        kept = _per_token(keep, T)
        logits, ids, gates = logits[kept], ids[kept], gates[kept]
        domain_T = domain_T[kept] if domain_T is not None else None
    lse = logits.logsumexp(-1, keepdim=True)
    logprobs = logits - lse
    probs = logprobs.exp()
    lowest_chosen = logits.gather(-1, ids).amin(-1)
    best_left_out = logits.scatter(-1, ids, float("-inf")).amax(-1)
    margin = lowest_chosen - best_left_out
    flat = ids if domain_T is None else ids + E * domain_T.unsqueeze(-1)
    flat_N = flat.flatten()
    counts_DE.view(-1).index_add_(0, flat_N, torch.ones_like(flat_N))
    masses_2E[0].index_add_(0, ids.flatten(), gates.flatten().to(masses_2E.dtype))
    masses_2E[1] += probs.sum(0)
    # With k = E nothing is left out and the margin is infinite: there is no tie to be near.
    finite = torch.where(margin.isfinite(), margin, torch.zeros_like(margin))
    # Where an expert is masked out (-inf logits), p ln p is 0 and not NaN.
    plogp = torch.where(probs > 0, probs * logprobs, torch.zeros_like(probs))
    sums_S += torch.stack(
        [
            torch.full((), float(len(logits)), device=logits.device),
            -plogp.sum(),
            finite.sum(),
            lse.square().sum(),
            probs.gather(-1, ids).sum(),
            (margin < NEAR_TIE_LOGITS).sum().float(),
        ]
    ).to(sums_S.dtype)
    if switches[COACTIVATION]:
        chosen = torch.zeros_like(logits).scatter_(-1, ids, 1.0)
        # Sums of ones are exact in float32 up to 2^24 tokens a forward.
        pairs_EE += (chosen.T @ chosen).round().long()


@route_stats.register_fake
def _(
    logits_TE: Tensor,
    ids_TK: Tensor,
    gates_TK: Tensor,
    domains: Tensor,
    keep: Tensor,
    switches: Tensor,
    counts_DE: Tensor,
    masses_2E: Tensor,
    sums_S: Tensor,
    pairs_EE: Tensor,
) -> None:
    return None


def _per_token(labels: Tensor, tokens: int) -> Tensor | None:
    """Labels of rows spread over the rows' tokens; None where there are none."""
    if not labels.numel():
        return None
    labels = labels.flatten()
    return labels if len(labels) == tokens else labels.repeat_interleave(tokens // len(labels))
