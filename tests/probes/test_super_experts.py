"""Super experts: one planted outlier, and none where nothing floods the stream."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from model.config import NANO
from model.experts import sort_by_expert
from model.lm import MoELM
from probes.exam import Exam
from probes.subject import Subject
from probes.super_experts import super_experts

TINY = replace(
    NANO, d_model=64, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8, d_vocab=64,
    num_experts=6, experts_per_token=2,
)  # fmt: skip
EXAM = Exam(tokens=np.random.default_rng(0).integers(0, 64, (6, 16)), domains=("a",) * 6)


def planted(layer=1, expert=4):
    """One expert of one layer that writes a huge value into one dimension."""
    lm = MoELM(TINY, seed=0)
    with torch.no_grad():
        lm.blocks[layer].mlp.experts.W_out[expert, :, 7] *= 1e7
    return Subject(lm, EXAM)


@pytest.mark.parametrize(("layer", "expert"), [(0, 1), (1, 4)])
def test_the_planted_outlier_is_the_one_super_expert(layer, expert):
    found = super_experts(planted(layer, expert))
    assert np.argwhere(found["super_expert"].values).tolist() == [[layer, expert]]
    assert found["forms"].values.tolist() == [layer == 0, layer == 1]


def test_an_untrained_model_has_none_though_one_is_always_the_largest():
    found = super_experts(Subject(MoELM(TINY, seed=0), EXAM))
    assert not found["super_expert"].any()
    assert found["outlier"].sum() == 1


def test_peaks_agree_with_the_hidden_layers_that_the_forward_pass_shows():
    one = Subject(MoELM(TINY, seed=3), EXAM)
    found = super_experts(one)["peak"]
    for layer in (0, 1):
        _, ends = sort_by_expert(one["expert_ids"][layer], 6)
        hidden = one[f"blocks.{layer}.mlp.experts.hook_post"]
        for expert, (first, last) in enumerate(pairwise([0, *ends.tolist()])):
            out = hidden[first:last] @ one.model.blocks[layer].mlp.experts.W_out[expert]
            largest = out.abs().max().item() if len(out) else np.nan
            assert found.values[layer, expert] == pytest.approx(largest, rel=1e-4, nan_ok=True)


def test_an_expert_that_never_fires_has_no_peak_and_is_no_super_expert():
    one = planted()
    with torch.no_grad():
        one.model.blocks[1].mlp.router.weight.zero_()
        # A router without preference takes the first: experts 0 and 1.
    found = super_experts(one)
    assert np.isnan(found["peak"].sel(layer=1, expert=4))
    assert not found["super_expert"].sel(layer=1).any()


def test_thresholds_are_stated_and_obeyed():
    found = super_experts(planted(), massive_least=1e30)
    assert found.attrs["massive_least"] == 1e30
    assert not found["forms"].any()
