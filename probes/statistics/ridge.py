"""Ridge classification: the linear classifier in closed form, all labels and folds at once.

Needs   features (token, d), labels (label, token), the fold of every token.
Yields  a class for every token, by the classifier that did not see the token's fold.

Least squares to targets +1 (its class) and −1 (the others), intercept not penalised. The Gram
matrix of a training set is the sum of those of its folds, each formed once for all labels (less the
tokens that a label leaves out); one Cholesky a fold serves every class of every label that is
defined on the same tokens. float64.

It agrees with scikit-learn's RidgeClassifier(alpha). It is many times faster than logistic
regression, and where classes crowd (one of many domains) it is less accurate.

Source: Hoerl & Kennard 1970, Technometrics 12(1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

from workbench.errors import UsageError

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

    Raises:
        UsageError: features that depend on one another under a penalty too small to decide.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.1], [0.9]])
        >>> scores = ridge_scores(x, [np.array([0, 1, 0, 1])], np.array([0, 0, 1, 1]), alpha=0.1)
        >>> scores[0].argmax(1).tolist()
        [0, 1, 0, 1]
    """
    order = np.argsort(fold, kind="stable")
    ends = np.cumsum(np.bincount(fold))
    folds = [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    at = torch.from_numpy(order).to(features_ND.device)
    # A column of ones carries the counts and the means through the same sums.
    x1_ND = torch.nn.functional.pad(features_ND[at].double(), (0, 1), value=1.0)
    grams = torch.stack([_gram(x1_ND[part]) for part in folds])
    found: list[Tensor | None] = [None] * len(labels)
    groups: dict[bytes, list[int]] = {}
    for j, label in enumerate(labels):
        groups.setdefault((label >= 0).tobytes(), []).append(j)
    for members in groups.values():
        there = (labels[members[0]] >= 0)[order]
        widths = [int(labels[j].max()) + 1 for j in members]
        targets_CN = _targets([labels[j][order] for j in members], widths, there).to(x1_ND)
        own = _without(grams, x1_ND, there, folds)
        scores_NC = x1_ND.new_empty(len(x1_ND), sum(widths))
        weights_FCD = _fitted(x1_ND, own, targets_CN, folds, alpha)
        for part, weights_CD in zip(folds, weights_FCD, strict=True):
            scores_NC[at[part]] = (weights_CD @ x1_ND[part].T).T
        for j, part in zip(members, scores_NC.split(widths, dim=1), strict=True):
            found[j] = part
    return [scores for scores in found if scores is not None]


def _targets(
    labels: Sequence[NDArray[np.int64]], widths: Sequence[int], there: NDArray[np.bool_]
) -> Tensor:
    """(class of every label, token): +1 at the token's class, −1 elsewhere; 0 without a class."""
    tokens = np.flatnonzero(there)
    targets_CN = np.full((sum(widths), len(there)), -1.0)
    targets_CN[:, ~there] = 0
    for label, first in zip(labels, np.cumsum([0, *widths]), strict=False):
        targets_CN[first + label[tokens], tokens] = 1
    return torch.from_numpy(targets_CN)


def _gram(x_ND: Tensor) -> Tensor:
    """xᵀx, of which only the lower triangle is to be read."""
    if x_ND.device.type != "cpu" or not len(x_ND):
        return x_ND.T @ x_ND
    return torch.from_numpy(blas.dsyrk(1.0, x_ND.numpy().T).T)  # half the work of a product


def _solved(matrices: Tensor, right_FCD: Tensor) -> Tensor:
    """Solutions (fold, class, d) from the lower triangles of the matrices."""
    if matrices.device.type != "cpu":
        return torch.cholesky_solve(right_FCD.mT, torch.linalg.cholesky(matrices)).mT
    # torch's own would spend most of its time on clearing the other triangle.
    for matrix, right_CD in zip(matrices, right_FCD, strict=True):
        _, solution_DC, failed = lapack.dposv(matrix.numpy().T, right_CD.numpy().T, lower=0)
        if failed:
            raise UsageError(
                "a ridge probe has features of which some are copies of others, and too small a "
                "penalty to tell them apart; penalise more (a larger alpha, a smaller c)."
            )
        right_CD.copy_(torch.from_numpy(solution_DC.T))
    return right_FCD


def _without(
    grams: Tensor, x1_ND: Tensor, there: NDArray[np.bool_], folds: Sequence[slice]
) -> Tensor:
    """Gram matrices of the folds' tokens that have the label."""
    made = []
    for gram, part in zip(grams, folds, strict=True):
        missing = np.flatnonzero(~there[part])
        few = 2 * len(missing) < part.stop - part.start
        chosen = x1_ND[part][torch.from_numpy(missing if few else np.flatnonzero(there[part]))]
        made.append(gram - _gram(chosen) if few else _gram(chosen))
    return torch.stack(made)


def _fitted(
    x1_ND: Tensor, grams: Tensor, targets_CN: Tensor, folds: Sequence[slice], alpha: float
) -> Tensor:
    """Weights (fold, class, d + 1), the intercept last."""
    crosses = torch.stack([targets_CN[:, part] @ x1_ND[part] for part in folds])
    gram, cross_FCD = grams.sum(0) - grams, crosses.sum(0) - crosses
    n_F1 = gram[:, -1:, -1].clamp_min(1)
    mean_FD, level_FC = gram[:, -1, :-1] / n_F1, cross_FCD[:, :, -1] / n_F1
    centred = gram[:, :-1, :-1] - gram[:, -1, :-1, None] * mean_FD[:, None]
    moments_FCD = cross_FCD[:, :, :-1] - cross_FCD[:, :, -1:] * mean_FD[:, None]
    centred.diagonal(dim1=1, dim2=2).add_(alpha)
    weights_FCD = _solved(centred, moments_FCD)
    offset_FC = level_FC - (weights_FCD @ mean_FD[..., None]).squeeze(2)
    # A class that the training folds do not have has only −1 for a target: never the answer.
    offset_FC = offset_FC.masked_fill(level_FC <= -1 + 1e-12, -torch.inf)
    return torch.cat([weights_FCD, offset_FC[..., None]], dim=2)
