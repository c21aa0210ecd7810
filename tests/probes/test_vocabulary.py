"""Vocabulary: what an id says about its experts, beyond rare ids that seem to say all."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from model.config import NANO
from model.lm import MoELM
from probes.exam import Exam
from probes.subject import Subject
from probes.vocabulary import vocabulary
from workbench.errors import UsageError
from workbench.planted.patterns import Patterns
from workbench.testing import activations_record

WORDS = Patterns(
    sets=[[0, 1], [2, 3], [4, 5]],
    mix=[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]] * 5,
    experts=6,
    by_id=True,
)


def published(ids: np.ndarray, first: np.ndarray) -> float:
    """OLMoE's average: of every id the share of its most frequent first expert, ids alike."""
    taken = defaultdict(list)
    for token, expert in zip(ids, first, strict=True):
        taken[token].append(expert)
    return float(np.mean([Counter(e).most_common(1)[0][1] / len(e) for e in taken.values()]))


def test_the_published_average_agrees_with_a_plain_loop():
    record = activations_record(checkpoints=1, tokens=700, experts=8, k=2)
    found = vocabulary(record, min_count=2).isel(checkpoint=0)
    for layer in range(2):
        first = record["expert_ids"].values[0, :, layer, 0]
        want = published(record["token_id"].values, first)
        assert float(found["olmoe"][layer]) == pytest.approx(want, rel=1e-12)


def test_rare_ids_look_specialised_by_the_published_average_alone():
    found = vocabulary(activations_record(checkpoints=1, tokens=700), min_count=2)
    # Routed at random: half of the ids come once, and so count as 100 %.
    assert (found["olmoe"] > 0.6).all()
    assert (abs(found["kappa"]) < 0.1).all()
    assert (abs(found["top_share"] - found["top_share_null"]) < 0.06).all()


def test_shares_are_counts_over_the_occurrences_of_the_id():
    record = WORDS.record(rows=3)
    found = vocabulary(record, min_count=20).isel(checkpoint=0, layer=0)
    ids, chosen = record["token_id"].values, record["expert_ids"].values[0, :, 0]
    for token in found["token_id"].values:
        there = chosen[ids == token]
        want = [np.mean((there == e).any(axis=1)) for e in range(6)]
        np.testing.assert_allclose(found["share"].sel(token_id=token), want, atol=1e-6)
        assert int(found["count"].sel(token_id=token)) == len(there)


@pytest.mark.parametrize("like", [None, 10.0])
def test_the_interval_of_a_share_holds_the_truth_of_other_text(like):
    truth, held, asked = WORDS.share, 0, 0
    for seed in range(20):
        record = WORDS.record(rows=8, row_tokens=64, like=like, seed=seed)
        found = vocabulary(record, min_count=20).isel(checkpoint=0, layer=0)
        want = truth[found["token_id"].values]
        inside = (found["share_low"] <= want) & (want <= found["share_high"])
        held, asked = held + int(inside.sum()), asked + inside.size
    assert 0.92 < held / asked < 0.99


def test_one_text_bears_no_interval_of_a_share():
    record = WORDS.record(rows=1).isel(token=slice(0, 64))
    found = vocabulary(record, min_count=2)
    assert found["share_low"].isnull().all()


def test_agreement_is_that_of_occurrences_in_different_texts():
    record = WORDS.record(rows=2, row_tokens=12, like=2)
    row = vocabulary(record, min_count=2).isel(checkpoint=0, layer=0)
    ids, text = record["token_id"].values, record["document"].values
    chosen = [set(c) for c in record["expert_ids"].values[0, :, 0].tolist()]
    of_id = defaultdict(list)
    anyone = []
    for i in range(len(ids)):
        for j in range(len(ids)):
            if text[i] != text[j]:
                shared = len(chosen[i] & chosen[j]) / 2
                anyone.append((ids[i], ids[j], shared))
                if ids[i] == ids[j]:
                    of_id[ids[i]].append(shared)
    count = Counter(ids.tolist())
    often = {t for t in count if count[t] >= 2}
    heavy = {t: count[t] for t in of_id if t in often}
    want = sum(heavy[t] * np.mean(of_id[t]) for t in heavy) / sum(heavy.values())
    assert float(row["agreement"]) == pytest.approx(want)
    chance = np.mean([s for a, b, s in anyone if a in often and b in often])
    assert float(row["agreement_chance"]) == pytest.approx(chance)


def test_ids_with_ways_of_their_own_are_seen_to_have_them():
    row = vocabulary(WORDS.record(rows=20, like=20)).isel(checkpoint=0, layer=0)
    agreed = (WORDS.share**2).sum(axis=1).mean() / 2
    assert float(row["agreement"]) == pytest.approx(agreed, abs=0.03)
    assert row["kappa_low"] > 0.2


def test_the_next_id_is_asked_of_a_checkpoint_but_not_of_a_record():
    exam = Exam(tokens=np.arange(64).reshape(4, 16) % 7, domains=("a",) * 4)
    subject = Subject(MoELM(NANO, seed=0), exam)
    found = vocabulary(subject, of="next", min_count=5)
    # The last token of each of four rows is followed by none.
    assert found.attrs["n"] == 60
    with pytest.raises(UsageError, match="where its rows end"):
        vocabulary(WORDS.record(rows=2), of="next")


def test_what_cannot_be_asked_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match="lower min_count"):
        vocabulary(WORDS.record(rows=1), min_count=10_000)
    with pytest.raises(UsageError, match="'input' or 'next'"):
        vocabulary(WORDS.record(rows=1), of="output")
    with pytest.raises(UsageError, match="no token ids"):
        vocabulary(WORDS.record(rows=1).drop_vars("token_id"))
