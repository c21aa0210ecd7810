"""Bracket: it holds the true step, also where the curve dwells near the level or falls back."""

import numpy as np
import pytest

from probes.statistics.bracket import bracket
from probes.statistics.resample import bootstrap_weights


def observed(success: np.ndarray, items: int, seed: int) -> np.ndarray:
    """(draw, checkpoint): accuracy with its bootstrap, items answered with this probability."""
    right = np.random.default_rng(seed).random((items, len(success))) < success
    weights = np.concatenate([np.ones((1, items)), bootstrap_weights(items, 200, seed)]) / items
    return weights @ right


def test_a_clear_step_is_bracketed_by_its_gap():
    curves = observed(np.r_[np.full(10, 0.1), np.full(10, 0.9)], 60, seed=0)
    assert bracket(curves, 0.5, 0.01) == (9, 10)


def test_a_fall_undoes_what_came_before():
    success = np.r_[np.full(5, 0.1), np.full(5, 0.9), np.full(5, 0.1), np.full(5, 0.9)]
    assert bracket(observed(success, 60, seed=0), 0.5, 0.01) == (14, 15)


def test_what_fell_to_the_end_has_not_arrived():
    success = np.r_[np.full(5, 0.1), np.full(5, 0.9), np.full(5, 0.1)]
    assert bracket(observed(success, 60, seed=0), 0.5, 0.01) == (14, 15)


def test_a_curve_at_the_level_throughout_bounds_nothing():
    found = [bracket(observed(np.full(15, 0.5), 60, seed), 0.5, 0.01) for seed in range(100)]
    # The worst case: a test of 10 % errs in up to 16 %. Over 26 of 100 is met in 0.5 % of cases.
    assert sum(before >= 0 for before, _ in found) <= 26
    assert sum(after < 15 for before, after in found if before < 0) <= 26


def test_four_items_that_agree_are_no_proof():
    curves = np.zeros((201, 3))
    assert bracket(curves, 0.5, least_error=0.26) == (-1, 3)
    assert bracket(curves, 0.5, least_error=0.01) == (2, 3)


@pytest.mark.parametrize(
    "success",
    [
        np.r_[np.full(10, 0.1), np.full(15, 0.55)],
        np.r_[np.full(10, 0.45), np.full(15, 0.9)],
        np.linspace(0.02, 0.98, 25),
    ],
    ids=["plateau above", "plateau below", "straight"],
)
def test_the_bracket_holds_the_truth_in_at_least_90_percent(success):
    held = []
    # The first checkpoint at which the probability is at the level.
    true = int(np.argmax(success >= 0.5))
    for seed in range(100):
        before, after = bracket(observed(success, 60, seed), 0.5, 0.01)
        held.append(before < true <= after)
    assert np.mean(held) >= 0.88
