"""TransformerLens's tools on the checkpoints of a run that was trained."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import ActivationCache, patching

from model.bridge_dbrx import bridge_of
from probes.subject import build_model
from workbench.run import open_run

ROUNDING = 2e-5
"""float32, sums in another order; the logits are of the order of 10."""


@pytest.fixture(scope="module")
def early_and_late(tiny_run):
    """The models of the first checkpoint with weights that have moved, and of the last."""
    checkpoints = open_run(tiny_run).checkpoints
    return tuple(build_model(checkpoints[i]).eval().requires_grad_(False) for i in (1, -1))


@pytest.fixture(scope="module")
def tokens(early_and_late):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(early_and_late[0].cfg.d_vocab, (2, 16), generator=generator)


def test_the_logit_lens_of_a_checkpoint_ends_at_its_logits(early_and_late, tokens):
    for lm in early_and_late:
        logits, cache = lm.run_with_cache(tokens)
        lens = ActivationCache(cache, lm).logit_lens(positions=None)
        assert lens.labels == ["0_pre", "1_pre", "final_post"]
        torch.testing.assert_close(lens.readout.values[-1], logits, atol=ROUNDING, rtol=0)


def test_parts_of_a_checkpoints_logits_add_up_to_them(early_and_late, tokens):
    _, late = early_and_late
    logits, cache = late.run_with_cache(tokens)
    lens = ActivationCache(cache, late)
    parts = lens.logit_attrs(lens.decompose_resid(), tokens=tokens)
    expected = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(parts.sum(0), expected, atol=ROUNDING, rtol=0)


def test_a_later_checkpoints_last_stream_is_read_by_the_earlier_ones_head(early_and_late, tokens):
    early, late = early_and_late
    _, cache = late.run_with_cache(tokens)
    name = "blocks.1.hook_resid_post"
    patched = early.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: cache[name])])
    expected = early.unembed(early.ln_final(cache[name]))
    torch.testing.assert_close(patched, expected, atol=ROUNDING, rtol=0)
    assert (patched - early(tokens)).abs().max() > 0.1
    assert (patched - late(tokens)).abs().max() > 0.1


def test_a_patch_at_one_position_changes_that_one_and_later_ones_only(early_and_late, tokens):
    early, late = early_and_late
    _, cache = late.run_with_cache(tokens)

    def from_position_9(x, hook):
        return torch.cat([x[:, :9], cache[hook.name][:, 9:10], x[:, 10:]], dim=1)

    hooks = [("blocks.0.hook_resid_post", from_position_9)]
    moved = (early.run_with_hooks(tokens, fwd_hooks=hooks) - early(tokens)).abs().amax((0, 2))
    assert moved[:9].max() < ROUNDING
    assert moved[9:].min() > 1e-3


def test_patching_tools_run_between_two_checkpoints(early_and_late, tokens):
    early, late = early_and_late
    bridge = bridge_of(early)
    torch.testing.assert_close(bridge(tokens), early(tokens), atol=ROUNDING, rtol=0)
    _, of_late = bridge_of(late).run_with_cache(tokens)

    def score(logits):
        return logits[:, -1].log_softmax(-1).max()

    at = patching.get_act_patch_resid_pre(bridge, tokens, of_late, score)
    by_hand = torch.empty(2, 16)
    for layer in range(2):
        name = f"blocks.{layer}.hook_resid_pre"
        for pos in range(16):

            def put(x, hook, pos=pos, name=name):
                return torch.cat([x[:, :pos], of_late[name][:, pos : pos + 1], x[:, pos + 1 :]], 1)

            by_hand[layer, pos] = score(early.run_with_hooks(tokens, fwd_hooks=[(name, put)]))
    torch.testing.assert_close(at, by_hand, atol=ROUNDING, rtol=0)
