"""Linear probes: what a linear classifier reads off the residual stream, layer by layer.

Needs   the site resid_post (layer, token, d); for the label "expert" also expert_ids.
Yields  accuracy, gain over chance, control accuracy and selectivity (layer, label), fractions.

accuracy     of tokens in rows of text that the classifier was not trained on (folds of whole
             rows); every token is held out once.
chance       share of the most frequent class: the best that one constant answer can do. (The
             majority of the training folds would do worse than chance on an even label: what is
             frequent in training is by construction rare in the fold held out.)
gain         accuracy − chance; at or under 0 where nothing can be read.
control      accuracy on labels drawn for each token type (control_task.py).
selectivity  accuracy − control; about 0 where token identity alone explains the accuracy.

Features are divided by their standard deviation over the fixed tokens, which uses no label. The
interval resamples whole rows of text (and, for selectivity, the control draws where there are
several): other text of the same kind and the same checkpoint. Each row is scored by the classifier
that held it out; that a classifier trained on other rows would differ is not in it, so with few
rows it is somewhat narrow for "the accuracy of a probe trained on other text".

It misleads where a label is easier than it looks (position from a causal stream), and says what is
linearly there, not what the model uses.

Sources: Alain & Bengio 2016, arXiv:1610.01644; selectivity, Hewitt & Liang 2019, arXiv:1909.03368.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from probes.control_task import control_labels
from probes.folds import FOLDS, fold_of_tokens
from probes.registry import probe
from probes.resample import BOOT, Floats, bootstrap_weights, percentile_interval
from probes.token_labels import NAMES, TokenLabel, token_labels
from workbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from probes.subject import Subject

MEANING = {
    "accuracy": "share of held-out tokens whose label a linear classifier reads right",
    "gain": "accuracy beyond that of answering the majority class",
    "control_accuracy": "accuracy on labels drawn at random for each token type",
    "selectivity": "accuracy beyond that on the control labels",
}
METHODS = ("logistic", "ridge")


@probe(
    "linear",
    question="What can a linear classifier read off the residual stream of each layer?",
    reads="checkpoint",
    needs=("resid_post", "expert_ids"),
)
def linear_probes(
    subject: Subject,
    *,
    labels: Sequence[str] = NAMES,
    given: Mapping[str, Sequence[Any]] | None = None,
    expert_layer: int = -1,
    method: str = "logistic",
    c: float = 1.0,
    folds: int = FOLDS,
    controls: int = 1,
    tolerance: float = 1e-4,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """Accuracy of linear classifiers on every layer, for several labels at once.

    Args:
        subject: a checkpoint after its pass.
        labels: names from token_labels.py; `given` adds your own, name: one value a token.
        expert_layer: the layer whose chosen expert is the label "expert"; −1 is the last.
        method: "logistic" (scikit-learn's LogisticRegression(C=c)) or "ridge" (RidgeClassifier(
            alpha=1/c)), in closed form and many times faster, less accurate with many classes.
        c: inverse strength of the penalty.
        folds: parts into which whole rows are dealt.
        controls: control labels drawn for each label; 0 leaves control and selectivity NaN.
        tolerance: largest entry of the gradient of the mean objective, as scikit-learn's `tol`.
        n_boot, seed: bootstrap draws over rows; the seed is also that of the control labels.

    Returns:
        Dataset (layer, label): accuracy, gain, selectivity with _low and _high (95 %),
        control_accuracy; (label): chance, classes, tokens. NaN for a label with fewer than two
        classes; attrs: method, c, folds, controls, rows, tolerance.

    Raises:
        UsageError: an unknown label or method, fewer than two rows.

    Example:
        >>> from model.config import NANO
        >>> from model.lm import MoELM
        >>> from probes.exam import Exam
        >>> from probes.subject import Subject
        >>> exam = Exam(tokens=np.arange(64).reshape(8, 8), domains=tuple("aabbaabb"))
        >>> read = linear_probes(Subject(MoELM(NANO), exam), labels=["domain"], method="ridge")
        >>> read["accuracy"].dims, read["chance"].item()
        (('layer', 'label'), 0.5)
    """
    _check(method, controls)
    known = subject.labels
    experts = None
    if "expert" in labels:
        chosen = subject["expert_ids"]
        if not -len(chosen) <= expert_layer < len(chosen):
            raise UsageError(
                f"expert_layer={expert_layer}: found {len(chosen)} layers with a router, expected "
                f"{-len(chosen)} to {len(chosen) - 1}."
            )
        experts = chosen[expert_layer, :, 0].numpy()
    asked = token_labels(known, labels, experts=experts, given=given)
    fold = fold_of_tokens(known["row"].values, known["domain"].values, folds)
    device = next(subject.model.parameters()).device
    solver = _Solver(method=method, c=c, tolerance=tolerance)
    right = held_out(
        (layer.to(device) for layer in subject["resid_post"]),
        asked, known["token_id"].values, fold, solver, controls, seed,
    )  # fmt: skip
    result = _measured(right, asked, fold, known["row"].values, n_boot, seed)
    result = result.assign_coords(layer=np.arange(right.shape[0]))
    rows = len(np.unique(known["row"].values))
    result.attrs |= {
        "method": method, "c": c, "folds": int(fold.max()) + 1, "controls": controls, "rows": rows,
        "tolerance": tolerance, "expert_layer": expert_layer, "seed": seed,
    }  # fmt: skip
    return result


@dataclass(frozen=True)
class _Solver:
    method: str
    c: float
    tolerance: float

    def predict(
        self, features_ND: Tensor, labels: list[NDArray[np.int64]], fold: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Held-out class (token,) of each label."""
        import torch

        if self.method == "ridge":
            from probes.ridge import ridge_scores

            scores = ridge_scores(features_ND, labels, fold, alpha=1 / self.c)
        else:
            from probes.logistic import logistic_classifiers

            at = torch.from_numpy(fold).to(features_ND.device)
            made = logistic_classifiers(features_ND, labels, fold, self.c, self.tolerance)
            scores = [classifier.scores(features_ND, at) for classifier in made]
        return [s.argmax(1).cpu().numpy() for s in scores]


def held_out(
    layers: Any,
    asked: Sequence[TokenLabel],
    token_id: NDArray[np.int64],
    fold: NDArray[np.int64],
    solver: _Solver,
    controls: int,
    seed: int,
) -> Floats:
    """(layer, label, 1 + control, token): 1 right, 0 wrong, NaN without a label. The first of axis
    2 is the label itself.
    """
    import torch

    columns, places = [], []
    for j, label in enumerate(asked):
        if len(label.classes) < 2:
            continue
        columns.append(label.of_token)
        places.append((j, 0))
        for draw in range(controls):
            drawn = control_labels(token_id, label.of_token, seed=(seed + 1) * 1000 + draw)
            # A draw may leave a class out; the classes are then numbered without gaps.
            there = drawn >= 0
            drawn[there] = np.unique(drawn[there], return_inverse=True)[1]
            if drawn.max() > 0:
                columns.append(drawn)
                places.append((j, 1 + draw))
    found = []
    for features in layers:
        scaled = features.float()
        spread = scaled.std(0, correction=0)
        scaled = torch.where(spread > 0, (scaled - scaled.mean(0)) / spread.clamp_min(1e-30), 0.0)
        right = np.full((len(asked), 1 + controls, len(fold)), np.nan)
        if not torch.isfinite(scaled).all():
            raise UsageError(
                "the residual stream has values that are not finite; a linear probe cannot be "
                "fitted. Look at the loss of this checkpoint."
            )
        if columns:
            answers = solver.predict(scaled, columns, fold)
            for (j, draw), column, answer in zip(places, columns, answers, strict=True):
                right[j, draw] = np.where(column >= 0, answer == column, np.nan)
        found.append(right)
    return np.stack(found)


def _majority(label: TokenLabel) -> Floats:
    """(token,): is the most frequent class right? NaN without a label."""
    there = label.of_token >= 0
    if not there.any():
        return np.full(len(there), np.nan)
    most = np.bincount(label.of_token[there]).argmax()
    return np.where(there, label.of_token == most, np.nan)


def _measured(
    right: Floats,
    asked: Sequence[TokenLabel],
    fold: NDArray[np.int64],
    row: NDArray[np.int64],
    n_boot: int,
    seed: int,
) -> xr.Dataset:
    """Means over tokens, with bootstrap over rows; the same draws for every layer and label."""
    _, of_token = np.unique(row, return_inverse=True)
    rows = int(of_token.max()) + 1
    weights = np.vstack([np.ones(rows), bootstrap_weights(rows, n_boot, seed)])
    chance_right = np.stack([_majority(label) for label in asked])
    in_row = (of_token[:, None] == np.arange(rows)).astype(np.float64)

    def mean(values: Floats) -> Floats:
        """(draw, ...) of (..., token)."""
        there = ~np.isnan(values)
        mass = np.tensordot(weights, there @ in_row, (1, -1))
        sums = np.tensordot(weights, np.where(there, values, 0.0) @ in_row, (1, -1))
        return np.divide(sums, mass, out=np.full(mass.shape, np.nan), where=mass > 0)

    each = mean(right)  # (draw, layer, label, 1 + control)
    chance = mean(chance_right)
    accuracy, control = each[..., 0], _over_controls(each[..., 1:], seed)
    wanted = {
        "accuracy": accuracy,
        "gain": accuracy - chance[:, None],
        "selectivity": accuracy - control,
    }
    interval = f"95 %, bootstrap over {rows} rows of text: other text of this kind, same checkpoint"
    variables: dict[str, Any] = {}
    for name, draws in wanted.items():
        low, high = percentile_interval(draws[1:], rows)
        ends = {"": draws[0], "_low": np.fmin(low, draws[0]), "_high": np.fmax(high, draws[0])}
        for end, values in ends.items():
            chance_level = "variable `chance`, per label" if name == "accuracy" else 0.0
            attrs = {
                "units": "1", "long_name": MEANING[name], "interval": interval,
                "chance_level": chance_level,
            }  # fmt: skip
            variables[name + end] = (("layer", "label"), values, attrs)
    described = {
        "control_accuracy": (("layer", "label"), control[0], "1", MEANING["control_accuracy"]),
        "chance": ("label", chance[0], "1", "share of the most frequent class"),
        "classes": ("label", [len(a.classes) for a in asked], "1", "classes of the label"),
        "tokens": (
            "label", [(a.of_token >= 0).sum() for a in asked], "tokens", "tokens with the label"
        ),
    }  # fmt: skip
    for name, (dims, values, units, meaning) in described.items():
        about = {"units": units, "long_name": meaning, "interval": "point estimate; see `gain` and "
                 "`selectivity`" if units == "1" and name != "classes" else "exact"}  # fmt: skip
        variables[name] = (dims, np.asarray(values), about)
    coords = {"label": np.array([a.name for a in asked])}
    return xr.Dataset(
        variables, coords, {"n": len(fold), "n_meaning": "fixed tokens", "interval": interval}
    )


def _over_controls(each: Floats, seed: int) -> Floats:
    """Mean over control draws (last axis); in the bootstrap draws, over a resample of them."""
    draws, controls = each.shape[0], each.shape[-1]
    if controls == 0:
        return np.full(each.shape[:-1], np.nan)
    weights = bootstrap_weights(controls, draws, seed + 1)
    weights[0] = 1
    there = ~np.isnan(each)
    shaped = weights.reshape(draws, *[1] * (each.ndim - 2), controls)
    mass = (there * shaped).sum(-1)
    sums = (np.where(there, each, 0.0) * shaped).sum(-1)
    return np.divide(sums, mass, out=np.full(mass.shape, np.nan), where=mass > 0)


def _check(method: str, controls: int) -> None:
    if method not in METHODS:
        raise UsageError(f"method={method!r}: expected one of {', '.join(METHODS)}.")
    if controls < 0:
        raise UsageError(f"controls={controls}: expected 0 or more.")
