"""Logistic regression for many labels and folds at once, on the device of the features.

Needs   features (token, d), labels (label, token), the fold of every token.
Yields  for every label and every fold the multinomial classifier that did not see the fold.

The objective is scikit-learn's: sum of losses + |W|² / (2C), intercept not penalised; divided by
the number of training tokens it is minimised until no entry of its gradient exceeds `tolerance`
(scikit-learn's `tol`, with the same meaning and default). Two classes are penalised as the one
vector that scikit-learn fits.

How it is solved: first every label on all tokens, then all folds from there. L-BFGS in the basis
of the Gram matrix's eigenvectors, preconditioned by a Newton matrix for each class that is shared
by all folds (one factorisation for F fits). The shift common to all classes, which changes no
probability, is projected out of every step.

Source of the preconditioned form: Nocedal & Wright 2006, chapter 7; the bound by the Gram matrix
that starts it, Böhning 1992, Ann. Inst. Statist. Math. 44(1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.statistics.minimise import Point, minimise
from workbench.errors import UsageError

# Shapes: N tokens, D width (of the basis), P problems solved at once, K classes (the most of any
# problem; others are padded and masked), F folds, J labels.

REFRESH = (12, 16, 24)
"""Steps after which the Newton matrices are formed anew, while labels are solved on all tokens."""
LARGEST = 1 << 27
"""Entries of all Newton matrices of a label; above this the Gram matrix has to do."""
TOGETHER = 10
"""Problems solved at once. More saves overhead and falls out of the processor's cache."""
MOST_STEPS = 2000


@dataclass(frozen=True, eq=False)
class Classifier:
    """One label's classifiers, one for each fold that was held out."""

    coef: Tensor
    """(fold, class, d), of the features as they were given; the mean over classes is 0."""
    intercept: Tensor
    """(fold, class); −inf for a class that the training folds do not have."""
    gradient: float
    """The largest entry of any gradient at the end."""

    def scores(self, features_ND: Tensor, fold_N: Tensor) -> Tensor:
        """(token, class): log-odds by the classifier that did not see the token's fold."""
        scores = features_ND.new_empty(len(features_ND), self.coef.shape[1])
        for f in range(len(self.coef)):
            at = fold_N == f
            scores[at] = features_ND[at] @ self.coef[f].T + self.intercept[f]
        return scores


def logistic_classifiers(
    features_ND: Tensor,
    labels: Sequence[NDArray[np.int64]],
    fold: NDArray[np.int64],
    c: float = 1.0,
    tolerance: float = 1e-4,
) -> list[Classifier]:
    """The classifiers of each label, one a fold; in the precision of the features.

    Args:
        features_ND: (token, d), on the device to solve on; float32 reaches a tolerance of 1e-5,
            float64 one of 1e-10.
        labels: (token,) classes from 0 each; −1: not trained on.
        fold: (token,), from 0.
        c: inverse strength of the penalty, as scikit-learn's C.
        tolerance: largest entry of the gradient of the mean objective.

    Raises:
        UsageError: `c` or `tolerance` not above 0, or no convergence in the steps allowed.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [0.1], [0.9]])
        >>> made = logistic_classifiers(x, [np.array([0, 1, 0, 1])], np.array([0, 0, 1, 1]))
        >>> made[0].scores(x, torch.tensor([0, 0, 1, 1])).argmax(1).tolist()
        [0, 1, 0, 1]
    """
    if not (c > 0 and tolerance > 0):
        raise UsageError(f"c={c}, tolerance={tolerance}: expected both above 0.")
    basis = _Basis(features_ND)
    folds = int(fold.max()) + 1
    held_FN = torch.from_numpy(np.stack([fold != f for f in range(folds)])).to(features_ND.device)
    sizes = [1 << (int(label.max())).bit_length() for label in labels]
    found: dict[int, Classifier] = {}
    for size in sorted(set(sizes)):  # of like numbers of classes, so that little is padding
        members = [j for j, s in enumerate(sizes) if s == size]
        share = max(1, TOGETHER // folds)
        for first in range(0, len(members), share):
            part = members[first : first + share]
            stacked = torch.from_numpy(np.stack([labels[j] for j in part]))
            solved = _solve(basis, stacked.to(features_ND.device), held_FN, c, tolerance)
            found.update(zip(part, solved, strict=True))
    return [found[j] for j in range(len(labels))]


class _Basis:
    """The features turned to the eigenvectors of their Gram matrix, directions without any
    variance left out: a penalised weight along them is 0.
    """

    def __init__(self, features_ND: Tensor) -> None:
        self.mean_D = features_ND.mean(0)
        x = (features_ND - self.mean_D).double()
        if x.shape[1] <= x.shape[0]:
            variance, turn = torch.linalg.eigh(x.T @ x)
        else:
            variance, left = torch.linalg.eigh(x @ x.T)
            turn = x.T @ left / variance.clamp_min(1e-300).sqrt()
        kept = variance > 1e-12 * variance[-1].clamp_min(1e-300)
        self.turn_DR = turn[:, kept].to(features_ND.dtype)
        self.curvature_R = (variance[kept] / len(x)).to(features_ND.dtype)
        self.x_ND = (x @ turn[:, kept]).to(features_ND.dtype).contiguous()
        self.x_DN = self.x_ND.T.contiguous()

    def back(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and intercept in the features' own coordinates."""
        coef = weights @ self.turn_DR.T
        return coef, bias - coef @ self.mean_D


class _Problems:
    """Objectives of P problems on the same features: mean loss and penalty, with gradients."""

    def __init__(self, basis: _Basis, label_PN: Tensor, train_PN: Tensor, classes: int, c: float):
        self.basis, self.classes = basis, classes
        on_PN = train_PN & (label_PN >= 0)
        dtype = basis.x_ND.dtype
        count_P1 = on_PN.sum(1, keepdim=True).clamp_min(1)
        self.weight_PN = on_PN.to(dtype) / count_P1
        self.class_P1N = label_PN.clamp_min(0)[:, None]
        shape = (len(label_PN), classes, label_PN.shape[1])
        share = torch.zeros(shape, dtype=dtype, device=label_PN.device)
        share.scatter_(1, self.class_P1N, self.weight_PN[:, None])
        self.share_PK = share.sum(2)
        self.there_PK = self.share_PK > 0
        # scikit-learn fits two classes with one vector, the difference of ours: half its penalty.
        doubled = 1.0 + (self.there_PK.sum(1) == 2).to(dtype)
        self.penalty_P = doubled / (c * count_P1[:, 0])
        self.shut_PK = torch.zeros_like(self.share_PK).masked_fill_(~self.there_PK, -torch.inf)

    def probabilities(self, point: Point) -> Tensor:
        """(problem, class, token)."""
        weights_PKD, bias_PK = point
        problems, classes, width = weights_PKD.shape
        flat = weights_PKD.reshape(-1, width)
        bias = (bias_PK + self.shut_PK).reshape(-1, 1)
        logits = torch.addmm(bias, flat, self.basis.x_DN).view(problems, classes, -1)
        return torch.softmax(logits, dim=1)

    def __call__(self, point: Point) -> tuple[Tensor, Point]:
        weights_PKD, _ = point
        p_PKN = self.probabilities(point)
        right_P1N = p_PKN.gather(1, self.class_P1N)
        loss_PN = torch.where(self.weight_PN > 0, -right_P1N[:, 0].log(), 0.0)
        size_P = weights_PKD.square().sum((1, 2))
        value_P = (loss_PN * self.weight_PN).sum(1) + self.penalty_P * size_P / 2
        p_PKN.scatter_add_(1, self.class_P1N, torch.full_like(right_P1N, -1.0))
        p_PKN.mul_(self.weight_PN[:, None])
        # A left-out token may have a class that is shut; its weight is 0 all the same.
        slope = p_PKN.flatten(0, 1) @ self.basis.x_ND
        slope = slope.view_as(weights_PKD) + self.penalty_P[:, None, None] * weights_PKD
        return value_P, (slope, p_PKN.sum(2))

    def centred(self, step: Point) -> Point:
        """Without the shift that is common to all classes of a problem; 0 in shut classes."""
        there_PK1 = self.there_PK[..., None].to(step[0].dtype)
        count_P1 = there_PK1.sum(1)
        weights = step[0] * there_PK1
        bias = step[1] * there_PK1[..., 0]
        weights = (weights - weights.sum(1, keepdim=True) / count_P1[..., None]) * there_PK1
        bias = (bias - bias.sum(1, keepdim=True) / count_P1) * there_PK1[..., 0]
        return weights, bias

    def by_gram(self) -> Callable[[Point], Point]:
        """The Newton step where probabilities are the classes' shares: diagonal in the basis."""
        spread_PK = (self.share_PK * (1 - self.share_PK)).clamp_min(1e-4)
        curvature = spread_PK[..., None] * self.basis.curvature_R
        curvature = curvature + self.penalty_P[:, None, None]
        return lambda step: self.centred((step[0] / curvature, step[1] / spread_PK))

    def newton(self, point: Point) -> Tensor | None:
        """(problem, class, D + 1, D + 1): inverse Newton matrix of each class; None: too large."""
        problems, classes, width = point[0].shape
        if problems * classes * (width + 1) ** 2 > LARGEST:
            return None
        x_ND = self.basis.x_ND
        x1 = torch.cat([x_ND, x_ND.new_ones(len(x_ND), 1)], dim=1)
        p_PKN = self.probabilities(point)
        spread_PKN = p_PKN * (1 - p_PKN) * self.weight_PN[:, None]
        made = []
        for p in range(problems):
            matrices = []
            for k in range(classes):
                spread_N = spread_PKN[p, k]
                # Most tokens are certain of most classes and curve the loss hardly at all.
                at = (spread_N > 3e-3 * spread_N.max()).nonzero()[:, 0]
                part = x1[at]
                matrix = (part * spread_N[at, None]).T @ part
                matrix.diagonal()[:-1].add_(self.penalty_P[p])
                matrix.diagonal()[-1].add_(1e-6)
                matrices.append(matrix)
            made.append(_inverse(torch.stack(matrices)))
        return torch.stack(made)

    def by_newton(self, inverse: Tensor | None) -> Callable[[Point], Point]:
        """Steps by the matrices of `newton`, of which each serves len(problems) / len(matrices)
        problems in a row.
        """
        if inverse is None:
            return self.by_gram()
        labels, classes, size, _ = inverse.shape

        def step(slope: Point) -> Point:
            joined = torch.cat([slope[0], slope[1][..., None]], dim=2)  # P K D+1
            by_label = joined.view(labels, -1, classes, size).permute(0, 2, 3, 1)
            moved = (inverse @ by_label).permute(0, 3, 1, 2).reshape(-1, classes, size)
            return self.centred((moved[..., :-1], moved[..., -1]))

        return step


def _inverse(matrices: Tensor) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(matrices)
    if failed.any():
        lower = torch.linalg.cholesky(matrices.double())
    return torch.cholesky_inverse(lower).to(matrices.dtype)


def _solve(
    basis: _Basis, label_JN: Tensor, held_FN: Tensor, c: float, tolerance: float
) -> list[Classifier]:
    """All folds of some labels, from the solution on all tokens."""
    labels, folds = len(label_JN), len(held_FN)
    classes = int(label_JN.max()) + 1
    everything = torch.ones_like(label_JN, dtype=torch.bool)
    # The penalty that the folds will have, so that the start is near where they end.
    whole = _Problems(basis, label_JN, everything, classes, c * (folds - 1) / folds)
    share = whole.share_PK.clamp_min(1e-6).log()
    zero = share.new_zeros(labels, classes, basis.x_ND.shape[1])
    point = whole.centred((zero, share))
    precondition = whole.by_gram()
    for steps in REFRESH:
        point, gradient = minimise(whole, precondition, point, 3 * tolerance, steps)
        inverse = whole.newton(point)
        precondition = whole.by_newton(inverse)
        if gradient <= 3 * tolerance:
            break

    each_PN = label_JN.repeat_interleave(folds, 0)
    held = _Problems(basis, each_PN, held_FN.repeat(labels, 1), classes, c)
    start = (point[0].repeat_interleave(folds, 0), point[1].repeat_interleave(folds, 0))
    point, gradient = minimise(
        held, held.by_newton(inverse), held.centred(start), tolerance, MOST_STEPS
    )
    if not gradient <= tolerance:
        raise UsageError(
            f"a logistic probe stopped at a gradient of {gradient:.2g}, expected {tolerance:.2g} "
            f"or less; raise the tolerance, penalise more (a smaller c), or use float64 features."
        )
    coef, bias = basis.back(*point)
    bias = (bias + held.shut_PK).view(labels, folds, classes)
    coef = coef.view(labels, folds, classes, -1)
    most = (label_JN.amax(1) + 1).tolist()
    return [Classifier(coef[j, :, :k], bias[j, :, :k], gradient) for j, k in enumerate(most)]
