"""Few units: an interval called 95 % holds the truth in about 95 % of draws, or is not there."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import probes
from model.config import NANO
from model.lm import MoELM
from probes.answers import answers_of
from probes.committee import committee
from probes.divergence import divergence
from probes.essential import basis, essential
from probes.exam import Exam
from probes.logit_lens import logit_lens
from probes.statistics.clustered import block_mean
from probes.statistics.resample import bootstrap_weights, percentile_interval
from probes.statistics.shapley import shapley
from probes.subject import Subject
from workbench.testing import activations_record

DRAWS = 300
# 95 % of 300 draws, and 4 standard errors of that share around it.
AT_LEAST, AT_MOST = 0.95 - 4 * (0.95 * 0.05 / DRAWS) ** 0.5, 1.0
FEW = [2, 3, 5, 8]


@pytest.mark.parametrize("n", FEW)
def test_the_mean_of_a_few_units_is_covered(n):
    values = np.random.default_rng(n).normal(size=(DRAWS, n))
    low, high = percentile_interval(bootstrap_weights(n, 1000) @ values.T / n, n)
    assert AT_LEAST <= np.mean((low <= 0) & (high >= 0)) <= AT_MOST
    want = stats.t.interval(0.95, n - 1, values.mean(1), stats.sem(values, axis=1))
    np.testing.assert_allclose(high - low, want[1] - want[0], rtol=0.08)


@pytest.mark.parametrize("n", FEW)
def test_the_mean_over_a_few_blocks_of_unequal_length_is_covered(n):
    rng = np.random.default_rng(n)
    sizes = rng.integers(60, 100, n).astype(float)
    sums = sizes[:, None] * (1 + rng.normal(size=(n, DRAWS)))
    _, low, high = block_mean(sums, sizes, 1000, 0)
    assert AT_LEAST <= np.mean((low <= 1) & (high >= 1)) <= AT_MOST


@pytest.mark.parametrize("n", FEW)
def test_the_share_of_a_part_in_a_few_items_is_covered(n):
    rng = np.random.default_rng(n)
    held = 0
    for seed in range(DRAWS):
        brings = rng.normal([0.5, 0.2], 1.0, (n, 2))
        low, high = shapley(lambda m, b=brings: b @ m, 2).interval(seed=seed)
        held += low[0] <= 0.5 <= high[0]
    assert AT_LEAST <= held / DRAWS <= AT_MOST


def test_one_unit_has_no_bounds_and_what_is_no_mean_has_none_under_ten():
    draws = np.random.default_rng(0).normal(size=(200, 3))
    assert np.isnan(percentile_interval(draws, 1)).all()
    assert np.isnan(percentile_interval(draws, 9, of_mean=False)).all()
    assert np.isfinite(percentile_interval(draws, 10, of_mean=False)).all()


def test_bounds_stay_within_the_range_of_the_quantity():
    draws = bootstrap_weights(2, 500) @ np.array([0.0, 1.0]) / 2
    assert percentile_interval(draws, 2, within=(0.0, 1.0)).tolist() == [0.0, 1.0]


def test_one_item_says_nothing_of_the_share_of_a_part():
    found = shapley(lambda m: np.array([float(m.all())]), 2)
    assert np.isnan(found.interval()).all()
    assert np.isnan(found.gap_interval()).all()


def read(rows):
    return Subject(
        MoELM(NANO, seed=0),
        Exam(tokens=np.arange(16 * rows).reshape(rows, 16), domains=("a",) * rows),
    )


def test_one_row_says_nothing_of_what_the_lens_reads_on_others():
    found = logit_lens(read(1))
    for name in ("logprob", "agreement"):
        assert np.isfinite(found[name]).all()
        assert np.isnan(found[name + "_low"]).all()
        assert np.isnan(found[name + "_high"]).all()


def test_the_lens_on_three_rows_has_the_bounds_of_students_t():
    subject = read(3)
    last = logit_lens(subject).isel(layer=-1)
    of_row = np.nanmean(subject["next_logprob"].numpy().reshape(3, 16), axis=1)
    want = stats.t.interval(0.95, 2, of_row.mean(), stats.sem(of_row))
    assert last["logprob_low"].item() == pytest.approx(want[0], abs=0.1)
    assert (last["agreement_low"], last["agreement_high"]) == (1.0, 1.0)


def test_divergence_on_one_row_has_no_bounds_and_the_axes_none_under_ten_rows():
    one, other = (Subject(MoELM(NANO, seed=s), read(1).exam) for s in (0, 1))
    assert np.isnan(divergence(one, other)["relative_low"]).all()
    points = [essential(Subject(MoELM(NANO, seed=s), read(4).exam)) for s in range(3)]
    found = basis(
        xr.concat(points, "checkpoint", data_vars="all", coords="minimal", compat="override")
    )
    assert np.isfinite(found["explained"]).all()
    assert np.isnan(found["explained_low"]).all()


def test_the_committees_size_has_no_bounds_from_a_few_texts():
    found = committee(read(4))
    assert np.isnan(found["size_low"]).all()
    assert np.isfinite(committee(read(12))["size_low"]).all()


def answered(n, right=True):
    items = SimpleNamespace(
        tasks=("t",), items_per_task=n, item_of=np.repeat(np.arange(n), 2),
        is_right=np.tile([True, False], n),
        continuation=[[c] for i in range(n) for c in (i % 4, (i + 1) % 4)],
    )  # fmt: skip
    values = np.tile([-0.1, -3.0] if right else [-3.0, -0.1], n) - np.repeat(np.arange(n), 2) * 0.01
    return answers_of(items, values, {"t": 0.5}).isel(task=0)


def test_one_answered_item_has_wilsons_bounds_and_no_others():
    found = answered(1)
    assert 0.2 < found["accuracy_low"] < 0.21
    for name in ("precision", "recall", "f1", "brier", "calibration_error", "logprob"):
        assert np.isnan(found[f"{name}_low"]), name
        assert np.isnan(found[f"{name}_high"]), name


@pytest.mark.parametrize("right", [True, False])
def test_items_that_are_all_right_or_all_wrong_do_not_say_how_f1_varies(right):
    found = answered(20, right)
    assert found["f1"] == float(right)
    for name in ("precision", "recall", "f1"):
        assert np.isnan(found[f"{name}_low"]), name
        assert "no draw differs" in found[name].attrs["interval"]
    assert found["logprob_low"] < found["logprob"] < found["logprob_high"]


def test_five_items_have_students_t_for_the_log_probability():
    values = -0.1 - 0.01 * np.arange(5)
    want = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    found = answered(5)
    assert [found["logprob_low"], found["logprob_high"]] == pytest.approx(want, rel=0.02)


def test_churn_between_a_few_documents_says_so():
    record = activations_record(checkpoints=2, tokens=200)
    record = record.assign_coords(document=("token", np.repeat([0, 1], 100)))
    found = probes.churn(record)
    assert "Student" in found["kappa"].attrs["interval"]
    assert (found["kappa_high"] <= 1).all()
