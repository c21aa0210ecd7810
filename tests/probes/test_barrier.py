"""Barrier: paths whose loss is known in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import NANO
from model.lm import MoELM
from probes.barrier import barrier
from probes.exam import Exam
from probes.subject import Subject
from workbench.errors import UsageError
from workbench.planted.scripted import ScriptedLoss

EXAM = Exam(tokens=np.random.default_rng(0).integers(0, 8, (12, 6)), domains=("a",) * 12)


def two(loss, start, end):
    return (Subject(ScriptedLoss(loss, torch.tensor([at])), EXAM) for at in (end, start))


def test_a_hill_between_two_equal_valleys_has_its_height():
    found = barrier(*two(lambda t, w: 1 + 0.7 * (1 - w**2), -1.0, 1.0))
    assert found["barrier"].item() == pytest.approx(0.7, abs=1e-5)
    assert found["above_chord"].item() == pytest.approx(0.7, abs=1e-5)
    assert found["worst_share"].item() == 0.5
    share = found["share"].values
    assert found["loss"].values == pytest.approx(1 + 0.7 * (1 - (2 * share - 1) ** 2), abs=1e-5)


def test_a_loss_that_only_falls_is_never_above_its_chord_though_its_ends_differ():
    found = barrier(*two(lambda t, w: 1 + w, 1.0, 0.0))
    assert found["above_chord"].item() == pytest.approx(0, abs=1e-5)
    # The definition for two equally trained copies counts half the difference.
    assert found["barrier"].item() == pytest.approx(0.5, abs=1e-5)


def test_a_bowl_has_no_barrier():
    found = barrier(*two(lambda t, w: 1 + w**2, -1.0, 1.0))
    assert found["barrier"].item() == pytest.approx(0, abs=1e-5)
    assert found["above_chord"].item() == pytest.approx(0, abs=1e-5)


def test_the_interval_is_over_rows():
    def loss(tokens, w):
        return 1 + 0.1 * tokens[:, :1] * (1 - w**2)

    found = barrier(*two(loss, -1.0, 1.0))
    heights = 0.1 * EXAM.tokens[:, 0]
    assert found["barrier"].item() == pytest.approx(heights.mean(), abs=1e-5)
    assert found["barrier_low"] < found["barrier"] < found["barrier_high"]
    assert heights.min() < found["barrier_low"]


def test_the_ends_are_the_checkpoints_themselves_and_nothing_is_changed():
    config = replace(NANO, d_model=16, n_layers=1, n_heads=2, n_key_value_heads=1, d_mlp=8)
    old, new = (Subject(MoELM(config, seed=s).bfloat16(), EXAM) for s in (0, 1))
    before = {n: p.clone() for n, p in new.model.named_parameters()}
    found = barrier(new, old, points=3)
    for at, one in ((0, old), (1, new)):
        plain = one["next_logprob"].view(EXAM.tokens.shape)[:, :-1].mean().item()
        assert found["loss"].sel(share=at).item() == pytest.approx(-plain, rel=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in new.model.named_parameters())


def test_few_points_few_rows_and_two_architectures():
    one, other = two(lambda t, w: 1 + w**2, -1.0, 1.0)
    with pytest.raises(UsageError, match="points=2"):
        barrier(one, other, points=2)
    assert np.isnan(barrier(one, other, rows=EXAM.tokens[:5].tolist())["barrier_low"])
    wide = Subject(ScriptedLoss(lambda t, w: 1 + w[:1] ** 2, torch.ones(2)), EXAM)
    with pytest.raises(UsageError, match="straight path"):
        barrier(one, wide)
