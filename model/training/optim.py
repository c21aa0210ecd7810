"""AdamW over a model's parameters, decay on matrices alone.

Needs   a model, learning rate, decay.
Yields  a torch optimizer with two groups.

Source: Loshchilov & Hutter 2019, arXiv:1711.05101; norms and embeddings are not decayed, as usual
since GPT-3.
"""

from __future__ import annotations

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, gains and embeddings do not.

    Args:
        lr: peak learning rate; the schedule sets each step's own.
        weight_decay: share of a weight lost a step, times the learning rate.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and "embed." not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
