"""Facts about the router and its losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.dbrx.modeling_dbrx import load_balancing_loss_func

from model.config import MoEConfig
from model.router import Router, Routing, balance_loss, z_loss

CONFIG = MoEConfig(
    d_vocab=8, d_model=2, n_layers=1, n_heads=1, n_key_value_heads=1, d_mlp=2,
    num_experts=3, experts_per_token=2, n_ctx=8,
)  # fmt: skip


def router_of(weight: list[list[float]]) -> Router:
    router = Router(CONFIG)
    with torch.no_grad():
        router.weight.copy_(torch.tensor(weight))
    return router


def routing_of(logits: torch.Tensor, k: int) -> Routing:
    probs = logits.softmax(-1)
    chosen = probs.topk(k, dim=-1)
    return Routing(logits, probs, chosen.indices, chosen.values)


def test_a_token_is_routed_as_by_hand():
    # The logits of (1, 2) are 1 and 2 and ln 4 at the weights below.
    router = router_of([[1.0, 0.0], [0.0, 1.0], [0.0, math.log(4) / 2]])
    routing = router(torch.tensor([[[1.0, 2.0]]]))
    total = math.e + math.e**2 + 4
    by_hand = [math.e / total, math.e**2 / total, 4 / total]
    torch.testing.assert_close(routing.probs_BPE, torch.tensor([[by_hand]]))
    assert routing.ids_BPK.tolist() == [[[1, 2]]]
    gates = [math.e**2 / (math.e**2 + 4), 4 / (math.e**2 + 4)]
    torch.testing.assert_close(routing.gates_BPK, torch.tensor([[gates]]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    tokens=st.integers(1, 20),
)
def test_the_router_is_softmax_top_k_and_l1(seed, experts, k, tokens):
    k = min(k, experts)
    config = MoEConfig(
        d_vocab=8, d_model=6, n_layers=1, n_heads=1, n_key_value_heads=1, d_mlp=2,
        num_experts=experts, experts_per_token=k, n_ctx=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    router = Router(config)
    with torch.no_grad():
        router.weight.copy_(torch.randn(experts, 6, generator=generator))
    x = torch.randn(2, tokens, 6, generator=generator)
    routing = router(x)
    logits = x @ router.weight.T
    values, ids = torch.topk(F.softmax(logits, dim=-1), k)
    torch.testing.assert_close(routing.logits_BPE, logits)
    assert torch.equal(routing.ids_BPK, ids)
    torch.testing.assert_close(routing.gates_BPK, F.normalize(values, p=1, dim=-1))


def test_the_softmax_is_float32_in_a_bfloat16_model():
    routing = router_of([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).to(torch.bfloat16)(
        torch.ones(1, 1, 2, dtype=torch.bfloat16)
    )
    assert routing.probs_BPE.dtype == routing.gates_BPK.dtype == torch.float32


def test_gates_follow_the_experts_that_a_hook_chooses():
    router = router_of([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    router.hook_expert_indices.add_hook(lambda ids, hook: torch.tensor([[[1, 2]]]))
    routing = router(torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(
        routing.gates_BPK, torch.tensor([[[1 / (1 + math.e), math.e / (1 + math.e)]]])
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), experts=st.integers(2, 9), k=st.integers(1, 4))
def test_hugging_faces_balance_loss_of_one_layer_is_k_times_ours(seed, experts, k):
    k = min(k, experts)
    logits = torch.randn(3, 7, experts, generator=torch.Generator().manual_seed(seed)) * 2
    theirs = load_balancing_loss_func((logits.flatten(0, 1),), experts, k)
    torch.testing.assert_close(theirs, k * balance_loss(routing_of(logits, k)))


def test_opposite_collapses_do_not_cancel_between_layers():
    to_first, to_second = torch.tensor([[9.0, 0.0]] * 8), torch.tensor([[0.0, 9.0]] * 8)
    ours = [
        balance_loss(routing_of(layer.unsqueeze(0), 1)).item() for layer in (to_first, to_second)
    ]
    assert ours == pytest.approx([2, 2], abs=1e-3)
    assert load_balancing_loss_func((to_first, to_second), 2, 1).item() == pytest.approx(
        1, abs=1e-3
    )


def test_the_balance_loss_pushes_probability_and_not_counts():
    logits = torch.tensor([[[2.0, 0.0, -1.0]] * 4]).requires_grad_()
    (grad,) = torch.autograd.grad(balance_loss(routing_of(logits, 1)), logits)
    assert (grad[..., 0] > 0).all()
    assert (grad[..., 1:] < 0).all()


def test_the_z_loss_is_the_mean_square_of_the_logsumexp():
    logits = torch.log(torch.tensor([[[1.0, 1.0], [1.0, math.e**2 - 1]]]))
    assert z_loss(routing_of(logits, 1)).item() == pytest.approx((math.log(2) ** 2 + 4) / 2)
