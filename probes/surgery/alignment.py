"""Alignment: inner products of the gradients of some rows with those of some items.

Needs   rows of text in domains, items in tasks, a model to differentiate (directional.py).
Yields  <P g_d, g_t> (domain, task); its parts by row and by item; bounds and q from these parts.

One backward a domain and a task, two forwards over the items a domain, two over the rows a task:
no gradient of a single row or item is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from probes.statistics.discovery_rate import q_values
from probes.statistics.resample import CONFIDENCE, Floats
from probes.surgery.directional import Direction, Directional, Rows, inner, norm

Normalize = Literal["none", "cosine"]

GOOD = 0.01
"""Error of the derivatives, over the largest product, at which no other step is tried."""
FINER = (1.0, 10.0, 100.0)
"""Steps that are tried, as parts of the usual one. Adam's directions bend within the usual one."""

# Shapes: D domains, T tasks, R rows of text.


def aligned(
    model: Directional,
    shown: Rows,
    domain_of_row: np.ndarray,
    asked: Rows,
    n_items: int,
    scale: Sequence[Tensor] | None,
    normalize: Normalize,
) -> tuple[Floats, Floats, Floats, float]:
    """<P g_d, g_t> (domain, task); its parts by row (row, task) and by item (domain, task, item),
    whose means it is; and the largest error of the parts' means over the largest product.
    """
    D, T, R = int(domain_of_row.max()) + 1, asked.count // n_items, shown.count
    influence, of_row, of_item = nothing(D, T, R, n_items)
    g_T = [model.gradient(asked, t * n_items + np.arange(n_items)) for t in range(T)]
    length_T, length_D = np.array([norm(g) for g in g_T]), np.zeros(D)
    for d in range(D):
        g = model.gradient(shown, np.flatnonzero(domain_of_row == d))
        step = _scaled(g, scale)
        length_D[d] = norm(step)
        influence[d] = [inner(step, g_t) for g_t in g_T]
        task_of_item = np.arange(asked.count) // n_items
        found = _along(model, asked, step, task_of_item, influence[d])
        of_item[d] = found.reshape(T, n_items)
    for t, g in enumerate(g_T):
        of_row[:, t] = _along(model, shown, _scaled(g, scale), domain_of_row, influence[:, t])
    rows_DT = np.stack([of_row[domain_of_row == d].mean(0) for d in range(D)])
    items_DT = of_item.mean(-1)
    far = max(np.abs(rows_DT - influence).max(), np.abs(items_DT - influence).max())
    largest = np.abs(influence).max()
    # Their means are known exactly; what is left of the error is in their spread alone.
    of_row += (influence - rows_DT)[domain_of_row]
    of_item += (influence - items_DT)[..., None]
    if normalize == "cosine":
        lengths = length_D[:, None] * length_T
        unit = np.divide(1, lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)
        influence, of_row, of_item = (
            influence * unit, of_row * unit[domain_of_row], of_item * unit[..., None],
        )  # fmt: skip
    return influence, of_row, of_item, float(far / largest) if largest > 0 else np.nan


def _along(
    model: Directional, rows: Rows, step: Direction, group: NDArray[np.intp], exact: Floats
) -> Floats:
    """Derivatives along a direction, by the step whose means over groups are nearest the truth."""
    best, least = np.full(rows.count, np.nan), np.inf
    for finer in FINER:
        found = model.along(rows, step, finer)
        mean = np.bincount(group, found) / np.bincount(group)
        error = np.abs(mean - exact).max() / max(np.abs(exact).max(), 1e-300)
        if error < least:
            best, least = found, error
        if least < GOOD:
            break
    return best


def _scaled(direction: Direction, scale: Sequence[Tensor] | None) -> Direction:
    return direction if scale is None else [s * g for s, g in zip(scale, direction, strict=True)]


def nothing(D: int, T: int, R: int, items: int) -> tuple[Floats, Floats, Floats]:
    """NaN in the shapes of influence, of_row and of_item."""
    return np.full((D, T), np.nan), np.full((R, T), np.nan), np.full((D, T, items), np.nan)


def judged(
    influence: Floats, of_row: Floats, of_item: Floats, domain_of_row: np.ndarray, names: np.ndarray
) -> dict[str, Floats]:
    """Bounds and q of each influence; NaN where a domain has one row, or a task one item."""
    items = of_item.shape[-1]
    rows = np.array([(domain_of_row == name).sum() for name in names])[:, None]
    enough = (rows > 1) & (items > 1)
    ddof = 1 if items > 1 else 0
    by_item = of_item.var(-1, ddof=ddof) / items
    by_row = np.stack(
        [np.var(of_row[domain_of_row == name], axis=0, ddof=min(1, r - 1)) / r
         for name, r in zip(names, rows[:, 0], strict=True)]
    )  # fmt: skip
    variance = np.where(enough, by_item + by_row, np.nan)
    # Welch: the freedom of a sum of two variances, each known from few.
    each = by_item**2 / max(items - 1, 1) + by_row**2 / np.maximum(rows - 1, 1)
    freedom = np.divide(variance**2, each, out=np.ones(variance.shape), where=each > 0)
    error = np.sqrt(variance)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    t = np.divide(np.abs(influence), error, out=np.zeros(error.shape), where=error > 0)
    p = np.where(np.isnan(error), np.nan, 2 * stats.t.sf(t, freedom))
    return {
        "influence": influence,
        "influence_low": influence - half,
        "influence_high": influence + half,
        "influence_q": q_values(p),
    }
