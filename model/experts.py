"""The experts of one layer: gated linear units, each for the tokens routed to it, none dropped.

Needs   hidden states (batch, pos, d_model), ids and gates (batch, pos, k).
Yields  the gate-weighted sum of the chosen experts' outputs (batch, pos, d_model).

An expert computes (silu(x W_gate) * (x W_in)) W_out. Tokens are sorted by expert, so that each
product over all experts is one grouped matrix product; `experts_reference` is the same sum written
as a loop, to check against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from model.config import MoEConfig
from model.product import grouped_product

# Shapes: T tokens (batch x pos), D d_model, F d_mlp, E experts, K experts per token, N = T x K
# assignments.


class Experts(nn.Module):
    """All experts of a layer.

    The weights of `gate` and `in` lie side by side, so that one product makes both.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        E, D, H = config.num_experts, config.d_model, config.d_mlp
        self.num_experts = E
        self.W_gate_in = nn.Parameter(torch.empty(E, D, 2 * H))
        self.W_out = nn.Parameter(torch.empty(E, H, D))
        self.hook_pre = HookPoint()
        self.hook_pre_linear = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:
        """Gate-weighted sum of expert outputs, (T, d_model), in the dtype of `x_TD`."""
        order_N, ends_E = sort_by_expert(ids_TK, self.num_experts)
        inverse_N = torch.empty_like(order_N)
        inverse_N.scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
        x_ND = _Dispatch.apply(x_TD, order_N, inverse_N.view_as(ids_TK))
        gate_NF, in_NF = grouped_product(x_ND, self.W_gate_in, ends_E).chunk(2, dim=-1)
        h_NF = self.hook_post(gated_unit(self.hook_pre(gate_NF), self.hook_pre_linear(in_NF)))
        # The gate acts on the hidden layer: W_out is linear, and the hidden layer is the narrower
        # side.
        gates_N = _Permute.apply(gates_TK.flatten().to(h_NF.dtype), order_N, inverse_N)
        y_ND = grouped_product(h_NF * gates_N.unsqueeze(1), self.W_out, ends_E)
        return _Combine.apply(y_ND, order_N, inverse_N.view_as(ids_TK))


def sort_by_expert(ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Order of the assignments by expert, and where each expert's stretch ends.

    Args:
        ids_TK: chosen experts, (tokens, k), int64.

    Returns:
        order (tokens * k,): index into the flattened ids, stable within an expert; ends (experts,)
        int32: exclusive.

    Example:
        >>> order, ends = sort_by_expert(torch.tensor([[1], [0], [1]]), 3)
        >>> order.tolist(), ends.tolist()
        ([1, 0, 2], [1, 3, 3])
    """
    ids_N = ids_TK.flatten()
    order_N = ids_N.argsort(stable=True)
    # Not bincount: it sizes its result from the data, so the host would wait for the GPU.
    counts_E = torch.zeros(num_experts, dtype=torch.int32, device=ids_N.device)
    counts_E.scatter_add_(0, ids_N, torch.ones_like(ids_N, dtype=torch.int32))
    return order_N, counts_E.cumsum(0, dtype=torch.int32)


def gated_unit(gate_NF: Tensor, in_NF: Tensor) -> Tensor:
    """silu(gate) * in, elementwise.

    Example:
        >>> gated_unit(torch.tensor([0.0]), torch.tensor([3.0])).item()
        0.0
    """
    # silu of a strided tensor runs without vector units on CPU: four times the time of a copy and
    # the rest.
    return F.silu(gate_NF.contiguous()) * in_NF


def experts_reference(experts: Experts, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """What `Experts.forward` computes, one expert and one plain product at a time."""
    # Summed in the order of experts, without grouping, sorting or early gates: slow and plain.
    out_TD = torch.zeros_like(x_TD)
    for e in range(experts.num_experts):
        token, slot = (ids_TK == e).nonzero(as_tuple=True)
        gate, up = (x_TD[token] @ experts.W_gate_in[e]).chunk(2, dim=-1)
        y = (F.silu(gate) * up) @ experts.W_out[e]
        out_TD = out_TD.index_add(0, token, y * gates_TK[token, slot, None].to(y.dtype))
    return out_TD


def _sum_rows(x_ND: Tensor, index_TK: Tensor) -> Tensor:
    """Row t of the result is the sum over k of row index[t, k], in one pass."""
    return F.embedding_bag(index_TK, x_ND, mode="sum")


class _Dispatch(torch.autograd.Function):
    """Row n of the result is the token of assignment order[n].

    Plain indexing would sum its gradient with atomic adds, in an order that changes from run to run
    on a GPU; undoing the permutation and summing over k is exact, repeatable and faster.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, inverse_TK: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_TK)
        return x_TD.index_select(0, order_N // inverse_TK.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_TK,) = ctx.saved_tensors
        return _sum_rows(grads[0], inverse_TK), None, None


class _Combine(torch.autograd.Function):
    """Row t of the result is the sum over token t's assignments: the way back from `_Dispatch`."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, order_N: Tensor, inverse_TK: Tensor) -> Tensor:
        ctx.save_for_backward(order_N)
        ctx.k = inverse_TK.shape[1]
        return _sum_rows(y_ND, inverse_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order_N,) = ctx.saved_tensors
        return grads[0].index_select(0, order_N // ctx.k), None, None


class _Permute(torch.autograd.Function):
    """Entry n of the result is entry index[n]; the gradient returns through the inverse."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, index_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return x_N.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse_N), None, None
