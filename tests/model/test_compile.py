"""torch.compile of the model, without a graph break, is the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.config import NANO
from model.lm import MoELM

TOKENS = torch.arange(4 * 24).view(4, 24) * 7 % NANO.d_vocab


# torch.compile itself makes the object that it says should not be made.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Compiled products may run by another library, so sums are rounded in another order.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
    ids=["float32", "bfloat16"],
)
def test_the_compiled_model_is_the_model_forward_and_backward(dtype, tolerance):
    lm = MoELM(NANO).to(dtype)
    eager = lm(TOKENS, return_type="losses")
    eager.total.backward()
    expected = {name: p.grad for name, p in lm.named_parameters()}
    lm.zero_grad()
    compiled = torch.compile(lm, backend="aot_eager", fullgraph=True)
    losses = compiled(TOKENS, return_type="losses")
    losses.total.backward()
    for got, want in zip(losses, eager, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            expected[name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda m, n=name: n + m,
        )


def test_compiled_logits_are_the_logits():
    lm = MoELM(NANO)
    compiled = torch.compile(lm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS), lm(TOKENS), atol=1e-4, rtol=0)


def test_hooks_added_before_compiling_take_effect():
    lm = MoELM(NANO)
    plain = lm(TOKENS)
    always = torch.tensor([3, 5, 7, 11])
    lm.blocks[1].mlp.router.hook_expert_indices.add_hook(lambda ids, hook: always.expand_as(ids))
    compiled = torch.compile(lm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS), lm(TOKENS), atol=1e-4, rtol=0)
    assert (compiled(TOKENS) - plain).abs().max() > 1e-2
