"""Rerouting: what moved goes where it went, and nothing else moves."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.rerouting import rerouting
from probes.stability import churn
from workbench.errors import UsageError
from workbench.testing import activations_record

DIMS = ("checkpoint", "token", "layer", "k")


def routed(*checkpoints: list[list[int]]) -> xr.Dataset:
    """One layer; for each checkpoint the experts of every token."""
    ids = np.array(checkpoints)[:, :, None, :]
    return xr.Dataset({"expert_ids": (DIMS, ids)}, coords={"checkpoint": np.arange(len(ids)) * 10})


def test_a_token_that_swaps_one_expert_moves_that_choice_and_no_other():
    found = rerouting(routed([[0, 1], [0, 1]], [[0, 2], [1, 0]])).isel(checkpoint=0, layer=0)
    assert found["moved"].values.tolist() == [
        [1, 0, 0],
        [0, 0.5, 0.5],
        pytest.approx([np.nan] * 3, nan_ok=True),
    ]
    assert float(found["kept"]) == 0.75
    assert found["load"].values.tolist() == [0.5, 0.5, 0]


def test_two_given_up_are_dealt_evenly_to_the_two_taken_up():
    found = rerouting(routed([[0, 1], [0, 1]], [[2, 3], [2, 3]])).isel(checkpoint=0, layer=0)
    assert found["moved"].values[:2].tolist() == [[0, 0, 0.5, 0.5]] * 2


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_what_stays_is_what_churn_says_did_not_move_and_rows_sum_to_one(seed, k):
    record = activations_record(checkpoints=3, tokens=60, layers=2, experts=6, k=k, seed=seed)
    found = rerouting(record)
    np.testing.assert_allclose(found["kept"], 1 - churn(record, n_boot=10)["churn"], atol=1e-6)
    there = found["load"] > 0
    np.testing.assert_allclose(found["moved"].sum("expert2").values[there.values], 1, rtol=1e-5)
    # Loads of one checkpoint, moved on, are those of the next.
    arrived = (found["load"] * found["moved"]).sum("expert").values[0]
    np.testing.assert_allclose(arrived, found["load"].values[1], atol=1e-5)


def test_from_the_first_every_checkpoint_is_compared_with_it():
    record = activations_record(checkpoints=4, tokens=100)
    assert rerouting(record, against="first")["since"].values.tolist() == [0, 0, 0]
    assert rerouting(record)["since"].values.tolist() == [0, 100, 200]


def test_a_dropped_choice_moves_nowhere():
    found = rerouting(routed([[0, 1], [0, 1]], [[0, -1], [0, 2]])).isel(checkpoint=0, layer=0)
    assert found["moved"].values[1].tolist() == [0, 0, 1]


def test_one_checkpoint_or_another_word_is_refused():
    with pytest.raises(UsageError, match="found 1, expected 2 or more"):
        rerouting(routed([[0, 1], [0, 1]]))
    with pytest.raises(UsageError, match="against='last'"):
        rerouting(activations_record(checkpoints=2, tokens=40), against="last")
