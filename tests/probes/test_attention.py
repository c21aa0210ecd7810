"""Prefix matching: an induction head set by hand, and heads that look elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformer_lens.head_detector import (
    compute_head_attention_similarity_score,
    get_induction_head_detection_pattern,
)

from model.config import NANO
from model.lm import MoELM
from probes.attention import chance, patterns, prefix_matching, repeated_tokens, targets
from probes.exam import Exam
from probes.subject import Subject
from workbench.errors import UsageError

TINY = replace(NANO, d_model=16, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=8, d_vocab=64)
EXAM = Exam(tokens=np.arange(64).reshape(4, 16), domains=("a",) * 4)


def with_pattern(layer, head, pattern):
    """A model one of whose heads attends as it is told."""
    lm = MoELM(TINY, seed=0)

    def attend(_module, _inputs, output):
        output = output.clone()
        output[:, head] = pattern
        return output

    lm.blocks[layer].attn.hook_pattern.register_forward_hook(attend)
    return Subject(lm, EXAM)


@pytest.mark.parametrize("repeats", [2, 4])
def test_a_head_that_completes_prefixes_scores_one(repeats):
    length = 16 // repeats
    wanted = targets(length, repeats)
    pattern = wanted / wanted.sum(1, keepdim=True).clamp_min(1)
    found = prefix_matching(with_pattern(1, 2, pattern), repeats=repeats)["prefix_matching"]
    assert found.sel(layer=1, head=2).item() == pytest.approx(1.0)
    assert found.where((found["layer"] != 1) | (found["head"] != 2)).max() < 0.5


def test_a_head_that_attends_evenly_scores_the_chance_level():
    even = torch.ones(16, 16).tril() / torch.arange(1, 17)[:, None]
    found = prefix_matching(with_pattern(0, 0, even))
    assert found["prefix_matching"][0, 0].item() == pytest.approx(found.attrs["chance_level"])
    assert chance(8, 2) == pytest.approx(np.mean([1 / i for i in range(9, 17)]))


@pytest.mark.parametrize("back", [0, 1])
def test_a_head_that_looks_at_itself_or_the_token_before_scores_zero(back):
    pattern = torch.diag(torch.ones(16 - back), -back)
    found = prefix_matching(with_pattern(0, 1, pattern))["prefix_matching"]
    assert found.sel(layer=0, head=1).item() == 0


def test_it_agrees_with_transformer_lens_own_induction_pattern():
    one = Subject(MoELM(TINY, seed=5), EXAM)
    tokens = repeated_tokens(np.arange(64), 8, 2, 1, seed=0)
    score = prefix_matching(one, sequences=1, n_boot=2)["prefix_matching"]
    _, cache = one.model.run_with_cache(tokens)
    wanted = get_induction_head_detection_pattern(tokens)
    torch.testing.assert_close(wanted, targets(8, 2))
    for layer, head in np.ndindex(2, 4):
        theirs = compute_head_attention_similarity_score(
            cache[f"blocks.{layer}.attn.hook_pattern"][0, head], wanted,
            exclude_bos=False, exclude_current_token=False, error_measure="mul",
        )  # fmt: skip
        # Theirs is a share of the attention of all 16 queries; ours of the 8 that can match.
        assert score[layer, head].item() == pytest.approx(2 * theirs, rel=1e-4)


def test_a_plain_loop_finds_the_same_score():
    one = Subject(MoELM(TINY, seed=7), EXAM)
    tokens = repeated_tokens(np.arange(64), 4, 3, 5, seed=0)
    found = prefix_matching(one, length=4, repeats=3, sequences=5)["prefix_matching"]
    _, cache = one.model.run_with_cache(tokens)
    pattern = cache["blocks.1.attn.hook_pattern"][:, 3]
    sums = []
    for b, row in enumerate(tokens.tolist()):
        for query in range(4, 12):
            seen = [key for key in range(1, query + 1) if row[key - 1] == row[query]]
            sums.append(sum(pattern[b, query, key].item() for key in seen))
    assert found[1, 3].item() == pytest.approx(np.mean(sums), rel=1e-5)


def test_hugging_face_models_are_read_and_left_as_they_were():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config)
    was = llama.config._attn_implementation
    found = prefix_matching(Subject(llama, EXAM), sequences=3)
    assert found["prefix_matching"].shape == (2, 2)
    assert llama.config._attn_implementation == was != "eager"
    # An untrained head attends nearly evenly.
    assert found["prefix_matching"].values == pytest.approx(found.attrs["chance_level"], abs=0.02)


def test_no_hook_stays_behind():
    one = Subject(MoELM(TINY, seed=0), EXAM)
    list(patterns(one, torch.zeros(1, 4, dtype=torch.long)))
    assert not one.model.blocks[0].attn.hook_pattern._forward_hooks


@pytest.mark.parametrize(
    ("sizes", "found"),
    [({"repeats": 1}, "repeats"), ({"length": 65}, "64 different"), ({"length": 1}, "length=1")],
)
def test_sizes_that_cannot_be_are_refused(sizes, found):
    with pytest.raises(UsageError, match=found):
        prefix_matching(Subject(MoELM(TINY, seed=0), EXAM), **sizes)


def test_a_model_without_patterns_is_refused():
    with pytest.raises(UsageError, match="hook_pattern"):
        prefix_matching(Subject(nn.Embedding(64, 64), EXAM))
