"""Change point: planted steps are found where they are; smooth rises and remembering noise are not
called steps."""

import numpy as np
import pytest
import ruptures
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import probes
from probes.change_point import change_point, split
from probes.statistics.autoregression import noise
from probes.statistics.smooth_rise import SmoothRises
from workbench.errors import SchemaError, UsageError
from workbench.testing import PlantedSkill, evaluations_record

CLOCK = np.linspace(0, 1, 25)


def curve(values: np.ndarray, phi: float = 0.0, sd: float = 0.05, seed: int = 0) -> xr.DataArray:
    wandering = sd * noise(phi, len(values), 1, seed)[0]
    return xr.DataArray(values + wandering, coords={"step": np.linspace(0, 960, len(values))})


def found(values: np.ndarray, draws: int = 40, **of: float) -> float:
    """Share of draws in which a change counts as found."""
    curves = [curve(values, seed=seed, **of) for seed in range(draws)]
    return float(np.mean([change_point(c, n_boot=1, n_null=99).found for c in curves]))


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_noise_that_remembers_is_not_called_a_step(phi):
    # At 5 % more than 6 of 40 would be met in 1 % of cases.
    assert found(np.zeros(25), phi=phi) <= 0.15


@pytest.mark.parametrize(
    "values",
    [CLOCK, np.clip((CLOCK - 0.5) / 0.3 + 0.5, 0, 1), 1 / (1 + np.exp(-(CLOCK - 0.4) * 10))],
    ids=["straight", "straight over 0.3", "logistic"],
)
def test_a_smooth_rise_is_not_called_a_step(values):
    assert found(values) <= 0.15


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_a_step_is_found_also_on_a_trend_and_when_it_goes_down(phi):
    step = (CLOCK > 0.5).astype(float)
    assert found(step, phi=phi) >= 0.9
    assert found(0.5 * step + 0.5 * CLOCK, phi=phi) >= 0.9
    assert found(-step, phi=phi) >= 0.9


def test_a_planted_jump_lies_in_its_gap_with_its_size():
    record = evaluations_record({"code/add": PlantedSkill("jump", at=490)})
    skill = probes.capability(record, task="code/add", n_boot=2)
    jumped = change_point(skill, n_boot=200)
    assert (jumped.before, jumped.after, jumped.low, jumped.high) == (480, 520, 480, 520)
    assert jumped.step == 500
    assert jumped.size == pytest.approx(0.95, abs=0.05)
    assert jumped.found
    assert change_point(skill, "logprob", n_boot=200).before == 480


def test_the_early_leap_of_the_log_probability_is_not_the_tasks_change():
    record = evaluations_record({"code/add": PlantedSkill("jump", at=490)}, format_nats=5.0)
    skill = probes.capability(record, task="code/add", n_boot=2)
    assert change_point(skill, "logprob", n_boot=50).before == 480


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=20, unique=True))
def test_the_split_is_the_best_of_all_and_that_of_binary_segmentation(values):
    y = np.round(np.array(values), 3)
    errors = {k: y[: k + 1].var() * (k + 1) + y[k + 1 :].var() * (len(y) - k - 1)
              for k in range(1, len(y) - 2)}  # fmt: skip
    assert errors[split(y)] == pytest.approx(min(errors.values()), abs=1e-9)
    other = ruptures.Binseg(model="l2", min_size=2, jump=1).fit(y).predict(n_bkps=1)[0] - 1
    assert errors[other] == pytest.approx(errors[split(y)], abs=1e-9)


@given(st.integers(0, 1000), st.floats(0.1, 50), st.floats(-20, 20))
def test_units_do_not_matter(seed, scale, shift):
    one = curve(CLOCK, seed=seed)
    first = change_point(one, n_boot=5, n_null=19)
    second = change_point(one * scale + shift, n_boot=5, n_null=19)
    assert (first.before, first.p) == (second.before, pytest.approx(second.p, abs=0.051))


def test_a_smooth_sum_follows_two_stages_but_no_step():
    rises = SmoothRises.on(CLOCK)
    two = np.clip((CLOCK - 0.25) / 0.3 + 0.5, 0, 1) + np.clip((CLOCK - 0.75) / 0.3 + 0.5, 0, 1)
    assert abs(rises.fit(two[None])[1]).max() < 0.2
    assert abs(rises.fit((CLOCK[None] > 0.5).astype(float))[1]).max() > 0.3
    smooth = rises.fit(two[None])[0][0]
    assert (np.diff(smooth) >= -1e-9).all()


def test_what_does_not_vary_has_no_change():
    still = xr.DataArray(np.ones(12), coords={"step": np.arange(12)})
    assert change_point(still, n_boot=5).p == 1


def test_under_eight_checkpoints_nothing_is_told():
    few = change_point(curve((np.linspace(0, 1, 6) > 0.5).astype(float)), n_boot=5)
    assert np.isnan(few.p)
    assert not few.found
    assert "too few checkpoints" in repr(few)


def test_gaps_in_the_curve_are_passed_over_and_the_same_seed_gives_the_same():
    one = curve((CLOCK > 0.5).astype(float))
    one[3] = np.nan
    assert change_point(one, n_boot=20) == change_point(one, n_boot=20)
    assert change_point(one, n_boot=20).checkpoints == 24


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: change_point(curve(CLOCK)[:3]), UsageError, "needs 4"),
        (lambda: change_point(curve(CLOCK)[::-1]), UsageError, "sortby"),
        (lambda: change_point(curve(CLOCK).expand_dims("layer")), SchemaError, "one dim"),
    ],
)
def test_what_has_no_change_point_is_refused_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
