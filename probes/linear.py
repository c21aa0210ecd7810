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
intervals resample whole rows of text: other text of the same kind and the same checkpoint. That of
selectivity adds the spread over control draws, so that a label which is no more than one such draw
has 0 within it. Each row is scored by the classifier
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
from scipy import stats

from probes.inputs.control_task import control_labels
from probes.inputs.token_labels import NAMES, TokenLabel, token_labels
from probes.registry import probe
from probes.statistics.folds import FOLDS, fold_of_tokens
from probes.statistics.resample import (
    BOOT,
    CONFIDENCE,
    Floats,
    bootstrap_weights,
    percentile_interval,
)
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
    version=2,
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
    controls: int = 3,
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
        controls: control labels drawn for each label; 1 leaves selectivity without an interval, 0
            leaves control and selectivity NaN. Each costs as much as the label itself.
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
            from probes.statistics.ridge import ridge_scores

            scores = ridge_scores(features_ND, labels, fold, alpha=1 / self.c)
        else:
            from probes.statistics.logistic import logistic_classifiers

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
        if not torch.isfinite(features).all():
            raise UsageError(
                "the residual stream has values that are not finite; a linear probe cannot be "
                "fitted. Look at the loss of this checkpoint."
            )
        scaled = features.float()
        spread = scaled.std(0, correction=0)
        scaled = torch.where(spread > 0, (scaled - scaled.mean(0)) / spread.clamp_min(1e-30), 0.0)
        right = np.full((len(asked), 1 + controls, len(fold)), np.nan)
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
    accuracy = each[..., 0]
    selectivity = _selectivity(accuracy, each[..., 1:], rows)
    control = accuracy[0] - selectivity[0]
    interval = f"95 %, bootstrap over {rows} rows of text: other text of this kind, same checkpoint"
    of_selectivity = (
        f"95 %, Student's t: spread over {rows} rows of text and over the control draws; holds 0 "
        f"for a label that is one more draw; NaN with fewer than two control draws"
    )
    wanted = {"accuracy": accuracy, "gain": accuracy - chance[:, None]}
    variables: dict[str, Any] = {}
    for name in ("accuracy", "gain", "selectivity"):
        if name == "selectivity":
            value, low, high = selectivity
        else:
            value = wanted[name][0]
            low, high = percentile_interval(wanted[name][1:], rows)
            low, high = np.minimum(low, value), np.maximum(high, value)
        for end, values in zip(("", "_low", "_high"), (value, low, high), strict=True):
            chance_level = "variable `chance`, per label" if name == "accuracy" else 0.0
            attrs = {
                "units": "1", "long_name": MEANING[name],
                "interval": of_selectivity if name == "selectivity" else interval,
                "chance_level": chance_level,
            }  # fmt: skip
            variables[name + end] = (("layer", "label"), values, attrs)
    described = {
        "control_accuracy": (("layer", "label"), control, "1", MEANING["control_accuracy"]),
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


def _selectivity(accuracy: Floats, controls: Floats, rows: int) -> tuple[Floats, Floats, Floats]:
    """accuracy − mean control (draw 0), and bounds in which a label that is itself nothing but a
    draw for each token type would have 0: the spread over rows and that over control draws.

    Args:
        accuracy: (draw, layer, label), draw 0 the tokens as they are.
        controls: (draw, layer, label, control).
    """
    there = ~np.isnan(controls)
    count = there.sum(-1)
    sums = np.where(there, controls, 0.0).sum(-1)
    mean = np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)
    draws = accuracy - mean
    value, n = draws[0], count[0]
    over_rows = draws[1:].var(axis=0) * rows / (rows - 1)
    apart = np.where(there[0], (controls[0] - mean[0][..., None]) ** 2, 0.0).sum(-1)
    spread = np.divide(apart, n - 1, out=np.full(apart.shape, np.nan), where=n > 1)
    over_draws = spread * (1 + 1 / np.maximum(n, 1))
    both = over_rows + over_draws
    # Welch and Satterthwaite: degrees of freedom of a sum of two estimated variances.
    parts = over_rows**2 / (rows - 1) + over_draws**2 / np.maximum(n - 1, 1)
    freedom = np.divide(both**2, parts, out=np.full(both.shape, 1.0), where=parts > 0)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(both)
    return value, value - reach, value + reach


def _check(method: str, controls: int) -> None:
    if method not in METHODS:
        raise UsageError(f"method={method!r}: expected one of {', '.join(METHODS)}.")
    if controls < 0:
        raise UsageError(f"controls={controls}: expected 0 or more.")
