"""Exposure: ranks by full enumeration, a canary that training plants, and honest extrapolation."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probes.exam import Exam
from probes.exposure import exposure, extrapolated_exposure, sampled_exposure
from probes.subject import Subject
from workbench.errors import UsageError

EXAM = Exam(tokens=np.zeros((2, 4), int), domains=("a", "a"))


def bigram(seed=0, vocabulary=12):
    """A model whose next token depends on the last alone: its logits are a table."""
    torch.manual_seed(seed)
    return nn.Embedding(vocabulary, vocabulary)


def logprob(table, prefix, secret):
    rows = table.weight.log_softmax(-1)
    return sum(rows[a, b].item() for a, b in itertools.pairwise([prefix[-1], *secret]))


def test_the_exact_rank_is_that_of_a_plain_enumeration():
    table, space = bigram(), [2, 3, 5, 7]
    secrets = [(2, 2, 3), (7, 5, 3), (3, 5, 5)]
    given = [{"prefix": [1], "secret": list(s), "space": space} for s in secrets]
    found = exposure(Subject(table, EXAM), canaries=given)
    every = [logprob(table, [1], s) for s in itertools.product(space, repeat=3)]
    for i, secret in enumerate(secrets):
        rank = sum(score >= logprob(table, [1], secret) - 1e-9 for score in every)
        assert found["rank"][i].item() == rank
        assert found["exposure"][i].item() == pytest.approx(np.log2(64 / rank))
        assert found["exposure_low"][i] == found["exposure_high"][i] == found["exposure"][i]


def test_a_canary_that_is_trained_on_becomes_fully_exposed():
    table = bigram()
    canary = {"prefix": [1, 4], "secret": [9, 3, 6], "space": list(range(2, 12))}
    text = torch.tensor([1, 4, 9, 3, 6])
    before = exposure(Subject(table, EXAM), canaries=[canary])["exposure"].item()
    optimizer = torch.optim.SGD(table.parameters(), lr=5.0)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(table(text[:-1]), text[1:]).backward()
        optimizer.step()
    after = exposure(Subject(table, EXAM), canaries=[canary])["exposure"].item()
    assert before < 8
    assert after == pytest.approx(np.log2(1000))


def test_a_model_that_says_nothing_exposes_nothing():
    table = bigram()
    nn.init.zeros_(table.weight)
    canary = {"prefix": [1], "secret": [5, 6], "space": [5, 6, 7]}
    # All are equally probable, and ties count against the secret.
    assert exposure(Subject(table, EXAM), canaries=[canary])["exposure"].item() == 0


def test_unplanted_secrets_have_the_stated_chance():
    table, space = bigram(), list(range(4, 12))
    given = [
        {"prefix": [1], "secret": list(s), "space": space}
        for s in itertools.product(space, repeat=2)
    ]
    bits = exposure(Subject(table, EXAM), canaries=given)["exposure"].values
    assert np.median(bits) == pytest.approx(1, abs=0.1)
    assert bits.mean() == pytest.approx(1.44, abs=0.2)


def test_sampling_agrees_with_the_exact_rank():
    table, space = bigram(), list(range(2, 12))
    secrets = [[4, 4, 4], [9, 2, 3], [5, 7, 6], [11, 10, 2]]
    given = [{"prefix": [1], "secret": s, "space": space} for s in secrets]
    exact = exposure(Subject(table, EXAM), canaries=given)
    drawn = exposure(Subject(table, EXAM), canaries=given, exact_up_to=1, n_boot=50)
    inside = (drawn["exposure_sampled_low"] <= exact["exposure"]) & (
        exact["exposure"] <= drawn["exposure_sampled_high"]
    )
    assert inside.all()
    assert (drawn["method"] == "sampled").any()


def test_a_secret_beyond_all_that_were_drawn_is_extrapolated():
    scores = np.random.default_rng(0).normal(size=2000)
    (value, low, high), fit_p = extrapolated_exposure(scores, 4.5, bits=60)
    truth = 18.16  # -log2 of the mass of a normal beyond 4.5
    assert low < truth < high
    assert value == pytest.approx(truth, rel=0.2)
    assert fit_p > 0.05
    assert extrapolated_exposure(scores, 4.5, bits=10)[0][0] == 10


def test_a_share_that_was_never_seen_is_bounded_below_alone():
    value, low, high = sampled_exposure(0, 1000, bits=30)
    assert value == high == 30
    assert 7 < low < 9


@pytest.mark.parametrize(
    ("canary", "found"),
    [
        ({"prefix": [1], "secret": [2]}, "space missing"),
        ({"prefix": [1], "secret": [9], "space": [2, 3]}, "lacks"),
        ({"prefix": [], "secret": [2], "space": [2, 3]}, "prefix missing"),
    ],
)
def test_canaries_that_cannot_be_are_refused(canary, found):
    with pytest.raises(UsageError, match=found):
        exposure(Subject(bigram(), EXAM), canaries=[canary])


def test_without_canaries_there_is_nothing_to_measure():
    with pytest.raises(UsageError, match="planted"):
        exposure(Subject(bigram(), EXAM))
