"""Linear probes: agreement with scikit-learn, planted truths, folds, labels, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from probes.inputs.control_task import control_labels
from probes.inputs.token_labels import token_labels
from probes.linear import linear_probes
from probes.statistics.folds import fold_of_tokens
from probes.statistics.logistic import logistic_classifiers
from probes.statistics.ridge import ridge_scores
from workbench.errors import UsageError
from workbench.planted.stream import PlantedSubject, lexical_stream, readable_stream


@pytest.fixture(scope="module")
def world():
    """Correlated features, three labels: many classes, two, and one with gaps."""
    rng = np.random.default_rng(0)
    n, width = 400, 12
    x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / 4 + 3
    many = ((x - 3) @ rng.normal(size=(width, 5)) + rng.gumbel(size=(n, 5))).argmax(1)
    many = np.unique(many, return_inverse=True)[1]
    two = (x[:, 0] + rng.normal(size=n) > 3).astype(int)
    gaps = np.where(rng.random(n) < 0.2, -1, many)
    return torch.from_numpy(x), [many, two, gaps], np.arange(n) // 4 % 5


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_logistic_probes_are_scikit_learns(world, c):
    x, labels, fold = world
    made = logistic_classifiers(x, labels, fold, c=c, tolerance=1e-9)
    for label, classifier in zip(labels, made, strict=True):
        for f in (0, 3):
            train = (fold != f) & (label >= 0)
            theirs = LogisticRegression(C=c, tol=1e-9, max_iter=200, solver="newton-cholesky")
            theirs.fit(x.numpy()[train], label[train])
            logits = x @ classifier.coef[f].T + classifier.intercept[f]
            seen = theirs.classes_  # one class is so rare that a fold may have all of it
            ours = logits.softmax(1).numpy()[:, seen]
            np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=2e-5)
            coef = classifier.coef[f].numpy()[seen]
            if len(coef) == 2:
                coef = coef[1:] - coef[:1]
            np.testing.assert_allclose(coef, theirs.coef_, atol=2e-4 * max(1.0, c**0.5))


def test_float32_probes_are_nearer_the_optimum_than_scikit_learns_default(world):
    x, labels, fold = world
    exact = logistic_classifiers(x, labels, fold, tolerance=1e-9)
    rough = logistic_classifiers(x.float(), labels, fold)
    for one, other in zip(exact, rough, strict=True):
        p, q = (
            (x @ m.coef[0].double().T + m.intercept[0].double()).softmax(1) for m in (one, other)
        )
        assert (p - q).abs().max() < 0.01
        assert other.gradient <= 1e-4


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_ridge_probes_are_scikit_learns(world, alpha):
    x, labels, fold = world
    for label, scores in zip(labels, ridge_scores(x, labels, fold, alpha), strict=True):
        for f in range(5):
            train, held = (fold != f) & (label >= 0), fold == f
            theirs = RidgeClassifier(alpha=alpha).fit(x.numpy()[train], label[train])
            expected = theirs.decision_function(x.numpy()[held])
            ours = scores[torch.from_numpy(held)].numpy()
            ours = ours[:, 1] if expected.ndim == 1 else ours[:, theirs.classes_]
            np.testing.assert_allclose(ours, expected, atol=1e-8)


def test_wider_features_than_tokens_are_solved_the_same():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 100)), rng.integers(0, 3, 60)
    fold = np.arange(60) // 4 % 3
    made = logistic_classifiers(torch.from_numpy(x), [y], fold, c=0.1, tolerance=1e-9)[0]
    theirs = LogisticRegression(C=0.1, tol=1e-9, max_iter=9999).fit(x[fold != 0], y[fold != 0])
    ours = (torch.from_numpy(x) @ made.coef[0].T + made.intercept[0]).softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x), atol=2e-5)


def test_a_class_that_training_never_shows_is_never_answered():
    x = 9 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    fold = np.arange(30) // 10
    label = np.where(fold == 2, 2, np.arange(30) % 2)
    for method in ("logistic", "ridge"):
        if method == "logistic":
            made = logistic_classifiers(x, [label], fold)[0]
            scores = made.scores(x, torch.from_numpy(fold))
        else:
            scores = ridge_scores(x, [label], fold, 1.0)[0]
        assert (scores[fold == 2, 2] == -torch.inf).all(), method


def test_a_planted_label_is_read_as_well_as_it_can_be_and_noise_not_at_all():
    planted = readable_stream(separation=[0.0, 2.0, 4.0], rows=40, seed=1)
    for method in ("logistic", "ridge"):
        read = linear_probes(
            planted, labels=[], given=planted.given, method=method, controls=4, n_boot=200
        ).sel(label="planted")
        np.testing.assert_allclose(read["accuracy"], planted.truth["accuracy"], atol=0.04)
        assert read["gain_low"][0] <= 0 < read["gain_low"][1]
        assert read["selectivity"][2] > 0.3
        assert read["selectivity_low"][2] > 0


def test_a_label_of_token_types_is_read_but_not_selective():
    planted = lexical_stream(seed=3)
    read = linear_probes(planted, labels=[], given=planted.given, controls=4, n_boot=200)
    read = read.sel(label="lexical").isel(layer=0)
    assert read["gain_low"] > 0.2
    assert read["selectivity_low"] <= 0 <= read["selectivity_high"]


def test_tokens_of_one_row_are_never_on_both_sides():
    row = np.repeat(np.arange(28), 64)
    domain = np.array([f"d{r // 2}" for r in row])
    fold = fold_of_tokens(row, domain)
    for r in range(28):
        assert len(set(fold[row == r])) == 1
    for f in range(5):  # both rows of a domain are never held out together
        assert set(domain[fold != f]) == set(domain)


@given(st.integers(2, 40), st.integers(2, 8))
def test_folds_are_even(rows, folds):
    fold = fold_of_tokens(np.arange(rows), np.zeros(rows, dtype=str), folds)
    counts = np.bincount(fold)
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(rows, folds)


@given(st.integers(0, 1000))
def test_control_labels_are_one_for_each_type_in_the_labels_proportions(seed):
    rng = np.random.default_rng(seed)
    ids, label = rng.integers(0, 3000, 6000), rng.choice(3, 6000, p=[0.7, 0.2, 0.1])
    drawn = control_labels(ids, label, seed)
    for token in ids[:20]:
        assert len(set(drawn[ids == token])) == 1
    np.testing.assert_allclose(np.bincount(drawn) / 6000, [0.7, 0.2, 0.1], atol=0.06)


def test_labels_name_frequent_tokens_and_leave_out_what_has_none():
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    experts = np.where(np.arange(384) % 5 == 0, -1, 3)
    made = token_labels(planted.labels, experts=experts)
    named = {label.name: label for label in made}
    assert len(named["token"].classes) == 16
    last = planted.labels["position"].values == 63
    assert (named["next_token"].of_token[last] == -1).all()
    assert (named["next_token"].of_token[~last] >= 0).all()
    assert named["position"].of_token.max() == 7
    assert named["expert"].classes == ("3",)
    assert (named["expert"].of_token == -1).sum() == 77


def test_a_label_with_one_class_is_nan_and_not_a_perfect_score():
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    read = linear_probes(
        planted, labels=["domain"], given={"same": [4] * 384}, method="ridge", n_boot=50
    )
    assert read["accuracy"].sel(label="same").isnull().all()
    assert read["classes"].sel(label="same") == 1
    assert read["accuracy"].sel(label="domain").notnull().all()


def test_one_control_draw_gives_no_interval_and_none_no_value():
    planted = readable_stream(separation=[2.0], rows=6, seed=0)
    few = {"labels": [], "given": planted.given, "method": "ridge", "n_boot": 50}
    one = linear_probes(planted, **few, controls=1)
    assert one["selectivity"].notnull().all()
    assert one["selectivity_low"].isnull().all()
    assert linear_probes(planted, **few, controls=0)["selectivity"].isnull().all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": ["mood"]}, "no label 'mood'"),
        ({"method": "forest"}, "expected one of logistic, ridge"),
        ({"labels": ["domain"], "given": {"x": [1, 2]}}, r"expected \(384,\)"),
        ({"labels": []}, "one or more"),
        ({"labels": ["domain"], "folds": 1}, "folds=1"),
        ({"labels": ["domain"], "controls": -1}, "0 or more"),
        ({"labels": ["domain"], "c": 0.0}, "c=0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(wrong, said):
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    with pytest.raises(UsageError, match=said):
        linear_probes(planted, **wrong)


def test_a_stream_that_is_not_finite_is_refused():
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    broken = planted.sites["resid_post"].copy()
    broken[0, 5, 2] = np.nan
    subject = PlantedSubject(planted.tokens, planted.domains, {"resid_post": broken})
    with pytest.raises(UsageError, match="not finite"):
        linear_probes(subject, labels=["domain"])


def test_every_variable_says_unit_and_interval():
    planted = readable_stream(separation=[1.0], rows=6, seed=0)
    read = linear_probes(planted, labels=["domain"], method="ridge", n_boot=50)
    for name, variable in read.data_vars.items():
        assert {"units", "long_name", "interval"} <= set(variable.attrs), name
