"""In-context score: planted losses by position, and a plain cross-entropy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.config import NANO
from model.lm import MoELM
from probes.exam import Exam
from probes.in_context import in_context, windows
from probes.subject import Subject
from workbench.errors import UsageError
from workbench.planted.scripted import ScriptedLoss

TOKENS = np.random.default_rng(0).integers(0, 8, (12, 32))
EXAM = Exam(tokens=TOKENS, domains=("code",) * 6 + ("prose",) * 6)


def test_a_loss_that_falls_by_half_a_nat_along_the_row_is_found():
    falling = torch.linspace(2.0, 1.5, 31)
    found = in_context(
        Subject(ScriptedLoss(lambda t, w: falling + 0 * w, torch.ones(1)), EXAM),
        width=1,
        early=1,
        late=31,
    )
    assert found["in_context"].item() == pytest.approx(-0.5, abs=1e-5)
    assert found["early_loss"].item() == pytest.approx(2.0, abs=1e-5)


def test_a_model_that_makes_nothing_of_context_scores_zero():
    found = in_context(Subject(ScriptedLoss(lambda t, w: w, torch.tensor([1.3])), EXAM))
    assert found["in_context"].item() == pytest.approx(0, abs=1e-5)


def test_domains_are_told_apart():
    def loss(tokens, w):
        gain = torch.where(tokens[:, :1] < 4, 0.2, 0.6) * torch.linspace(0, 1, 31)
        return 2 * w - gain

    tokens = TOKENS.copy()
    tokens[:6, 0], tokens[6:, 0] = 1, 6
    one = Subject(ScriptedLoss(loss, torch.ones(1)), Exam(tokens=tokens, domains=EXAM.domains))
    found = in_context(one, early=1, late=31, width=1)["in_context_of_domain"]
    assert found.sel(domain="code").item() == pytest.approx(-0.2, abs=1e-5)
    assert found.sel(domain="prose").item() == pytest.approx(-0.6, abs=1e-5)


def test_it_agrees_with_cross_entropy_and_own_rows_with_the_one_pass():
    config = replace(NANO, d_model=16, n_layers=1, n_heads=2, n_key_value_heads=1, d_mlp=8)
    one = Subject(MoELM(config, seed=0), EXAM)
    found = in_context(one, early=3, late=20, width=4)
    logits = one.logits(torch.from_numpy(TOKENS))[:, :-1]
    loss = F.cross_entropy(logits.mT, torch.from_numpy(TOKENS[:, 1:]), reduction="none")
    # Entry p of the loss is of the token at position p + 1.
    plain = loss[:, 19:23].mean() - loss[:, 2:6].mean()
    assert found["in_context"].item() == pytest.approx(plain.item(), abs=1e-5)
    again = in_context(one, early=3, late=20, width=4, rows=TOKENS.tolist())
    assert again["in_context"].item() == pytest.approx(plain.item(), abs=1e-5)
    assert "in_context_of_domain" not in again


def test_long_rows_are_read_where_the_paper_reads_them():
    assert windows(1024, None, None, None) == (50, 500, 1)
    assert windows(4, None, None, None) == (1, 3, 1)


@pytest.mark.parametrize("sizes", [{"early": 0}, {"late": 32}, {"width": 20}, {"early": 29}])
def test_windows_that_do_not_fit_are_refused(sizes):
    one = Subject(ScriptedLoss(lambda t, w: w, torch.ones(1)), EXAM)
    with pytest.raises(UsageError, match="rows of 32"):
        in_context(one, **sizes)
    with pytest.raises(UsageError, match="give longer ones"):
        in_context(one, rows=[[1, 2, 3]])


def test_one_row_has_a_score_and_no_bounds():
    one = Subject(
        ScriptedLoss(lambda t, w: w, torch.ones(1)), Exam(tokens=TOKENS[:1], domains=("a",))
    )
    found = in_context(one)
    assert found["in_context"].item() == pytest.approx(0, abs=1e-5)
    assert np.isnan(found["in_context_low"])
