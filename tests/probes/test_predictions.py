"""Logit lens and essential dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.decomposition import PCA
from transformer_lens import ActivationCache

from model.config import MoEConfig
from model.lm import MoELM
from probes.essential import basis, essential
from probes.exam import Exam
from probes.logit_lens import logit_lens, readout
from probes.subject import Subject
from workbench.errors import UsageError

CONFIG = MoEConfig(
    d_vocab=50, d_model=24, n_layers=3, n_heads=4, n_key_value_heads=2, d_mlp=16,
    num_experts=4, experts_per_token=2, n_ctx=32, init_range=0.2,
)  # fmt: skip
EXAM = Exam(tokens=np.random.default_rng(0).integers(0, 50, (8, 12)), domains=tuple("aabbccdd"))


def subject_of(seed, step=0):
    lm = MoELM(CONFIG, seed=seed).eval()
    with torch.no_grad():  # other than 1, so that a lens that forgets it is found out
        lm.ln_final.weight.copy_(torch.linspace(0.5, 2, 24))
    return Subject(lm, EXAM, step=step)


def test_the_lens_reads_what_transformerlens_reads():
    subject = subject_of(0)
    found = logit_lens(subject, n_boot=50)
    tokens = torch.tensor(EXAM.tokens)
    _, cache = subject.model.run_with_cache(tokens)
    values = ActivationCache(cache, subject.model).logit_lens(positions=None).readout.values
    theirs = values[1:].log_softmax(-1)  # its first is the embedding
    following = tokens[:, 1:, None].expand(3, -1, -1, -1)
    logprob = theirs[:, :, :-1].gather(-1, following).mean((1, 2, 3))
    np.testing.assert_allclose(found["logprob"], logprob.detach(), atol=1e-5)
    first = theirs.argmax(-1)
    agreement = (first == first[-1]).double().mean((1, 2))
    np.testing.assert_allclose(found["agreement"], agreement, atol=1e-9)


def test_the_last_layer_is_the_model():
    subject = subject_of(1)
    found = logit_lens(subject, n_boot=50)
    assert found["agreement"][-1] == found["agreement_low"][-1] == 1
    own = np.nanmean(subject["next_logprob"].numpy())
    assert found["logprob"][-1].item() == pytest.approx(own, abs=1e-5)
    assert found["logprob"].attrs["chance_level"] == pytest.approx(-np.log(50))


def test_a_hugging_face_model_is_read_by_its_own_last_parts():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    found = logit_lens(Subject(OlmoeForCausalLM(config), EXAM), n_boot=20)
    assert found["agreement"].values[-1] == 1


def test_a_model_without_a_readout_is_refused():
    with pytest.raises(UsageError, match="found no final normalisation"):
        readout(torch.nn.Linear(2, 2))


def test_a_readout_that_is_not_the_models_output_is_refused():
    subject = subject_of(0)
    subject["resid_post"], subject["next_logprob"]
    with torch.no_grad():
        subject.model.unembed.weight.mul_(3)
    with pytest.raises(UsageError, match="differs from the model's own output"):
        logit_lens(subject)


def points(path, n=200, seed=0, rows=10):
    rng = np.random.default_rng(seed)
    loads = rng.normal(size=(path.shape[1], n))
    ds = xr.Dataset({"logprob": (("checkpoint", "feature"), path @ loads - 3)})
    return ds.assign_coords(
        row=("feature", np.arange(n) * rows // n), checkpoint=np.arange(len(path)) * 100
    )


def test_the_basis_is_scikit_learns_pca():
    path = np.random.default_rng(1).normal(size=(12, 5)).cumsum(0)
    given = points(path)
    found = basis(given)
    theirs = PCA(5).fit(given["logprob"].values)
    count = found.sizes["component"]
    assert count == 5
    np.testing.assert_allclose(found["explained"], theirs.explained_variance_ratio_, atol=1e-9)
    scores = theirs.transform(given["logprob"].values)
    np.testing.assert_allclose(np.abs(found["score"]), np.abs(scores), atol=1e-8)
    back = found["score"].values @ found["loading"].values + found["centre"].values
    np.testing.assert_allclose(back, given["logprob"], atol=1e-8)


def test_one_planted_direction_explains_everything_and_the_end_is_up():
    found = basis(points(np.linspace(0, -4, 9)[:, None]))
    assert found["explained"].values == pytest.approx([1.0])
    assert found["explained_low"].values == pytest.approx([1.0])
    assert (np.diff(found["score"].sel(component=0)) > 0).all()


def test_checkpoints_that_do_not_move_explain_nothing():
    found = basis(points(np.zeros((4, 1))))
    assert found["explained"].isnull().all()
    assert (found["score"] == 0).all()


def test_the_point_of_a_checkpoint_is_small_and_the_same_places_each_time():
    one, other = (essential(subject_of(s), entries=30, seed=4) for s in (0, 1))
    assert one.sizes["feature"] == 8 * 11 + 30
    assert (one["row"] == other["row"]).all()
    assert one["logprob"].dtype == np.float32
    own = subject_of(0)
    logprob = own["logits"].log_softmax(-1)
    rng = np.random.default_rng(4)
    token, word = rng.integers(0, 96, 30), rng.integers(0, 50, 30)
    np.testing.assert_allclose(one["logprob"][-30:], logprob[token, word], atol=1e-5)
    joined = xr.concat([one, other], dim="checkpoint")
    assert basis(joined)["score"].dims == ("checkpoint", "component")


def test_single_checkpoints_without_the_dim_are_refused():
    with pytest.raises(UsageError, match="no dim 'checkpoint'"):
        basis(essential(subject_of(0)))
