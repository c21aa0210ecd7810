"""Scoring: what a batch says is what one sequence at a time says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import NANO
from model.data.tokenizer import DOCUMENT, train_tokenizer
from model.data.world import TASKS, Item, World
from model.evaluation import encode_items, score
from model.lm import MoELM


@pytest.fixture(scope="module")
def tokenizer():
    world = World(0)
    return train_tokenizer([world.document(t, i) for t in TASKS for i in range(150)], 600)


@pytest.fixture(scope="module")
def lm(tokenizer):
    shape = replace(NANO, d_vocab=tokenizer.get_vocab_size(), d_model=32, n_heads=4)
    return MoELM(replace(shape, n_key_value_heads=2, d_mlp=16), seed=3).eval()


def by_hand(lm, tokenizer, item):
    """Log-probability of each choice, one sequence at a time."""
    start = [tokenizer.token_to_id(DOCUMENT), *tokenizer.encode(item.prompt).ids]
    found = []
    for choice in item.choices:
        tail = tokenizer.encode(choice).ids
        with torch.no_grad():
            logprobs = lm(torch.tensor([start + tail]))[0].log_softmax(-1)
        found.append(sum(logprobs[len(start) - 1 + i, t].item() for i, t in enumerate(tail)))
    return found


LONG = {
    "logic/long": [
        Item("logic/long", "Ada has", (" a very long answer", " cup", " a very long lamp"), 0),
        Item("logic/long", "cup", (" cup cup", " cup lamp", " Ada"), 2),
    ],
    "logic/short": [
        Item("logic/short", "Ada", (" a", " b"), 1),
        Item("logic/short", "Ben has the", (" cup", " lamp"), 0),
    ],
}


@pytest.mark.parametrize("kind", ["world", "long"])
def test_scores_equal_those_of_one_sequence_at_a_time(lm, tokenizer, kind):
    items = LONG if kind == "long" else {t: World(0).items(t, 4) for t in TASKS}
    scores = score(lm, encode_items(items, tokenizer), rows_at_once=7)
    for t, task in enumerate(items):
        for i, item in enumerate(items[task]):
            expected = by_hand(lm, tokenizer, item)
            # Padding changes the order of float32 sums, nothing else.
            assert scores.logprob[t, i] == pytest.approx(expected[item.answer], abs=1e-4)
            others = [v for c, v in enumerate(expected) if c != item.answer]
            assert scores.correct[t, i] == (expected[item.answer] > max(others))


def test_a_model_that_says_nothing_is_right_nowhere(lm, tokenizer):
    """All choices tie when every logit is 0; a tie is no right answer."""
    mute = MoELM(lm.cfg)
    torch.nn.init.zeros_(mute.unembed.weight)
    items = {t: World(0).items(t, 4) for t in ("logic/boolean", "reading/binding")}
    scores = score(mute, encode_items(items, tokenizer))
    assert scores.correct.sum() == 0
    np.testing.assert_allclose(scores.logprob, -np.log(lm.cfg.d_vocab), rtol=1e-5)


def test_scoring_leaves_the_model_in_training_as_it_was(lm, tokenizer):
    lm.train()
    score(lm, encode_items(LONG, tokenizer))
    assert lm.training
    assert all(p.grad is None for p in lm.parameters())
    lm.eval()


def test_choices_of_one_token_cost_one_sequence(tokenizer):
    items = {"code/arithmetic": World(0).items("code/arithmetic", 5)}
    assert len(encode_items(items, tokenizer).sequences) == 5
