import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import mutual_info_score

from probes.signals import KINDS, domain_information, signals
from probes.stability import churn
from probes.statistics.evenness import gini
from workbench.errors import UsageError
from workbench.planted.signals import PlantedSignal, signals_record
from workbench.testing import PlantedSkill, activations_record, evaluations_record, router_record


class Recorded:
    """What a run has, as attributes."""

    def __init__(self, **groups):
        self.__dict__.update(groups)


@pytest.fixture(scope="module")
def recorded():
    router = router_record(steps=40, specialised={"code/add": 2})
    steps = router["step"].values
    train = xr.Dataset(
        {"loss": ("step", 3 - steps / 100), "grad_norm": ("step", np.ones(40))},
        coords={"step": steps},
    )
    routing = activations_record(checkpoints=5, tokens=64, every=10)
    answers = evaluations_record({"code/add": PlantedSkill("never")}, checkpoints=5, every=10)
    return Recorded(router=router, train=train, activations=routing, evaluations=answers)


def test_every_kind_is_there_for_every_layer(recorded):
    found = signals(recorded)
    assert set(found["kind"].values) == set(KINDS)
    per_layer = found.isel(signal=found["layer"].values >= 0)
    counts = np.unique(per_layer["kind"].values, return_counts=True)[1]
    assert (counts == 2).all()
    assert found["units"].sel(signal="loss") == "nats"
    assert "entropy, layer 1" in found["signal"]


def test_values_are_those_of_the_record_on_each_signals_own_clock(recorded):
    found = signals(recorded)["value"]
    entropy = found.sel(signal="entropy, layer 1").dropna("step")
    assert np.allclose(entropy, recorded.router["entropy"].sel(layer=1))
    counts = recorded.router["assignments"].sel(layer=0)
    expected = gini(counts / counts.sum("expert"))
    assert np.allclose(found.sel(signal="gini, layer 0").dropna("step"), expected)
    moved = found.sel(signal="churn, layer 0").dropna("step")
    assert moved["step"].values.tolist() == [5, 15, 25, 35]
    assert np.allclose(moved, churn(recorded.activations, n_boot=2)["churn"].isel(layer=0))
    change = found.sel(signal="coactivation change, layer 0").dropna("step")
    assert change["step"].values.tolist() == [15, 25, 35]


def test_bins_are_means_of_steps_and_counts_are_pooled_before_they_are_measured(recorded):
    found = signals(recorded, kinds=["loss", "gini"], points=10)
    assert np.allclose(found["value"].sel(signal="loss"), 3 - found["step"] / 100)
    assert found.sizes["step"] == 10
    counts = recorded.router["assignments"].isel(step=slice(0, 4), layer=0).sum("step")
    first = found["value"].sel(signal="gini, layer 0")[0]
    assert float(first) == pytest.approx(float(gini(counts / counts.sum())))


def test_start_and_stop_are_half_open(recorded):
    found = signals(recorded, kinds=["loss"], start=10, stop=20)
    assert found["step"].values.tolist() == list(range(11, 21))


def test_other_tasks_are_signals_when_they_are_asked_for(recorded):
    found = signals(recorded, kinds=["loss"], tasks=["code/add"])
    assert found["signal"].values.tolist() == ["loss", "logprob of code/add"]


def test_what_was_not_recorded_is_left_out_and_nothing_at_all_is_refused(recorded):
    assert signals(Recorded(train=recorded.train))["signal"].values.tolist() == [
        "loss",
        "grad norm",
    ]
    with pytest.raises(UsageError, match="record them"):
        signals(Recorded(train=recorded.train), kinds=["entropy"])
    with pytest.raises(UsageError, match="no kind"):
        signals(recorded, kinds=["entropie"])
    with pytest.raises(UsageError, match="points"):
        signals(recorded, points=0)


def test_one_expert_has_no_evenness():
    router = xr.Dataset(
        {
            "assignments": (("step", "layer", "expert"), np.full((4, 1, 1), 8)),
            "entropy": (("step", "layer"), np.zeros((4, 1))),
        },
        coords={"step": np.arange(4), "layer": [0]},
    )
    assert signals(Recorded(router=router))["kind"].values.tolist() == ["entropy"]


def test_domain_information_agrees_with_scikit_learn_and_has_no_bias():
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 60, (3, 5))
    domain, expert = (x.ravel() for x in np.indices(counts.shape))
    exact = mutual_info_score(
        np.repeat(domain, counts.ravel()), np.repeat(expert, counts.ravel())
    ) / np.log(2)
    bias = 4 * 2 / (2 * counts.sum() * np.log(2))
    given = xr.DataArray(counts, dims=("domain", "expert"))
    assert float(domain_information(given)) == pytest.approx(exact - bias)
    drawn = rng.multinomial(500, np.full(15, 1 / 15), size=400).reshape(400, 3, 5)
    null = domain_information(xr.DataArray(drawn, dims=("step", "domain", "expert")))
    assert abs(float(null.mean())) < 4 * float(null.std()) / 20
    # The mean over ten steps stands for ten times the counts.
    pooled = domain_information(given / 10, times=10)
    assert float(pooled) == pytest.approx(exact - bias)


def test_a_planted_signal_does_what_it_says():
    skill = PlantedSkill("jump", at=50)
    record = signals_record(
        {"a": PlantedSignal(lead=10, noise=0.0), "b": PlantedSignal(memory=0.9, noise=2.0)},
        skill,
        steps=20_000,
    )
    a = record["value"].sel(signal="a")
    assert int(a["step"][int(a.values.argmax())]) == 40
    b = record["value"].sel(signal="b").values
    assert np.std(b) == pytest.approx(2.0, rel=0.1)
    assert np.corrcoef(b[1:], b[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
    with pytest.raises(UsageError, match="memory"):
        PlantedSignal(memory=1.0)
    with pytest.raises(UsageError, match="signals at"):
        signals_record({}, skill)
