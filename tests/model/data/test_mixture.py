"""The mixture: a batch holds what was planned, and a saved position goes on exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.data.corpus import DOMAINS, Corpus, collect_standard_library
from model.data.mixture import MixtureStream, full_weights, mixture_digest
from model.data.tokenizer import train_tokenizer
from model.data.world import TASKS, World
from model.errors import DataError

EVEN = full_weights(dict.fromkeys(DOMAINS, 1.0))


@pytest.fixture(scope="module")
def corpus():
    world, text = World(0), collect_standard_library(max_bytes=200_000)
    sample = [world.document(t, i) for t in TASKS for i in range(100)] + list(text.prose)
    return Corpus(world, text, train_tokenizer(sample, 500), 17)


def same(a, b):
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.domains, b.domains)


@given(weights=st.dictionaries(st.sampled_from(DOMAINS), st.floats(0.01, 100), min_size=1))
def test_shares_sum_to_one_and_keep_the_ratios(weights):
    shares = full_weights(weights)
    assert sum(shares.values()) == pytest.approx(1)
    first, *others = weights
    for other in others:
        ratio = weights[other] / weights[first]
        assert shares[other] / shares[first] == pytest.approx(ratio)


@given(step=st.integers(1, 10_000), rows=st.integers(1, 64), seed=st.integers(0, 5))
def test_a_batch_holds_each_domain_to_within_one_row(step, rows, seed):
    class NoCorpus:
        def rows(self, domain, start, count):
            import numpy as np

            return np.zeros((count, 3), dtype=np.int64)

    shares = full_weights({"knowledge": 0.1, "code": 0.5, "prose": 0.4})
    batch = MixtureStream(NoCorpus(), rows, seed).batch(step, shares)
    counts = torch.bincount(batch.domains, minlength=len(DOMAINS))
    for domain, count in zip(DOMAINS, counts.tolist(), strict=True):
        assert abs(count - shares[domain] * rows) < 1 + 1e-6


def test_targets_are_the_tokens_that_follow(corpus):
    batch = MixtureStream(corpus, 8, seed=0).batch(1, EVEN)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.num_tokens == 8 * 16


def test_a_row_carries_the_domain_that_it_came_from(corpus):
    batch = MixtureStream(corpus, 14, seed=0).batch(1, EVEN)
    for row, domain in zip(batch.tokens, batch.domains.tolist(), strict=True):
        expected = corpus.rows(DOMAINS[domain], 0, 1)[0]
        assert torch.equal(row, torch.from_numpy(expected[:-1]))


def test_a_restored_position_goes_on_with_the_same_batches(corpus):
    through = MixtureStream(corpus, 8, seed=0)
    whole = [through.batch(s, EVEN) for s in range(1, 7)]
    stopped = MixtureStream(corpus, 8, seed=0)
    for step in range(1, 4):
        stopped.batch(step, EVEN)
    resumed = MixtureStream(corpus, 8, seed=0)
    resumed.restore(stopped.state())
    assert all(same(resumed.batch(s, EVEN), whole[s - 1]) for s in range(4, 7))


def test_no_row_is_drawn_twice_before_the_domain_is_exhausted(corpus):
    stream = MixtureStream(corpus, 8, seed=0)
    rows = [tuple(r) for s in range(1, 9) for r in stream.batch(s, EVEN).tokens.tolist()]
    assert len(set(rows)) > 0.95 * len(rows)  # short rows of a small closed set may agree


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"poetry": 1.0}, "no domain or family 'poetry'"),
        ({"prose": -1.0}, "must be 0 or more"),
        ({"prose": float("nan")}, "must be 0 or more"),
        ({"prose": 0.0}, "all weights are 0"),
        (
            {"reading": 1, "reading/repeat": 1, "reading/binding": 1, "reading/update": 1},
            "leave 'reading' out",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(DataError, match=message):
        full_weights(weights)


def test_a_position_of_other_domains_is_refused(corpus):
    with pytest.raises(DataError, match="resume with the data that the run began with"):
        MixtureStream(corpus, 8, seed=0).restore({"next_row": {"prose": 3}})


def test_equal_mixtures_have_one_digest_however_written():
    assert mixture_digest({"prose": 1, "code_text": 1}) == mixture_digest(
        {"code_text": 3.0, "prose": 3.0}
    )
    assert mixture_digest({"prose": 1}) != mixture_digest({"code_text": 1})
