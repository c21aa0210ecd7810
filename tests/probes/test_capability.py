"""Capability: accuracy and log-probability together, normalised for chance, with intervals."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import probes
from workbench.errors import RunNotFound, SchemaError, UsageError
from workbench.testing import PlantedSkill, evaluations_record

SKILLS = {
    "code/arithmetic": PlantedSkill("jump", at=500),
    "logic/chain": PlantedSkill("linear", at=480, width=900),
    "reading/span": PlantedSkill("never"),
}


@pytest.fixture(scope="module")
def record():
    return evaluations_record(SKILLS, items=60, chance=0.25)


def test_accuracy_is_the_share_of_right_items_and_normalised_puts_chance_at_zero(record):
    skill = probes.capability(record, n_boot=2)
    share = (record["correct"] == 1).mean("item")
    np.testing.assert_allclose(skill["accuracy"], share)
    np.testing.assert_allclose(skill["normalized"], (share - 0.25) / 0.75)
    np.testing.assert_allclose(skill["logprob"], record["logprob"].mean("item"), rtol=1e-5)


def test_a_skill_that_never_comes_stays_within_noise_of_chance(record):
    skill = probes.capability(record, task="reading/span", n_boot=2)
    assert abs(float(skill["normalized"].mean())) < 0.1


def test_intervals_have_width_even_where_all_items_agree():
    always = evaluations_record({"code/add": PlantedSkill("always", top=1.0)}, items=30)
    skill = probes.capability(always, task="code/add")
    assert (skill["accuracy"] == 1).all()
    assert (skill["accuracy_low"] < 0.9).all()
    assert (skill["accuracy_high"] == 1).all()


def test_the_accuracy_interval_is_scipys_wilson(record):
    skill = probes.capability(record, task="logic/chain", n_boot=2).isel(checkpoint=12)
    right = int((skill["correct"] == 1).sum())
    want = stats.binomtest(right, 60).proportion_ci(method="wilson")
    got = (float(skill["accuracy_low"]), float(skill["accuracy_high"]))
    assert got == pytest.approx((want.low, want.high))


def test_the_log_probability_interval_agrees_with_scipys_bootstrap(record):
    skill = probes.capability(record, task="logic/chain", n_boot=4000).isel(checkpoint=12)
    values = skill["item_logprob"].values.astype(float)
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = want.high - want.low
    # Ours is wider by the small-sample correction, about 3 % at 60 items.
    assert float(skill["logprob_low"]) == pytest.approx(want.low, abs=0.06 * width)
    assert float(skill["logprob_high"]) == pytest.approx(want.high, abs=0.06 * width)


def test_one_name_drops_the_task_dim_and_several_keep_it(record):
    one = probes.capability(record, task="code/arithmetic", n_boot=2)
    assert one["accuracy"].dims == ("checkpoint",)
    assert one["task"].item() == "code/arithmetic"
    two = probes.capability(record, task=["logic/chain", "code/arithmetic"], n_boot=2)
    assert two["task"].values.tolist() == ["logic/chain", "code/arithmetic"]


def test_family_chance_and_tokens_seen_travel_with_the_result(record):
    skill = probes.capability(record, n_boot=2)
    assert {"family", "chance", "tokens_seen"} <= set(skill.coords)


def test_anything_with_evaluations_is_a_source(record):
    checkpoints = SimpleNamespace(evaluations=record)
    xr.testing.assert_identical(
        probes.capability(checkpoints, n_boot=50), probes.capability(record, n_boot=50)
    )


def test_padded_items_and_checkpoints_that_were_not_evaluated_do_not_count():
    record = evaluations_record(
        SKILLS, items={"code/arithmetic": 50, "logic/chain": 20, "reading/span": 50}
    )
    record["correct"][3, 1] = -1
    record["logprob"][3, 1] = np.nan
    skill = probes.capability(record, task="logic/chain", n_boot=50)
    assert skill["n"].values.tolist() == [20, 20, 20, 0] + [20] * 21
    missing = skill.isel(checkpoint=3)
    assert all(np.isnan(missing[n]) for n in ("accuracy", "accuracy_low", "normalized", "logprob"))
    assert skill["logprob_low"].isel(checkpoint=4).notnull()


def test_every_number_says_its_unit_and_what_its_interval_means(record):
    skill = probes.capability(record, n_boot=2)
    for name in skill.data_vars:
        assert {"units", "long_name"} <= set(skill[name].attrs)
    assert "Wilson" in skill["accuracy"].attrs["interval"]
    assert "bootstrap" in skill["logprob"].attrs["interval"]


def test_an_unknown_task_lists_the_known_ones_and_the_nearest(record):
    with pytest.raises(RunNotFound, match=r"logic/chain, reading/span\. Did you mean 'code/arith"):
        probes.capability(record, task="code/arithmetics")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: r.drop_vars("chance"), SchemaError, "lack the coordinate chance"),
        (lambda r: r.drop_vars("logprob"), SchemaError, "lacks logprob"),
        (lambda r: r.isel(task=0), SchemaError, "expected .checkpoint, task, item."),
        (lambda r: r.isel(checkpoint=[]), UsageError, "no checkpoint"),
        (lambda r: r.assign(correct=r["correct"] + 5), SchemaError, "expected 1, 0 or -1"),
        (lambda r: r.assign(logprob=-r["logprob"]), SchemaError, "at or under 0"),
        (lambda r: r.assign_coords(chance=r["chance"] + 1), SchemaError, "chance has"),
        (lambda r: "runs/demo", UsageError, "found a str without 'evaluations'"),
    ],
)
def test_a_record_that_departs_is_refused_with_the_remedy(record, change, error, message):
    with pytest.raises(error, match=message):
        probes.capability(change(record))
