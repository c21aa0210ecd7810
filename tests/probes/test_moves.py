import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes.statistics.moves import (
    drawn_blocks,
    greatest_moves,
    memory_of,
    pooled_by,
    shuffled_blocks,
)
from probes.statistics.wandering import least_remarkable, prepared
from workbench.errors import UsageError

STEPS = np.arange(100.0)


def noise(seed, n=100):
    return np.random.default_rng(seed).normal(size=n)


def found(series, **options):
    usual = {"n_perm": 199, "n_boot": 50}
    return greatest_moves(STEPS, np.atleast_2d(series), (1.0, 10.0, 20.0), **(usual | options))


def test_a_step_is_found_with_its_height_and_its_direction():
    up = found(3 * (STEPS >= 40) + 0.5 * noise(0) + 0.05 * STEPS)
    down = found(-3 * (STEPS >= 40) + 0.5 * noise(0) + 0.05 * STEPS)
    assert abs(up.at[0] - 39.5) <= 2
    assert abs(up.height[0] - 3) < 1.5
    assert up.score[0] > 0
    assert down.height[0] < 0
    assert down.score[0] < 0
    assert max(up.p[0], down.p[0]) <= 0.05


def test_a_ramp_is_found_at_its_middle():
    ramp = np.clip((STEPS - 50) / 20 + 0.5, 0, 1)
    one = found(6 * ramp + 0.3 * noise(1))
    assert abs(one.at[0] - 50) <= 3
    assert one.duration[0] >= 10


def test_p_cannot_be_under_its_floor():
    one = found(20 * (STEPS >= 40) + 0.5 * noise(2), n_perm=99)
    assert one.p[0] == 1 / 100


def test_a_constant_and_a_straight_line_make_no_move():
    none = found(np.stack([np.ones(100), 5 + 0.1 * STEPS]))
    assert np.isnan(none.p).all()
    assert np.isnan(none.at).all()


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.floats(-10, 10))
@settings(max_examples=8)
def test_neither_unit_nor_level_nor_slope_matters(unit, level, slope):
    series = 2 * (STEPS >= 60) + noise(3)
    plain, other = found(series), found(unit * (series + level + slope * STEPS / 100))
    assert other.at[0] == plain.at[0]
    assert other.p[0] == pytest.approx(plain.p[0], abs=0.03)
    assert other.score[0] == pytest.approx(plain.score[0], rel=1e-3)


def test_a_later_clock_moves_the_time_and_nothing_else():
    series = 2 * (STEPS >= 60) + noise(4)
    early = found(series)
    late = greatest_moves(STEPS + 1e5, series[None], (1.0, 10.0, 20.0), n_perm=199, n_boot=50)
    assert late.at[0] == early.at[0] + 1e5
    assert late.p[0] == early.p[0]
    assert np.allclose(late.draws, early.draws + 1e5)


def test_the_score_is_the_t_of_generalised_least_squares():
    """Against the normal equations written out, with each blend's own covariance."""
    ramps, blends = prepared(STEPS.tobytes(), (10.0,), 1)
    series = 2 * (STEPS >= 60) + noise(5)
    chosen, squared = least_remarkable(blends, series[None])
    blend = blends[int(chosen[0])]
    inverse = np.linalg.inv(blend.root @ blend.root.T)
    scores = []
    for ramp in ramps.values.T:
        design = np.column_stack([np.ones(100), STEPS, ramp])
        spread = np.linalg.inv(design.T @ inverse @ design)
        weights = spread @ design.T @ inverse @ series
        rest = series - design @ weights
        scores.append(weights[2] ** 2 / (spread[2, 2] * (rest @ inverse @ rest) / 97))
    assert squared[0] == pytest.approx(max(scores), rel=1e-6)


def test_shuffled_blocks_keep_the_values_and_what_is_inside_a_block():
    rng = np.random.default_rng(0)
    values = np.arange(23, dtype=np.float32)
    shuffled = shuffled_blocks(values, 5, 50, rng)
    assert (np.sort(shuffled, axis=1) == values).all()
    followers = (np.diff(shuffled, axis=1) % 23 == 1).mean()
    assert followers > 0.75
    assert (shuffled_blocks(values, 1, 50, rng) != values).any()
    drawn = drawn_blocks(np.arange(23.0), 5, 10, rng)
    assert drawn.shape == (10, 23)
    assert np.isin(drawn + 11, values).all()


def test_memory_grows_with_autocorrelation():
    slow = np.convolve(noise(6, 219), np.ones(20), mode="valid")
    assert memory_of(noise(6, 200)) == 3
    assert memory_of(slow) > 8
    assert memory_of(np.zeros(30)) == 1


def test_pooling_keeps_the_mean_and_drops_the_earliest():
    times, series = pooled_by(3, np.arange(7.0), np.arange(7.0)[None])
    assert times.tolist() == [2.0, 5.0]
    assert series.tolist() == [[2.0, 5.0]]


def test_under_white_noise_and_under_a_walk_p_is_not_too_small():
    for walk in (False, True):
        series = np.random.default_rng(7).normal(size=(60, 100))
        p = found(np.cumsum(series, axis=1) if walk else series, n_boot=2).p
        # More than this would be seen in 1 of 1000 if the rate were 5 %.
        assert (p <= 0.05).sum() <= stats.binom.ppf(0.999, 60, 0.05)


def test_too_few_or_missing_values_are_refused():
    with pytest.raises(UsageError, match="16 times"):
        greatest_moves(np.arange(5.0), np.ones((1, 5)), (1.0,))
    with pytest.raises(UsageError, match="missing"):
        found(np.where(STEPS == 3, np.nan, STEPS))
