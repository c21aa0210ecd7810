"""`route_stats` on a CPU: one pass in pieces that stay in the cache.

Needs   what the op is given (route_stats.py), all on the host.
Yields  `add`.

In numpy, and with experts before tokens. A torch operation over more than a few thousand numbers
wakes the other threads, which costs about 50 microseconds where threads sleep while they wait; and
sums and maxima over 4 to 64 experts run along the vector units only if tokens are the last axis.

Imports with torch and numpy alone.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite, log
from typing import NamedTuple

import numpy as np
from torch import Tensor

from workbench.capture.accumulators import (
    ENTROPY_BINS,
    NEAR_TIE_LOGITS,
    SLOW,
    Table,
)
from workbench.capture.adapters.router_site import Scores

# Shapes: T tokens of a piece, N all kept tokens, R rows of them, E experts, K chosen a token.

PIECE = 1 << 17
"""Scores in a piece: half a MiB."""
UNDERFLOW = -110.0
"""exp of this is 0 in float32, and 0 times it is 0, where 0 times -inf were not a number."""


class _Views(NamedTuple):
    """One router's share of the tables, as arrays."""

    counts_DE: np.ndarray
    tallies_2: np.ndarray
    gate_mass_E: np.ndarray
    prob_mass_E: np.ndarray
    sums_4: np.ndarray
    pairs_EE: np.ndarray
    histogram_B: np.ndarray


_views: dict[tuple[int, ...], list[_Views]] = {}


def _views_of(table: Tensor, slow: Tensor, layers: int, domains: int, experts: int) -> list[_Views]:
    """Every router's views, made once: making them costs as much as summing over 4,096 tokens."""
    key = table.data_ptr(), slow.data_ptr(), layers, domains, experts
    if (found := _views.get(key)) is None:
        layout = Table(layers, domains, experts)
        counts, tallies, masses, sums = layout.parts(table.numpy())
        pairs, histogram = layout.slow_parts(slow.numpy())
        found = [
            _Views(counts[i], tallies[i], masses[i, 0], masses[i, 1], sums[i], pairs[i],
                   histogram[i])
            for i in range(layers)
        ]  # fmt: skip
        if len(_views) >= 8:
            _views.clear()
        # The views hold the tables' memory, so no other table comes to lie at their address.
        _views[key] = found
    return found


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
    N, E = logits_TE.shape
    logits, gates = _floats(logits_TE), _floats(gates_TK)
    ids = ids_TK.detach().numpy()
    domain_R = domains.numpy().ravel()
    if keep.numel() and not (kept_N := _per_token(keep.numpy().ravel(), N)).all():
        logits, ids, gates = logits[kept_N], ids[kept_N], gates[kept_N]
        domain_R = _per_token(domain_R, N)[kept_N] if domain_R.size else domain_R
    if ids.size and ids.max() >= E:
        # No expert of this router: counted nowhere, as on a GPU. The first step's check tells.
        ids = np.where(ids < E, ids, -1)
    here = _views_of(table, slow, layers, num_domains, E)[place]
    wants_slow = bool(flags[SLOW])
    _count(ids, gates, domain_R, here.counts_DE, here.gate_mass_E)
    here.tallies_2[0] += len(ids)
    at_once = max(PIECE // E, 1)
    with np.errstate(all="ignore"):
        for first in range(0, len(ids), at_once):
            piece = slice(first, first + at_once)
            chosen = _measure(logits[piece], ids[piece], scores, here, wants_slow=wants_slow)
            if wants_slow:
                hot_ET = np.zeros((E, len(ids[piece])), dtype=np.float32)
                hot_ET.ravel()[chosen] = 1
                # Sums of ones are exact in float32 up to 2^24 tokens a piece.
                here.pairs_EE[...] += (hot_ET @ hot_ET.T).astype(np.int64)


def _floats(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().float().numpy()  # numpy holds no bfloat16
    return array


def _per_token(labels_R: np.ndarray, tokens: int) -> np.ndarray:
    """Labels of rows spread over the rows' tokens."""
    return labels_R if len(labels_R) == tokens else np.repeat(labels_R, tokens // len(labels_R))


def _count(
    ids_NK: np.ndarray,
    gates_NK: np.ndarray,
    domain_R: np.ndarray,
    counts_DE: np.ndarray,
    gate_mass_E: np.ndarray,
) -> None:
    D, E = counts_DE.shape
    flat_ids, flat_gates = ids_NK.ravel(), gates_NK.ravel()
    cells = flat_ids
    if domain_R.size and ids_NK.size:
        ids_RM = ids_NK.reshape(len(domain_R), -1)
        cells = (ids_RM + E * domain_R[:, None]).ravel()
    if len(flat_ids) and flat_ids.min() < 0:
        assigned = flat_ids >= 0
        flat_ids, flat_gates, cells = flat_ids[assigned], flat_gates[assigned], cells[assigned]
    # A label beyond the last domain is dropped here as on a GPU, never counted for another.
    counts_DE += np.bincount(cells, minlength=D * E)[: D * E].reshape(D, E)
    gate_mass_E += np.bincount(flat_ids, weights=flat_gates, minlength=E)


def _measure(
    logits_TE: np.ndarray, ids_TK: np.ndarray, scores: int, here: _Views, *, wants_slow: bool
) -> np.ndarray:
    """Adds a piece's probability masses, tallies and sums; returns the cells of (expert, token)
    that were chosen.
    """
    T, E = logits_TE.shape
    # A copy even where the layout fits already (one expert, one token): it is written to below.
    z_ET = np.array(logits_TE.T, order="C")
    if scores == Scores.PROBABILITIES:
        p_ET = z_ET.copy()
        np.log(z_ET, out=z_ET)
        total_T = p_ET.sum(0)
        surprise_T = -np.einsum("et,et->t", p_ET, np.maximum(z_ET, UNDERFLOW)) / total_T
        entropy_T = surprise_T + np.log(total_T)
        lse_T = np.full(T, np.nan, dtype=np.float32)
    elif scores == Scores.SIGMOID:
        lse_T = _logsumexp(z_ET)
        p_ET = 1 / (1 + np.exp(-z_ET))
        total_T = p_ET.sum(0)
        log_p_ET = np.log(np.maximum(p_ET, np.finfo(np.float32).tiny))
        entropy_T = np.log(total_T) - np.einsum("et,et->t", p_ET, log_p_ET) / total_T
    else:
        top_T = z_ET.max(0)
        below_ET = z_ET - top_T
        p_ET = np.exp(below_ET)
        total_T = p_ET.sum(0)
        log_total_T = np.log(total_T)
        sum_below_T = np.multiply(p_ET, below_ET, out=below_ET).sum(0)
        if not isfinite(sum_below_T.sum()):
            sum_below_T = (p_ET * np.maximum(z_ET - top_T, UNDERFLOW)).sum(0)
        entropy_T = log_total_T - sum_below_T / total_T
        lse_T = top_T + log_total_T
    share_T = 1 / total_T
    here.prob_mass_E[...] += p_ET @ share_T
    ids_KT = np.array(ids_TK.T, dtype=np.int64, order="C")
    cells_KT = ids_KT * T
    cells_KT += _arange(T)
    assigned_KT = None
    if T and ids_KT.min() < 0:
        assigned_KT = ids_KT >= 0
        cells_KT[~assigned_KT] = 0
    lowest_T, chosen_p_T = _of_the_chosen(z_ET, p_ET, cells_KT, assigned_KT)
    cells = cells_KT.ravel() if assigned_KT is None else cells_KT[assigned_KT]
    z_ET.ravel()[cells] = -np.inf
    margin_T = lowest_T - z_ET.max(0)
    # Nothing left out, or nothing chosen: there is no tie to be near.
    endless_T = np.isinf(margin_T)
    near_T = np.abs(margin_T) < NEAR_TIE_LOGITS
    margin_T[endless_T] = 0
    here.tallies_2[1] += np.count_nonzero(near_T)
    # A piece is summed in float32, pieces and forwards in float64.
    here.sums_4[...] += (entropy_T.sum(), margin_T.sum(), lse_T @ lse_T, chosen_p_T @ share_T)
    if wants_slow:
        here.histogram_B[...] += _histogram(entropy_T, E)
    return cells


@lru_cache(maxsize=4)
def _arange(length: int) -> np.ndarray:
    return np.arange(length)


def _of_the_chosen(
    z_ET: np.ndarray, p_ET: np.ndarray, cells_KT: np.ndarray, assigned_KT: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Their lowest logit and the sum of their probabilities, by token."""
    z_KT, p_KT = z_ET.ravel().take(cells_KT), p_ET.ravel().take(cells_KT)
    if assigned_KT is not None:
        z_KT[~assigned_KT], p_KT[~assigned_KT] = np.inf, 0
    return z_KT.min(0), p_KT.sum(0)


def _logsumexp(z_ET: np.ndarray) -> np.ndarray:
    top_T = z_ET.max(0)
    result: np.ndarray = top_T + np.log(np.exp(z_ET - top_T).sum(0))
    return result


def _histogram(entropy_T: np.ndarray, experts: int) -> np.ndarray:
    share_T = entropy_T[np.isfinite(entropy_T)] / log(max(experts, 2))
    bins = np.clip((share_T * ENTROPY_BINS).astype(np.int64), 0, ENTROPY_BINS - 1)
    return np.bincount(bins, minlength=ENTROPY_BINS)
