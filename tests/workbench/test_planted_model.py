"""In the hand-built models the capability is where it was put, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.evaluation import score
from workbench.errors import UsageError
from workbench.planted.model import planted_model

ALL = ("expert", "router", "both", "embeddings")


@pytest.mark.parametrize("learned", ALL)
def test_no_question_is_answered_before_and_all_are_after(learned):
    world = planted_model(learned, noise=0.0)
    assert score(world.before, world.items).correct.mean() == 0
    assert score(world.after, world.items).correct.mean() == 1


def test_noise_makes_some_items_wrong_and_the_others_unequal():
    world = planted_model(items=200)
    after = score(world.after, world.items)
    assert 0.5 < after.correct.mean() < 0.95
    assert after.logprob.std() > 0.5


def test_questions_are_sent_to_their_home_and_nothing_else_is():
    world = planted_model(homes={"a/x": (0, 3), "b/y": (2, 6)})
    _, cache = world.after.run_with_cache(torch.from_numpy(world.tokens))
    for (layer, expert), task in zip(world.homes.values(), world.tasks, strict=True):
        asked = torch.zeros(world.tokens.shape, dtype=torch.bool)
        asked[[domain == task for domain in world.domains], 1::2] = True
        for at in range(3):
            chosen = cache[f"blocks.{at}.mlp.router.hook_expert_indices"]
            assert torch.equal((chosen == expert).any(-1), asked & (at == layer))


@pytest.mark.parametrize("learned", ["router", "experts"])
def test_half_of_what_both_need_is_as_good_as_none_to_the_last_bit(learned):
    world = planted_model("both")
    none = score(world.before, world.items).logprob
    half = score(world.model(**{"router": False, "experts": False, learned: True}), world.items)
    assert np.array_equal(half.logprob, none)


def test_what_does_not_matter_differs_and_changes_no_answer():
    world = planted_model()
    one, two = world.model(idle=1), world.model(idle=2)
    moved = {n for (n, p), q in zip(one.named_parameters(), two.parameters(), strict=True)
             if not torch.equal(p, q)}  # fmt: skip
    kinds = ("attn.W_qkv", "ln1.weight", "router.weight", "experts.W_gate_in", "embed.weight")
    assert all(any(name.endswith(kind) for name in moved) for kind in kinds)
    assert np.array_equal(score(one, world.items).logprob, score(two, world.items).logprob)
    tokens = torch.from_numpy(world.tokens)
    assert torch.equal(one(tokens), two(tokens))


def test_the_fixed_text_is_easier_with_the_capability():
    world = planted_model()
    tokens = torch.from_numpy(world.tokens)
    with torch.no_grad():
        losses = [m(tokens, return_type="loss").item() for m in (world.before, world.after)]
    assert losses[1] < losses[0] - 0.5
    assert len(world.domains) == len(world.tokens)


def test_the_same_seed_is_the_same_world_and_another_one_is_not():
    one, same, other = (planted_model(seed=s).after.embed.weight for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("homes", "said"),
    [({"a": (3, 5)}, "layer under 3"), ({"a": (0, 1)}, "quiet"),
     ({"a": (0, 4), "b": (0, 4)}, "on its own"), ({}, "one task or more")],
)  # fmt: skip
def test_a_home_that_cannot_be_is_refused(homes, said):
    with pytest.raises(UsageError, match=said):
        planted_model(homes=homes)


def test_a_model_of_one_layer_and_top_1_can_be_planted():
    world = planted_model(
        "both", {"a": (0, 1)}, n_layers=1, num_experts=2, experts_per_token=1, answers=4
    )
    assert score(world.after, world.items).correct.mean() > 0.6
