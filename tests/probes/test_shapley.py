"""Shapley values are those of the books, sum to the gap, and know what the sampling cost."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.statistics.shapley import adjusted_interval, shapley
from workbench.errors import UsageError


def game(n_parts, items=3, seed=0):
    """A game drawn at random: (item,) values for every coalition."""
    table = np.random.default_rng(seed).normal(size=(2**n_parts, items))
    return lambda members: table[int((members << np.arange(n_parts)).sum())]


def over_all_orders(value, n_parts):
    """The definition, one order after the other."""
    total = np.zeros((n_parts, *value(np.zeros(n_parts, bool)).shape))
    orders = list(permutations(range(n_parts)))
    for order in orders:
        inside = np.zeros(n_parts, dtype=bool)
        for part in order:
            before = value(inside.copy())
            inside[part] = True
            total[part] += value(inside.copy()) - before
    return total / len(orders)


def test_the_only_left_glove_is_worth_two_thirds():
    found = shapley(lambda m: np.array([float(m[0] and (m[1] or m[2]))]), 3)
    assert np.allclose(found.values, [2 / 3, 1 / 6, 1 / 6])


def test_in_an_additive_game_everybody_has_what_he_brings():
    brings = np.array([3.0, -1.0, 0.0, 2.0])
    found = shapley(lambda m: np.array([m @ brings]), 4)
    assert np.allclose(found.values, brings)
    assert np.allclose(found.alone[:, 0], brings)
    assert np.allclose(found.last[:, 0], brings)


def test_in_a_majority_everybody_has_the_same():
    assert np.allclose(shapley(lambda m: np.array([float(m.sum() > 2)]), 5).values, 0.2)


def test_two_that_only_work_together_share_and_neither_does_anything_alone():
    found = shapley(lambda m: np.array([float(m[0] and m[1])]), 3)
    assert np.allclose(found.values, [0.5, 0.5, 0])
    assert np.allclose(found.alone[:, 0], 0)
    assert np.allclose(found.last[:, 0], [1, 1, 0])


def test_a_power_index_known_from_the_books():
    # Weighted majority of 51 with 50, 49 and 1: the smallest has as much as the second.
    votes = np.array([50, 49, 1])
    found = shapley(lambda m: np.array([float(m @ votes >= 51)]), 3)
    assert np.allclose(found.values, [2 / 3, 1 / 6, 1 / 6])


@given(parts=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_all_coalitions_give_the_average_over_all_orders(parts, seed):
    value = game(parts, seed=seed)
    found = shapley(value, parts, n_permutations=None)
    assert found.exact
    assert np.allclose(found.by_item, over_all_orders(value, parts))


@given(parts=st.integers(1, 9), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_values_sum_to_the_gap_item_by_item_exact_or_sampled(parts, seed):
    found = shapley(game(parts, seed=seed), parts, n_permutations=8, seed=seed)
    assert np.allclose(found.by_item.sum(0), found.every - found.none)
    for one_pair in found.by_pair:
        assert np.allclose(one_pair.sum(0), found.every - found.none)


@given(seed=st.integers(0, 1000), exact=st.booleans())
@settings(max_examples=25)
def test_a_part_that_adds_nothing_has_nothing(seed, exact):
    inner = game(4, seed=seed)
    found = shapley(lambda m: inner(m[1:]), 5, n_permutations=None if exact else 8)
    assert np.allclose(found.by_item[0], 0)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_parts_that_can_stand_for_each_other_have_the_same(seed):
    inner = game(3, seed=seed)
    counted = lambda m: inner(np.array([m[0] ^ m[1], m[0] & m[1], m[2]]))  # noqa: E731
    found = shapley(counted, 3)
    assert np.allclose(found.by_item[0], found.by_item[1])


@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3), parts=st.integers(2, 7))
@settings(max_examples=25)
def test_the_values_of_a_sum_of_games_are_the_sums(seed, factor, parts):
    one, two = game(parts, seed=seed), game(parts, seed=seed + 1)
    kept = {"n_permutations": 8, "seed": 5}
    both = shapley(lambda m: one(m) + factor * two(m), parts, **kept)
    apart = shapley(one, parts, **kept).by_item + factor * shapley(two, parts, **kept).by_item
    assert np.allclose(both.by_item, apart)


def test_coalitions_are_measured_once_and_one_part_apart_when_all_are():
    asked = []

    def value(members):
        asked.append(members.copy())
        return np.array([float(members.sum())])

    found = shapley(value, 4)
    assert found.coalitions == len(asked) == len({m.tobytes() for m in asked}) == 16
    assert all((a != b).sum() == 1 for a, b in pairwise(asked))


def test_a_sampled_coalition_is_measured_once():
    asked = []

    def value(members):
        asked.append(members.tobytes())
        return np.array([float(members.sum())])

    found = shapley(value, 10, n_permutations=16)
    assert not found.exact
    assert found.coalitions == len(asked) == len(set(asked)) < 16 * 9 + 2 + 20


def test_all_coalitions_are_measured_when_it_is_no_dearer_than_sampling():
    assert shapley(game(8), 8, n_permutations=64).exact
    assert not shapley(game(8), 8, n_permutations=16).exact


def test_the_standard_error_of_the_sampling_is_right():
    value = game(9, seed=4)
    truth = shapley(value, 9, n_permutations=None).values
    errors = []
    for seed in range(60):
        found = shapley(value, 9, n_permutations=32, seed=seed)
        errors.append((found.values - truth) / found.standard_error)
    # Squares of t with 15 degrees of freedom have mean 15 / 13.
    assert 0.8 < np.mean(np.square(errors)) / (15 / 13) < 1.25


def test_exact_values_have_no_sampling_error():
    assert shapley(game(3), 3).standard_error.tolist() == [0, 0, 0]


def test_the_interval_covers_the_value_over_all_items():
    pool = np.random.default_rng(0).normal(size=(16, 4000)) ** 2
    code = lambda m: int((m << np.arange(4)).sum())  # noqa: E731
    truth = shapley(lambda m: pool[code(m)], 4).values
    held = []
    for seed in range(100):
        drawn = np.random.default_rng([1, seed]).integers(4000, size=64)
        found = shapley(lambda m, d=drawn: pool[code(m)][d], 4)
        low, high = found.interval(n_boot=300, seed=seed)
        held.append((low <= truth) & (truth <= high))
    assert 0.91 < np.mean(held) < 0.985


def test_answers_that_never_change_do_not_give_an_interval_without_width():
    found = shapley(lambda m: np.ones(64) * m[0], 2)
    low, high = found.interval(answers=True)
    assert low[1] < 0 < high[1]
    assert low[0] < 1 <= high[0]


def test_the_gap_of_answers_has_the_interval_of_bonett_and_price():
    gained, lost, same = 12, 3, 45
    gap = np.repeat([1.0, -1.0, 0.0], [gained, lost, same])
    up, down, n = gained + 1, lost + 1, 62
    share = (up - down) / n
    half = 1.959964 * np.sqrt(((up + down) / n - share**2) / n)
    assert np.allclose(
        adjusted_interval(gap[None], np.zeros(1))[:, 0], [share - half, share + half]
    )


def test_half_of_an_answer_has_half_of_the_interval():
    changed = np.repeat([1.0, -1.0, 0.0], [12, 3, 45])
    whole, half = (adjusted_interval(f * changed[None], np.zeros(1))[:, 0] for f in (1.0, 0.5))
    assert np.allclose(half, whole / 2)


def test_one_part_has_the_whole_gap():
    found = shapley(lambda m: np.array([1.0, 2.0]) * m[0], 1)
    assert found.values.tolist() == [1.5]
    assert found.coalitions == 2


@pytest.mark.parametrize("wrong", [7, 6, 0, -2])
def test_an_odd_or_small_number_of_orders_is_refused(wrong):
    with pytest.raises(UsageError, match="8 or more"):
        shapley(game(3), 3, n_permutations=wrong)


def test_all_coalitions_of_too_many_parts_are_refused_with_the_remedy():
    with pytest.raises(UsageError, match="n_permutations=64"):
        shapley(game(3), 21, n_permutations=None)


def test_no_part_is_refused():
    with pytest.raises(UsageError, match="1 or more"):
        shapley(game(1), 0)
