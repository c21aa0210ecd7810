"""Weight change: exact distances, per part, expert and tensor."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from model.config import NANO
from model.lm import MoELM
from probes.exam import Exam
from probes.subject import Subject
from probes.weight_change import weight_change
from workbench.errors import UsageError

TINY = replace(NANO, d_model=16, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=8, d_vocab=32)
EXAM = Exam(tokens=np.arange(16).reshape(2, 8), domains=("a", "b"))


def pair(seed=1):
    return Subject(MoELM(TINY, seed=seed), EXAM), Subject(MoELM(TINY, seed=0), EXAM)


def test_a_checkpoint_has_not_moved_from_itself():
    one, _ = pair()
    found = weight_change(one, one)
    assert (found["change"] == 0).all()
    assert (found["expert_change"] == 0).all()


def test_one_experts_step_is_seen_in_it_alone_and_has_its_length():
    new, old = pair(seed=0)
    with torch.no_grad():
        new.model.blocks[1].mlp.experts.W_gate_in[3] *= 1.25
        new.model.blocks[1].mlp.experts.W_out[3] *= 1.25
    change = weight_change(new, old)["expert_change"]
    assert change.sel(layer=1, expert=3).item() == pytest.approx(0.25)
    assert change.where(change.expert != 3, drop=True).max() == 0
    parts = weight_change(new, old)["change"]
    moved = {str(p) for p in parts.part.values[parts.values > 0]}
    assert moved == {"model", "experts", "blocks.1 experts"}


def test_every_parameter_is_counted_once_in_a_kind_and_once_in_a_block():
    new, old = pair()
    found = weight_change(new, old)
    total = sum(p.numel() for p in new.model.parameters())
    counts = dict(zip(found.part.values, found.parameters.values, strict=True))
    assert counts.pop("model") == found.attrs["n"] == total
    kinds = set(found.kind.values)
    assert sum(n for name, n in counts.items() if name in kinds) == total
    pairs = zip(found.kind.values, found.part.values, strict=True)
    spread = {kind for kind, name in pairs if kind != name}
    assert sum(n for name, n in counts.items() if name not in spread) == total


def test_it_agrees_with_a_plain_loop_over_parameters():
    new, old = pair()
    before = dict(old.model.named_parameters())
    found = weight_change(new, old)

    def plain(wanted):
        pairs = [(p, before[n]) for n, p in new.model.named_parameters() if wanted(n)]
        b, a = (
            np.concatenate([t.detach().numpy().ravel() for t in s])
            for s in zip(*pairs, strict=True)
        )
        return np.linalg.norm(b.astype(float) - a) / np.linalg.norm(a.astype(float))

    change = found["change"]
    assert change.sel(part="model").item() == pytest.approx(plain(lambda n: True))
    assert change.sel(part="router").item() == pytest.approx(plain(lambda n: "router" in n))
    attention = plain(lambda n: n.startswith("blocks.0.attn"))
    assert change.sel(part="blocks.0 attention").item() == pytest.approx(attention)
    tensor = found["tensor_change"].sel(tensor="unembed.weight").item()
    assert tensor == pytest.approx(plain(lambda n: n == "unembed.weight"))


def test_weights_drawn_anew_are_root_two_away():
    new, old = pair()
    assert weight_change(new, old)["change"].sel(part="experts").item() == pytest.approx(
        2**0.5, abs=0.03
    )


def test_hugging_face_experts_are_told_apart_too():
    config = transformers.OlmoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    old = transformers.OlmoeForCausalLM(config)
    new = transformers.OlmoeForCausalLM(config)
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if "layers.1.mlp.experts" in name:
                parameter[2] *= 2
    found = weight_change(Subject(new, EXAM), Subject(old, EXAM))
    assert found["expert_change"].sel(layer=1).values.tolist() == pytest.approx([0, 0, 1, 0])
    assert found["change"].sel(part="router").item() == 0


def test_a_model_without_experts_has_parts_but_no_expert_changes():
    old, new = nn.Embedding(8, 8), nn.Embedding(8, 8)
    found = weight_change(Subject(new, EXAM), Subject(old, EXAM))
    assert "expert_change" not in found
    assert found["change"].sel(part="model").item() > 0


def test_a_part_of_zeros_has_no_relative_change():
    new, old = pair()
    with torch.no_grad():
        old.model.blocks[0].mlp.router.weight.zero_()
    assert np.isnan(weight_change(new, old)["change"].sel(part="blocks.0 router"))


def test_half_precision_loses_no_small_change_in_the_sum():
    new, old = pair(seed=0)
    new.model.bfloat16(), old.model.bfloat16()
    with torch.no_grad():
        new.model.embed.weight[0, 0] += 1
    step = (new.model.embed.weight[0, 0] - old.model.embed.weight[0, 0]).item()
    norm = old.model.embed.weight.double().norm().item()
    found = weight_change(new, old)["tensor_change"].sel(tensor="embed.weight")
    assert found.item() == pytest.approx(abs(step) / norm, rel=1e-6)


def test_two_architectures_have_no_distance():
    other = Subject(MoELM(replace(TINY, d_mlp=4), seed=0), EXAM)
    with pytest.raises(UsageError, match="W_gate_in"):
        weight_change(pair()[0], other)


def test_every_coordinate_is_named_where_the_result_is_described():
    named = set(re.findall(r"\w+", weight_change.__doc__))
    assert set(weight_change(*pair()).coords) <= named
