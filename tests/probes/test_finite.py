"""Finite: a checkpoint whose weights are no numbers gets an error, not plausible numbers."""

import numpy as np
import pytest
import torch

from model.config import NANO
from model.lm import MoELM
from probes.attention import prefix_matching
from probes.coactivation import coactivation_fixed
from probes.committee import committee
from probes.confidence import confidence_fixed
from probes.domains import domains_fixed
from probes.exam import Exam
from probes.expert_similarity import expert_similarity
from probes.flow import flow
from probes.in_context import in_context
from probes.inputs.finite import is_number
from probes.inputs.routing import RecordedRouting
from probes.lesion import lesion
from probes.logit_lens import _same_output, logit_lens
from probes.memorisation import memorisation
from probes.subject import Subject
from workbench.errors import SchemaError, UsageError
from workbench.testing import activations_record


def diverged(parameter="blocks.1.mlp.router.weight", value=torch.nan):
    model = MoELM(NANO, seed=0)
    with torch.no_grad():
        dict(model.named_parameters())[parameter].fill_(value)
    tokens = np.arange(128).reshape(8, 16)
    return Subject(model, Exam(tokens=tokens, domains=("a", "b") * 4), step=700)


PROBES = [
    committee, coactivation_fixed, confidence_fixed, domains_fixed, expert_similarity, flow,
    in_context, lesion, logit_lens, memorisation, prefix_matching,
]  # fmt: skip


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_no_probe_reads_a_checkpoint_that_diverged(probe):
    with pytest.raises(UsageError, match="not finite"):
        probe(diverged())


def test_the_error_names_the_step_the_layer_and_the_parameter():
    subject = diverged()
    with pytest.raises(UsageError, match=r"step 700: router probabilities, layer 1,.*blocks\.1\."):
        subject["expert_ids"]
    with pytest.raises(UsageError, match=r"step 700: resid_post, layer 1,"):
        subject["resid_post"]
    with pytest.raises(UsageError, match=r"step 700: next_logprob"):
        subject["next_logprob"]
    # A site before the fault is whole; the model that it is read from is not.
    with pytest.raises(UsageError, match=r"step 700: logits"):
        subject["blocks.0.hook_resid_post"]
    assert not subject._sites


def test_an_overflow_of_finite_weights_is_told_apart():
    subject = diverged("unembed.weight", 3e38)
    with pytest.raises(UsageError, match="overflows"):
        subject.logits(torch.zeros(1, 4, dtype=torch.long))


def test_hooks_are_gone_after_the_error():
    subject = diverged()
    with pytest.raises(UsageError):
        subject["router_probs"]
    assert not any(m._forward_hooks for m in subject.model.modules())


def test_a_choice_that_is_ruled_out_is_a_number():
    assert is_number(torch.tensor([0.0, -torch.inf]))
    assert not is_number(torch.tensor([0.0, torch.inf]))
    assert not is_number(torch.tensor([-torch.inf, torch.nan]))


def test_a_lens_that_reads_nan_is_not_the_models_own():
    own = np.array([-1.0, np.nan, -2.0])
    _same_output(own, own)
    with pytest.raises(UsageError, match="differs"):
        _same_output(np.array([np.nan, np.nan, -2.0]), own)


def test_recorded_probabilities_that_are_no_numbers_are_refused_with_their_step():
    record = activations_record(checkpoints=2, tokens=400)
    record["router_probs"][1] = np.nan
    steps = record["checkpoint"].values
    whole, broken = RecordedRouting(record, probs=True)
    assert np.isfinite(whole.probabilities()).all()
    with pytest.raises(SchemaError, match=f"step {steps[1]}"):
        broken.probabilities()
    with pytest.raises(SchemaError, match="no numbers"):
        committee(record)
