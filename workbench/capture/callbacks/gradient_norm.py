"""The norm of all gradients together, for trainers that do not tell it.

Needs   a model after the last backward of a step.
Yields  `gradient_norm`, a scalar tensor on the device, without waiting for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


@torch.no_grad()
def gradient_norm(model: nn.Module) -> Tensor | None:
    """The L2 norm of the gradients, before any clipping; None where there is none, or where they
    are spread over ranks and the norm would cost a communication.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> gradient_norm(layer).item()
        5.0
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or any(hasattr(gradient, "to_local") for gradient in gradients):
        return None
    return get_total_norm(gradients)
