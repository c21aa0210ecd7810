"""A hybrid is exactly the body with the donor's parts, and neither of the two is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import NANO
from model.lm import MoELM
from probes.surgery.hybrid import Hybrid, put, sharing_copy
from probes.surgery.parts import GRAINS, parts_of, tensors_of
from workbench.errors import UsageError

TOKENS = torch.arange(16).reshape(2, 8)


@pytest.fixture
def pair():
    return MoELM(NANO, seed=1).eval(), MoELM(NANO, seed=2).eval()


def numbers(model):
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def by_hand(a, b, parts, members):
    """The same mixture made by copying state dicts."""
    made = MoELM(NANO, seed=0).eval()
    state = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    for part, taken in zip(parts, members, strict=True):
        for piece in part.slices:
            if taken:
                piece.of(state[piece.parameter]).copy_(piece.of(b.state_dict()[piece.parameter]))
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("grain", GRAINS)
def test_a_hybrid_is_what_copying_by_hand_gives_whatever_came_before(pair, grain):
    a, b = pair
    parts = parts_of(a, grain)
    hybrid = Hybrid(a, b, parts)
    rng = np.random.default_rng(0)
    for _ in range(4):
        members = rng.random(len(parts)) < 0.5
        hybrid.take(members)
        expected = by_hand(a, b, parts, members)
        with torch.no_grad():
            assert torch.equal(hybrid.model(TOKENS), expected(TOKENS))


@pytest.mark.parametrize("grain", ["kind", "expert"])
def test_neither_model_changes_even_if_the_hybrid_does(pair, grain):
    a, b = pair
    kept = numbers(a), numbers(b)
    hybrid = Hybrid(a, b, parts_of(a, grain))
    hybrid.take(np.ones(len(hybrid.parts), dtype=bool))
    hybrid.take(np.zeros(len(hybrid.parts), dtype=bool))
    for model, before in zip(pair, kept, strict=True):
        assert all(torch.equal(t, before[n]) for n, t in tensors_of(model).items())
        assert all(p.requires_grad for p in model.parameters())


def test_whole_parameters_are_not_copied(pair):
    a, b = pair
    hybrid = Hybrid(a, b, parts_of(a))
    hybrid.take(np.array([True, True, False, False, False]))
    own = tensors_of(hybrid.model)
    name = "blocks.0.mlp.experts.W_out"
    assert own[name].data_ptr() == tensors_of(b)[name].data_ptr()
    assert own["embed.weight"].data_ptr() == a.embed.weight.data_ptr()


def test_parts_that_did_not_move_are_known(pair):
    a, _ = pair
    b = sharing_copy(a)
    put(b.blocks[1].mlp.router.weight, torch.zeros_like(a.blocks[1].mlp.router.weight))
    hybrid = Hybrid(a, b, parts_of(a, "kind-layer"))
    moved = [p.name for p, d in zip(hybrid.parts, hybrid.differing(), strict=True) if d]
    assert moved == ["blocks.1 router"]


def test_tied_embeddings_stay_tied_in_a_hybrid(pair):
    for model in pair:
        model.unembed.weight = model.embed.weight
    hybrid = Hybrid(*pair, parts_of(pair[0]))
    hybrid.take(np.array([p.kind == "embeddings" for p in hybrid.parts]))
    assert hybrid.model.unembed.weight.data_ptr() == pair[1].embed.weight.data_ptr()


class Biased(torch.nn.Module):
    """A router whose correction bias is a buffer, as in DeepSeek's."""

    def __init__(self):
        super().__init__()
        block = torch.nn.Module()
        block.gate = torch.nn.Linear(2, 4, bias=False)
        block.gate.register_buffer("e_score_correction_bias", torch.zeros(4))
        self.layers = torch.nn.ModuleList([block])


def test_a_correction_bias_that_is_a_buffer_is_exchanged_with_its_router():
    a, b = Biased(), Biased()
    name = "layers.0.gate.e_score_correction_bias"
    tensors_of(b)[name].add_(1.0)
    before = tensors_of(a)[name].clone()
    hybrid = Hybrid(a, b, parts_of(a))
    hybrid.take(np.array([p.kind == "router" for p in hybrid.parts]))
    assert torch.equal(tensors_of(hybrid.model)[name], before + 1)
    assert torch.equal(tensors_of(a)[name], before)


def test_models_of_different_shape_are_refused_by_the_first_parameter_that_differs():
    wide = MoELM(replace(NANO, num_experts=8))
    with pytest.raises(UsageError, match=r"blocks\.0\.mlp\.router\.weight.*\(16, 96\).*\(8, 96\)"):
        Hybrid(MoELM(NANO), wide, parts_of(wide))


def test_models_of_different_precision_are_refused():
    with pytest.raises(UsageError, match="bfloat16"):
        Hybrid(MoELM(NANO), MoELM(NANO).bfloat16(), parts_of(MoELM(NANO)))
