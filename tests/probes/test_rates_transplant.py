"""A small draw of the transplant's error rates lies where the table says, and the table is kept."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from probes.statistics.shapley import shapley

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "measured" / "rates-transplant.json"
DRAWS = 40


@cache
def rates():
    spec = importlib.util.spec_from_file_location("rates_transplant", HERE / "rates_transplant.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("measure", ["logprob", "accuracy"])
def test_intervals_cover_the_shares_of_interacting_parts(measure):
    table = rates().crossed(measure)
    truth = shapley(rates().value_of(table), 9, n_permutations=None).values
    held = np.stack([rates().covered(table, truth, measure, d, 16) for d in range(DRAWS)])
    # Parts of one draw share their items, so each part is judged by itself.
    fewest = stats.binom.ppf(0.001, DRAWS, 0.94)
    assert (held.sum(0) >= fewest).all()
    assert held.mean() <= 0.995


def test_the_kept_table_holds_what_was_wanted():
    for row in json.loads(TABLE.read_text())["rows"]:
        low, _, high = row["wanted"].partition(" to ")
        if high:
            assert float(low) <= row["share"] <= float(high), row
        elif low.startswith("at most"):
            assert row["share"] <= float(low.split()[-1]), row
        else:
            assert row["share"] == float(low), row
