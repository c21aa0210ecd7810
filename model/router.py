"""The router of one layer: which experts each token goes to, and with what weight.

Needs   hidden states (batch, pos, d_model).
Yields  Routing: logits and softmax over all experts, chosen ids, gates.

Logits are one linear map without bias. The softmax runs in float32 over all experts, the k most
probable are chosen, and their probabilities are divided by their sum (L1), as in DBRX.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from model.config import MoEConfig
from model.product import linear

# Shapes: B batch, P position, D d_model, E experts in the layer, K experts per token.


class Routing(NamedTuple):
    """What a router decided for each token of a batch."""

    logits_BPE: Tensor
    """Router logits, float32."""

    probs_BPE: Tensor
    """Softmax over all experts, float32."""

    ids_BPK: Tensor
    """Chosen experts, int64, the most probable first."""

    gates_BPK: Tensor
    """Weights of the chosen experts, float32; they sum to 1 for each token."""


class Router(nn.Module):
    """Chooses k of E experts for every token."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        self.hook_logits = HookPoint()
        self.hook_probs = HookPoint()
        self.hook_expert_indices = HookPoint()
        self.hook_expert_weights = HookPoint()

    def forward(self, x_BPD: Tensor) -> Routing:
        """Routing of hidden states (batch, pos, d_model)."""
        logits_BPE = self.hook_logits(linear(x_BPD, self.weight).float())
        probs_BPE = self.hook_probs(logits_BPE.softmax(-1))
        # Gates are gathered by the ids after their hook, so that an experiment that changes the
        # choice gets the gates of the experts it chose.
        ids_BPK = self.hook_expert_indices(probs_BPE.topk(self.experts_per_token, dim=-1).indices)
        chosen_BPK = probs_BPE.gather(-1, ids_BPK)
        gates_BPK = self.hook_expert_weights(chosen_BPK / chosen_BPK.sum(-1, keepdim=True))
        return Routing(logits_BPE, probs_BPE, ids_BPK, gates_BPK)


def balance_loss(routing: Routing) -> Tensor:
    """How unevenly one layer loads its experts: 1 when even, up to E when all goes to one.

    E * sum_i f_i P_i, where f_i is the share of assignments that expert i received and P_i its mean
    probability. The gradient flows through P alone.

    Returns:
        Scalar, dimensionless.

    Hugging Face's `load_balancing_loss_func`, given the logits of one layer, is k times this; given
    several layers it pools them first, so that two opposite collapses look even.

    Source: Fedus et al. 2022, section 2.2, arXiv:2101.03961, with f divided by k as well.

    Example:
        >>> logits = torch.zeros(1, 8, 4)
        >>> ids = torch.arange(8).view(1, 8, 1) % 4
        >>> balance_loss(Routing(logits, logits.softmax(-1), ids, torch.ones(1, 8, 1))).item()
        1.0
    """
    E = routing.probs_BPE.shape[-1]
    ids_N = routing.ids_BPK.flatten()
    load_E = torch.zeros(E, dtype=torch.float32, device=ids_N.device)
    load_E = load_E.index_add(0, ids_N, torch.ones_like(ids_N, dtype=torch.float32)) / ids_N.numel()
    return E * (load_E * routing.probs_BPE.flatten(0, -2).mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """Mean square of the logsumexp of the router logits; keeps logits small.

    Returns:
        Scalar, logits squared.

    Source: Zoph et al. 2022, arXiv:2202.08906.

    Example:
        >>> one = torch.ones(1, 2, 1)
        >>> z_loss(Routing(0 * one, one, 0 * one, one)).item()
        0.0
    """
    return routing.logits_BPE.logsumexp(-1).square().mean()
