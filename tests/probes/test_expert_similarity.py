"""Expert similarity: identical, rotated, permuted and unrelated experts."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from model.config import NANO
from model.experts import experts_reference
from model.lm import MoELM
from probes.exam import Exam
from probes.expert_similarity import expert_similarity, output_cka
from probes.subject import Subject
from probes.surgery.expert_outputs import all_outputs
from workbench.errors import UsageError

TINY = replace(
    NANO, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8, d_vocab=64,
    num_experts=5, experts_per_token=2,
)  # fmt: skip


def subject(rows=6, config=TINY, seed=0):
    tokens = np.random.default_rng(1).integers(0, 64, (rows, 16))
    return Subject(MoELM(config, seed=seed), Exam(tokens=tokens, domains=("a",) * rows))


def hsic(x, y, rows):
    """Song et al.'s unbiased estimator over tokens of different rows, written from its formula."""
    K, L = (z @ z.T for z in (x, y))
    length = len(x) // rows
    of = [np.s_[r * length : (r + 1) * length] for r in range(rows)]
    two = [(K[of[a], of[b]] * L[of[a], of[b]]).mean() for a, b in permutations(range(rows), 2)]
    three = [
        (K[of[a], of[b]].mean(1) * L[of[a], of[c]].mean(1)).mean()
        for a, b, c in permutations(range(rows), 3)
    ]
    four = [
        K[of[a], of[b]].mean() * L[of[c], of[d]].mean()
        for a, b, c, d in permutations(range(rows), 4)
    ]
    return np.mean(two) - 2 * np.mean(three) + np.mean(four)


def plain_cka(x, y, rows):
    return hsic(x, y, rows) / np.sqrt(hsic(x, x, rows) * hsic(y, y, rows))


def test_identical_experts_have_cosine_one_and_cka_one():
    one = subject()
    with torch.no_grad():
        for weight in one.model.blocks[1].mlp.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight).clone())
    found = expert_similarity(one).sel(layer=1)
    assert found["weight_cosine"].values == pytest.approx(1.0)
    assert found["output_cka"].values == pytest.approx(1.0)
    assert found["mean_output_cka_high"].item() == pytest.approx(1.0)


def test_the_same_function_with_hidden_units_in_another_order_is_found_by_its_outputs_alone():
    one = subject()
    experts = one.model.blocks[0].mlp.experts
    order = torch.roll(torch.arange(8), 3)
    with torch.no_grad():
        gate, up = experts.W_gate_in[0].chunk(2, dim=-1)
        experts.W_gate_in[1] = torch.cat([gate[:, order], up[:, order]], dim=-1)
        experts.W_out[1] = experts.W_out[0][order]
    found = expert_similarity(one).sel(layer=0, expert=0, expert2=1)
    assert abs(found["weight_cosine"]) < 0.2
    assert found["output_cka"].item() == pytest.approx(1.0)


def test_cosines_agree_with_scikit_learn():
    one = subject()
    experts = one.model.blocks[0].mlp.experts
    flat = torch.cat([w.flatten(1) for w in experts.parameters()], dim=1).detach().numpy()
    found = expert_similarity(one)["weight_cosine"].sel(layer=0).values
    assert found == pytest.approx(cosine_similarity(flat), abs=1e-6)


def test_cka_agrees_with_the_formula_and_its_jackknife_with_a_plain_loop():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40, 3))
    outputs = np.stack([shared @ rng.normal(size=(3, 4)) + rng.normal(size=(40, 4)) for _ in "abc"])
    whole, mean, low, high = output_cka(torch.from_numpy(outputs), rows=8)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert [whole[p] for p in pairs] == pytest.approx(
        [plain_cka(outputs[e], outputs[f], 8) for e, f in pairs], abs=1e-6
    )
    without = []
    for r in range(8):
        kept = np.delete(outputs, np.s_[5 * r : 5 * r + 5], axis=1)
        without.append(np.mean([plain_cka(kept[e], kept[f], 7) for e, f in pairs]))
    se = np.sqrt(7 / 8 * ((without - np.mean(without)) ** 2).sum())
    assert (high - low) / 2 == pytest.approx(2.3646 * se, rel=1e-3)
    assert low < mean < high


def test_unrelated_outputs_have_no_cka_however_few_the_tokens():
    rng = np.random.default_rng(0)
    means = [output_cka(torch.from_numpy(rng.normal(size=(4, 24, 16))), 6)[1] for _ in range(60)]
    # The biased estimator would give about 0.4 here.
    assert abs(np.mean(means)) < 3 * np.std(means) / 60**0.5 + 1e-3


def test_unrelated_outputs_that_lean_each_row_its_own_way_have_no_cka_either():
    """Tokens of a row are alike for each expert, for reasons of its own: nothing is shared."""
    found = []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randn(3, 16, 1, 8, generator=draw)
        outputs = rows + torch.randn(3, 16, 16, 8, generator=draw)
        found.append(output_cka(outputs.flatten(1, 2), 16)[1:])
    mean, low, high = np.array(found).T
    assert abs(mean.mean()) < 3 * mean.std() / 60**0.5
    # 5 % of 60 draws are 3; more than 8 come once in a hundred.
    assert ((low > 0) | (high < 0)).sum() <= 8


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 50))
def test_cka_is_blind_to_scale_shift_rotation_and_order(scale, seed):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(3, 24, 4))
    turned = outputs.copy()
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned[1] = scale * turned[1] @ rotation + 5
    order = rng.permutation(3)
    before, after = (output_cka(torch.from_numpy(o), 6)[0] for o in (outputs, turned[order]))
    np.testing.assert_allclose(after, before[np.ix_(order, order)], atol=1e-4)
    assert np.diagonal(before) == pytest.approx(1.0)


def test_every_expert_answers_as_it_would_if_it_were_chosen():
    one = subject()
    x_TD = torch.randn(7, 16)
    experts = one.model.blocks[0].mlp.experts
    for expert, found in enumerate(all_outputs(experts, x_TD)):
        chosen = torch.full((7, 1), expert)
        torch.testing.assert_close(
            found, experts_reference(experts, x_TD, chosen, torch.ones(7, 1)).detach()
        )


def test_untrained_experts_are_as_alike_as_random_ones():
    found = expert_similarity(subject(rows=24))
    assert abs(found["mean_output_cka"] - found["random_output_cka"]).max() < 0.15


def test_a_single_expert_has_no_pair_and_four_rows_no_cka():
    alone = replace(TINY, num_experts=1, experts_per_token=1)
    found = expert_similarity(subject(config=alone))
    assert np.isnan(found["mean_output_cka"]).all()
    assert found["output_cka"].values == pytest.approx(1.0)
    few = expert_similarity(subject(rows=4))
    assert np.isnan(few["mean_output_cka"]).all()
    assert np.isnan(few["mean_output_cka_low"]).all()


def test_an_expert_that_answers_nothing_is_like_none():
    one = subject()
    with torch.no_grad():
        one.model.blocks[0].mlp.experts.W_out[2] = 0
    found = expert_similarity(one).sel(layer=0)
    assert np.isnan(found["output_cka"].sel(expert=2)).all()
    assert np.isfinite(found["mean_output_cka"])


def test_another_kind_of_model_is_refused_with_the_remedy():
    exam = Exam(tokens=np.zeros((2, 4), int), domains=("a", "a"))
    with pytest.raises(UsageError, match="load_hf"):
        expert_similarity(Subject(nn.Embedding(4, 4), exam))
