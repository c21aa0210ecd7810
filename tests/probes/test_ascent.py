"""Ascent: isotonic fits, crossings and shares of a rise, on curves whose answer is plain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import IsotonicRegression

from probes.statistics.ascent import (
    Stretches,
    breakthroughness,
    crossings,
    linearity,
    monotone,
    share,
)

STEPS = np.arange(0, 1000, 50).astype(float)
CURVES = hnp.arrays(np.float64, 20, elements=st.floats(-0.25, 1.0, width=32))


@given(CURVES)
def test_the_monotone_fit_is_sklearns(curve):
    want = IsotonicRegression().fit_transform(np.arange(20), curve)
    np.testing.assert_allclose(monotone(curve[None])[0], want, atol=1e-9)


@given(CURVES, st.floats(0.05, 0.95))
def test_the_crossing_is_where_every_later_stretch_averages_the_level(curve, level):
    fit = monotone(curve[None])
    step, left, right = (x.item() for x in crossings(fit, STEPS, level))
    if np.isinf(step):
        assert fit[0, -1] < level
        return
    assert left <= step <= right
    start = STEPS.tolist().index(right)
    stretches = [curve[start : stop + 1].mean() for stop in range(start, 20)]
    assert min(stretches) >= level - 1e-9
    if left < right:
        assert min(curve[start - 1 : stop + 1].mean() for stop in range(start - 1, 20)) < level


@given(CURVES, CURVES, st.floats(0.05, 0.95))
def test_a_curve_that_is_nowhere_lower_does_not_arrive_later(curve, gain, level):
    better = curve + np.abs(gain)
    early, late = (crossings(monotone(c[None]), STEPS, level)[0].item() for c in (better, curve))
    assert early <= late + 1e-6


@given(CURVES, st.floats(0.05, 0.9), st.floats(0.0, 0.1))
def test_a_higher_level_is_not_reached_earlier(curve, level, more):
    fit = monotone(curve[None])
    low, high = (crossings(fit, STEPS, x)[0].item() for x in (level, level + more))
    assert low <= high + 1e-9


@given(CURVES, st.integers(-10_000, 10_000))
def test_shifting_the_clock_shifts_the_crossing(curve, by):
    fit = monotone(curve[None])
    here, there = (crossings(fit, s, 0.4)[0].item() for s in (STEPS, STEPS + by))
    assert there == pytest.approx(here + by) or np.isinf(here)


def test_a_straight_line_is_crossed_where_it_should_be():
    fit = np.linspace(0, 1, 20)[None]
    assert crossings(fit, STEPS, 0.5)[0].item() == pytest.approx(475)


def shares(curve: np.ndarray, steps: np.ndarray, length: float) -> tuple[float, float]:
    """Least and greatest share of the rise that one stretch may hold."""
    stretches = Stretches.of(steps, length)
    rise = curve[-1] - curve[0]
    inside = stretches.rise_inside(curve[None]).max() / rise
    return inside, stretches.rise_outside(curve[None]).max() / rise


def test_a_straight_line_rises_at_an_even_pace():
    steps = np.arange(0, 1001, 10).astype(float)
    least, greatest = shares(np.linspace(0, 1, 101), steps, 200)
    assert least == pytest.approx(0.20)
    assert greatest == pytest.approx(0.21)


def test_a_step_falls_into_one_stretch_if_the_checkpoints_are_close_enough():
    assert shares((STEPS >= 500) * 1.0, STEPS, 200) == (1.0, 1.0)


def test_checkpoints_that_are_too_far_apart_bound_nothing():
    steps = np.array([0.0, 300, 600, 900])
    assert shares(np.array([0.0, 0, 1, 1]), steps, 200) == (0.0, 1.0)


@given(hnp.arrays(np.float64, 20, elements=st.floats(0, 1, width=32)), st.floats(20, 900))
def test_the_true_share_lies_between_the_two(rises, length):
    curve = np.concatenate([[0.0], np.cumsum(rises)])
    steps = np.arange(21) * 50.0
    if curve[-1] < 1e-3:
        return
    fine = np.linspace(0, 1000, 4001)
    straight = np.interp(fine, steps, curve)
    ends = np.interp(np.minimum(fine + length, 1000), steps, curve)
    true = (ends - straight).max() / curve[-1]
    least, greatest = shares(curve, steps, length)
    assert least - 1e-9 <= true <= greatest + 1e-9


def test_surroundings_keep_their_length_at_the_edges_of_the_clock():
    steps = np.arange(0, 1001, 50).astype(float)
    low, high = Stretches.of(steps, 200).around
    np.testing.assert_array_equal(steps[high] - steps[low], 600)
    # Of the stretch that begins at 400: one length before it, and one after its end.
    assert (steps[low[8]], steps[high[8]]) == (200, 800)


def test_no_rise_has_no_shares():
    assert share(np.array([0.0]), np.array([0.0]), unknown=1.0).item() == 1.0


@pytest.mark.parametrize(
    ("curve", "linear", "broken"),
    [
        (np.linspace(0, 1, 11), 10, 10),
        (np.linspace(1, 0, 11), -10, -10),
        (np.array([0.0, 0, 0, 0, 1]), 2, np.inf),
        (np.zeros(5), 0, 0),
    ],
    ids=["line", "falling line", "step", "flat"],
)
def test_big_benchs_measures_on_plain_curves(curve, linear, broken):
    assert linearity(curve) == pytest.approx(linear)
    assert breakthroughness(curve) == pytest.approx(broken)
