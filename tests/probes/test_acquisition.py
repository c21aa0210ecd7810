"""Acquisition: planted logistic courses give their age; what never rises gives a reason instead."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

import probes
from probes.acquisition import Acquisition, age_of_acquisition
from workbench.testing import PlantedSkill, evaluations_record


def of(planted: PlantedSkill, seed: int = 0, **sizes) -> Acquisition:
    record = evaluations_record({"code/add": planted}, seed=seed, **sizes)
    skill = probes.capability(record, task="code/add", n_boot=2)
    return age_of_acquisition(skill, n_boot=100, seed=seed)


@pytest.mark.parametrize(
    ("planted", "sizes"),
    [
        (PlantedSkill("logistic", at=490, width=300), {}),
        (PlantedSkill("logistic", at=440, width=300), {"items": 60, "chance": 0.25}),
        (PlantedSkill("logistic", at=490, width=300, top=0.4), {"persistence": 1.0}),
    ],
    ids=["logistic", "few items", "low plateau"],
)
def test_the_planted_age_is_covered(planted, sizes):
    found = [of(planted, seed, **sizes) for seed in range(20)]
    # 95 %: under 16 of 20 is met in 0.3 % of cases.
    assert np.mean([f.low <= planted.at <= f.high for f in found]) >= 0.8
    assert np.median([f.age for f in found]) == pytest.approx(planted.at, abs=20)
    assert np.median([f.width for f in found]) == pytest.approx(300, rel=0.15)
    assert np.median([f.plateau for f in found]) == pytest.approx(planted.top, abs=0.05)


def test_a_least_squares_fit_of_scipy_agrees_where_items_are_many():
    planted = PlantedSkill("logistic", at=500, width=300, top=0.9)
    record = evaluations_record({"code/add": planted}, items=5000)
    skill = probes.capability(record, task="code/add", n_boot=2)
    steps, accuracy = skill["checkpoint"].values, skill["normalized"].values

    def course(t, age, scale, top):
        return top / (1 + np.exp(-(t - age) / scale))

    other = curve_fit(course, steps, accuracy, p0=(500, 50, 0.9))[0]
    assert age_of_acquisition(skill, n_boot=10).age == pytest.approx(other[0], abs=5)


def test_a_jump_is_known_no_better_than_its_gap():
    found = of(PlantedSkill("jump", at=490))
    assert (found.low, found.high) == pytest.approx((481, 519), abs=1)
    assert found.width < 40


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        (PlantedSkill("never"), "does not rise"),
        (PlantedSkill("always"), "does not rise"),
        (PlantedSkill("jump", at=490, bottom=0.45), "at the first checkpoint"),
    ],
)
def test_what_has_no_age_gets_a_reason_in_its_place(planted, reason):
    found = of(planted, items=500)
    assert reason in found.reason
    assert np.isnan([found.age, found.low, found.high]).all()
    assert reason in repr(found)


def test_an_age_beyond_the_window_has_an_interval_that_says_so():
    found = of(PlantedSkill("logistic", at=1500, width=1500), items=500)
    assert found.reason or found.high > 960


def test_what_is_forgotten_does_not_rise():
    record = evaluations_record({"code/add": PlantedSkill("jump", at=490)})
    record["correct"] = record["correct"].copy(data=record["correct"].values[::-1])
    skill = probes.capability(record, task="code/add", n_boot=2)
    assert age_of_acquisition(skill, n_boot=10).reason == "it does not rise"


def test_the_same_seed_gives_the_same_age():
    planted = PlantedSkill("logistic", at=490, width=300)
    assert of(planted) == of(planted)
