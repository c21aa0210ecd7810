"""Memorisation: texts known by heart, and greedy decoding as Hugging Face does it."""

import numpy as np
import pytest
import torch
import transformers

from probes.exam import Exam
from probes.memorisation import greedy, memorisation
from probes.subject import Subject
from workbench.errors import UsageError
from workbench.planted.scripted import KnownTexts

TEXTS = np.random.default_rng(0).integers(0, 50, (10, 16))
EXAM = Exam(tokens=TEXTS, domains=("a",) * 5 + ("b",) * 5)


def knows(texts, **about):
    return Subject(KnownTexts(texts.tolist(), least=8, vocabulary=50, **about), EXAM)


def test_three_texts_of_ten_known_by_heart_are_three_tenths():
    found = memorisation(knows(TEXTS[:3]))
    assert found["memorised"].item() == pytest.approx(0.3)
    assert found["memorised_of_domain"].values.tolist() == [0.6, 0.0]
    assert found["matched"].values[:3].tolist() == [8, 8, 8]
    assert found["memorised_low"] < 0.3 < found["memorised_high"]


def test_a_text_known_but_for_its_last_token_is_not_memorised_and_nearly_matches():
    wrong = TEXTS.copy()
    wrong[:, -1] = (wrong[:, -1] + 1) % 50
    found = memorisation(knows(wrong))
    assert found["memorised"].item() == 0
    assert found["match"].item() == pytest.approx(7 / 8)


def test_a_first_error_leads_greedy_decoding_off_the_text():
    # Right at every step under the true past, but one: what follows the error is its own.
    wrong = TEXTS.copy()
    wrong[:, 8] = (wrong[:, 8] + 1) % 50
    assert memorisation(knows(wrong))["match"].item() == pytest.approx(7 / 8)
    both = KnownTexts([*TEXTS[:, :8].tolist(), *TEXTS.tolist()], least=9, vocabulary=50)
    assert memorisation(Subject(both, EXAM))["memorised"].item() < 0.5


def test_greedy_decoding_agrees_with_hugging_face():
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    prompts = torch.from_numpy(TEXTS[:, :8].copy())
    theirs = llama.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=6
    )
    assert greedy(Subject(llama, EXAM), TEXTS[:, :8], 6).tolist() == theirs[:, 8:].tolist()


def test_k_and_rows_are_stated_and_short_rows_refused():
    found = memorisation(knows(TEXTS), k=4, rows=TEXTS[:2].tolist())
    assert (found.attrs["k"], found.attrs["n"], found.attrs["rows"]) == (4, 2, "the given rows")
    with pytest.raises(UsageError, match="at least 18"):
        memorisation(knows(TEXTS), k=9)
    with pytest.raises(UsageError, match="k=0"):
        memorisation(knows(TEXTS), k=0)
