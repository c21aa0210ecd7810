"""Every parameter is in exactly one part, in our model and in every family of the library."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from model.config import NANO
from model.lm import MoELM
from probes.surgery.parts import GRAINS, KINDS, parts_of, places, tensors_of
from workbench.errors import UsageError

HERE = Path(__file__).parent
FILE = HERE.parent / "workbench" / "capture" / "adapters" / "families.py"


@cache
def families():
    spec = importlib.util.spec_from_file_location("families_of_the_library", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def built(family):
    return families().built(family)


def held(parts, tensors):
    """How often each number of each tensor is in a part."""
    counts = {name: torch.zeros(t.shape, dtype=torch.int64) for name, t in tensors.items()}
    for part in parts:
        for piece in part.slices:
            piece.of(counts[piece.parameter]).add_(1)
    return counts


@pytest.mark.parametrize("grain", GRAINS)
def test_every_number_of_our_model_is_in_exactly_one_part(grain):
    model = MoELM(NANO)
    counts = held(parts_of(model, grain), tensors_of(model))
    assert all((count == 1).all() for count in counts.values())
    assert sum(count.numel() for count in counts.values()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize(
    "family",
    ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "dbrx", "deepseek_v2", "deepseek_v3", "jetmoe",
     "gpt_oss", "llama4", "switch_transformers", "doge", "granitemoe", "nemotron_h"],
)  # fmt: skip
@pytest.mark.parametrize("grain", GRAINS)
def test_every_number_of_a_library_family_is_in_exactly_one_part(family, grain):
    model = built(family)
    counts = held(parts_of(model, grain), tensors_of(model))
    assert all((count == 1).all() for count in counts.values())


def test_each_kind_of_our_model_is_what_its_names_say():
    of = {name: place.kind for name, place in places(MoELM(NANO)).items()}
    assert of["blocks.0.mlp.router.weight"] == "router"
    assert of["blocks.2.mlp.experts.W_gate_in"] == "experts"
    assert of["blocks.1.attn.W_qkv"] == "attention"
    assert {of["blocks.1.ln2.weight"], of["ln_final.weight"]} == {"norms"}
    assert {of["embed.weight"], of["unembed.weight"]} == {"embeddings"}


EXPECTED = {
    "olmoe": {
        "model.layers.0.mlp.gate.weight": ("router", 0),
        "model.layers.1.mlp.experts.gate_up_proj": ("experts", 1),
        "model.layers.0.self_attn.q_norm.weight": ("norms", 0),
        "model.layers.0.self_attn.q_proj.weight": ("attention", 0),
        "model.norm.weight": ("norms", -1),
        "lm_head.weight": ("embeddings", -1),
    },
    "dbrx": {
        "transformer.wte.weight": ("embeddings", -1),
        "transformer.blocks.0.norm_attn_norm.norm_2.weight": ("norms", 0),
        "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight": ("attention", 0),
        "transformer.blocks.1.ffn.router.layer.weight": ("router", 1),
        "transformer.blocks.1.ffn.experts.mlp.w2": ("experts", 1),
    },
    "deepseek_v3": {
        "model.layers.0.mlp.gate_proj.weight": ("other", 0),
        "model.layers.1.mlp.gate.weight": ("router", 1),
        "model.layers.1.mlp.gate.e_score_correction_bias": ("router", 1),
        "model.layers.1.mlp.shared_experts.up_proj.weight": ("experts", 1),
    },
    "qwen2_moe": {
        "model.layers.0.mlp.shared_expert_gate.weight": ("router", 0),
        "model.layers.0.mlp.shared_expert.up_proj.weight": ("experts", 0),
    },
    "minimax_m2": {"model.layers.0.mlp.e_score_correction_bias": ("router", 0)},
    "nemotron_h": {"model.layers.1.mixer.q_proj.weight": ("attention", 1)},
    "mixtral": {"model.layers.0.mlp.experts.down_proj": ("experts", 0)},
}


@pytest.mark.parametrize("family", EXPECTED)
def test_parameters_of_the_library_fall_where_they_belong(family):
    found = places(built(family))
    got = {name: (found[name].kind, found[name].layer) for name in EXPECTED[family]}
    assert got == EXPECTED[family]


@pytest.mark.slow
def test_every_family_of_the_library_has_routers_experts_and_embeddings_by_kind():
    for family in families().FAMILIES:
        kinds = {place.kind for place in places(families().built(family)).values()}
        assert {"router", "experts", "embeddings"} <= kinds, family
        assert kinds <= set(KINDS)


@pytest.mark.parametrize(("family", "experts"), [("dbrx", 8), ("olmoe", 8), ("gpt_oss", 8)])
def test_fused_experts_are_cut_into_single_ones(family, experts):
    numbers = {part.expert for part in parts_of(built(family), "expert") if part.kind == "experts"}
    assert numbers == set(range(experts))


def test_a_fused_expert_of_dbrx_is_the_stretch_that_its_forward_reads():
    model = built("dbrx")
    part = next(p for p in parts_of(model, "expert") if p.name == "blocks.1 expert 3")
    w1 = next(s for s in part.slices if s.parameter.endswith("w1"))
    full = tensors_of(model)[w1.parameter]
    assert torch.equal(w1.of(full), full.view(8, 48, 32)[3])


def test_separate_experts_are_parts_of_their_own_and_shared_ones_stand_apart():
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = nn.Linear(2, 2, bias=False)

    block = nn.Module()
    block.gate = nn.Linear(2, 3, bias=False)
    block.experts = nn.ModuleList(Expert() for _ in range(3))
    block.shared_experts = Expert()
    model = nn.Module()
    model.layers = nn.ModuleList([block])
    assert [p.name for p in parts_of(model, "expert")] == [
        "blocks.0 router", "blocks.0 expert 0", "blocks.0 expert 1", "blocks.0 expert 2",
        "blocks.0 shared experts",
    ]  # fmt: skip


def test_tied_embeddings_are_one_parameter_in_one_part():
    model = MoELM(NANO)
    model.unembed.weight = model.embed.weight
    (part,) = (p for p in parts_of(model) if p.kind == "embeddings")
    assert [s.parameter for s in part.slices] == ["embed.weight"]


def test_parts_come_in_the_order_of_the_blocks_with_the_embeddings_last():
    names = [part.name for part in parts_of(MoELM(NANO), "layer")]
    assert names == [
        "blocks.0", "blocks.1", "blocks.2", "norms outside the blocks", "embeddings",
    ]  # fmt: skip


def test_experts_of_one_layer_are_in_the_order_of_their_numbers():
    experts = [p.expert for p in parts_of(MoELM(NANO), "expert") if p.layer == 0 and p.expert >= 0]
    assert experts == list(range(16))


def test_an_unknown_grain_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="kind-layer"):
        parts_of(MoELM(NANO), "head")
