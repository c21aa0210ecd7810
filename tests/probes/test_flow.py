"""Flow: information between layers is the planted one, and absent where there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from probes.flow import dealt_information, flow
from probes.statistics.information import entropy, miller_madow, mutual_information
from workbench.errors import UsageError
from workbench.planted.patterns import Patterns
from workbench.testing import activations_record

PATH = Patterns(sets=[[e] for e in range(8)], mix=[[1 / 8] * 8] * 2, experts=8, stay=0.5)


def test_information_agrees_with_scikit_learn():
    record = activations_record(checkpoints=1, tokens=500, layers=3, experts=8, k=1, skew=1.0)
    ids = record["expert_ids"].values[0, :, :, 0]
    ids[::2, 1] = ids[::2, 0]
    found = flow(record, deals=0).isel(checkpoint=0)
    for layer in range(2):
        theirs = mutual_info_score(ids[:, layer], ids[:, layer + 1]) / np.log(2)
        assert float(found["plug_in"][layer]) == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
def test_information_is_symmetric_and_never_over_either_entropy(seed, rows, columns):
    joint = np.random.default_rng(seed).integers(0, 5, (rows, columns)).astype(float)
    joint[0, 0] += 1
    bits = mutual_information(joint)
    assert bits == pytest.approx(mutual_information(joint.T), abs=1e-12)
    assert 0 <= bits <= min(entropy(joint.sum(0)), entropy(joint.sum(1))) + 1e-9
    assert miller_madow(joint) >= 0


def test_a_path_that_half_the_tokens_keep_has_the_planted_information():
    found = flow(PATH.record(rows=40, layers=3)).isel(checkpoint=0)
    np.testing.assert_allclose(found["information"], PATH.flow(), atol=0.03)
    assert (found["p"] == 0.01).all()
    assert (found["null"] < 0.02).all()
    stays = np.diagonal(found["transition"].values, axis1=1, axis2=2)
    np.testing.assert_allclose(stays, 0.5 + 0.5 / 8, atol=0.05)
    np.testing.assert_allclose(found["transition"].sum("expert2"), 1, rtol=1e-5)


def test_loads_and_transitions_give_back_every_way_and_the_next_layers_loads():
    record = activations_record(checkpoints=1, tokens=400, layers=3, experts=8, k=2, skew=1.0)
    found = flow(record, deals=0).isel(checkpoint=0)
    ids = record["expert_ids"].values[0]
    for layer in range(2):
        want = [np.bincount(ids[:, at].ravel(), minlength=8) / 800 for at in (layer, layer + 1)]
        load = found["load"].values[layer]
        np.testing.assert_allclose(load, want[0], rtol=1e-12)
        np.testing.assert_allclose(load @ found["transition"].values[layer], want[1], rtol=1e-5)


def test_the_bias_of_few_tokens_is_taken_off():
    nothing = Patterns(sets=PATH.sets, mix=PATH.mix, experts=8)
    biased, corrected = [], []
    for seed in range(30):
        row = flow(nothing.record(rows=10, row_tokens=32, layers=2, seed=seed), deals=0)
        biased.append(row["plug_in"].item())
        corrected.append(row["information"].item())
    assert np.mean(biased) > 0.04
    assert abs(np.mean(corrected)) < 0.2 * np.mean(biased)


def test_texts_are_dealt_whole_and_place_by_place():
    rng = np.random.default_rng(3)
    here, there = (np.eye(4, dtype=np.float32)[rng.integers(0, 4, (1, 40))] for _ in range(2))
    starts = np.array([0, 10, 25])
    texts = [there[0, :10], there[0, 10:25], there[0, 25:]]
    found = dealt_information(here, there, starts, 5, seed=1)
    order = np.random.default_rng(1)
    for row in found:
        dealt = [texts[other] for other in order.permutation(3)]
        filled = [np.resize(t, (n, 4)) for t, n in zip(dealt, (10, 15, 15), strict=True)]
        assert row[0] == pytest.approx(mutual_information(here[0].T @ np.concatenate(filled)))


def test_a_table_with_more_cells_than_tokens_is_left_to_the_null():
    record = activations_record(checkpoints=1, tokens=1000, layers=2, experts=64, k=1)
    found = flow(record, deals=19)
    assert found["information"].isnull().all()
    assert found["information_low"].isnull().all()
    assert float(found["plug_in"].item()) == pytest.approx(float(found["null"].item()), abs=0.1)


def test_one_layer_has_no_flow():
    with pytest.raises(UsageError, match="expected 2 or more"):
        flow(activations_record(checkpoints=1, tokens=40, layers=1))
