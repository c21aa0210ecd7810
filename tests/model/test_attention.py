"""Facts about attention and normalisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DbrxConfig
from transformers.models.dbrx.modeling_dbrx import (
    DbrxAttention,
    DbrxRotaryEmbedding,
    apply_rotary_pos_emb,
)

from model.attention import Attention, rotary_tables, rotate
from model.config import MoEConfig
from model.hf_config import config_to_hf
from model.norm import LayerNorm

GROUPED = MoEConfig(
    d_vocab=8, d_model=48, n_layers=1, n_heads=6, n_key_value_heads=2, d_mlp=2,
    num_experts=2, experts_per_token=1, n_ctx=32, rope_theta=10_000.0,
    clip_qkv=0.7,
)  # fmt: skip
SHAPES = {
    "grouped": GROUPED,
    "one key for all": replace(GROUPED, n_key_value_heads=1),
    "one key each": replace(GROUPED, n_key_value_heads=6, clip_qkv=None),
}


def attention_of(config: MoEConfig) -> Attention:
    attention = Attention(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return attention


def stream(config: MoEConfig, length: int = 20) -> Tensor:
    return torch.randn(3, length, config.d_model, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_attention_is_hugging_faces(config):
    ours = attention_of(config)
    hf_config = DbrxConfig(**config_to_hf(config))
    hf_config._attn_implementation = "eager"
    theirs = DbrxAttention(hf_config, layer_idx=0)
    with torch.no_grad():
        theirs.Wqkv.weight.copy_(ours.W_qkv)
        theirs.out_proj.weight.copy_(ours.W_out)
    x = stream(config)
    position = torch.arange(x.shape[1])[None]
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)[None, None]
    expected, pattern = theirs(
        x, attention_mask=mask, position_embeddings=DbrxRotaryEmbedding(hf_config)(x, position)
    )
    got = ours(x, rotary_tables(config, x.shape[1]))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    seen = []
    ours.hook_pattern.add_hook(lambda p, hook: seen.append(p))
    ours(x, rotary_tables(config, x.shape[1]))
    torch.testing.assert_close(seen[0], pattern, atol=1e-6, rtol=0)


def test_rotation_is_hugging_faces_and_keeps_norms():
    hf_config = DbrxConfig(**config_to_hf(GROUPED))
    q = torch.randn(2, 9, 6, 8, generator=torch.Generator().manual_seed(0))
    tables = DbrxRotaryEmbedding(hf_config)(q, torch.arange(9)[None])
    expected, _ = apply_rotary_pos_emb(q, q, *tables, unsqueeze_dim=2)
    got = rotate(q, rotary_tables(GROUPED, 9))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.norm(dim=-1), q.norm(dim=-1))


def test_the_derivative_of_a_rotation_is_its_derivative():
    tables = tuple(t.double() for t in rotary_tables(GROUPED, 5))
    q = torch.randn(1, 5, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: rotate(q, tables), (q,))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_hooked_and_fused_attention_agree_forward_and_backward(config, dtype, tolerance):
    attention = attention_of(config).to(dtype)
    x = stream(config).to(dtype).requires_grad_()
    rotary = rotary_tables(config, x.shape[1])
    inputs = (x, *attention.parameters())
    fused = attention(x, rotary)
    fused_grads = torch.autograd.grad(fused.square().mean(), inputs)
    attention.hook_pattern.add_hook(lambda p, hook: None)
    hooked = attention(x, rotary)
    hooked_grads = torch.autograd.grad(hooked.square().mean(), inputs)
    torch.testing.assert_close(hooked, fused, atol=tolerance, rtol=tolerance)
    for h, f in zip(hooked_grads, fused_grads, strict=True):
        torch.testing.assert_close(h, f, atol=tolerance, rtol=tolerance)


def test_no_position_sees_a_later_one():
    attention, x = attention_of(GROUPED), stream(GROUPED)
    changed = x.clone()
    changed[:, 12:] += 1
    rotary = rotary_tables(GROUPED, x.shape[1])
    before, after = attention(x, rotary), attention(changed, rotary)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_a_changed_pattern_takes_effect():
    attention, x = attention_of(GROUPED), stream(GROUPED)
    attention.hook_pattern.add_hook(lambda p, hook: torch.zeros_like(p))
    assert attention(x, rotary_tables(GROUPED, x.shape[1])).abs().max() == 0


def test_values_beyond_the_clamp_are_held_and_get_no_gradient():
    attention = attention_of(replace(GROUPED, clip_qkv=0.01))
    seen = []
    attention.hook_q.add_hook(lambda q, hook: seen.append(q))
    x = 100 * stream(GROUPED).requires_grad_()
    attention(x, rotary_tables(GROUPED, x.shape[1])).sum().backward()
    assert seen[0].abs().max().item() == pytest.approx(0.01)
    assert attention.W_qkv.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.05)]
)
def test_hooked_and_fused_normalisation_agree(dtype, tolerance):
    norm = LayerNorm(GROUPED).to(dtype)
    x = 3 * stream(GROUPED).to(dtype) + 1
    fused = norm(x)
    scales = []
    norm.hook_scale.add_hook(lambda s, hook: scales.append(s))
    torch.testing.assert_close(norm(x), fused, atol=4 * tolerance, rtol=tolerance)
    expected = (x.float().var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(scales[0].float(), expected)


def test_a_frozen_scale_takes_effect():
    norm, x = LayerNorm(GROUPED), stream(GROUPED)
    norm.hook_scale.add_hook(lambda s, hook: torch.full_like(s, 2.0))
    torch.testing.assert_close(norm(x), (x - x.mean(-1, keepdim=True)) / 2)
