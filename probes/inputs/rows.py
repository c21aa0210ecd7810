"""Rows: the texts that a probe reads, one independent draw each, and means over them.

Needs   a Subject, whose exam has rows of tokens; or rows of the caller's own.
Yields  rows (row, pos) checked; log-probabilities of the tokens that follow; means over rows with
        95 % bounds.

Rows are the unit that is resampled: tokens of one text share their context and are not independent.
An interval over rows answers "on other texts like these, with the same checkpoint".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from probes.statistics.resample import (
    BOOT,
    FEW_UNITS,
    Floats,
    bootstrap_weights,
    percentile_interval,
    student_bounds,
)
from probes.subject import ROWS_TOKENS, Subject
from workbench.errors import UsageError

FEW_ROWS = FEW_UNITS
"""Under this many rows the bounds of their mean are Student's t."""

OVER_ROWS = (
    "95 %, bootstrap over rows (expanded percentile; Student's t under 10 rows): other texts like "
    "these, same checkpoint"
)


def text_rows(
    subject: Subject, rows: Sequence[Sequence[int]] | None = None, *, at_least: int = 2
) -> np.ndarray:
    """The rows to read, (row, pos) int64: the caller's own, or those of the exam.

    Args:
        rows: token ids, rows of one length; None: the exam's.
        at_least: positions that a row must have.

    Raises:
        UsageError: rows of unequal length, too short, of ids under 0, or none at all.

    Example:
        >>> from probes.exam import Exam
        >>> exam = Exam(tokens=np.arange(6).reshape(2, 3), domains=("a", "b"))
        >>> text_rows(Subject(nn.Linear(1, 1), exam), [[5, 6, 7, 8]]).shape
        (1, 4)
    """
    if rows is None:
        found, whose = subject.exam.tokens, "the exam's rows"
    else:
        lengths = {len(row) for row in rows}
        if len(lengths) != 1:
            raise UsageError(
                f"rows: found {len(rows)} rows of lengths {sorted(lengths)[:5]}, expected one row "
                f"or more, all of one length; cut them to the shortest."
            )
        found, whose = np.asarray(rows), "the given rows"
        if found.dtype.kind not in "iu" or (found.size and found.min() < 0):
            raise UsageError("rows: expected token ids, whole numbers from 0.")
    if len(found) == 0 or found.shape[1] < at_least:
        raise UsageError(
            f"{whose}: found {len(found)} of {found.shape[1]} tokens, expected one or more of at "
            f"least {at_least}; give longer ones: rows=[[...], ...]."
        )
    return found.astype(np.int64)


def following_logprob(subject: Subject, rows: np.ndarray, model: nn.Module | None = None) -> Floats:
    """Log-probability of each row's second to last token given those before it, nats.

    Args:
        rows: (row, pos).
        model: a changed copy to ask instead of the subject's own.

    Returns:
        (row, pos - 1) float64: entry p is of token p + 1.
    """
    tokens_RP = torch.tensor(np.ascontiguousarray(rows))
    at_once = max(1, ROWS_TOKENS // tokens_RP.shape[1])
    found = []
    for part_RP in tokens_RP.split(at_once):
        logprob = subject.logits(part_RP, model)[:, :-1].float().log_softmax(-1)
        following = part_RP[:, 1:, None].to(logprob.device)
        found.append(logprob.gather(-1, following).squeeze(-1).cpu())
    return torch.cat(found).double().numpy()


def mean_over_rows(
    values: Floats, n_boot: int = BOOT, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Mean over rows and its 95 % bounds, from values (row, ...); NaN entries are left out.

    The same draw of rows serves every entry. The bounds are NaN where fewer than two rows have a
    value: one text says nothing about others.

    Example:
        >>> mean, low, high = mean_over_rows(np.array([1.0, 2.0, 3.0]))
        >>> float(mean), round(float(low), 2), round(float(high), 2)
        (2.0, -0.48, 4.48)
    """
    values = np.asarray(values, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    there = ~np.isnan(flat)
    n = there.sum(axis=0)
    sums = np.where(there, flat, 0.0)
    mean = np.divide(sums.sum(axis=0), n, out=np.full(flat.shape[1], np.nan), where=n > 0)
    low, high = (np.full(flat.shape[1], np.nan) for _ in range(2))
    # Entries with the same number of rows are drawn alike, so that the widening for few rows fits.
    for count in np.unique(n[n >= 2]):
        at = n == count
        if count < FEW_ROWS:
            left_over = np.where(there[:, at], flat[:, at] - mean[at], 0.0)
            se = np.sqrt((left_over**2).sum(axis=0) / (count - 1) / count)
            low[at], high[at] = student_bounds(mean[at], se, int(count))
            continue
        weights = bootstrap_weights(len(flat), n_boot, seed)
        mass = weights @ there[:, at].astype(np.float64)
        draws = np.divide(
            weights @ sums[:, at], mass, out=np.full(mass.shape, np.nan), where=mass > 0
        )
        low[at], high[at] = percentile_interval(draws, int(count))
    # A mean of equal values is that value, whatever the rounding of a weighted sum.
    low, high = np.fmin(low, mean), np.fmax(high, mean)
    low[n < 2] = high[n < 2] = np.nan
    shape = values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)
