"""TransformerLens's bridge over Hugging Face's DBRX, on folders that we and that others wrote."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from transformer_lens import ActivationCache, patching
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.logit_lens import logit_lens
from transformers import AutoModelForCausalLM, DbrxConfig, DbrxForCausalLM

from model.bridge_dbrx import DbrxAdapter, bridge_of
from model.config import MoEConfig
from model.hf import load_hf, save_hf
from model.lm import MoELM

# A clamp that acts, groups of heads, and norms that are not 1: what is forgotten is found out.
CONFIG = MoEConfig(
    d_vocab=50, d_model=24, n_layers=3, n_heads=4, n_key_value_heads=2, d_mlp=16,
    num_experts=4, experts_per_token=2, n_ctx=32, init_range=0.2, clip_qkv=0.5,
)  # fmt: skip
TOKENS = torch.arange(24).view(2, 12) * 7 % 50
ROUNDING = 2e-5
"""Logits are about 4; float32 sums over 24 entries in 3 layers differ by 1e-6 with their order."""


def made(seed: int = 0) -> MoELM:
    lm = MoELM(CONFIG, seed=seed).eval().requires_grad_(False)
    for i, parameter in enumerate(p for p in lm.parameters() if p.dim() == 1):
        parameter.copy_(torch.linspace(0.5, 2, 24).roll(5 * i))
    return lm


@pytest.fixture
def lm() -> MoELM:
    return made()


@pytest.fixture(params=["ours", "theirs"])
def folder(request, tmp_path, lm):
    """A DBRX folder: written by us, or by transformers."""
    if request.param == "ours":
        return save_hf(lm, tmp_path / "dbrx")
    torch.manual_seed(3)
    config = DbrxConfig(
        d_model=24, n_heads=4, n_layers=2, max_seq_len=32, vocab_size=50, initializer_range=0.2,
        attn_config={"kv_n_heads": 1, "clip_qkv": 0.3, "rope_theta": 1e4},
        ffn_config={
            "ffn_hidden_size": 8, "moe_num_experts": 5, "moe_top_k": 3,
            "moe_normalize_expert_weights": None,
        },
    )  # fmt: skip
    DbrxForCausalLM(config).save_pretrained(tmp_path / "dbrx")
    return tmp_path / "dbrx"


@pytest.fixture(autouse=True)
def no_gradients(monkeypatch):
    # A boot that asks for the network fails here.
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with torch.no_grad():
        yield


def boot(folder) -> TransformerBridge:
    return TransformerBridge.boot_transformers(str(folder), device="cpu")


def hugging_face(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_the_entry_point_leads_to_the_adapter():
    ArchitectureAdapterFactory.discover_entry_points()
    assert ArchitectureAdapterFactory._adapters["DbrxForCausalLM"] is DbrxAdapter


def test_a_booted_folder_gives_the_logits_of_hugging_face(folder):
    bridge = boot(folder)
    expected = hugging_face(folder)(TOKENS).logits
    torch.testing.assert_close(bridge(TOKENS), expected, atol=ROUNDING, rtol=0)
    assert bridge.cfg.num_experts == bridge.blocks[0].mlp.gate.layer.out_features


def test_a_booted_release_gives_the_logits_of_the_model_that_was_released(lm, tmp_path):
    bridge = boot(save_hf(lm, tmp_path / "dbrx"))
    torch.testing.assert_close(bridge(TOKENS), lm(TOKENS), atol=ROUNDING, rtol=0)
    loss = bridge(TOKENS, return_type="loss")
    torch.testing.assert_close(loss, lm(TOKENS, return_type="loss"), atol=ROUNDING, rtol=0)


def test_a_bridge_needs_no_files_and_copies_the_weights(lm):
    names = set(lm.state_dict())
    before = lm(TOKENS)
    bridge = bridge_of(lm)
    torch.testing.assert_close(bridge(TOKENS), before, atol=ROUNDING, rtol=0)
    for parameter in bridge.parameters():
        parameter.zero_()
    assert torch.equal(lm(TOKENS), before)
    assert set(lm.state_dict()) == names


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("hook_embed", "hook_embed"),
        ("blocks.1.hook_resid_pre",) * 2,
        ("blocks.1.hook_attn_out",) * 2,
        ("blocks.1.hook_resid_mid",) * 2,
        ("blocks.1.hook_mlp_out",) * 2,
        ("blocks.2.hook_resid_post",) * 2,
        ("blocks.1.ln1.hook_scale",) * 2,
        ("blocks.1.attn.hook_q",) * 2,
        ("blocks.1.attn.hook_k",) * 2,
        ("blocks.1.attn.hook_v",) * 2,
        ("blocks.1.attn.hook_pattern",) * 2,
        ("blocks.1.attn.hook_z",) * 2,
        ("blocks.1.mlp.router.hook_logits", "blocks.1.mlp.gate.hook_out"),
        ("blocks.1.mlp.router.hook_expert_indices", "blocks.1.mlp.hook_expert_indices"),
    ],
)
def test_a_site_holds_the_same_in_the_bridge_and_in_the_model(lm, ours, theirs):
    _, here = lm.run_with_cache(TOKENS)
    _, there = bridge_of(lm).run_with_cache(TOKENS)
    # The bridge's router sees (token, ...) where ours sees (batch, pos, ...).
    expected = here[ours].reshape(there[theirs].shape)
    torch.testing.assert_close(there[theirs], expected, atol=ROUNDING, rtol=0)


def test_gates_stand_at_the_chosen_experts_and_sum_to_one(lm):
    _, cache = bridge_of(lm).run_with_cache(TOKENS)
    gates_TE = cache["blocks.0.mlp.hook_expert_weights"]
    ids_TK = cache["blocks.0.mlp.hook_expert_indices"]
    assert torch.equal((gates_TE > 0).sum(-1), torch.full((24,), 2))
    torch.testing.assert_close(gates_TE.gather(-1, ids_TK).sum(-1), torch.ones(24))


def test_the_logit_lens_ends_at_the_logits(folder):
    bridge = boot(folder)
    logits, cache = bridge.run_with_cache(TOKENS)
    streams = cache.accumulated_resid(layer=-1, incl_mid=True, apply_ln=True)
    assert len(streams) == 2 * bridge.cfg.n_layers + 1
    torch.testing.assert_close(streams[-1] @ bridge.W_U, logits, atol=ROUNDING, rtol=0)
    assert logit_lens(bridge, TOKENS, targets=5).labels[-1] == "final_post"


def test_parts_of_a_logit_add_up_to_it_when_the_norms_are_folded(folder):
    bridge = boot(folder)
    raw = bridge(TOKENS).log_softmax(-1)
    bridge.enable_compatibility_mode(disable_warnings=True)
    logits, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(logits.log_softmax(-1), raw, atol=ROUNDING, rtol=0)
    assert all((block.ln2.weight == 1).all() for block in bridge.blocks)
    parts = cache.logit_attrs(cache.decompose_resid(), tokens=TOKENS)
    expected = logits.gather(-1, TOKENS.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(parts.sum(0), expected, atol=ROUNDING, rtol=0)


def test_heads_add_up_to_their_layers_attention(lm):
    bridge = bridge_of(lm)
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    logits, cache = bridge.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, lm(TOKENS), atol=ROUNDING, rtol=0)
    heads = cache["blocks.1.attn.hook_result"]
    assert heads.shape == (2, 12, 4, 24)
    torch.testing.assert_close(heads.sum(2), cache["blocks.1.hook_attn_out"])


@pytest.mark.parametrize(
    "site",
    ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
     "ln1.hook_normalized", "ln2.hook_scale", "attn.hook_q", "attn.hook_k", "attn.hook_v",
     "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "mlp.gate.hook_out",
     "mlp.hook_expert_weights"],
)  # fmt: skip
def test_a_hook_at_any_site_takes_effect(lm, site):
    generator = torch.Generator().manual_seed(0)

    def disturb(x, hook):
        return x * (1 + 0.5 * torch.rand(x.shape, generator=generator))

    bridge = bridge_of(lm)
    changed = bridge.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.{site}", disturb)])
    assert (changed - bridge(TOKENS)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "site", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_v", "attn.hook_z"]
)
def test_the_same_patch_does_the_same_in_the_bridge_and_in_the_model(lm, site):
    hooks = [(f"blocks.1.{site}", lambda x, hook: x.flip(1))]
    expected = lm.run_with_hooks(TOKENS, fwd_hooks=hooks)
    patched = bridge_of(lm).run_with_hooks(TOKENS, fwd_hooks=hooks)
    torch.testing.assert_close(patched, expected, atol=ROUNDING, rtol=0)
    assert (patched - lm(TOKENS)).abs().max() > 1e-2


def test_a_hook_that_reroutes_sends_tokens_where_the_model_would(lm):
    everything_to = torch.tensor([1, 3])
    name = "blocks.1.mlp.hook_expert_indices"
    hooks = [(name, lambda ids, hook: everything_to.expand_as(ids))]
    bridge = bridge_of(lm)
    rerouted = bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)
    expected = lm.run_with_hooks(TOKENS, fwd_hooks=hooks)
    torch.testing.assert_close(rerouted, expected, atol=ROUNDING, rtol=0)

    def forbid(logits, hook):
        return logits.index_fill(-1, torch.tensor([0, 2]), float("-inf"))

    forbidden = bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.mlp.gate.hook_out", forbid)])
    torch.testing.assert_close(forbidden, expected, atol=ROUNDING, rtol=0)


def test_an_expert_whose_gate_is_taken_away_adds_nothing(lm):
    def silence(gates, hook):
        return gates.index_fill(-1, torch.tensor([2]), 0)

    bridge = bridge_of(lm)
    hooks = [("blocks.0.mlp.hook_expert_weights", silence)]
    silenced = bridge.run_with_hooks(TOKENS, fwd_hooks=hooks)
    lm.blocks[0].mlp.experts.W_out[2].zero_()
    torch.testing.assert_close(silenced, lm(TOKENS), atol=ROUNDING, rtol=0)


def test_patching_tools_find_where_two_checkpoints_part(lm):
    """B is A but for the attention of block 1: patched streams of A cure B from block 2 on."""
    other = made()
    other.blocks[1].attn.W_out.copy_(made(seed=9).blocks[1].attn.W_out)
    bridge_a, bridge_b = bridge_of(lm), bridge_of(other)
    logits_a, cache_a = bridge_a.run_with_cache(TOKENS)

    def distance(logits):
        return (logits[:, -1] - logits_a[:, -1]).abs().max()

    kept = distance(bridge_b(TOKENS))
    assert kept > 1e-2
    at = patching.get_act_patch_resid_pre(bridge_b, TOKENS, cache_a, distance)
    assert at.shape == (3, 12)
    # Up to the block that differs the streams are the same, so a patch does nothing.
    torch.testing.assert_close(at[:2], kept.expand(2, 12), atol=ROUNDING, rtol=0)
    assert at[2, -1] < 0.9 * kept
    out = patching.get_act_patch_attn_out(bridge_b, TOKENS, cache_a, distance)
    assert out.argmin() == 12 + 11


def test_generation_with_a_cache_of_keys_is_that_without(lm):
    tokens = TOKENS[:1, :4]
    for _ in range(5):
        tokens = torch.cat([tokens, lm(tokens)[:, -1:].argmax(-1)], 1)
    made_there = bridge_of(lm).generate(
        TOKENS[:1, :4], max_new_tokens=5, do_sample=False, stop_at_eos=False, verbose=False
    )
    assert torch.equal(made_there, tokens)


def test_a_copy_of_a_bridge_computes_the_same(lm):
    bridge = bridge_of(lm)
    assert torch.equal(copy.deepcopy(bridge)(TOKENS), bridge(TOKENS))


def test_gradients_arrive_at_every_hook_of_the_stream(lm, tmp_path):
    bridge = bridge_of(load_hf(save_hf(lm, tmp_path / "dbrx")))
    with torch.enable_grad():
        _, cache = bridge.run_with_cache(
            TOKENS, return_type="loss", incl_bwd=True, names_filter=lambda n: "resid" in n
        )
    for layer in range(3):
        for site in ("resid_pre", "resid_mid", "resid_post"):
            assert cache[f"blocks.{layer}.hook_{site}_grad"].abs().max() > 0


def test_what_a_bridge_caches_is_an_activation_cache(folder):
    _, cache = boot(folder).run_with_cache(TOKENS)
    assert isinstance(cache, ActivationCache)
    assert cache["pattern", 0].shape == (2, 4, 12, 12)
    torch.testing.assert_close(cache["pattern", 0].sum(-1), torch.ones(2, 4, 12))
