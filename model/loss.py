"""The next-token loss, in pieces, so that the logits of a whole batch never stand in memory.

Needs   normalised hidden states (tokens, d_model), the output matrix (d_vocab, d_model), target ids
        (tokens,).
Yields  the mean cross-entropy, nats per token, with its gradients.

A batch's logits and their gradient are the largest tensors of a training step by far, and are
needed for nothing else. Here each piece of them is made, turned into its share of loss and
gradients while still in cache, and forgotten. `F.cross_entropy(F.linear(x, W), targets)` is the
reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.product import autocast, linear, outer_sum

# Shapes: T tokens, C tokens of one piece, D d_model, V vocabulary.

LEFT_OUT = -100
"""The target that marks a token whose prediction does not count."""

_PIECE = 1 << 19
"""Logits in one piece on CPU: 2 MiB in float32, which stays in the second-level cache."""

_PIECE_GPU = 1 << 28
"""Logits in one piece on a GPU: enough work to fill it."""


def next_token_loss(x_TD: Tensor, W_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, float32, nats per token.

    Args:
        x_TD: hidden states after the final normalisation, (tokens, d_model).
        W_VD: output matrix, (d_vocab, d_model).
        targets_T: (tokens,), int64; `LEFT_OUT` where the prediction does not count.

    Returns:
        Scalar; NaN when every token is left out, as in torch.

    Example:
        >>> x, W = torch.zeros(3, 2), torch.zeros(4, 2)
        >>> round(next_token_loss(x, W, torch.tensor([0, 1, -100])).item(), 4)  # ln 4
        1.3863
    """
    x_TD, W_VD = autocast(x_TD, W_VD)
    return _NextTokenLoss.apply(x_TD, W_VD, targets_T)


class _NextTokenLoss(torch.autograd.Function):
    """Loss and gradients in one pass: the gradient of a mean waits for nothing but a factor."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, W_VD: Tensor, targets_T: Tensor) -> Tensor:
        want_x, want_W, _ = ctx.needs_input_grad
        budget = _PIECE_GPU if x_TD.is_cuda else _PIECE
        piece = max(budget // W_VD.shape[0], 16)
        counts = (targets_T != LEFT_OUT).sum()
        total = torch.zeros((), dtype=torch.float32, device=x_TD.device)
        grads_x: list[Tensor] = []
        grad_W = torch.zeros_like(W_VD, dtype=torch.float32) if want_W else None
        for x_CD, target_C in zip(x_TD.split(piece), targets_T.split(piece), strict=True):
            counted_C1 = (target_C != LEFT_OUT).unsqueeze(1)
            target_C1 = target_C.unsqueeze(1).where(counted_C1, 0)
            logits_CV = linear(x_CD, W_VD).float()
            probs_CV = logits_CV.softmax(-1)
            # logsumexp from the largest logit and its probability, which cannot underflow: two
            # cheap passes instead of a second exponential.
            logsumexp_C1 = logits_CV.amax(-1, keepdim=True) - probs_CV.amax(-1, keepdim=True).log()
            lost_C1 = logsumexp_C1 - logits_CV.gather(1, target_C1)
            total = total + lost_C1.where(counted_C1, 0).sum()
            if not (want_x or want_W):
                continue
            one_C1 = torch.ones_like(lost_C1)
            grad_CV = probs_CV.scatter_add_(1, target_C1, -one_C1).mul_(counted_C1 / counts)
            grad_CV = grad_CV.to(x_TD.dtype)
            if want_x:
                grads_x.append(linear(grad_CV, W_VD.mT))
            if grad_W is not None:
                grad_W += outer_sum(grad_CV, x_CD)
        ctx.save_for_backward(
            torch.cat(grads_x) if want_x else None,
            grad_W.to(W_VD.dtype) if grad_W is not None else None,
        )
        return total / counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x, grad_W = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_x is None else grad_x * scale.to(grad_x.dtype),
            None if grad_W is None else grad_W * scale.to(grad_W.dtype),
            None,
        )
