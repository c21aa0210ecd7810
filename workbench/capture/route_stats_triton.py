"""`route_stats` on a CUDA device: one Triton kernel, one pass over scores, ids and gates.

Needs   what the op is given (route_stats.py), all on one CUDA device; Triton.
Yields  `add`, which launches one kernel and waits for nothing; `kernel` and `blocking`, for those
        who compile it ahead of time.

A program takes blocks of tokens and holds all experts of a token in registers, padded to a power of
two. It adds up in its registers what it can, and then to the tables by atomic additions: counts are
exact; the float64 sums depend on the order of additions in their last digits.

Both flags are read by the kernel from the device: a CUDA graph that was captured while they said
no counts when it is replayed while they say yes.

The definitions are those of route_stats_reference.py, which the tests hold it to. Block sizes were
chosen by the registers that the compiler reports, before any GPU had run it.
"""

from __future__ import annotations

from functools import cache
from math import log
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from workbench.capture.accumulators import ACTIVE, ENTROPY_BINS, NEAR_TIE_LOGITS, SLOW
from workbench.capture.adapters.router_site import Scores

# Shapes: T tokens of a block, E experts padded to a power of two, K chosen a token, C experts of a
# tile of pairs. In the kernel a name's letters are its axes; pointers have none.

PROGRAMS_A_PROCESSOR = 2
"""Programs at most for each of the device's multiprocessors; each then takes several blocks, and
adds to the tables once."""

_SIGMOID = tl.constexpr(int(Scores.SIGMOID))
_PROBABILITIES = tl.constexpr(int(Scores.PROBABILITIES))
_ACTIVE, _SLOW = tl.constexpr(ACTIVE), tl.constexpr(SLOW)
_NEAR_TIE = tl.constexpr(NEAR_TIE_LOGITS)
_BINS = tl.constexpr(ENTROPY_BINS)


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
    """Adds one forward of one router to its accumulators; arguments as of `route_stats`.

    An expert or a domain that the tables have no place for is left out.
    """
    T, E = logits_TE.shape
    if not T:
        return
    if (device := logits_TE.get_device()) >= 0 and device != torch.cuda.current_device():
        # Triton launches on the current device, whatever its arguments lie on.
        with torch.cuda.device(device):
            add(
                logits_TE, ids_TK, gates_TK, domains, keep, scores, layers, place, num_domains,
                flags, table, slow,
            )  # fmt: skip
        return
    K = ids_TK.shape[1]
    logits_TE, ids_TK, gates_TK = _rows(logits_TE), _rows(ids_TK), _rows(gates_TK)
    R, kept = domains.numel(), keep.numel()
    blocks = blocking(E)
    programs = min(-(-T // blocks["T"]), _programs(device))
    kernel[(programs,)](
        logits_TE, ids_TK, gates_TK, domains.contiguous(), keep.contiguous(), flags, table, slow,
        T, logits_TE.stride(0), ids_TK.stride(0), gates_TK.stride(0),
        T // R if R else 1, T // kept if kept else 1, layers, place, num_domains,
        experts=E, K=K, scores=scores, labelled=R > 0, masked=kept > 0, **blocks,
    )  # fmt: skip


def _rows(values: Tensor) -> Tensor:
    """With neighbours in memory along the last axis; rows may lie apart."""
    return values if values.stride(1) == 1 else values.contiguous()


@cache
def blocking(experts: int) -> dict[str, Any]:
    """Sizes of the kernel's blocks, and its warps, for a layer of so many experts: eight scores a
    thread.

    Example:
        >>> blocking(60)
        {'T': 16, 'E': 64, 'ln_experts': 4.0943445622221, 'num_warps': 4}
    """
    E: int = triton.next_power_of_2(experts)
    warps = 4 if E <= 64 else 8
    return {
        "T": min(max(256 * warps // E, 1), 64),
        "E": E,
        "ln_experts": log(max(experts, 2)),
        "num_warps": warps,
    }


@cache
def _programs(device: int) -> int:
    if device < 0:  # Triton's interpreter, on a CPU
        return 3
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return PROGRAMS_A_PROCESSOR * processors


# Not specialised: each layer's place would otherwise compile a kernel of its own where it is 0, 1
# or divisible by 16, and each new number of tokens another.
@triton.jit(
    do_not_specialize=[
        "tokens", "tokens_a_domain", "tokens_a_keep", "layers", "place", "num_domains",
    ]
)  # fmt: skip
def kernel(
    logits: tl.tensor,
    ids: tl.tensor,
    gates: tl.tensor,
    domains: tl.tensor,
    keep: tl.tensor,
    flags: tl.tensor,
    table: tl.tensor,
    slow: tl.tensor,
    tokens: tl.tensor,
    logits_stride: tl.tensor,
    ids_stride: tl.tensor,
    gates_stride: tl.tensor,
    tokens_a_domain: tl.tensor,
    tokens_a_keep: tl.tensor,
    layers: tl.tensor,
    place: tl.tensor,
    num_domains: tl.tensor,
    experts: tl.constexpr,
    K: tl.constexpr,
    scores: tl.constexpr,
    labelled: tl.constexpr,
    masked: tl.constexpr,
    ln_experts: tl.constexpr,
    T: tl.constexpr,
    E: tl.constexpr,
) -> None:
    if tl.load(flags + _ACTIVE) == 0:
        return
    slowly = tl.load(flags + _SLOW) != 0
    expert_E = tl.arange(0, E)
    # No id is -2: the padding is never chosen.
    name_E = tl.where(expert_E < experts, expert_E, -2)
    # Not summed over a block's tokens before the end: that would be a barrier for every block.
    times_TE = tl.zeros([T, E], tl.int32)
    weight_TE = tl.zeros([T, E], tl.float32)
    prob_TE = tl.zeros([T, E], tl.float32)
    token_T = tl.zeros([T], tl.int32)
    near_T = tl.zeros([T], tl.int32)
    entropy_T = tl.zeros([T], tl.float64)
    margin_T = tl.zeros([T], tl.float64)
    square_T = tl.zeros([T], tl.float64)
    topk_T = tl.zeros([T], tl.float64)
    for first in range(tl.program_id(0) * T, tokens, tl.num_programs(0) * T):
        t_T = first + tl.arange(0, T)
        kept_T = t_T < tokens
        if masked:
            kept_T = kept_T & (tl.load(keep + t_T // tokens_a_keep, mask=kept_T, other=0) != 0)
        now_TE = tl.zeros([T, E], tl.int32)
        for k in tl.static_range(K):
            id_T = _id(ids, t_T, kept_T, ids_stride, k)
            gate_T = tl.load(gates + t_T.to(tl.int64) * gates_stride + k, mask=kept_T, other=0.0)
            here_TE = id_T[:, None] == name_E[None, :]
            now_TE += here_TE.to(tl.int32)
            weight_TE += tl.where(here_TE, gate_T.to(tl.float32)[:, None], 0.0)
        times_TE += now_TE
        nothing = 0.0 if scores == _PROBABILITIES else -float("inf")
        z_TE = tl.load(
            logits + t_T.to(tl.int64)[:, None] * logits_stride + expert_E[None, :],
            mask=kept_T[:, None] & (expert_E < experts)[None, :],
            other=nothing,
        ).to(tl.float32)
        z_TE, p_TE, total_T, h_T, lse_T = _distribution(z_TE, scores)
        chosen_TE = now_TE > 0
        gap_T = _gap(z_TE, chosen_TE, total_T)
        near_T += (kept_T & (tl.abs(gap_T) < _NEAR_TIE)).to(tl.int32)
        # Nothing left out, or nothing chosen: there is no tie to be near.
        gap_T = tl.where(tl.abs(gap_T) == float("inf"), 0.0, gap_T)
        share_T = tl.sum(tl.where(chosen_TE, p_TE, 0.0), 1) / total_T
        token_T += kept_T.to(tl.int32)
        entropy_T += tl.where(kept_T, h_T, 0.0).to(tl.float64)
        margin_T += tl.where(kept_T, gap_T, 0.0).to(tl.float64)
        square_T += tl.where(kept_T, lse_T * lse_T, 0.0).to(tl.float64)
        topk_T += tl.where(kept_T, share_T, 0.0).to(tl.float64)
        prob_TE += tl.where(kept_T[:, None], p_TE / total_T[:, None], 0.0)
        if labelled:
            d_T = tl.load(domains + t_T // tokens_a_domain, mask=kept_T, other=-1)
            counts = table + place.to(tl.int64) * num_domains * experts
            _add_counts(
                counts, d_T, ids, t_T, kept_T, now_TE, expert_E, ids_stride, num_domains, experts, K
            )
        if slowly:
            pairs = slow + place.to(tl.int64) * experts * experts
            _add_pairs(pairs, ids, t_T, kept_T, ids_stride, experts, K)
            histogram = slow + layers.to(tl.int64) * experts * experts + place * _BINS
            _add_histogram(histogram, h_T, kept_T, ln_experts)
    _add_sums(
        table, layers, place, num_domains, expert_E, weight_TE, prob_TE,
        token_T, near_T, entropy_T, margin_T, square_T, topk_T, experts,
    )  # fmt: skip
    if not labelled:
        count_E = tl.sum(times_TE, 0)
        counts = table + place.to(tl.int64) * num_domains * experts + expert_E
        _add(counts, count_E.to(tl.int64), (expert_E < experts) & (count_E > 0))


@triton.jit
def _add(pointers: tl.tensor, values: tl.tensor, mask: tl.tensor) -> None:
    # Relaxed: nobody reads the tables before the kernel has ended.
    tl.atomic_add(pointers, values, mask=mask, sem="relaxed")


@triton.jit
def _id(
    ids: tl.tensor, t_T: tl.tensor, kept_T: tl.tensor, ids_stride: tl.tensor, k: tl.tensor
) -> tl.tensor:
    return tl.load(ids + t_T.to(tl.int64) * ids_stride + k, mask=kept_T, other=-1).to(tl.int32)


@triton.jit
def _distribution(z_TE: tl.tensor, scores: tl.constexpr) -> tl.tuple:
    """Logits, probabilities times a total, that total, entropy, logsumexp of the logits."""
    if scores == _PROBABILITIES:
        p_TE = z_TE
        total_T = tl.sum(p_TE, 1)
        z_TE = tl.log(p_TE)
        lse_T = total_T * float("nan")
        h_T = _entropy(p_TE, total_T)
    else:
        top_T = tl.max(z_TE, 1)
        below_TE = z_TE - top_T[:, None]
        p_TE = tl.exp(below_TE)
        total_T = tl.sum(p_TE, 1)
        lse_T = top_T + tl.log(total_T)
        # Where p is 0, p times -inf were not a number.
        mean_T = tl.sum(tl.where(p_TE > 0, p_TE * below_TE, 0.0), 1) / total_T
        h_T = tl.log(total_T) - mean_T
        if scores == _SIGMOID:
            p_TE = tl.sigmoid(z_TE)
            total_T = tl.sum(p_TE, 1)
            h_T = _entropy(p_TE, total_T)
    return z_TE, p_TE, total_T, h_T, lse_T


@triton.jit
def _entropy(p_TE: tl.tensor, total_T: tl.tensor) -> tl.tuple:
    p_TE = p_TE / total_T[:, None]
    # Where p is not above 0 it is 0, or no number and then stays none.
    return -tl.sum(tl.where(p_TE > 0, p_TE * tl.log(p_TE), p_TE), 1)


@triton.jit
def _gap(z_TE: tl.tensor, chosen_TE: tl.tensor, total_T: tl.tensor) -> tl.tuple:
    """Lowest chosen logit less the highest left out; no number where the scores are none."""
    lowest_T = tl.min(tl.where(chosen_TE, z_TE, float("inf")), 1)
    highest_T = tl.max(tl.where(chosen_TE, -float("inf"), z_TE), 1)
    # Minimum and maximum pass over what is no number; the total does not.
    return tl.where(total_T == total_T, lowest_T - highest_T, total_T)


@triton.jit
def _add_counts(
    counts: tl.tensor,
    d_T: tl.tensor,
    ids: tl.tensor,
    t_T: tl.tensor,
    kept_T: tl.tensor,
    now_TE: tl.tensor,
    expert_E: tl.tensor,
    ids_stride: tl.tensor,
    num_domains: tl.tensor,
    experts: tl.constexpr,
    K: tl.constexpr,
) -> None:
    low = tl.min(tl.where(kept_T, d_T, num_domains), 0)
    if low == tl.max(d_T, 0):
        # Mostly a block lies in one document, and so in one domain: E additions and not T x K.
        count_E = tl.sum(now_TE, 0)
        known = (low >= 0) & (low < num_domains)
        _add(counts + low * experts + expert_E, count_E.to(tl.int64), (count_E > 0) & known)
    else:
        for k in range(K):
            id_T = _id(ids, t_T, kept_T, ids_stride, k)
            known_T = (d_T >= 0) & (d_T < num_domains) & (id_T >= 0) & (id_T < experts)
            _add(counts + d_T * experts + id_T, known_T.to(tl.int64), known_T)


@triton.jit
def _add_pairs(
    pairs: tl.tensor,
    ids: tl.tensor,
    t_T: tl.tensor,
    kept_T: tl.tensor,
    ids_stride: tl.tensor,
    experts: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Adds one to every pair of a token's experts, each of which it chose once."""
    # Not as a product of one-hots: its tile of E x E took the registers of every step, for what
    # one step in 25 reads. The ids come from the cache.
    for i in range(K):
        row_T = _id(ids, t_T, kept_T, ids_stride, i)
        for j in range(K):
            column_T = _id(ids, t_T, kept_T, ids_stride, j)
            known_T = (row_T >= 0) & (column_T >= 0) & (row_T < experts) & (column_T < experts)
            ones_T = known_T.to(tl.int64)
            _add(pairs + row_T * experts + column_T, ones_T, known_T)


@triton.jit
def _add_histogram(
    histogram: tl.tensor, h_T: tl.tensor, kept_T: tl.tensor, ln_experts: tl.constexpr
) -> None:
    bin_B = tl.arange(0, _BINS)
    counted_T = kept_T & (h_T == h_T) & (tl.abs(h_T) != float("inf"))
    place_T = tl.where(counted_T, h_T / ln_experts * _BINS, 0.0).to(tl.int32)
    place_T = tl.minimum(tl.maximum(place_T, 0), _BINS - 1)
    hits_TB = (place_T[:, None] == bin_B[None, :]) & counted_T[:, None]
    found_B = tl.sum(hits_TB.to(tl.int32), 0)
    _add(histogram + bin_B, found_B.to(tl.int64), found_B > 0)


@triton.jit
def _add_sums(
    table: tl.tensor,
    layers: tl.tensor,
    place: tl.tensor,
    num_domains: tl.tensor,
    expert_E: tl.tensor,
    weight_TE: tl.tensor,
    prob_TE: tl.tensor,
    token_T: tl.tensor,
    near_T: tl.tensor,
    entropy_T: tl.tensor,
    margin_T: tl.tensor,
    square_T: tl.tensor,
    topk_T: tl.tensor,
    experts: tl.constexpr,
) -> None:
    """Adds what the registers of a program hold to its router's place, as `Table` lays it out."""
    layers, place = layers.to(tl.int64), place.to(tl.int64)
    tallies = table + layers * num_domains * experts
    _add(tallies + 2 * place, tl.sum(token_T, 0).to(tl.int64), None)
    _add(tallies + 2 * place + 1, tl.sum(near_T, 0).to(tl.int64), None)
    # The same storage bit for bit, as float64.
    masses = (tallies + 2 * layers).to(tl.pointer_type(tl.float64), bitcast=True)
    real_E = expert_E < experts
    _add(masses + 2 * place * experts + expert_E, tl.sum(weight_TE, 0).to(tl.float64), real_E)
    _add(masses + (2 * place + 1) * experts + expert_E, tl.sum(prob_TE, 0).to(tl.float64), real_E)
    sums = masses + 2 * layers * experts + 4 * place
    _add(sums, tl.sum(entropy_T, 0), None)
    _add(sums + 1, tl.sum(margin_T, 0), None)
    _add(sums + 2, tl.sum(square_T, 0), None)
    _add(sums + 3, tl.sum(topk_T, 0), None)
