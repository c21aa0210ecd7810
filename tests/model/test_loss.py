"""Facts about the next-token loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model import loss
from model.loss import next_token_loss


def world(
    tokens: int = 50, width: int = 8, vocabulary: int = 30, dtype: torch.dtype = torch.float64
):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    W = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return x, W, targets


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # The loss is float32 in any case; gradients bear the dtype of the weights.
    [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 0.02)],
    ids=["float64", "float32", "bfloat16"],
)
def test_pieces_give_the_cross_entropy_of_the_whole(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(loss, "_PIECE", 16 * 30)  # four pieces, the last not full
    x, W, targets = world(dtype=dtype)
    targets[[3, 20]] = loss.LEFT_OUT
    got = next_token_loss(x, W, targets)
    want = F.cross_entropy(F.linear(x, W).float(), targets)
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
    for g, w in zip(
        torch.autograd.grad(3 * got, (x, W)), torch.autograd.grad(3 * want, (x, W)), strict=True
    ):
        assert g.dtype == dtype
        torch.testing.assert_close(g, w, atol=3 * tolerance, rtol=0)


def test_a_target_of_no_probability_has_a_finite_loss():
    x, W = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert next_token_loss(x, W, torch.tensor([0])).item() == 500.0


def test_a_token_that_is_left_out_has_no_gradient():
    x, W, targets = world()
    targets[7] = loss.LEFT_OUT
    (grad,) = torch.autograd.grad(next_token_loss(x, W, targets), x)
    assert grad[7].abs().max() == 0
    assert grad[8].abs().max() > 0


def test_without_gradients_none_are_made():
    x, W, targets = world()
    assert not next_token_loss(x.detach(), W.detach(), targets).requires_grad
    (grad,) = torch.autograd.grad(next_token_loss(x.detach(), W, targets), W)
    assert grad.shape == W.shape
