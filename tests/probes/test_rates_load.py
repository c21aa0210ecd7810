"""A few draws of what rates_load.py counts on 200."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "rates_load", Path(__file__).with_name("rates_load.py")
)
rates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rates)


@pytest.mark.parametrize("test", [rates.dead_expert, rates.specialist, rates.frozen])
def test_the_planted_truth_is_found_in_every_draw(test):
    assert all(test(seed) for seed in range(1000, 1003))


def test_a_fair_router_has_no_dead_expert():
    assert not any(rates.nobody_dead(seed) for seed in range(1000, 1003))
