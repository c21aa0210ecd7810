import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.statistics.discovery_rate import q_values
from workbench.errors import UsageError


def by_a_plain_loop(p):
    """Benjamini & Hochberg 1995, written down as in the paper."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    q, least = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        i = order[rank - 1]
        least = min(least, p[i] * len(p) / rank)
        q[i] = least
    return q


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_q_agrees_with_the_definition_and_is_never_under_p(p):
    q = q_values(p)
    assert np.allclose(q, by_a_plain_loop(p))
    assert (q >= np.array(p) - 1e-12).all()
    assert (q <= 1).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.randoms())
def test_the_order_of_the_tests_does_not_matter(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    assert np.allclose(q_values(np.array(p)[order]), q_values(p)[order])


def test_what_was_not_tested_does_not_count_and_shapes_are_kept():
    q = q_values([[0.01, np.nan], [0.02, 0.9]])
    assert q.shape == (2, 2)
    assert np.isnan(q[0, 1])
    assert np.allclose(q[~np.isnan(q)], q_values([0.01, 0.02, 0.9]))
    assert np.isnan(q_values([np.nan])).all()


def test_any_dependence_costs_the_harmonic_sum():
    p = [0.001, 0.02, 0.5, 0.9]
    worst = np.minimum(q_values(p) * (1 + 1 / 2 + 1 / 3 + 1 / 4), 1)
    assert np.allclose(q_values(p, dependence="any"), worst)


def test_what_is_no_probability_is_refused():
    with pytest.raises(UsageError, match="expected 0 to 1"):
        q_values([0.5, 1.2])
    with pytest.raises(UsageError, match="dependence"):
        q_values([0.5], dependence="none")


def test_of_calls_at_five_percent_at_most_five_percent_are_wrong():
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(300):
        p = np.concatenate([rng.uniform(size=30), rng.beta(0.1, 20, size=10)])
        called = q_values(p) <= 0.05
        wrong.append(called[:30].sum() / max(called.sum(), 1))
    assert np.mean(wrong) <= 0.05
