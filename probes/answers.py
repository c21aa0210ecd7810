"""Answers: how well one checkpoint answers the tasks, by every usual score at once.

Needs   the log-probability of every choice of every item of the exam (Subject.choice_logprobs).
Yields  per task: accuracy, normalized, precision, recall, f1 (fractions), brier, calibration_error,
        logprob and choice_logprob (nats), each with a 95 % interval; n items.

accuracy          share of items whose right choice is the most probable; a tie is wrong. Wilson.
normalized        (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect.
precision, recall, f1   of each answer, unweighted mean over the answers (macro): an answer is a
                  text ("Dover"), right or chosen in some item; where it is never chosen, or never
                  right, it counts 0, as in scikit-learn. Unlike accuracy they fall when a model
                  gives the frequent answer always. The place of a choice in its list means nothing.
brier             sum over an item's choices of (probability - 1[right])^2, mean over items; 0 best,
                  2 worst, 1 - 1/choices where all are held alike. Probabilities are over the item's
                  choices.
calibration_error |accuracy - mean probability of the choice made|, over ten classes of that
                  probability, weighted by items; 0 best. It is biased upward on few items, by about
                  sqrt(classes / items) / 4: compare it between checkpoints, not with 0.
logprob           log-probability of the right choice over the whole vocabulary.
choice_logprob    of the right one among the item's choices; guessing gives -ln(choices).

Chance of precision, recall and f1 is that of choosing at random, simulated on the same items. The
intervals: other items of the same kind, same checkpoint (bootstrap; Student's t for means over
fewer than ten items); nothing is said about another training seed. Of precision, recall, F1 and the
calibration error there is none from fewer than ten items, and none where every draw of the items
scores alike (all right, say): read accuracy's then.

It misleads where the choices of an item differ in length or frequency (the scores are of whole
answers as they stand, not per token), where a task has few different answers, and where calibration
is held against 0 on few items.

Sources: Brier 1950; calibration, Naeini et al. 2015; discrete next to continuous, Schaeffer et al.
2023, arXiv:2304.15004; intervals, Miller 2024, arXiv:2411.00640.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.registry import probe
from probes.statistics.resample import (
    BOOT,
    NOT_OF_MEAN,
    OF_MEAN,
    Floats,
    bootstrap_weights,
    percentile_interval,
    wilson,
)

if TYPE_CHECKING:
    from probes.subject import Subject

CLASSES = 10
"""Classes of probability in the calibration error."""

GUESSES = 200
"""Random answers to every item behind the chance level of precision, recall and F1."""

MEANING: dict[str, tuple[str, str]] = {
    "accuracy": ("1", "share of items answered right"),
    "normalized": ("1", "(accuracy - chance) / (1 - chance)"),
    "precision": ("1", "precision, mean over answers"),
    "recall": ("1", "recall, mean over answers"),
    "f1": ("1", "F1, mean over answers"),
    "brier": ("1", "Brier score over an item's choices, 0 best"),
    "calibration_error": ("1", "expected calibration error of the choice made, 0 best"),
    "logprob": ("nats", "log-probability of the right answer, mean over items"),
    "choice_logprob": ("nats", "log-probability of the right answer among the item's choices"),
}
WILSON = "95 %, Wilson: other items of the same kind, same checkpoint"
BOOTSTRAP = f"95 %, bootstrap over items ({OF_MEAN}): other items, same checkpoint"
NO_MEAN = ("precision", "recall", "f1", "calibration_error")
"""Scores that are no mean over items."""
OF_NO_MEAN = (
    f"95 %, bootstrap over items ({NOT_OF_MEAN}; none where no draw differs: these items do not "
    "say how it varies): other items, same checkpoint"
)


@probe(
    "answers",
    question="How well are the tasks answered, by every usual score?",
    reads="checkpoint",
    version=2,
)
def answers(subject: Subject, n_boot: int = BOOT, seed: int = 0) -> xr.Dataset:
    """Accuracy, macro precision, recall and F1, Brier score, calibration and log-probability.

    Args:
        subject: one checkpoint, with an exam that has tasks.
        n_boot, seed: draws over items, and their seed.

    Returns:
        Dataset (task): the scores of the file's head, `<score>_low`, `<score>_high`, n; and
        precision_chance, recall_chance, f1_chance, brier_chance, choice_logprob_chance; coordinate
        chance (task), NaN where the exam does not say.

    Raises:
        UsageError: the exam has no tasks.
    """
    of_choice = subject.choice_logprobs()
    return answers_of(subject.exam.items, of_choice, subject.exam.chance, n_boot=n_boot, seed=seed)


def answers_of(
    items: Any,
    of_choice: Floats,
    chance: Mapping[str, float],
    *,
    n_boot: int = BOOT,
    seed: int = 0,
) -> xr.Dataset:
    """The scores that follow from every choice's log-probability.

    Args:
        items: model.evaluation.ItemBatch, or anything with tasks, items_per_task, item_of,
            is_right and continuation.
        of_choice: (choice,), nats.
        chance: accuracy of guessing, by task.

    Returns:
        As `answers`.

    Example:
        >>> from types import SimpleNamespace
        >>> items = SimpleNamespace(
        ...     tasks=("logic/boolean",), items_per_task=2, item_of=np.array([0, 0, 1, 1]),
        ...     is_right=np.array([True, False, False, True]), continuation=[[5], [6], [5], [6]],
        ... )
        >>> scores = answers_of(items, np.log([0.4, 0.1, 0.2, 0.3]), {"logic/boolean": 0.5})
        >>> scores["f1"].item(), round(scores["brier"].item(), 3)
        (1.0, 0.2)
    """
    columns: dict[str, list[float]] = {}
    for number, task in enumerate(items.tasks):
        sheet = _Sheet.of(items, np.asarray(of_choice, dtype=np.float64), number)
        row = sheet.scores(float(chance.get(task, np.nan)), n_boot, seed)
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    levels = [float(chance.get(task, np.nan)) for task in items.tasks]
    result = xr.Dataset(
        {name: ("task", values) for name, values in columns.items()},
        coords={"task": list(items.tasks), "chance": ("task", levels)},
    )
    return _described(result, n_boot, seed)


@dataclass(frozen=True)
class _Sheet:
    """One task's items, answered."""

    probability: list[Floats]
    """Of each item's choices, among themselves."""
    right: np.ndarray
    """(item,): answer that is right, as a number; the same text, the same number."""
    chosen: np.ndarray
    """(item,): answer that was chosen."""
    offered: list[np.ndarray]
    """Of each item: the answers to choose from."""
    logprob: Floats
    """(item,): of the right one, whole vocabulary."""
    right_at: np.ndarray
    """(item,): position of the right one among its choices."""

    @classmethod
    def of(cls, items: Any, of_choice: Floats, number: int) -> _Sheet:
        first = number * items.items_per_task
        texts: dict[tuple[int, ...], int] = {}
        answer = np.array([texts.setdefault(tuple(c), len(texts)) for c in items.continuation])
        probability, offered, right, chosen, logprob, right_at = [], [], [], [], [], []
        for item in range(first, first + items.items_per_task):
            mine = np.flatnonzero(items.item_of == item)
            values, is_right = of_choice[mine], items.is_right[mine]
            # A tie is not a right answer: among equals the wrong one is taken.
            taken = int(np.lexsort((~is_right, values))[-1])
            weight = np.exp(values - values.max())
            probability.append(weight / weight.sum())
            offered.append(answer[mine])
            right_at.append(int(np.flatnonzero(is_right)[0]))
            right.append(answer[mine][is_right][0])
            chosen.append(answer[mine][taken])
            logprob.append(values[is_right][0])
        return cls(
            probability, np.array(right), np.array(chosen), offered, np.array(logprob),
            np.array(right_at),
        )  # fmt: skip

    def scores(self, chance: float, n_boot: int, seed: int) -> dict[str, float]:
        n = len(self.right)
        weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, n_boot, seed)])
        hit = (self.right == self.chosen).astype(np.float64)
        sure = np.array([p.max() for p in self.probability])
        truth = [np.eye(len(p))[at] for p, at in zip(self.probability, self.right_at, strict=True)]
        gap = [((p - t) ** 2).sum() for p, t in zip(self.probability, truth, strict=True)]
        of_right = [p[at] for p, at in zip(self.probability, self.right_at, strict=True)]
        choice = np.log(np.maximum(of_right, np.finfo(float).tiny))
        draws = {
            "accuracy": weights @ hit / n,
            **_macro(weights, self.right, self.chosen),
            "brier": weights @ np.array(gap) / n,
            "calibration_error": _calibration_error(weights, hit, sure),
            "logprob": weights @ self.logprob / n,
            "choice_logprob": weights @ choice / n,
        }
        found: dict[str, float] = {}
        for name, values in draws.items():
            low, high = percentile_interval(values[1:], n, of_mean=name not in NO_MEAN)
            if name in NO_MEAN and np.ptp(values) < 1e-12:
                low = high = np.array(np.nan)
            if name == "accuracy":
                low, high = (x.item() for x in wilson(hit.sum(keepdims=True), np.array([float(n)])))
            found |= {name: values[0], f"{name}_low": float(low), f"{name}_high": float(high)}
        for end in ("", "_low", "_high"):
            found["normalized" + end] = (found["accuracy" + end] - chance) / (1 - chance)
        return found | self._guessing(seed) | {"n": n}

    def _guessing(self, seed: int) -> dict[str, float]:
        """What choosing at random would score on these items."""
        rng = np.random.default_rng([seed, 1])
        guesses = np.stack([rng.choice(choices, GUESSES) for choices in self.offered])
        even = np.ones((1, len(self.right)))
        rounds = [_macro(even, self.right, guess) for guess in guesses.T]
        counts = np.array([len(choices) for choices in self.offered])
        return {
            **{f"{k}_chance": float(np.mean([r[k] for r in rounds])) for k in rounds[0]},
            "brier_chance": float(np.mean(1 - 1 / counts)),
            "choice_logprob_chance": float(np.mean(-np.log(counts))),
        }


def _macro(weights: Floats, right: np.ndarray, chosen: np.ndarray) -> dict[str, Floats]:
    """Macro precision, recall and F1 (draw,) under each row of weights (draw, item)."""
    answers = np.union1d(right, chosen)
    is_right, is_chosen = (x[:, None] == answers for x in (right, chosen))
    hits = weights @ (is_right & is_chosen)
    asked, given = weights @ is_right, weights @ is_chosen
    # An answer that a draw of items knows nothing of is not among its answers.
    present = (asked + given > 0).sum(axis=1)
    parts = {"precision": (hits, given), "recall": (hits, asked), "f1": (2 * hits, asked + given)}
    return {
        name: np.divide(top, below, out=np.zeros(top.shape), where=below > 0).sum(axis=1) / present
        for name, (top, below) in parts.items()
    }


def _calibration_error(weights: Floats, hit: Floats, sure: Floats) -> Floats:
    classes = np.minimum((sure * CLASSES).astype(int), CLASSES - 1)
    inside = np.eye(CLASSES)[classes]
    return np.asarray(
        np.abs(weights @ (inside * (hit - sure)[:, None])).sum(axis=1) / weights.sum(axis=1)
    )


def _described(result: xr.Dataset, n_boot: int, seed: int) -> xr.Dataset:
    levels: dict[str, Any] = {
        "accuracy": "coordinate `chance`", "normalized": 0.0, "precision": "precision_chance",
        "recall": "recall_chance", "f1": "f1_chance", "brier": "brier_chance",
        "choice_logprob": "choice_logprob_chance",
    }  # fmt: skip
    how = dict.fromkeys(NO_MEAN, OF_NO_MEAN) | {"accuracy": WILSON, "normalized": WILSON}
    for name, (units, meaning) in MEANING.items():
        for end, prefix in (("", ""), ("_low", "lower bound: "), ("_high", "upper bound: ")):
            result[name + end].attrs = {
                "units": units,
                "long_name": prefix + meaning,
                "interval": how.get(name, BOOTSTRAP),
            } | ({"chance_level": levels[name]} if name in levels else {})
        if f"{name}_chance" in result:
            result[f"{name}_chance"].attrs = {
                "units": units, "long_name": f"guessing: {meaning}", "interval": "exact, or a mean "
                f"over {GUESSES} random answers",
            }  # fmt: skip
    result["n"].attrs = {
        "units": "items",
        "long_name": "items put to the model",
        "interval": "exact",
    }
    return result.assign_attrs(n="variable `n` (task)", n_meaning="items", n_boot=n_boot, seed=seed)
