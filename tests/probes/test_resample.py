"""Resample: intervals hold what they promise, against scipy and by exact enumeration."""

import numpy as np
import pytest
from scipy import stats

from probes.statistics.resample import bootstrap_weights, percentile_interval, tails, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 20), (20, 20), (7, 20), (1, 3), (180, 200)])
def test_wilson_agrees_with_scipy(right, n):
    low, high = wilson(np.array([float(right)]), np.array([float(n)]))
    want = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (low.item(), high.item()) == pytest.approx((want.low, want.high), abs=1e-12)


@pytest.mark.parametrize("n", [20, 60, 200])
def test_wilson_covers_in_about_95_percent_of_all_outcomes(n):
    right = np.arange(n + 1)
    low, high = wilson(right.astype(float), np.full(n + 1, float(n)))
    truths = np.linspace(0.02, 0.98, 97)
    held = (low <= truths[:, None]) & (truths[:, None] <= high)
    coverage = (held * stats.binom.pmf(right, n, truths[:, None])).sum(axis=1)
    assert 0.945 <= coverage.mean() <= 0.965
    assert coverage.min() > 0.83


def test_nothing_asked_means_nothing_known():
    low, high = wilson(np.array([0.0]), np.array([0.0]))
    assert (low.item(), high.item()) == (0, 1)


def test_the_same_seed_draws_the_same_items():
    np.testing.assert_array_equal(bootstrap_weights(30, 5, seed=1), bootstrap_weights(30, 5, 1))
    assert (bootstrap_weights(30, 5, seed=1) != bootstrap_weights(30, 5, seed=2)).any()


def test_few_units_widen_the_quantiles():
    assert tails(5)[0] < tails(50)[0] < 0.025
    # Student's t with 19 degrees of freedom, 2.093, times sqrt(20/19), read as a normal's.
    assert tails(20)[0] == pytest.approx(0.0159, abs=1e-4)
    assert tails(1) == (0.0, 1.0)


@pytest.mark.parametrize("n", [10, 60])
def test_the_widened_bootstrap_covers_the_mean_of_skewed_numbers(n):
    rng = np.random.default_rng(0)
    weights = bootstrap_weights(n, 600) / n
    values = -rng.gamma(2.0, 1.0, (600, n))
    draws = weights @ values.T
    low, high = percentile_interval(draws, n)
    covered = np.mean((low <= -2.0) & (high >= -2.0))
    assert 0.90 <= covered <= 0.97


def test_undefined_draws_are_left_out_and_a_quantity_never_defined_has_no_interval():
    draws = np.random.default_rng(0).normal(size=(400, 2))
    draws[:50, 0] = np.nan
    draws[:, 1] = np.nan
    low, high = percentile_interval(draws, 1000)
    assert low[0] < -1.5 < 1.5 < high[0]
    assert np.isnan(low[1])
    assert np.isnan(high[1])
