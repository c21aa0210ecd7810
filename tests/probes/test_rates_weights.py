"""Fewer draws of what rates_weights.py measures: an interval that is grossly off shows in these."""

import importlib.util
from pathlib import Path

import pytest
from scipy import stats

spec = importlib.util.spec_from_file_location(
    "rates_weights", Path(__file__).with_name("rates_weights.py")
)
rates_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rates_weights)

DRAWS = 16
SLOW = ("learning-coefficient", "exposure", "prefix-matching")
QUICK = [rate for rate in rates_weights.RATES if rate.probe not in SLOW]


@pytest.mark.parametrize("rate", QUICK, ids=lambda rate: f"{rate.probe}: {rate.world}")
def test_no_rate_is_grossly_off_what_is_stated(rate):
    hits = sum(rate.held(seed) for seed in range(1000, 1000 + DRAWS))
    if rate.wanted == rates_weights.COVER:
        # Fewer than this happens once in a thousand where 90 % are covered.
        assert hits >= stats.binom.ppf(0.001, DRAWS, 0.90)
    else:
        assert hits <= stats.binom.ppf(0.999, DRAWS, 0.05)
