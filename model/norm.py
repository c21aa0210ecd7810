"""Layer normalisation without bias.

Needs   hidden states (..., d_model).
Yields  (x - mean) / scale * weight, where scale = sqrt(variance + eps).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from model.attention import is_hooked
from model.config import MoEConfig


class LayerNorm(nn.Module):
    """Bias-free layer normalisation; the fused kernel runs unless something hooks the scale."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x`, same shape and dtype."""
        if not is_hooked(self.hook_scale):
            normalized = F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)
        else:
            wide = x.to(torch.promote_types(torch.float32, x.dtype))
            centred = wide - wide.mean(-1, keepdim=True)
            scale = self.hook_scale((centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
            normalized = (centred / scale).to(x.dtype) * self.weight.to(x.dtype)
        return self.hook_normalized(normalized)
