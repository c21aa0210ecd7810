"""Logistic regression for many labels and folds at once, on the device of the features.

Needs   features (token, d), labels (label, token), the fold of every token.
Yields  for every label and every fold the multinomial classifier that did not see the fold.

The objective is scikit-learn's: sum of losses + |W|² / (2C), intercept not penalised; divided by
the number of training tokens it is minimised until no entry of its gradient exceeds `tolerance`
(scikit-learn's `tol`, with the same meaning and default). Two classes are penalised as the one
vector that scikit-learn fits.

How it is solved: first every label on all tokens, then all folds from there. L-BFGS in the basis
of the Gram matrix's eigenvectors, preconditioned by the Gram matrix; where that is slow, by a
Newton matrix for each class that is shared by all folds (one factorisation for F fits). The shift
common to all classes, which changes no probability, is projected out of every step.

Source of the preconditioned form: Nocedal & Wright 2006, chapter 7; the bound by the Gram matrix
that starts it, Böhning 1992, Ann. Inst. Statist. Math. 44(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.statistics.minimise import Precondition, minimise
from workbench.errors import UsageError

# Shapes: N tokens, D width (of the basis), P problems solved at once, K classes (the most of any
# problem; others are padded and masked), F folds, J labels. E is D + 1: a point (problem, class, E)
# has the intercepts last.

STEPS_PER_WIDTH = 1 / 6
"""Steps on all tokens, per width, that take as long as the Newton matrices: so long by the Gram
matrix; if that is not the end, by Newton matrices."""
REFRESH = (16, 24)
"""Steps after which the Newton matrices are formed anew, while labels are solved on all tokens."""
START = 3
"""How many times the tolerance is near enough for all tokens, where the folds start."""
LARGEST = 1 << 27
"""Entries of all Newton matrices of a label; above this the Gram matrix has to do."""
TOGETHER = 5
"""Problems solved at once. More saves overhead, but waits for the slowest and leaves the cache."""
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
        curvature = (variance[kept] / len(x)).to(features_ND.dtype)
        self.curvature_E = torch.nn.functional.pad(curvature, (0, 1), value=1.0)
        turned = (x @ turn[:, kept]).to(features_ND.dtype)
        self.x_NE = torch.nn.functional.pad(turned, (0, 1), value=1.0)
        self.x_EN = self.x_NE.T.contiguous()

    def back(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and intercept in the features' own coordinates."""
        coef = point[..., :-1] @ self.turn_DR.T
        return coef, point[..., -1] - coef @ self.mean_D


class _Problems:
    """Objectives of P problems on the same features: mean loss and penalty, with gradients."""

    def __init__(self, basis: _Basis, label_PN: Tensor, train_PN: Tensor, classes: int, c: float):
        self.basis, self.classes = basis, classes
        on_PN = train_PN & (label_PN >= 0)
        dtype = basis.x_NE.dtype
        count_P1 = on_PN.sum(1, keepdim=True).clamp_min(1)
        self.weight_PN = on_PN.to(dtype) / count_P1
        self.class_P1N = label_PN.clamp_min(0)[:, None]
        shape = (len(label_PN), classes, label_PN.shape[1])
        share = torch.zeros(shape, dtype=dtype, device=label_PN.device)
        share.scatter_(1, self.class_P1N, self.weight_PN[:, None])
        self.pull_PKE = (share.flatten(0, 1) @ basis.x_NE).view(*shape[:2], -1)
        self.share_PK = share.sum(2)
        self.there_PK1 = (self.share_PK > 0).to(dtype)[..., None]
        present_P1 = self.there_PK1.sum(1)
        self.mean_PK1 = self.there_PK1 / present_P1[:, None]
        # scikit-learn fits two classes with one vector, the difference of ours: half its penalty.
        size_P1 = (1.0 + (present_P1 == 2).to(dtype)) / (c * count_P1)
        self.penalty_P1E = size_P1[:, None].repeat(1, 1, basis.x_NE.shape[1])
        self.penalty_P1E[..., -1] = 0
        shut = torch.zeros_like(self.share_PK).masked_fill_(self.share_PK <= 0, -torch.inf)
        self.shut_PK, self.any_shut = shut, bool(torch.isinf(shut).any())

    def probabilities(self, point_PKE: Tensor) -> Tensor:
        """(problem, class, token)."""
        problems, classes, _ = point_PKE.shape
        logits = (point_PKE.flatten(0, 1) @ self.basis.x_EN).view(problems, classes, -1)
        if self.any_shut:
            logits += self.shut_PK[..., None]
        return torch.softmax(logits, dim=1)

    def __call__(self, point_PKE: Tensor) -> tuple[Tensor, Tensor]:
        p_PKN = self.probabilities(point_PKE)
        # A left-out token may have a class that is shut; its weight is 0 all the same.
        least = torch.finfo(p_PKN.dtype).tiny
        log_PN = p_PKN.gather(1, self.class_P1N)[:, 0].clamp_min_(least).log_()
        penalty = self.penalty_P1E * point_PKE
        value_P = (penalty * point_PKE).sum((1, 2)) / 2 - (log_PN * self.weight_PN).sum(1)
        p_PKN.mul_(self.weight_PN[:, None])
        slope = (p_PKN.flatten(0, 1) @ self.basis.x_NE).view_as(point_PKE)
        return value_P, slope.sub_(self.pull_PKE).add_(penalty)

    def centred(self, step_PKE: Tensor) -> Tensor:
        """Without the shift that is common to all classes of a problem; 0 in shut classes."""
        step = step_PKE * self.there_PK1 if self.any_shut else step_PKE
        return step - self.there_PK1 * (self.mean_PK1 * step).sum(1, keepdim=True)

    def by_gram(self) -> Precondition:
        """The Newton step where probabilities are the classes' shares: diagonal in the basis."""
        spread_PK = (self.share_PK * (1 - self.share_PK)).clamp_min(1e-4)
        inverse = 1 / (spread_PK[..., None] * self.basis.curvature_E + self.penalty_P1E)
        return lambda slope: self.centred(slope * inverse)

    def newton(self, point_PKE: Tensor) -> Tensor | None:
        """(problem, class, E, E): inverse Newton matrix of each class; None: too large."""
        problems, classes, width = point_PKE.shape
        if problems * classes * width**2 > LARGEST:
            return None
        p_PKN = self.probabilities(point_PKE)
        spread_PKN = p_PKN * (1 - p_PKN) * self.weight_PN[:, None]
        made = []
        for p in range(problems):
            matrices = []
            for k in range(classes):
                spread_N = spread_PKN[p, k]
                # Most tokens are certain of most classes and curve the loss hardly at all.
                at = (spread_N > 3e-3 * spread_N.max()).nonzero()[:, 0]
                part = self.basis.x_NE[at]
                matrix = (part * spread_N[at, None]).T @ part
                matrix.diagonal().add_(self.penalty_P1E[p, 0])
                matrix.diagonal()[-1].add_(1e-6)
                matrices.append(matrix)
            made.append(_inverse(torch.stack(matrices)))
        return torch.stack(made)

    def by_newton(self, inverse: Tensor | None) -> Precondition:
        """Steps by the matrices of `newton`, of which each serves len(problems) / len(matrices)
        problems in a row.
        """
        if inverse is None:
            return self.by_gram()
        labels, classes, size, _ = inverse.shape

        def step(slope: Tensor) -> Tensor:
            by_label = slope.view(labels, -1, classes, size).permute(0, 2, 3, 1)
            moved = (inverse @ by_label).permute(0, 3, 1, 2).reshape(-1, classes, size)
            return self.centred(moved)

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
    zero = whole.share_PK.new_zeros(labels, classes, basis.x_NE.shape[1])
    zero[..., -1] = whole.share_PK.clamp_min(1e-6).log()
    inverse = None
    steps = max(12, round(STEPS_PER_WIDTH * zero.shape[2]))
    point, gradient = minimise(
        whole, whole.by_gram(), whole.centred(zero), START * tolerance, steps
    )
    for steps in REFRESH:
        if gradient <= START * tolerance:
            break
        inverse = whole.newton(point)
        precondition = whole.by_newton(inverse)
        point, gradient = minimise(whole, precondition, point, START * tolerance, steps)

    each_PN = label_JN.repeat_interleave(folds, 0)
    held = _Problems(basis, each_PN, held_FN.repeat(labels, 1), classes, c)
    start = held.centred(point.repeat_interleave(folds, 0))
    point, gradient = minimise(held, held.by_newton(inverse), start, tolerance, MOST_STEPS)
    if not gradient <= tolerance:
        raise UsageError(
            f"a logistic probe stopped at a gradient of {gradient:.2g}, expected {tolerance:.2g} "
            f"or less; raise the tolerance, penalise more (a smaller c), or use float64 features."
        )
    coef, bias = basis.back(point)
    bias = (bias + held.shut_PK).view(labels, folds, classes)
    coef = coef.view(labels, folds, classes, -1)
    most = (label_JN.amax(1) + 1).tolist()
    return [Classifier(coef[j, :, :k], bias[j, :, :k], gradient) for j, k in enumerate(most)]
