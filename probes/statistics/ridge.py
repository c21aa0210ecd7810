"""Ridge classification: the linear classifier in closed form, all labels and folds at once.

Needs   features (token, d), labels (label, token), the fold of every token.
Yields  a class for every token, by the classifier that did not see the token's fold.

Least squares to targets +1 (its class) and −1 (the others), intercept not penalised. The Gram
matrix of a training set is the sum of those of its folds, each formed once; one Cholesky a fold
serves every class of every label that is defined on the same tokens. float64.

It agrees with scikit-learn's RidgeClassifier(alpha). It is many times faster than logistic
regression, and where classes crowd (one of many domains) it is less accurate.

Source: Hoerl & Kennard 1970, Technometrics 12(1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Shapes: N tokens, D width, F folds, C classes of all labels of a group together.


def ridge_scores(
    features_ND: Tensor, labels: Sequence[NDArray[np.int64]], fold: NDArray[np.int64], alpha: float
) -> list[Tensor]:
    """Held-out scores (token, class) of each label; the largest is the class; −inf for one
    that the training folds do not have.

    Args:
        features_ND: (token, d), on the device to solve on.
        labels: (token,) classes from 0 each; −1: not trained on (but scored all the same).
        fold: (token,), from 0.
        alpha: penalty of the squared weights, as scikit-learn's.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.1], [0.9]])
        >>> scores = ridge_scores(x, [np.array([0, 1, 0, 1])], np.array([0, 0, 1, 1]), alpha=0.1)
        >>> scores[0].argmax(1).tolist()
        [0, 1, 0, 1]
    """
    x_ND = features_ND.double()
    found: list[Tensor | None] = [None] * len(labels)
    groups: dict[bytes, list[int]] = {}
    for j, label in enumerate(labels):
        groups.setdefault((label >= 0).tobytes(), []).append(j)
    folds = [torch.from_numpy(np.flatnonzero(fold == f)) for f in range(int(fold.max()) + 1)]
    for members in groups.values():
        there = torch.from_numpy(labels[members[0]] >= 0)
        widths = [int(labels[j].max()) + 1 for j in members]
        targets_NC = torch.cat([_targets(labels[j]) for j in members], dim=1).to(x_ND)
        scores_NC = _held_out(x_ND, targets_NC, there, folds, alpha)
        for j, part in zip(members, scores_NC.split(widths, dim=1), strict=True):
            found[j] = part
    return [scores for scores in found if scores is not None]


def _targets(label: NDArray[np.int64]) -> Tensor:
    """+1 at the token's class, −1 elsewhere; rows without a class are never used."""
    classes = int(label.max()) + 1
    return torch.from_numpy(2.0 * (label[:, None] == np.arange(classes)) - 1)


def _held_out(
    x_ND: Tensor, targets_NC: Tensor, there_N: Tensor, folds: list[Tensor], alpha: float
) -> Tensor:
    # A column of ones carries the counts and the means through the same sums.
    ones_N1 = x_ND.new_ones(len(x_ND), 1)
    parts = []
    for tokens in folds:
        used = tokens[there_N[tokens]].to(x_ND.device)
        x1 = torch.cat([x_ND[used], ones_N1[used]], dim=1)
        parts.append((x1.T @ x1, x1.T @ targets_NC[used]))
    gram = torch.stack([g for g, _ in parts]).sum(0) - torch.stack([g for g, _ in parts])
    cross = torch.stack([c for _, c in parts]).sum(0) - torch.stack([c for _, c in parts])
    n_F = gram[:, -1, -1].clamp_min(1)
    mean_FD, level_FC = gram[:, -1, :-1] / n_F[:, None], cross[:, -1] / n_F[:, None]
    centred = gram[:, :-1, :-1] - n_F[:, None, None] * mean_FD[:, :, None] * mean_FD[:, None]
    moments = cross[:, :-1] - n_F[:, None, None] * mean_FD[:, :, None] * level_FC[:, None]
    centred.diagonal(dim1=1, dim2=2).add_(alpha)
    weights_FDC = torch.cholesky_solve(moments, torch.linalg.cholesky(centred))
    offset_FC = level_FC - (mean_FD[:, None] @ weights_FDC).squeeze(1)
    # A class that the training folds do not have has only −1 for a target: never the answer.
    offset_FC = offset_FC.masked_fill(level_FC <= -1 + 1e-12, -torch.inf)
    scores_NC = torch.empty(len(x_ND), targets_NC.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    for f, tokens in enumerate(folds):
        at = tokens.to(x_ND.device)
        scores_NC[at] = x_ND[at] @ weights_FDC[f] + offset_FC[f]
    return scores_NC
