"""Facts about the experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import MoEConfig
from model.experts import Experts, experts_reference, sort_by_expert

CONFIG = MoEConfig(
    d_vocab=8, d_model=32, n_layers=1, n_heads=2, n_key_value_heads=1, d_mlp=24,
    num_experts=4, experts_per_token=2, n_ctx=8,
)  # fmt: skip
TOKENS = 600


def world(dtype: torch.dtype) -> tuple[Experts, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    experts = Experts(CONFIG)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    x = torch.randn(TOKENS, CONFIG.d_model, generator=generator)
    gates = torch.rand(TOKENS, CONFIG.experts_per_token, generator=generator)
    return experts.to(dtype), x.to(dtype).requires_grad_(), gates.to(dtype).requires_grad_()


def choices(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(TOKENS, CONFIG.num_experts, generator=generator).argsort(-1)[:, :2]
    if kind == "one without tokens":
        return ids.where(ids != 2, 3)
    if kind == "one gets everything":
        return torch.full_like(ids, 1)
    return ids


@pytest.mark.parametrize("kind", ["spread", "one without tokens", "one gets everything"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Absolute and relative; outputs are of size 1 to 20. float64 and float32: rounding of sums of
    # 24 to 64 products.
    # bfloat16: 8 bits, and the gate is rounded in before the output product instead of after it.
    [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.1)],
    ids=["float64", "float32", "bfloat16"],
)
def test_grouped_experts_are_the_plain_sum_forward_and_backward(kind, dtype, tolerance):
    experts, x, gates = world(dtype)
    ids = choices(kind)
    inputs = (x, gates, *experts.parameters())
    got, want = experts(x, ids, gates), experts_reference(experts, x, ids, gates)
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    # A mean over tokens, so that gradients of weights, sums over tokens, are of size 1.
    weight = torch.linspace(-1, 1, got.numel()).view_as(got).to(dtype) / 30
    got_grads = torch.autograd.grad((got * weight).sum(), inputs)
    want_grads = torch.autograd.grad((want * weight).sum(), inputs)
    for g, w in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, atol=tolerance, rtol=tolerance)
    if kind == "one without tokens":
        assert all(g[2].abs().max() == 0 for g in got_grads[2:])


def test_a_gate_of_zero_silences_its_expert():
    experts, x, gates = world(torch.float32)
    ids = choices("spread")
    silent = gates.detach().clone()
    silent[:, 1] = 0
    only_first = experts(x, ids[:, :1], silent[:, :1])
    torch.testing.assert_close(experts(x, ids, silent), only_first, atol=1e-5, rtol=0)


def test_tokens_are_sorted_by_expert_and_keep_their_order_within():
    ids = torch.tensor([[2, 0], [0, 2], [2, 1]])
    order, ends = sort_by_expert(ids, 4)
    assert ids.flatten()[order].tolist() == [0, 0, 1, 2, 2, 2]
    assert order.tolist() == [1, 2, 5, 0, 3, 4]
    assert ends.tolist() == [2, 3, 6, 6]


def test_a_hook_on_the_hidden_layer_sees_every_assignment_and_takes_effect():
    experts, x, gates = world(torch.float32)
    ids, seen = choices("spread"), []

    def silence(h, hook):
        seen.append(h.shape)
        return torch.zeros_like(h)

    experts.hook_post.add_hook(silence)
    assert experts(x, ids, gates).abs().max() == 0
    assert seen == [(TOKENS * 2, CONFIG.d_mlp)]
