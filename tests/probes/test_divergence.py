"""Divergence: Jensen-Shannon as scipy has it, chance where routing is drawn afresh."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from model.config import NANO
from model.lm import MoELM
from probes.divergence import divergence
from probes.exam import Exam
from probes.subject import Subject
from workbench.errors import SchemaError, UsageError
from workbench.testing import activations_record


def test_divergence_agrees_with_scipy():
    record = activations_record(checkpoints=2, tokens=100, freeze_at=None)
    found = divergence(record, n_boot=5).isel(checkpoint=0)
    p = record["router_probs"].values.astype(float)
    for layer in range(2):
        each = [jensenshannon(a, b, 2) ** 2 for a, b in zip(*p[:, :, layer][::-1], strict=True)]
        assert float(found["divergence"][layer]) == pytest.approx(np.mean(each), abs=1e-6)


def test_a_weighted_divergence_is_that_of_the_mixture_by_the_formula():
    record = activations_record(checkpoints=2, tokens=60, layers=1, freeze_at=None)
    found = divergence(record, weight=0.2, n_boot=5)["divergence"].item()

    def entropy(x):
        return -sum(v * np.log2(v) for v in x if v > 0)

    then, now = record["router_probs"].values[:, :, 0].astype(float)
    each = [
        entropy(0.2 * p + 0.8 * q) - 0.2 * entropy(p) - 0.8 * entropy(q)
        for p, q in zip(now, then, strict=True)
    ]
    assert found == pytest.approx(np.mean(each), abs=1e-6)


def test_routing_that_is_frozen_by_60_percent_does_not_move_after():
    record = activations_record(checkpoints=11, tokens=1500, freeze_at=0.6)
    found = divergence(record, against="final", n_boot=5)
    left = 1 - np.minimum(1, np.linspace(0, 1, 11) / 0.6)
    np.testing.assert_allclose(found["relative"].mean("layer"), left, atol=0.06)
    steps = divergence(record, n_boot=5)
    assert (steps["divergence"].sel(checkpoint=slice(700, None)) == 0).all()
    assert steps["since"].values[:2].tolist() == [0, 100]
    assert steps["tokens_seen"].dims == ("checkpoint",)


def test_two_checkpoints_are_compared_as_a_pair():
    exam = Exam(tokens=np.arange(96).reshape(6, 16), domains=("a",) * 6)
    one, other = (Subject(MoELM(NANO, seed=s), exam) for s in (0, 1))
    found = divergence(one, other, n_boot=20)
    assert dict(found.sizes) == {"layer": 3}
    assert (found["divergence_low"] > 0).all()
    assert (divergence(one, one, n_boot=20)["divergence"] == 0).all()
    swapped = divergence(other, one, n_boot=20)
    np.testing.assert_allclose(swapped["divergence"], found["divergence"], rtol=1e-5)


def test_a_router_that_treats_all_tokens_alike_has_no_relative_divergence():
    record = activations_record(checkpoints=2, tokens=60)
    record["router_probs"][:] = 1 / 16
    found = divergence(record, n_boot=5)
    assert (found["divergence"] == 0).all()
    assert found["relative"].isnull().all()


def test_what_cannot_be_compared_is_refused():
    record = activations_record(checkpoints=2, tokens=60)
    with pytest.raises(UsageError, match="expected 2 or more"):
        divergence(record.isel(checkpoint=[0]))
    with pytest.raises(UsageError, match="between 0 and 1"):
        divergence(record, weight=1.0)
    with pytest.raises(UsageError, match="'previous', 'first' or 'final'"):
        divergence(record, against="later")
    with pytest.raises(SchemaError, match="no numbers"):
        divergence(record.assign(router_probs=record["router_probs"] * np.nan))
