"""Co-activation: all pairs, exactly; unlinked experts lie at the chance of taking k of them."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.coactivation import coactivation, coactivation_fixed
from probes.statistics.fixed_size import meeting_chance
from workbench.errors import SchemaError, UsageError
from workbench.planted.patterns import Patterns
from workbench.testing import activations_record, router_record


def test_pairs_agree_with_a_plain_loop_over_tokens():
    record = activations_record(checkpoints=1, tokens=300, layers=2, experts=6, k=3, skew=1.0)
    found = coactivation_fixed(record).isel(checkpoint=0)
    for layer in range(2):
        both, one = np.zeros((6, 6)), np.zeros(6)
        for chosen in record["expert_ids"].values[0, :, layer]:
            for i in chosen:
                one[i] += 1
                for j in chosen:
                    both[i, j] += 1
        conditional, lift = both / one[:, None], both * 300 / np.outer(one, one)
        np.fill_diagonal(lift, np.nan)
        np.testing.assert_allclose(found["conditional"][layer], conditional, rtol=1e-6)
        np.testing.assert_allclose(found["lift"][layer], lift, rtol=1e-6)


def test_the_published_count_of_rank_neighbours_sees_7_of_28_pairs():
    record = activations_record(checkpoints=1, tokens=500, layers=1, experts=16, k=8)
    ids = record["expert_ids"].values[0, :, 0]
    neighbours = sum(len(list(pairwise(chosen))) for chosen in ids)
    everyone = sum(len(list(combinations(chosen, 2))) for chosen in ids)
    assert neighbours * 28 == everyone * 7
    found = coactivation_fixed(record).isel(checkpoint=0, layer=0)
    one = np.bincount(ids.ravel(), minlength=16)
    ours = (found["conditional"].values * one[:, None]).sum() - one.sum()
    assert round(ours) == 2 * everyone


def test_linked_experts_are_found_and_their_lift_is_the_planted_one():
    router = Patterns(
        sets=[[0, 1], [2, 3], [4, 5], [0, 2], [1, 4], [3, 5]],
        mix=[[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]] * 2,
        experts=6,
    )
    row = coactivation_fixed(router.record(rows=40, like=20)).isel(checkpoint=0, layer=0)
    there = router.lift > 0
    np.fill_diagonal(there, False)
    np.testing.assert_allclose(row["lift"].values[there], router.lift[there], rtol=0.2)
    assert row["lift_low"][0, 1] > row["chance"][0, 1]
    # Never together: the bound shows that it is not for want of text.
    assert float(row["lift"][0, 5]) == 0
    assert row["lift_high"][0, 5] < row["chance"][0, 5]


def test_a_fair_router_has_the_lift_of_taking_k_of_them():
    found = coactivation(router_record(steps=200, tokens=2000, layers=1, experts=8, k=4))
    fair = 8 * 3 / (4 * 7)
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(found["chance"].values[0, 0][off], fair, rtol=0.01)
    np.testing.assert_allclose(found["lift"].values[0, 0][off], fair, rtol=0.03)


def test_pools_of_samples_are_labelled_by_their_last_and_add_up():
    record = router_record(steps=60, sample_every=10, layers=1)
    found = coactivation(record, samples=3)
    assert found["sample"].values.tolist() == [30, 60]
    pairs = record["coactivation"].values[:3, 0].sum(0)
    np.testing.assert_allclose(found["conditional"][0, 0], pairs / np.diag(pairs)[:, None])


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 5))
def test_the_chance_of_meeting_agrees_with_adding_up_every_set(seed, experts, k):
    k = min(k, experts - 1)
    rng = np.random.default_rng(seed)
    w = np.exp(rng.normal(0, 1, experts))
    sets = list(combinations(range(experts), k))
    often = np.array([np.prod(w[list(s)]) for s in sets])
    often /= often.sum()
    load, both = np.zeros(experts), np.zeros((experts, experts))
    for p, s in zip(often, sets, strict=True):
        for i in s:
            load[i] += p
            for j in s:
                both[i, j] += p
    found = meeting_chance(load[None], k)[0]
    off = ~np.eye(experts, dtype=bool)
    np.testing.assert_allclose(found[off], both[off], atol=1e-7)


@pytest.mark.parametrize("experts", [1, 4, 64])
def test_where_all_experts_are_taken_they_always_meet(experts):
    chance = meeting_chance(np.ones((2, experts)), experts)
    off = ~np.eye(experts, dtype=bool)
    assert (chance[:, off] == 1).all()


def test_an_expert_that_never_fires_meets_nobody():
    chance = meeting_chance(np.array([[0.9, 0.7, 0.4, 0.0]]), 2)[0]
    assert np.isnan(chance[3]).all()
    row = chance[:3, :3]
    np.testing.assert_allclose(np.nansum(row, axis=1), [0.9, 0.7, 0.4], atol=1e-5)


def test_what_the_stream_lacks_is_named():
    record = router_record(steps=30)
    with pytest.raises(UsageError, match="found 3 samples"):
        coactivation(record, samples=9)
    with pytest.raises(SchemaError, match="lacks coactivation"):
        coactivation(record.drop_vars("coactivation"))
    with pytest.raises(SchemaError, match="no step in this record"):
        coactivation(record.isel(step=slice(0, 5)))
