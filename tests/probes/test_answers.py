"""Answers: the scores agree with scikit-learn's, and guessing scores chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from model.config import NANO
from model.evaluation import ItemBatch
from model.lm import MoELM
from probes.answers import answers, answers_of
from probes.exam import Exam
from probes.registry import find
from probes.subject import Subject


def asked(n: int, choices: int, words: int, seed: int, tasks: int = 1) -> SimpleNamespace:
    """Items with distinct choices out of `words` texts, the right one anywhere."""
    rng = np.random.default_rng(seed)
    texts = [rng.permutation(words)[:choices] for _ in range(n * tasks)]
    right = np.zeros((n * tasks, choices), dtype=bool)
    right[np.arange(n * tasks), rng.integers(choices, size=n * tasks)] = True
    return SimpleNamespace(
        tasks=tuple(f"t/{i}" for i in range(tasks)), items_per_task=n,
        item_of=np.repeat(np.arange(n * tasks), choices), is_right=right.ravel(),
        continuation=[[int(word), 7] for text in texts for word in text],
    )  # fmt: skip


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 1000))
def test_the_scores_are_those_of_scikit_learn(n, choices, seed):
    items = asked(n, choices, 6, seed)
    values = np.random.default_rng(seed).normal(-3, 2, n * choices)
    found = answers_of(items, values, {"t/0": 1 / choices}, n_boot=5).isel(task=0)
    words = np.array([c[0] for c in items.continuation]).reshape(n, choices)
    logits, is_right = values.reshape(n, choices), items.is_right.reshape(n, choices)
    truth, said = words[is_right], words[np.arange(n), logits.argmax(1)]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth, said, average="macro", zero_division=0
    )
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(f1)
    assert found["logprob"] == pytest.approx(logits[is_right].mean())
    assert found["choice_logprob"] == pytest.approx(np.log(probability[is_right]).mean())
    # scikit-learn's Brier score, of each item's choices in their order.
    brier = metrics.brier_score_loss(is_right.argmax(1), probability, labels=np.arange(choices))
    scale = 2.0 if choices == 2 else 1.0
    assert found["brier"] == pytest.approx(scale * brier)
    for name in ("accuracy", "precision", "recall", "f1", "calibration_error"):
        assert -1e-12 <= found[name] <= 1 + 1e-12


def test_what_says_nothing_is_wrong_and_its_probabilities_are_chance():
    items = asked(50, 4, 6, seed=1)
    found = answers_of(items, np.full(200, -2.0), {"t/0": 0.25}).isel(task=0)
    assert found["accuracy"] == 0
    assert found["brier"] == pytest.approx(found["brier_chance"].item())
    assert found["choice_logprob"] == pytest.approx(found["choice_logprob_chance"].item())
    assert found["normalized"] == pytest.approx(-1 / 3)


def test_guessing_scores_chance_in_the_mean():
    items = asked(80, 4, 6, seed=2)
    rng = np.random.default_rng(0)
    rounds = [answers_of(items, rng.normal(size=320), {"t/0": 0.25}, n_boot=2) for _ in range(60)]
    for name in ("precision", "recall", "f1"):
        mean = np.mean([r[name].item() for r in rounds])
        assert mean == pytest.approx(rounds[0][f"{name}_chance"].item(), abs=0.02)


def test_giving_the_frequent_answer_always_lowers_f1_not_accuracy():
    n = 100
    items = SimpleNamespace(
        tasks=("t",), items_per_task=n, item_of=np.repeat(np.arange(n), 2),
        is_right=np.array([[i < 90, i >= 90] for i in range(n)]).ravel(),
        continuation=[[1], [2]] * n,
    )  # fmt: skip
    found = answers_of(items, np.tile([-0.1, -3.0], n), {"t": 0.5}).isel(task=0)
    assert found["accuracy"] == 0.9
    assert found["recall"] == 0.5
    assert found["f1"] < 0.5


def test_a_model_that_is_sure_and_right_is_perfect_and_calibrated():
    items = asked(30, 3, 5, seed=3, tasks=2)
    found = answers_of(items, np.where(items.is_right, 0.0, -50.0), {"t/0": 1 / 3})
    assert found["f1"].values.tolist() == [1, 1]
    assert found["calibration_error"].values == pytest.approx(0)
    assert found["brier"].values == pytest.approx(0)
    # The exam did not say the chance of the second.
    assert np.isnan(found["normalized"].values).tolist() == [False, True]


def test_every_score_has_unit_meaning_and_interval_around_it():
    items = asked(60, 4, 6, seed=4)
    found = answers_of(items, np.random.default_rng(4).normal(size=240), {"t/0": 0.25})
    for name, variable in found.data_vars.items():
        assert {"units", "long_name", "interval"} <= set(variable.attrs), name
    for name in ("accuracy", "normalized", "brier", "logprob", "choice_logprob"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()


def test_the_probe_asks_one_checkpoint():
    rng = np.random.default_rng(0)
    n, choices = 12, 3
    batch = ItemBatch(
        tasks=("t/0",), sequences=torch.from_numpy(rng.integers(0, 50, (n, 6))),
        sequence_of=np.repeat(np.arange(n), choices), start=np.full(n * choices, 5),
        continuation=[[int(c)] for _ in range(n) for c in rng.permutation(8)[:choices]],
        item_of=np.repeat(np.arange(n), choices),
        is_right=np.tile([True, False, False], n), items_per_task=n,
    )  # fmt: skip
    exam = Exam(
        tokens=np.arange(32).reshape(4, 8), domains=("a",) * 4, items=batch, chance={"t/0": 1 / 3}
    )
    subject = Subject(MoELM(NANO, seed=0), exam)
    found = answers(subject, n_boot=20)
    assert found["accuracy"].item() == subject.scores().correct.mean()
    assert found["logprob"].item() == pytest.approx(subject.scores().logprob.mean(), abs=1e-5)
    assert find("answers").reads == "checkpoint"
