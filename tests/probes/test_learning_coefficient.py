"""Learning coefficient: known dimensions, devinterp run directly, and chains that are not well."""

import gc
import random
import sys

import numpy as np
import pytest
import torch

from probes.exam import Exam
from probes.learning_coefficient import learning_coefficient, split_rhat
from probes.subject import Subject
from workbench.errors import UsageError
from workbench.planted.scripted import ScriptedLoss


@pytest.fixture(autouse=True)
def _little_garbage():
    """devinterp collects garbage for every chain, over all that torch and others have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


EXAM = Exam(tokens=np.random.default_rng(0).integers(0, 8, (4, 31)), domains=("a",) * 4)


def bowl(dimensions=20, at=0.0):
    """Its coefficient is half its dimensions."""
    return Subject(
        ScriptedLoss(lambda t, w: 1 + (w**2).sum() / 2, torch.full((dimensions,), at)), EXAM
    )


def settings(**changed):
    return {
        "lr": 1e-2,
        "n_beta": 25.0,
        "localization": 0.0,
        "chains": 4,
        "draws": 200,
        "burn_in": 50,
    } | changed


def test_a_bowl_of_twenty_dimensions_has_a_coefficient_of_ten():
    # 200 draws are too few: half a chain then holds a dozen independent ones, and rhat passes 1.1.
    found = learning_coefficient(bowl(), **settings(draws=400))
    # A step of finite size widens the stationary distribution by a known factor.
    sampled = 10 / (1 - 1e-2 * 25 / 4)
    assert found["llc_low"] < sampled < found["llc_high"]
    assert found["llc"].item() == pytest.approx(10, rel=0.15)
    assert found["healthy"].item()
    assert found["init_loss"].item() == pytest.approx(1)


@pytest.mark.slow
def test_a_crossing_of_two_valleys_has_the_coefficient_that_quadrature_gives():
    valleys = Subject(ScriptedLoss(lambda t, w: 1 + (w[0] * w[1]) ** 2, torch.zeros(2)), EXAM)
    n_beta, pull = 50.0, 10.0
    axis = np.linspace(-3, 3, 601)
    x, y = np.meshgrid(axis, axis)
    density = np.exp(-n_beta * (x * y) ** 2 - pull / 2 * (x**2 + y**2))
    truth = n_beta * ((x * y) ** 2 * density).sum() / density.sum()
    found = learning_coefficient(
        valleys, lr=1e-2, n_beta=n_beta, localization=pull, chains=4, draws=1000, burn_in=100
    )
    assert found["llc"].item() == pytest.approx(truth, rel=0.2)
    # Half of what a regular minimum of two parameters under the same pull would have, at most.
    assert truth < 0.5 * n_beta / (n_beta + pull)


def test_it_agrees_with_devinterp_run_directly(tmp_path):
    from devinterp.slt.llc import llc

    found = learning_coefficient(bowl(6), **settings(chains=2, draws=30, burn_in=0), seed=5)
    theirs = llc(
        model=bowl(6).model, dataset=[{"input_ids": torch.tensor(r)} for r in EXAM.tokens],
        observables={}, lr=1e-2, n_beta=25.0, num_chains=2, num_draws=30, batch_size=4,
        num_init_loss_batches=1, init_seed=5, output_path=tmp_path / "direct", device="cpu",
        match_sampling_input_ids_across_chains=False,
    )  # fmt: skip
    assert found["llc_of_chain"].values == pytest.approx(theirs["llc_per_chain"].values, rel=1e-4)


def test_a_checkpoint_that_is_still_falling_is_not_healthy():
    slope = Subject(ScriptedLoss(lambda t, w: 5 + w.sum() / 4, torch.zeros(4)), EXAM)
    found = learning_coefficient(slope, **settings(draws=20, burn_in=0, lr=1e-3, chains=2))
    assert found["llc"] < 0
    assert not found["healthy"].item()


def test_a_chain_that_leaves_the_finite_numbers_is_not_a_number():
    cliff = Subject(ScriptedLoss(lambda t, w: 1 + (w**4).sum(), torch.full((2,), 1.5)), EXAM)
    found = learning_coefficient(cliff, **settings(lr=1.0, draws=20, burn_in=0, chains=2))
    assert np.isnan(found["llc"])
    assert not found["healthy"].item()


def test_a_checkpoint_whose_logits_are_not_finite_has_no_coefficient():
    broken = bowl(4, at=float("nan"))
    found = learning_coefficient(broken, **settings(draws=4, burn_in=0, chains=2))
    assert np.isnan(found["llc"])
    assert not found["healthy"].item()


def test_a_single_chain_has_no_bounds():
    found = learning_coefficient(bowl(4), **settings(chains=1, draws=20, burn_in=0))
    assert np.isfinite(found["llc"])
    assert np.isnan(found["llc_low"])


def test_weights_and_random_numbers_are_left_as_they_were():
    one = bowl(4, at=0.3)
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    learning_coefficient(one, **settings(chains=1, draws=4, burn_in=0))
    assert expected == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    assert (one.model.weights == 0.3).all()


def test_without_devinterp_the_error_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "devinterp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "devinterp", None)
    with pytest.raises(UsageError, match=r"pip install 'training-dynamics-workbench\[probes\]'"):
        learning_coefficient(bowl(4))


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="batch_rows=9 of 4"):
        learning_coefficient(bowl(4), batch_rows=9)


def test_split_rhat_sees_a_drift_within_chains():
    drift = np.linspace(0, 3, 200) + np.random.default_rng(0).normal(0, 0.3, (4, 200))
    assert split_rhat(drift) > 1.5
