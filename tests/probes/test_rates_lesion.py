"""The stated rates of lesions and attribution hold, in fewer draws than the docs print."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from scipy import stats

DRAWS = 30


def _rates():
    spec = importlib.util.spec_from_file_location(
        "rates_lesion", Path(__file__).parent / "rates_lesion.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_intervals_hold_the_truth_and_what_does_nothing_is_not_called():
    module = _rates()
    rows = module.lesion_rates(DRAWS) + module.attribution_rates(DRAWS)
    for row in rows:
        hits = round(row["share"] * DRAWS)
        if row["wanted"].startswith("at most"):
            # Would 5 % give as many as this more than once in a thousand times?
            assert stats.binom.sf(hits - 1, DRAWS, 0.05) > 1e-3, row
        else:
            assert stats.binom.cdf(hits, DRAWS, 0.95) > 1e-3, row
