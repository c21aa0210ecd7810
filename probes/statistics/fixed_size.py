"""Fixed size: how often two experts meet when a token takes k of them and nothing else links them.

Needs   q (layer, expert), how often each expert is chosen; k, how many a token takes.
Yields  P(i and j both chosen) (layer, expert, expert2) under the choice of k that has these loads
        and the greatest entropy.

Choices of k different experts are never quite independent: who takes one has fewer places left.
With equal loads P(i, j) = k(k-1) / (E(E-1)), below q_i q_j; with k = 1 it is 0. Among all ways to
choose k with given loads one is the least structured, the conditional Poisson design: the chance of
a set is the product of weights w of its members, normalised over all sets of k.

Sums over sets are elementary symmetric polynomials, built factor by factor from both ends, so that
leaving an expert out needs no division.

Source: Chen, Dempster & Liu 1994, Biometrika 81(3); Hájek 1964.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EDGE = 1e-7
"""Loads nearer than this to 0 or 1 count as this near: weights would be infinite."""

ROUNDS = 300
TOLERANCE = 1e-10


def meeting_chance(load: Floats, k: int) -> Floats:
    """P(i and j) (layer, expert, expert2) of the least structured choice of k with these loads.

    NaN on the diagonal, and in layers whose loads do not sum to k (assignments were dropped) or
    hold an expert that is never chosen, in that expert's pairs.

    Args:
        load: (layer, expert), P(expert in S), sums to k.

    Example:
        >>> chance = meeting_chance(np.full((1, 16), 4 / 16), 4)
        >>> round(float(chance[0, 0, 1]), 6) == round(4 * 3 / (16 * 15), 6)
        True
    """
    layers, experts = load.shape
    whole = np.isclose(load.sum(axis=-1), k, rtol=1e-6)
    if k >= experts:
        pairs = np.ones((layers, experts, experts))
    else:
        used = np.where(whole[:, None], load, k / experts)
        pairs = _pairs(_weights(np.clip(used, EDGE, 1 - EDGE), k), k)
    diagonal = np.arange(experts)
    pairs[:, diagonal, diagonal] = np.nan
    pairs[~whole] = np.nan
    never = load <= 0
    pairs[never[:, :, None] | never[:, None, :]] = np.nan
    return pairs


def _weights(load: Floats, k: int) -> Floats:
    """w (layer, expert) whose conditional Poisson choice of k has these loads."""
    log_w = np.log(load) - np.log1p(-load)
    target = log_w.copy()
    for _ in range(ROUNDS):
        log_w -= log_w.mean(axis=-1, keepdims=True)
        found = np.clip(_inclusion(np.exp(log_w), k), 1e-300, 1 - 1e-16)
        if np.abs(found - load).max() < TOLERANCE:
            break
        log_w += target - (np.log(found) - np.log1p(-found))
    return np.exp(log_w)


def _inclusion(w: Floats, k: int) -> Floats:
    """P(i in S) (..., expert)."""
    without, all_sets = _leave_one_out(w, k - 1), _sums(w, k)[..., k]
    return w * without / all_sets[..., None]


def _pairs(w: Floats, k: int) -> Floats:
    """P(i and j) (layer, expert, expert2), anything on the diagonal."""
    layers, experts = w.shape
    if k < 2:
        return np.zeros((layers, experts, experts))
    # An expert of weight 0 is left out of every set.
    others = np.repeat(w[:, None, :], experts, axis=1)
    diagonal = np.arange(experts)
    others[:, diagonal, diagonal] = 0
    without_both = _leave_one_out(others, k - 2)
    return w[:, :, None] * w[:, None, :] * without_both / _sums(w, k)[:, k, None, None]


def _sums(w: Floats, k: int) -> Floats:
    """(..., 0 to k): elementary symmetric polynomials of w (..., expert)."""
    sums = np.zeros((*w.shape[:-1], k + 1))
    sums[..., 0] = 1
    for i in range(w.shape[-1]):
        sums[..., 1:] += w[..., i, None] * sums[..., :-1].copy()
    return sums


def _leave_one_out(w: Floats, size: int) -> Floats:
    """(..., expert): the polynomial of that size over all experts but one."""
    experts = w.shape[-1]
    before = np.zeros((experts, *w.shape[:-1], size + 1))
    after = np.zeros_like(before)
    before[0, ..., 0] = after[-1, ..., 0] = 1
    for i in range(1, experts):
        before[i] = before[i - 1]
        before[i, ..., 1:] += w[..., i - 1, None] * before[i - 1, ..., :-1]
        j = experts - 1 - i
        after[j] = after[j + 1]
        after[j, ..., 1:] += w[..., j + 1, None] * after[j + 1, ..., :-1]
    found = (before * after[..., ::-1]).sum(axis=-1)
    return np.moveaxis(found, 0, -1)
