"""Fewer draws of what rates_linear.py counts; refused where chance would not bring the share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

import rates_linear

DRAWS = 12


@pytest.mark.parametrize("row", rates_linear.RATES, ids=lambda row: f"{row[1]}, {row[2]}, {row[0]}")
def test_a_rate_is_as_stated(row):
    if "logistic" in row[1] or "lens" in row[1]:
        pytest.skip("takes its truth from many draws: counted by rates_linear.py")
    _, _, what, _, held = row
    count = int(np.sum([held(seed) for seed in range(DRAWS)]))
    if what == rates_linear.ALARM:
        assert stats.binom.sf(count - 1, DRAWS, 0.05) > 1e-3
    else:
        assert stats.binom.cdf(count, DRAWS, 0.90) > 1e-3
