"""Grouped-query attention with rotary positions and clamped queries, keys and values.

Needs   normalised hidden states (batch, pos, d_model) and the rotary tables of their positions.
Yields  the attention output (batch, pos, d_model).

The fused kernel runs unless something hooks the scores or the pattern, which it never forms; then
the same sum is computed step by step. Both are the same function to rounding.

Source: rotary positions, Su et al. 2021, arXiv:2104.09864 (halves rotated, as in Llama); grouped
queries, Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from model.config import MoEConfig
from model.product import linear

# Shapes: B batch, P position, D d_model, H heads, G key-value heads, d d_head.


class Attention(nn.Module):
    """Causal self-attention of one block."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.W_qkv = nn.Parameter(torch.empty(config.d_qkv, config.d_model))
        self.W_out = nn.Parameter(torch.empty(config.d_model, config.d_model))
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_rot_q = HookPoint()
        self.hook_rot_k = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()

    @property
    def W_O(self) -> Tensor:
        """Output matrices of the heads, (head, d_head, d_model), as TransformerLens has them."""
        return self.W_out.unflatten(1, (self.config.n_heads, self.config.d_head)).permute(1, 2, 0)

    def forward(self, x_BPD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attention output (batch, pos, d_model)."""
        c = self.config
        qkv = linear(x_BPD, self.W_qkv)
        if c.clip_qkv is not None:
            # A clamp, whose gradient is one operation instead of the four of `clamp`.
            qkv = F.hardtanh(qkv, -c.clip_qkv, c.clip_qkv)
        kv_width = c.n_key_value_heads * c.d_head
        q, k, v = (
            part.unflatten(-1, (-1, c.d_head))
            for part in qkv.split([c.d_model, kv_width, kv_width], dim=-1)
        )
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        q = self.hook_rot_q(rotate(q, rotary))
        k = self.hook_rot_k(rotate(k, rotary))
        z = self.hook_z(self._mix(q, k, v))
        return linear(z.flatten(-2), self.W_out)

    def _mix(self, q_BPHd: Tensor, k_BPGd: Tensor, v_BPGd: Tensor) -> Tensor:
        """Values mixed by attention, (batch, pos, head, d_head)."""
        q, k, v = (t.transpose(1, 2) for t in (q_BPHd, k_BPGd, v_BPGd))
        repeats = self.config.n_heads // self.config.n_key_value_heads
        if not (is_hooked(self.hook_attn_scores) or is_hooked(self.hook_pattern)):
            # The kernels for float32 on a GPU know no groups, and the fallback would form the
            # scores.
            if repeats > 1 and q.is_cuda and q.dtype == torch.float32:
                k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
            z = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=k.shape[1] < q.shape[1]
            )
            return z.transpose(1, 2)
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        scores = q @ k.mT / self.config.d_head**0.5
        P = scores.shape[-1]
        future = torch.ones(P, P, dtype=torch.bool, device=q.device).triu(1)
        scores = self.hook_attn_scores(scores.masked_fill(future, float("-inf")))
        wide = torch.promote_types(torch.float32, v.dtype)
        pattern = self.hook_pattern(scores.softmax(-1, dtype=wide).to(v.dtype))
        return (pattern @ v).transpose(1, 2)


def is_hooked(point: HookPoint) -> bool:
    """Whether anything, by TransformerLens or by torch, listens at this point."""
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks)


def rotary_tables(
    config: MoEConfig, length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles of the first positions, each (length, d_head), float32.

    Made anew in every forward pass (its cost is not measurable): tables kept in the model would
    lose their precision for good when the model passes through bfloat16, and would need filling
    after a start on the meta device.

    Example:
        >>> from model.config import NANO
        >>> cos, sin = rotary_tables(NANO, 5)
        >>> tuple(cos.shape), cos[0].min().item()
        ((5, 12), 1.0)
    """
    pairs = torch.arange(0, config.d_head, 2, dtype=torch.float32, device=device) / config.d_head
    position = torch.arange(length, dtype=torch.float32, device=device)
    angles = position[:, None] * (1.0 / config.rope_theta**pairs)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BPHd: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (i, i + d/2) of a head by its position's angle; norms stay."""
    cos_P1d, sin_P1d = (table.unsqueeze(-2).to(x_BPHd.dtype) for table in rotary)
    return _Rotate.apply(x_BPHd, cos_P1d, sin_P1d)


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is the rotation back.

    Autograd of the same sum would pad each half with zeros and add.
    """

    @staticmethod
    def forward(ctx: Any, x_BPHd: Tensor, cos_P1d: Tensor, sin_P1d: Tensor) -> Tensor:
        ctx.save_for_backward(cos_P1d, sin_P1d)
        return _turn(x_BPHd, cos_P1d, sin_P1d)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_P1d, sin_P1d = ctx.saved_tensors
        return _turn(grads[0], cos_P1d, -sin_P1d), None, None


def _turn(x_BPHd: Tensor, cos_P1d: Tensor, sin_P1d: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of each head."""
    half = x_BPHd.shape[-1] // 2
    a, b, sin = x_BPHd[..., :half], x_BPHd[..., half:], sin_P1d[..., :half]
    turned = x_BPHd * cos_P1d
    turned[..., :half].addcmul_(b, sin, value=-1)
    turned[..., half:].addcmul_(a, sin)
    return turned
