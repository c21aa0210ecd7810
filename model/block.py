"""One block: attention, then a mixture of experts, each added to the residual stream.

Needs   the residual stream (batch, pos, d_model) and the rotary tables.
Yields  the stream after the block, and the layer's two router losses (2,): balance, z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from model.attention import Attention
from model.config import MoEConfig
from model.experts import Experts
from model.norm import LayerNorm
from model.router import Router, balance_loss, z_loss


class MoE(nn.Module):
    """A router and its experts."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Experts' output (batch, pos, d_model), and (balance loss, z-loss) as (2,)."""
        routing = self.router(x_BPD)
        y_TD = self.experts(
            x_BPD.flatten(0, 1), routing.ids_BPK.flatten(0, 1), routing.gates_BPK.flatten(0, 1)
        )
        return y_TD.view_as(x_BPD), torch.stack([balance_loss(routing), z_loss(routing)])


class Block(nn.Module):
    """x + attention(norm(x)), then that plus experts(norm(that))."""

    hook_out_is_single_residual_stream = True
    """TransformerLens's logit lens asks for this before it reads a stream."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config)
        self.attn = Attention(config)
        self.ln2 = LayerNorm(config)
        self.mlp = MoE(config)
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, x_BPD: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The stream after the block (batch, pos, d_model), and the router losses (2,)."""
        x_BPD = self.hook_resid_pre(x_BPD)
        x_BPD = self.hook_resid_mid(x_BPD + self.hook_attn_out(self.attn(self.ln1(x_BPD), rotary)))
        y_BPD, router_losses = self.mlp(self.ln2(x_BPD))
        return self.hook_resid_post(x_BPD + self.hook_mlp_out(y_BPD)), router_losses
