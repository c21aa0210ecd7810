"""Facts about the whole model: seeds, determinism, losses, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model.config import NANO, MoEConfig
from model.errors import DataError
from model.lm import Losses, MoELM

TINY = MoEConfig(
    d_vocab=50, d_model=24, n_layers=2, n_heads=2, n_key_value_heads=1, d_mlp=16,
    num_experts=4, experts_per_token=2, n_ctx=32, balance_loss_weight=0.5,
    z_loss_weight=0.25, init_range=0.2,
)  # fmt: skip
TOKENS = torch.arange(60).view(3, 20) * 7 % 50


def trained(config: MoEConfig, tokens: torch.Tensor, steps: int = 4) -> tuple[list[float], MoELM]:
    lm = MoELM(config, seed=5)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(steps):
        loss = lm(tokens, return_type="losses").total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, lm


def test_training_twice_gives_the_same_bits():
    # Large enough that every kernel of a real step is taken.
    tokens = torch.arange(32 * 64).view(32, 64) * 11 % NANO.d_vocab
    (first, lm), (second, again) = trained(NANO, tokens), trained(NANO, tokens)
    assert first == second
    for name, weight in lm.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert first[-1] < first[0]


def test_a_seed_decides_the_weights_and_the_global_generator_does_not():
    torch.manual_seed(1)
    lm = MoELM(TINY, seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    other = MoELM(TINY, seed=7)
    assert torch.equal(lm.embed.weight, other.embed.weight)
    assert not torch.equal(lm.embed.weight, MoELM(TINY, seed=8).embed.weight)
    torch.manual_seed(1)
    MoELM(TINY, seed=9)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_write_to_the_stream_start_smaller():
    lm = MoELM(replace(NANO, init_range=0.02), seed=0)
    block = lm.blocks[0]
    assert block.attn.W_qkv.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.W_out.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert block.mlp.experts.W_out.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


def test_the_loss_is_the_cross_entropy_of_the_logits():
    lm = MoELM(TINY)
    logits = lm(TOKENS)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(lm(TOKENS, return_type="loss"), expected)
    targets = TOKENS.roll(-1, 1)
    targets[:, -1] = -100
    torch.testing.assert_close(lm(TOKENS, targets, return_type="loss"), expected)


def test_the_total_is_the_weighted_sum_of_its_parts():
    losses = MoELM(TINY)(TOKENS, return_type="losses")
    assert isinstance(losses, Losses)
    assert losses.balance_L.shape == losses.z_L.shape == (2,)
    expected = losses.next_token + 0.5 * losses.balance_L.mean() + 0.25 * losses.z_L.mean()
    torch.testing.assert_close(losses.total, expected)


def test_every_parameter_gets_a_gradient():
    lm = MoELM(TINY)
    lm(TOKENS, return_type="losses").total.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_are_those_of_finite_differences():
    lm = MoELM(replace(TINY, clip_qkv=None)).double()
    loss = lm(TOKENS, return_type="losses").total
    loss.backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in lm.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-4 / direction.norm()
        values = []
        with torch.no_grad():
            for sign in (1, -2):
                parameter.add_(sign * step * direction)
                values.append(lm(TOKENS, return_type="losses").total.item())
            parameter.add_(step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        # Loss and router are float32 inside: 1e-7 / 1e-4 of the slope along a unit step is noise.
        got = (parameter.grad * direction).sum()
        assert abs(slope - got) < 0.01 * direction.norm(), name


def test_bfloat16_by_autocast_stays_near_float32():
    lm = MoELM(TINY)
    exact = lm(TOKENS, return_type="losses")
    with torch.autocast("cpu", torch.bfloat16):
        rough = lm(TOKENS, return_type="losses")
    assert rough.next_token.dtype == torch.float32
    torch.testing.assert_close(rough.next_token, exact.next_token, atol=0.02, rtol=0)
    rough.total.backward()
    assert lm.unembed.weight.grad.dtype == torch.float32


def test_a_module_hook_on_the_output_matrix_still_sees_the_logits():
    lm, seen = MoELM(TINY), []
    plain = lm(TOKENS, return_type="loss")
    lm.unembed.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(lm(TOKENS, return_type="loss"), plain)
    assert seen == [(57, 50)]


def test_weights_survive_a_state_dict():
    lm, other = MoELM(TINY, seed=1), MoELM(TINY, seed=2)
    other.load_state_dict(lm.state_dict())
    assert torch.equal(lm(TOKENS), other(TOKENS))
    assert not any("hook" in key for key in lm.state_dict())


@pytest.mark.parametrize(
    ("tokens", "return_type", "message"),
    [
        (TOKENS, "logit", "'logit': expected 'logits', 'loss' or 'losses'"),
        (TOKENS[0], "logits", r"shape \(20,\): expected \(batch, pos\)"),
        (TOKENS.view(1, 60), "logits", "60 tokens; the model was made for n_ctx=32"),
    ],
)
def test_wrong_calls_are_refused(tokens, return_type, message):
    with pytest.raises(DataError, match=message):
        MoELM(TINY)(tokens, return_type=return_type)
