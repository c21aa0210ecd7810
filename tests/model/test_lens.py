"""TransformerLens's tools on the model."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import ActivationCache

from model.config import MoEConfig
from model.lm import MoELM

CONFIG = MoEConfig(
    d_vocab=50, d_model=24, n_layers=3, n_heads=4, n_key_value_heads=2, d_mlp=16,
    num_experts=4, experts_per_token=2, n_ctx=32, init_range=0.2,
)  # fmt: skip
TOKENS = torch.arange(24).view(2, 12) * 7 % 50


@pytest.fixture
def lm() -> MoELM:
    made = MoELM(CONFIG).eval()
    with torch.no_grad():
        # A weight other than 1, so that a tool that forgets it is found out.
        made.ln_final.weight.copy_(torch.linspace(0.5, 2, 24))
    return made


def test_caching_changes_the_logits_by_rounding_only(lm):
    logits, cache = lm.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, lm(TOKENS), atol=1e-5, rtol=0)
    assert not any(point.fwd_hooks for point in lm.hook_points())
    only, cache = lm.run_with_cache(TOKENS, names_filter=lambda n: n.endswith("expert_indices"))
    assert list(cache) == [f"blocks.{i}.mlp.router.hook_expert_indices" for i in range(3)]
    assert torch.equal(only, lm(TOKENS))


def test_the_residual_stream_is_the_sum_of_what_was_added(lm):
    logits, cache = lm.run_with_cache(TOKENS)
    lens = ActivationCache(cache, lm)
    parts, labels = lens.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    torch.testing.assert_close(parts.sum(0), lens["resid_post", -1])
    streams = lens.accumulated_resid(incl_mid=True)
    assert streams.shape == (7, 2, 12, 24)
    torch.testing.assert_close(streams[-1], lens["resid_post", 2])
    last = lens.accumulated_resid(apply_ln=True)[-1]
    torch.testing.assert_close(last @ lm.W_U, logits)


def test_parts_of_a_logit_add_up_to_it(lm):
    logits, cache = lm.run_with_cache(TOKENS)
    lens = ActivationCache(cache, lm)
    attributed = lens.logit_attrs(lens.decompose_resid(), tokens=TOKENS)
    expected = logits.gather(-1, TOKENS.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(attributed.sum(0), expected, atol=1e-4, rtol=0)


def test_heads_add_up_to_their_layers_attention(lm):
    _, cache = lm.run_with_cache(TOKENS)
    heads = ActivationCache(cache, lm).stack_head_results(layer=1)
    assert heads.shape == (4, 2, 12, 24)
    torch.testing.assert_close(heads.sum(0), cache["blocks.0.hook_attn_out"])


def test_the_logit_lens_ends_at_the_logits(lm):
    logits, cache = lm.run_with_cache(TOKENS)
    result = ActivationCache(cache, lm).logit_lens(positions=None)
    assert result.labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    torch.testing.assert_close(result.readout.values[-1], logits, atol=1e-5, rtol=0)


def test_the_full_decomposition_adds_up_where_experts_stay_whole(lm):
    _, cache = lm.run_with_cache(TOKENS)
    lens = ActivationCache(cache, lm)
    parts = lens.get_full_resid_decomposition(expand_neurons=False)
    torch.testing.assert_close(parts.sum(0), lens["resid_post", -1])


def test_a_hook_that_reroutes_sends_every_token_where_it_says(lm):
    everything_to = torch.tensor([1, 3])
    logits = lm.run_with_hooks(
        TOKENS,
        fwd_hooks=[
            ("blocks.1.mlp.hook_expert_indices", lambda ids, hook: everything_to.expand_as(ids))
        ],
    )
    assert (logits - lm(TOKENS)).abs().max() > 1e-3

    # The same, by removing the other experts from the choice.
    def forbid(router_logits, hook):
        return router_logits.index_fill(-1, torch.tensor([0, 2]), float("-inf"))

    forbidden = lm.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.mlp.router.hook_logits", forbid)])
    torch.testing.assert_close(logits, forbidden, atol=1e-5, rtol=0)


def test_a_lesioned_expert_adds_nothing(lm):
    def silence(gates, hook):
        ids = hook.ctx["ids"]
        return gates.where(ids != 2, 0)

    def remember(ids, hook):
        lm.hook_dict["blocks.0.mlp.router.hook_expert_weights"].ctx["ids"] = ids

    logits = lm.run_with_hooks(
        TOKENS,
        fwd_hooks=[
            ("blocks.0.mlp.router.hook_expert_indices", remember),
            ("blocks.0.mlp.router.hook_expert_weights", silence),
        ],
    )
    with torch.no_grad():
        lm.blocks[0].mlp.experts.W_out[2].zero_()
    torch.testing.assert_close(logits, lm(TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "site",
    ["hook_resid_mid", "attn.hook_q", "attn.hook_rot_k", "attn.hook_v", "attn.hook_z",
     "attn.hook_attn_scores", "attn.hook_pattern", "ln2.hook_scale", "ln2.hook_normalized",
     "mlp.router.hook_logits", "mlp.router.hook_probs", "mlp.router.hook_expert_weights",
     "mlp.experts.hook_pre", "mlp.experts.hook_pre_linear", "mlp.experts.hook_post",
     "hook_mlp_out"],
)  # fmt: skip
def test_a_hook_at_any_site_takes_effect(lm, site):
    generator = torch.Generator().manual_seed(0)

    def disturb(x, hook):
        return x * (1 + 0.5 * torch.rand(x.shape, generator=generator))

    changed = lm.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.1.{site}", disturb)])
    assert (changed - lm(TOKENS)).abs().max() > 1e-4


def test_every_float_site_has_a_gradient(lm):
    _, cache = lm.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
    for name, value in list(cache.items()):
        if name.endswith("_grad") or not value.is_floating_point():
            continue
        assert cache[f"{name}_grad"].shape == value.shape, name


def test_a_gradient_at_a_hook_is_the_slope_of_the_loss(lm):
    lm.double()
    name = "blocks.1.hook_resid_mid"
    _, cache = lm.run_with_cache(
        TOKENS, return_type="loss", incl_bwd=True, names_filter=lambda n: n == name
    )

    def loss_at(amount):
        def shift(x, hook):
            shifted = x.clone()
            shifted[1, 4, 5] += amount
            return shifted

        return lm.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=[(name, shift)]).item()

    slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2
    assert cache[f"{name}_grad"][1, 4, 5].item() == pytest.approx(slope, rel=1e-2)
